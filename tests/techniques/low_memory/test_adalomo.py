"""AdaLOMO against a reference written from the paper in float64, and what every algorithm has to keep."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory.fused_backward import FusedBackward
from hf_ft_plugins.techniques.low_memory.optimizers import adalomo
from hf_ft_plugins.techniques.low_memory.optimizers.adalomo import AdaLOMO
from hf_ft_plugins.testing import Interruption, difference, outcome, tiny_trainer

SHAPES = [(), (5,), (6, 9), (9, 6), (1, 7), (4, 3, 2, 2), (3, 5, 7), (5, 7, 2), (0, 4)]
EPS = (1e-30, 1e-3)


def reference(weights, gradients, *, rate, decay=0.0, factored=True, relative=True):
    """Weights [shape] float64 after a step for each of `gradients`, number by number."""
    weights = weights.astype(np.float64)
    rows = columns = None
    if factored and weights.ndim >= 2:
        sizes = sorted(range(weights.ndim), key=lambda one: (weights.shape[one], one))
        rows, columns = sorted(sizes[-2:])
    row = column = full = 0.0
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.astype(np.float64)
        beta = 1.0 - step**-0.8
        square = gradient**2 + EPS[0]
        if rows is None:
            full = beta * full + (1 - beta) * square
            moment = full
        else:
            row = beta * row + (1 - beta) * square.sum(columns, keepdims=True)
            column = beta * column + (1 - beta) * square.sum(rows, keepdims=True)
            moment = row * column / row.sum(rows, keepdims=True)
        update = gradient / np.sqrt(moment)
        update = update / max(1.0, np.sqrt((update**2).mean()))
        size = max(EPS[1], np.sqrt((weights**2).mean())) if relative else 1.0
        weights = weights - rate * size * (update + decay * weights)
    return weights


def numbers(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stepped(weights, gradients, dtype=torch.float32, **settings):
    parameter = torch.nn.Parameter(torch.tensor(weights, dtype=dtype))
    optimizer = AdaLOMO([parameter], **settings)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_the_paper(shape, decay):
    weights, gradients = numbers(shape, 0), [numbers(shape, 1 + step) * 10.0**step for step in range(4)]
    expected = reference(weights, gradients, rate=0.05, decay=decay) if weights.size else weights
    actual, _ = stepped(weights, gradients, lr=0.05, weight_decay=decay)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("control", [{"factored": False}, {"relative": False}, {"decay": 0.2}])
def test_the_reference_tells_other_steps_apart(control):
    weights, gradients = numbers((6, 9), 0), [numbers((6, 9), 1 + step) for step in range(4)]
    actual, _ = stepped(weights, gradients, lr=0.05)
    assert np.abs(actual.numpy() - reference(weights, gradients, rate=0.05, **control)).max() > 1e-3


@pytest.mark.parametrize("shape", [(64, 9), (5, 8, 30), (7, 3, 2, 2), (3, 50)])
def test_a_large_tensor_computed_in_parts_gives_the_same(monkeypatch, shape):
    weights, gradients = numbers(shape, 0), [numbers(shape, 1 + step) for step in range(4)]
    whole, before = stepped(weights, gradients, lr=0.05, weight_decay=0.1)
    monkeypatch.setattr(adalomo, "CHUNK", 40)
    parts, after = stepped(weights, gradients, lr=0.05, weight_decay=0.1)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)
    for name in ("row", "column"):
        old, new = (next(iter(one.state.values()))[name] for one in (before, after))
        torch.testing.assert_close(new, old, rtol=1e-6, atol=0)


def test_state_is_means_of_rows_and_columns_in_float32():
    for shape, sizes in {(6, 9): (6, 9), (4, 3, 5, 7): (4 * 3 * 5, 4 * 3 * 7), (9, 8, 2): (9 * 2, 8 * 2)}.items():
        _, optimizer = stepped(numbers(shape, 0), [numbers(shape, 1)], dtype=torch.bfloat16)
        (state,) = optimizer.state.values()
        assert (state["row"].numel(), state["column"].numel()) == sizes
        assert {state["row"].dtype, state["column"].dtype} == {torch.float32}


def test_rows_that_never_had_a_gradient_stay_as_they_are_beside_very_large_ones():
    gradient = np.zeros((6, 4), np.float32)
    gradient[0] = 1e10
    weights = numbers((6, 4), 0)
    actual, _ = stepped(weights, [gradient] * 3, lr=0.1)
    assert torch.isfinite(actual).all()
    assert np.array_equal(actual[1:].numpy(), weights[1:])
    assert not np.array_equal(actual[0].numpy(), weights[0])


def test_the_size_of_gradients_does_not_matter():
    weights, gradients = numbers((6, 9), 0), [numbers((6, 9), 1 + step) for step in range(3)]
    small, _ = stepped(weights, gradients, lr=0.05)
    large, _ = stepped(weights, [1024 * gradient for gradient in gradients], lr=0.05)
    torch.testing.assert_close(small, large, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_bit_for_bit(dtype):
    weights, gradients = numbers((6, 9), 0), [numbers((6, 9), 1 + step) for step in range(6)]
    expected, _ = stepped(weights, gradients, dtype=dtype, lr=0.05)
    half, optimizer = stepped(weights, gradients[:3], dtype=dtype, lr=0.05)
    parameter = torch.nn.Parameter(half.clone())
    other = AdaLOMO([parameter], lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    for gradient in gradients[3:]:
        parameter.grad = torch.tensor(gradient, dtype=dtype)
        other.step()
    assert torch.equal(parameter, expected)


def test_stepping_within_the_backward_pass_changes_no_bit():
    def trained(wrap):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Flatten(), torch.nn.Linear(18, 4))
        model[2].bias.requires_grad_(False)
        optimizer = wrap(AdaLOMO([one for one in model.parameters() if one.requires_grad], lr=0.05, weight_decay=0.1))
        for step in range(5):
            model(torch.arange(12).reshape(4, 3) % (7 + step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    assert difference(trained(lambda one: one), trained(FusedBackward)) is None


class StopsAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interruption


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    settings = {"gradient_accumulation_steps": 1, "learning_rate": 1e-2, "weight_decay": 0.01}
    technique = "low-memory:algorithm=adalomo"
    whole = tiny_trainer(tmp_path / "whole", technique, **settings)
    whole.train()
    with pytest.raises(Interruption):
        tiny_trainer(tmp_path / "cut", technique, callbacks=[StopsAfter(9)], **settings).train()
    rest = tiny_trainer(tmp_path / "cut", technique, **settings)
    rest.train(resume_from_checkpoint=True)
    assert isinstance(rest.optimizer.optimizer.optimizer, AdaLOMO)
    assert difference(outcome(whole), outcome(rest)) is None
    other = tiny_trainer(tmp_path / "other", technique, **{**settings, "learning_rate": 2e-2})
    other.train()
    assert difference(outcome(whole)["weights"], outcome(other)["weights"]) is not None


def test_it_works_in_a_stock_trainer(tmp_path):
    settings = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0}

    class Stock(Trainer):
        def __init__(self, **arguments):
            super().__init__(**arguments, optimizer_cls_and_kwargs=(AdaLOMO, {"lr": 1e-2}))

    stock = tiny_trainer(tmp_path / "stock", trainer_class=Stock, **settings)
    stock.train()
    ours = tiny_trainer(tmp_path / "ours", "low-memory:algorithm=adalomo", **settings)
    ours.train()
    assert difference(outcome(stock)["weights"], outcome(ours)["weights"]) is None


@pytest.mark.parametrize(
    "setting",
    [{"lr": -1.0}, {"weight_decay": -0.1}, {"eps": (0.0, 1e-3)}, {"clip_threshold": 0.0}, {"decay_rate": 0.8}],
)
def test_arguments_out_of_range_are_refused_by_name(setting):
    with pytest.raises(PluginError, match=rf"AdaLOMO\({next(iter(setting))}="):
        AdaLOMO([torch.nn.Parameter(torch.ones(2))], **setting)
