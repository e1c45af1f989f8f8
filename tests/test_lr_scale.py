"""The arbiter: the applied rate is the base schedule's times the product of factors, exactly, under every scheduler."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError

STEPS = 40
SPECIFIC = {
    "cosine_with_min_lr": {"min_lr": 1e-5},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-5},
    "warmup_stable_decay": {"num_decay_steps": 10},
    "greedy": {"min_lr": 1e-4, "patience": 1},
    "reduce_lr_on_plateau": {"patience": 1},
}
TORCH = {
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=STEPS + 1),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7),
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.2, step_size_up=5, cycle_momentum=False),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)],
        milestones=[5],
    ),
}


class Recording(torch.optim.SGD):
    """SGD that remembers the rates it was stepped with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.applied = []

    @torch.no_grad()
    def step(self, closure=None):
        self.applied.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


def optimizer_of_two_groups():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.full((2,), 0.1)
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.05}]
    return Recording(groups, lr=0.1, momentum=0.9)


def make_scheduler(name, optimizer):
    if name in TORCH:
        return TORCH[name](optimizer)
    return get_scheduler(
        name, optimizer, num_warmup_steps=5, num_training_steps=STEPS, scheduler_specific_kwargs=SPECIFIC.get(name, {})
    )


def rates(name, change):
    optimizer = optimizer_of_two_groups()
    scheduler = make_scheduler(name, optimizer)
    for step in range(STEPS):
        change(step, optimizer)
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) or type(scheduler).__name__ == "GreedyLR":
            scheduler.step(1.0 + (step % 3))
        else:
            scheduler.step()
    return optimizer.applied


def controller(step):
    return 1.0 if step < 10 else 0.3 if step < 25 else 0.09


def contribute(step, optimizer):
    lr_scale.set_scale(optimizer, "controller", controller(step))
    lr_scale.set_scale(optimizer, "layers", 0.5, groups=[optimizer.param_groups[1]])


def edit_the_rate(step, optimizer):
    if step in (10, 25):
        for group in optimizer.param_groups:
            group["lr"] *= 0.3


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType] + list(TORCH))
def test_applied_rate_is_base_times_product_of_factors(name):
    base = rates(name, lambda step, optimizer: None)
    applied = rates(name, contribute)
    expected = [
        [first * controller(step), second * (controller(step) * 0.5)] for step, (first, second) in enumerate(base)
    ]
    assert applied == expected


def test_control_editing_the_rate_is_overwritten_or_compounded():
    wrong = [name for name in TORCH if rates(name, edit_the_rate)[-1] != rates(name, contribute)[-1]]
    assert {"OneCycleLR", "CosineAnnealingLR", "SequentialLR"} <= set(wrong)


def test_factors_are_saved_and_restored_with_the_optimizer():
    first, second = optimizer_of_two_groups(), optimizer_of_two_groups()
    contribute(30, first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [lr_scale.scale_of(group) for group in second.param_groups] == [0.09, 0.09 * 0.5]


def test_factors_survive_a_weights_only_file(tmp_path):
    optimizer = optimizer_of_two_groups()
    contribute(30, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    stored = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert stored["param_groups"][1][lr_scale.KEY] == {"controller": 0.09, "layers": 0.5}


def test_the_base_rate_is_back_after_a_step_and_after_a_step_that_failed():
    optimizer = optimizer_of_two_groups()
    lr_scale.set_scale(optimizer, "controller", 0.5)

    def failing():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(failing)
    optimizer.step()
    assert optimizer.applied[-1] == [0.05, 0.025]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_scaling_reaches_the_optimizer_under_accelerates_wrapper():
    from accelerate import Accelerator

    optimizer = optimizer_of_two_groups()
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    lr_scale.set_scale(wrapped, "controller", 0.5)
    wrapped.step()
    assert optimizer.applied == [[0.05, 0.025]]
    assert lr_scale.effective_lrs(wrapped) == [0.05, 0.025]


def test_scaling_reaches_the_optimizer_that_deepspeeds_holds():
    optimizer = optimizer_of_two_groups()
    zero = SimpleNamespace(optimizer=optimizer, sub_group_to_group_id={0: 0, 1: 1})
    lr_scale.set_scale(SimpleNamespace(optimizer=zero), "controller", 0.5)
    optimizer.step()
    assert optimizer.applied == [[0.05, 0.025]]


def test_a_factor_of_groups_that_zero_3_empties_between_steps_acts():
    optimizer = optimizer_of_two_groups()
    held = [group["params"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = []
    with pytest.raises(PluginError, match="hold no weights"):
        lr_scale.set_scale(optimizer, "controller", 0.5)
    zero = SimpleNamespace(optimizer=optimizer, sub_group_to_group_id={0: 0, 1: 1})
    lr_scale.set_scale(SimpleNamespace(optimizer=zero), "controller", 0.5)
    for group, parameters in zip(optimizer.param_groups, held, strict=True):
        group["params"] = parameters
    optimizer.step()
    assert optimizer.applied == [[0.05, 0.025]]


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match="must be finite"):
        lr_scale.set_scale(optimizer_of_two_groups(), "controller", factor)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([], "no parameter group is given"),
        ([{"params": [], "lr": 0.1}], "the 1 parameter groups given hold no weights"),
    ],
)
def test_a_factor_of_groups_without_weights_is_refused(groups, said):
    optimizer = optimizer_of_two_groups()
    with pytest.raises(PluginError, match=f"layers: {said}, so that the factor layers/depth=0.5"):
        lr_scale.set_scale(optimizer, "layers/depth", 0.5, groups)
    assert not lr_scale.is_scaled(optimizer)
    lr_scale.set_scale(optimizer, "layers/depth", 1.0, groups)  # It changes nothing, so it need not reach anything.


def test_an_empty_group_among_others_and_a_shard_without_numbers_take_a_factor():
    optimizer = optimizer_of_two_groups()
    optimizer.param_groups[0]["params"].clear()
    lr_scale.set_scale(optimizer, "layers", 0.5)
    optimizer.param_groups[1]["params"][:] = [torch.nn.Parameter(torch.empty(0))]
    lr_scale.set_scale(optimizer, "layers", 0.25, [optimizer.param_groups[1]])
    assert [lr_scale.scale_of(group) for group in optimizer.param_groups] == [0.5, 0.25]


def test_restored_factors_act_at_the_first_step():
    first, second, control = (optimizer_of_two_groups() for _ in range(3))
    contribute(30, first)
    for resumed in (second, control):
        resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    lr_scale.take_up(second, ["controller", "layers"])
    for optimizer in (first, second, control):
        optimizer.step()
    assert second.applied == first.applied
    assert control.applied != first.applied


def test_factors_of_others_are_not_taken_up():
    first, second = optimizer_of_two_groups(), optimizer_of_two_groups()
    contribute(30, first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    lr_scale.take_up(second, ["layers"])
    second.step()
    assert [lr_scale.scale_of(group) for group in second.param_groups] == [1.0, 0.5]


def test_factors_are_put_on_another_optimizer_as_they_were():
    one, other = (
        torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)], 1.0) for _ in "ab"
    )
    lr_scale.set_scale(one, "a", 0.5, [one.param_groups[1]])
    lr_scale.put_factors(other, lr_scale.factors_of(one))
    assert lr_scale.factors_of(other) == [None, {"a": 0.5}]
    lr_scale.take_up(other, ["a"])
    for group in other.param_groups:
        group["params"][0].grad = torch.ones(1)
    other.step()
    assert [group["params"][0].item() for group in other.param_groups] == [0.0, 0.5]


def test_groups_alike_in_their_settings_are_tried_once(monkeypatch):
    tried = []
    asked = lr_scale.deaf_groups
    monkeypatch.setattr(
        lr_scale, "deaf_groups", lambda inner, groups: tried.append(len(groups)) or asked(inner, groups)
    )
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(6)]
    optimizer = torch.optim.AdamW([{"params": [weight]} for weight in weights], lr=0.1)
    for number, group in enumerate(optimizer.param_groups):
        group["hf_ft_layer_group"] = str(number)
        lr_scale.set_scale(optimizer, "layers", 0.5**number, [group])
    assert tried == [1]
    # Another setting, weights of another kind, and all groups at once may each be another matter.
    optimizer.param_groups[1]["weight_decay"] = 0.3
    lr_scale.set_scale(optimizer, "layers", 0.25, [optimizer.param_groups[1]])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4))]})
    lr_scale.set_scale(optimizer, "layers", 0.25, [optimizer.param_groups[-1]])
    lr_scale.set_scale(optimizer, "controller", 0.5)
    assert tried == [1, 1, 1, 7]
