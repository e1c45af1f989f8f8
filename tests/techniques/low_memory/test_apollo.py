"""APOLLO and APOLLO-Mini against algorithm 1 of their paper, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory.optimizers.apollo import APOLLO, limit_growth, projection

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05, "rank": 3, "update_gap": 4, "scale": 0.5}
SETTINGS |= {"scaling": "channel", "growth": 1.01, "seed": 5}
MINI = {"rank": 1, "scaling": "tensor"}
STEPS = 10


def gradients(shape: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape) * (1 + step % 3) for step in range(STEPS)]


def from_the_paper(
    weights: np.ndarray, index: int, lr, betas, eps, weight_decay, rank, update_gap, scale, scaling, growth, seed
) -> np.ndarray:
    """For a matrix that is not tall."""
    first = second = before = 0.0
    for step, gradient in enumerate(gradients(weights.shape)):
        random = projection(rank, torch.tensor(gradient), (seed, step // update_gap, index)).numpy()
        low = random @ gradient
        first = betas[0] * first + (1 - betas[0]) * low
        second = betas[1] * second + (1 - betas[1]) * low**2
        normal = first / (1 - betas[0] ** (step + 1)) / (np.sqrt(second / (1 - betas[1] ** (step + 1))) + eps)
        if scaling == "channel":
            factors = np.array([np.linalg.norm(normal[:, j]) / np.linalg.norm(low[:, j]) for j in range(low.shape[1])])
        else:
            factors = np.linalg.norm(normal) / np.linalg.norm(low)
        update = gradient * factors
        norm = np.linalg.norm(update)
        if before and norm / before > growth:
            update = update / norm * growth * before
        before = np.linalg.norm(update)
        weights = weights * (1 - lr * weight_decay) - lr * scale * update
    return weights


def trained(start: np.ndarray, dtype: torch.dtype = torch.float64, **settings) -> tuple[np.ndarray, APOLLO]:
    weights = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = APOLLO([weights], **(SETTINGS | settings))
    for gradient in gradients(start.shape):
        weights.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    return weights.detach().double().numpy(), optimizer


@pytest.mark.parametrize("kind", [{}, MINI], ids=["apollo", "mini"])
def test_steps_are_the_papers(kind):
    start = np.random.default_rng(1).normal(size=(6, 9))
    expected = from_the_paper(start, index=0, **(SETTINGS | kind))
    np.testing.assert_allclose(trained(start, **kind)[0], expected, atol=1e-10)
    others = [{"update_gap": 5}, {"seed": 6}, {"growth": 100.0}, {"scale": 1.0}, {"weight_decay": 0.0}]
    others.append({"scaling": "tensor" if not kind else "channel"})
    for other in others:
        assert np.abs(trained(start, **(kind | other))[0] - expected).max() > 1e-3, other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype):
    start = np.random.default_rng(1).normal(size=(6, 9))
    # The projection of float32 is another one than that of float64.
    same, _ = trained(start.astype(np.float32), torch.float32)
    np.testing.assert_allclose(trained(start, dtype)[0], same, atol=0.1 if dtype == torch.bfloat16 else 1e-6)


def test_a_tall_matrix_is_stepped_as_its_transpose(monkeypatch):
    start = np.random.default_rng(1).normal(size=(6, 9))
    wide, _ = trained(start)
    tall = torch.nn.Parameter(torch.tensor(start.T.copy()))
    optimizer = APOLLO([tall], **SETTINGS)
    for gradient in gradients(start.shape):
        tall.grad = torch.tensor(gradient.T.copy())
        optimizer.step()
    np.testing.assert_allclose(tall.detach().numpy().T, wide, atol=1e-12)


def test_a_projection_is_a_function_of_its_key_alone():
    gradient = torch.zeros(200, 300)
    state = torch.random.get_rng_state()
    one = projection(50, gradient, (0, 0, 0))
    assert torch.equal(one, projection(50, gradient, (0, 0, 0)))
    assert torch.equal(torch.random.get_rng_state(), state)
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert abs(float((one * projection(50, gradient, key)).mean())) < 1e-3
    assert float(one.var()) == pytest.approx(1 / 50, rel=0.05)
    assert abs(float(one.mean())) < 0.01


def test_matrices_of_one_shape_have_different_projections():
    weights = [torch.nn.Parameter(torch.zeros(6, 9)) for _ in range(2)]
    optimizer = APOLLO(weights, **SETTINGS)
    for gradient in gradients((6, 9))[:3]:
        for one in weights:
            one.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    assert not torch.equal(*weights)


def test_state_is_two_moments_and_a_norm():
    for kind, rank in (({}, 3), (MINI, 1)):
        _, optimizer = trained(np.ones((9, 6)), torch.bfloat16, **kind)
        state = next(iter(optimizer.state.values()))
        tensors = {name: (tuple(one.shape), one.dtype) for name, one in state.items() if isinstance(one, torch.Tensor)}
        moment = ((rank, 9), torch.float32)
        assert tensors == {"exp_avg": moment, "exp_avg_sq": moment, "norm": ((), torch.float32)}


def test_updates_grow_by_no_more_than_is_allowed():
    state: dict = {}
    norms = []
    for size in (1.0, 5.0, 0.5, 2.0, 0.0, 3.0):
        update = torch.full((4,), size / 2)
        limit_growth(update, state, 1.5)
        norms.append(float(update.norm()))
    assert norms == pytest.approx([1.0, 1.5, 0.5, 0.75, 0.0, 3.0])


def test_gradients_of_zeros_move_nothing_and_stop_nothing():
    weights = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = APOLLO([weights], rank=2)
    for gradient in (torch.zeros(4, 5), torch.ones(4, 5)):
        before = weights.detach().clone()
        weights.grad = gradient.clone()
        optimizer.step()
        assert torch.isfinite(weights).all()
        assert torch.equal(before, weights) != bool(gradient.any())


def test_a_step_is_that_share_of_adams_which_its_documentation_states():
    start = torch.zeros(64, 256)
    generator = torch.Generator().manual_seed(0)
    norms = {}
    for name, make in {
        "adam": lambda weights: torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0),
        "apollo": lambda weights: APOLLO(weights, lr=1.0, rank=16),
        "mini": lambda weights: APOLLO(weights, lr=1.0, rank=1, scaling="tensor"),
    }.items():
        weights = torch.nn.Parameter(start.clone())
        optimizer = make([weights])
        weights.grad = torch.randn(start.shape, generator=generator)
        optimizer.step()
        norms[name] = float(weights.detach().norm())
    assert norms["apollo"] / norms["adam"] == pytest.approx(math.sqrt(16 / 64), rel=0.1)
    assert norms["mini"] / norms["adam"] == pytest.approx(math.sqrt(1 / 64), rel=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5}, r"APOLLO\(rank=5\) is above a matrix"),
        ({"scaling": "row"}, "scaling='row'.*channel or tensor"),
        ({"growth": 0.9}, "growth=0.9.*1 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    with pytest.raises(PluginError, match=message):
        APOLLO([torch.nn.Parameter(torch.ones(4, 6))], **({"rank": 2} | settings))
