"""SinkGD against algorithms 3 and 4 of its paper, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory.optimizers.sinkgd import SinkGD, balanced_

SETTINGS = {"lr": 0.1, "weight_decay": 0.05, "scale": 0.5, "iterations": 5}
STEPS = 4


def gradients(shape: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    # Rows of very different lengths, so that it matters how often and in which order they are balanced.
    return [generator.normal(size=shape) ** 3 for _ in range(STEPS)]


def from_the_paper(weights: np.ndarray, lr, weight_decay, scale, iterations) -> np.ndarray:
    m, n = weights.shape
    for x in gradients(weights.shape):
        for _ in range(iterations):
            x = np.sqrt(n) * np.diag(1 / np.sqrt((x**2).sum(1))) @ x
            x = np.sqrt(m) * x @ np.diag(1 / np.sqrt((x**2).sum(0)))
        weights = weights * (1 - lr * weight_decay) - lr * scale * x
    return weights


def trained(start: np.ndarray, dtype: torch.dtype = torch.float64, **settings) -> tuple[np.ndarray, SinkGD]:
    weights = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = SinkGD([weights], **(SETTINGS | settings))
    for gradient in gradients(start.shape):
        weights.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    return weights.detach().double().numpy(), optimizer


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_steps_are_the_papers(shape):
    start = np.random.default_rng(1).normal(size=shape)
    expected = from_the_paper(start, **SETTINGS)
    np.testing.assert_allclose(trained(start)[0], expected, atol=1e-10)
    np.testing.assert_allclose(trained(start, torch.float32)[0], expected, atol=1e-5)
    np.testing.assert_allclose(trained(start, torch.bfloat16)[0], expected, atol=0.05)
    for other in ({"iterations": 1}, {"scale": 1.0}, {"weight_decay": 0.0}):
        assert np.abs(trained(start, **other)[0] - expected).max() > 1e-3, other


def test_it_keeps_no_state_and_no_size_of_the_gradient():
    start = np.ones((3, 4))
    _, optimizer = trained(start)
    assert not any(optimizer.state.values())
    small, large = (balanced_(torch.tensor(gradients((3, 4))[0]) * size, 5) for size in (1e-6, 1e6))
    torch.testing.assert_close(small, large)


def test_many_iterations_balance_rows_and_columns():
    matrix = balanced_(torch.tensor(gradients((5, 8))[0]), 200)
    torch.testing.assert_close(matrix.norm(dim=1), torch.full((5,), 8**0.5, dtype=torch.float64))
    torch.testing.assert_close(matrix.norm(dim=0), torch.full((8,), 5**0.5, dtype=torch.float64))


def test_rows_of_zeros_stay_so():
    matrix = torch.ones(3, 4)
    matrix[1] = 0
    balanced = balanced_(matrix, 5)
    assert torch.isfinite(balanced).all()
    assert not balanced[1].any()
    assert balanced[0].all()


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"iterations": 0}])
def test_arguments_out_of_range_are_refused(settings):
    with pytest.raises(PluginError, match=rf"SinkGD\({next(iter(settings))}="):
        SinkGD([torch.nn.Parameter(torch.ones(4, 6))], **settings)
