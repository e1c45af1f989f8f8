"""Several optimizers as one: groups, state, schedules, factors, checkpoints, steps of single tensors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory import FusedBackward
from hf_ft_plugins.techniques.low_memory.optimizers.apollo import APOLLO
from hf_ft_plugins.techniques.low_memory.optimizers.combined import OWNER, CombinedOptimizer
from hf_ft_plugins.techniques.low_memory.optimizers.galore import GaLore
from hf_ft_plugins.techniques.low_memory.optimizers.sinkgd import SinkGD
from hf_ft_plugins.techniques.low_memory.tensor_step import refuse_inseparable
from hf_ft_plugins.testing.equality import difference

STEPS = 7
GAP = 3
SHAPES = [(6, 10), (10, 6), (6, 6)]
# Not of one size, so that a tensor that is stepped with another one's place shows.
OTHERS = [(6,), (), (2, 3, 4), (0,), (12, 5)]
KINDS = {
    "galore": lambda groups: GaLore(groups, rank=3, update_gap=GAP),
    "apollo": lambda groups: APOLLO(groups, rank=3, update_gap=GAP),
    "apollo-mini": lambda groups: APOLLO(groups, rank=1, scaling="tensor", scale=11.3, update_gap=GAP),
    "sinkgd": SinkGD,
    "muon": lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
}


def weights(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in (*SHAPES, *OTHERS)]


def combined(name: str, parameters: list[torch.nn.Parameter]) -> CombinedOptimizer:
    count = len(SHAPES)
    groups = [{"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.1}, {"params": parameters[2:count], "lr": 2e-2}]
    return CombinedOptimizer({name: KINDS[name](groups), "adamw": torch.optim.AdamW(parameters[count:], lr=3e-2)})


def gradient(parameter: torch.Tensor, place: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + place)
    return torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for place, parameter in enumerate(parameters):
            parameter.grad = gradient(parameter, place, step)
        optimizer.step()
        optimizer.zero_grad()


def outcome(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> dict:
    return copy.deepcopy({"weights": [one.detach() for one in parameters], "optimizer": optimizer.state_dict()})


def uninterrupted(name: str, dtype: torch.dtype) -> dict:
    parameters = weights(dtype)
    optimizer = combined(name, parameters)
    take_steps(optimizer, parameters, range(STEPS))
    return outcome(optimizer, parameters)


def saved_and_read(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", KINDS)
def test_it_steps_each_group_as_its_own_optimizer_does(name):
    together, alone = weights(), weights()
    optimizer = combined(name, together)
    take_steps(optimizer, together, range(STEPS))
    parts = [alone[:2], alone[2 : len(SHAPES)], alone[len(SHAPES) :]]
    groups = [{"params": parts[0], "lr": 1e-2, "weight_decay": 0.1}, {"params": parts[1], "lr": 2e-2}]
    singles = KINDS[name](groups), torch.optim.AdamW(parts[2], lr=3e-2)
    for step in range(STEPS):
        for place, parameter in enumerate(alone):
            parameter.grad = gradient(parameter, place, step)
        for single in singles:
            single.step()
    assert difference(together, alone) is None
    assert [group[OWNER] for group in optimizer.param_groups] == [name, name, "adamw"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_a_run_resumed_at_any_step_is_the_run_never_stopped(name, dtype):
    expected = uninterrupted(name, dtype)
    for stop in range(STEPS):
        parameters = weights(dtype)
        first = combined(name, parameters)
        take_steps(first, parameters, range(stop))
        state = saved_and_read(first.state_dict())
        optimizer = combined(name, parameters)
        optimizer.load_state_dict(state)
        take_steps(optimizer, parameters, range(stop, STEPS))
        assert difference(outcome(optimizer, parameters), expected) is None, f"stopped after step {stop}"


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_without_its_own_dtypes_a_resumed_run_would_be_another(name, monkeypatch):
    expected = uninterrupted(name, torch.bfloat16)
    parameters = weights(torch.bfloat16)
    first = combined(name, parameters)
    take_steps(first, parameters, range(2))
    optimizer = combined(name, parameters)
    torch.optim.Optimizer.load_state_dict(optimizer, first.state_dict())
    state = optimizer.state[parameters[0]]
    assert state["exp_avg"].dtype == torch.bfloat16
    for name in ("exp_avg", "exp_avg_sq"):
        for parameter in parameters[: len(SHAPES)]:
            optimizer.state[parameter][name] = optimizer.state[parameter][name].float()
    take_steps(optimizer, parameters, range(2, STEPS))
    assert difference(outcome(optimizer, parameters), expected) is not None


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_an_optimizer_of_matrices_alone_resumes_exactly_too(name):
    results = []
    for stops in (True, False):
        parameters = weights(torch.bfloat16)[: len(SHAPES)]
        optimizer = KINDS[name](parameters)
        take_steps(optimizer, parameters, range(4))
        if stops:
            state = saved_and_read(optimizer.state_dict())
            optimizer = KINDS[name](parameters)
            optimizer.load_state_dict(state)
        take_steps(optimizer, parameters, range(4, STEPS))
        results.append(outcome(optimizer, parameters))
    assert difference(*results) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_stepped_within_the_backward_pass_it_gives_the_same_weights(name, dtype):
    expected = uninterrupted(name, dtype)
    parameters = weights(dtype)
    optimizer = FusedBackward(combined(name, parameters))
    for step in range(STEPS):
        # The last first, as a model's layers.
        terms = [(one * gradient(one, place, step)).sum() for place, one in enumerate(parameters)]
        sum(reversed(terms)).backward()
        assert all(one.grad is None for one in parameters)
        optimizer.step()
    assert difference(outcome(optimizer, parameters), expected) is None


@pytest.mark.parametrize("name", KINDS)
def test_groups_that_are_split_afterwards_are_stepped_the_same(name):
    expected = uninterrupted(name, torch.float32)["weights"]
    parameters = weights()
    optimizer = combined(name, parameters)
    optimizer.param_groups[:] = [
        {**group, "params": [one]} for group in reversed(optimizer.param_groups) for one in reversed(group["params"])
    ]
    take_steps(optimizer, parameters, range(STEPS))
    assert difference([one.detach() for one in parameters], expected) is None


@pytest.mark.parametrize("name", KINDS)
def test_schedules_and_factors_reach_the_weights_of_their_group(name):
    moved = {}
    for factor in (1.0, 0.5):
        parameters = weights()
        before = [one.detach().clone() for one in parameters]
        optimizer = combined(name, parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        lr_scale.set_scale(optimizer, "test", factor, optimizer.param_groups[:1])
        take_steps(optimizer, parameters, range(1))
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1e-2, 1.5e-2]
        moved[factor] = [(one.detach() - old) for one, old in zip(parameters, before, strict=True)]
    for place, (whole, half) in enumerate(zip(moved[1.0], moved[0.5], strict=True)):
        torch.testing.assert_close(whole * (0.5 if place < 2 else 1.0), half, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_found_to_step_each_tensor_alone(name):
    assert refuse_inseparable(combined(name, weights())) is None


def test_an_added_group_goes_to_the_optimizer_that_it_names_or_to_the_last():
    parameters = weights()
    optimizer = combined("apollo", parameters)
    more = [torch.nn.Parameter(torch.ones(5, 5)) for _ in range(2)]
    optimizer.add_param_group({"params": more[:1], OWNER: "apollo"})
    optimizer.add_param_group({"params": more[1:]})
    assert "rank" in optimizer.param_groups[-2]
    assert "amsgrad" in optimizer.param_groups[-1]
    take_steps(optimizer, parameters + more, range(2))
    assert set(optimizer.state[more[0]]) == {"index", "step", "exp_avg", "exp_avg_sq", "norm"}
    assert set(optimizer.state[more[1]]) == {"step", "exp_avg", "exp_avg_sq"}
    indices = [state["index"] for state in optimizer.state.values() if "index" in state]
    assert len(set(indices)) == len(indices) == len(SHAPES) + 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_steps_on_its_own(duplicate):
    parameters = weights()
    both = duplicate({"optimizer": combined("galore", parameters), "parameters": parameters})
    take_steps(both["optimizer"], both["parameters"], range(STEPS))
    assert difference(outcome(both["optimizer"], both["parameters"]), uninterrupted("galore", torch.float32)) is None


def test_a_checkpoint_of_another_algorithm_is_refused():
    galore, apollo = combined("galore", weights()), combined("apollo", weights())
    with pytest.raises(PluginError, match=r"is that of galore and adamw, and this run trains with apollo and adamw\. "):
        apollo.load_state_dict(galore.state_dict())
    with pytest.raises(PluginError, match="is that of another optimizer, and this run"):
        galore.load_state_dict(torch.optim.AdamW(weights()).state_dict())


def test_a_closure_is_called_once_with_gradients():
    parameters = weights()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        return sum((one**2).sum() for one in parameters)

    loss = combined("sinkgd", parameters).step(closure)
    assert calls == [True]
    assert loss.requires_grad
