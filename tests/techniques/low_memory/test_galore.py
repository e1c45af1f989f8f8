"""GaLore against algorithm 2 of its paper, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory.optimizers.galore import GaLore, leading_space, leading_vectors
from hf_ft_plugins.techniques.low_memory.optimizers.matrices import precise

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05, "rank": 3, "update_gap": 4, "scale": 0.5}
STEPS = 10


def gradients(shape: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape) for _ in range(STEPS)]


def from_the_paper(weights: np.ndarray, lr, betas, eps, weight_decay, rank, update_gap, scale) -> np.ndarray:
    rows, columns = weights.shape
    first = second = 0.0
    projector = None
    for step, gradient in enumerate(gradients(weights.shape)):
        if step % update_gap == 0:
            u, _, vt = np.linalg.svd(gradient)
            vectors = u[:, :rank] if rows <= columns else vt[:rank].T
            signs = 1 if projector is None else np.where(np.diag(vectors.T @ projector) < 0, -1, 1)
            projector = vectors * signs
        low = projector.T @ gradient if rows <= columns else gradient @ projector
        first = betas[0] * first + (1 - betas[0]) * low
        second = betas[1] * second + (1 - betas[1]) * low**2
        normal = first / (1 - betas[0] ** (step + 1)) / (np.sqrt(second / (1 - betas[1] ** (step + 1))) + eps)
        back = projector @ normal if rows <= columns else normal @ projector.T
        weights = weights * (1 - lr * weight_decay) - lr * scale * back
    return weights


def trained(start: np.ndarray, dtype: torch.dtype = torch.float64, **settings) -> tuple[np.ndarray, GaLore]:
    weights = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = GaLore([weights], **(SETTINGS | settings))
    for gradient in gradients(start.shape):
        weights.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    return weights.detach().double().numpy(), optimizer


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_steps_are_the_papers(shape):
    start = np.random.default_rng(1).normal(size=shape)
    expected = from_the_paper(start, **SETTINGS)
    np.testing.assert_allclose(trained(start)[0], expected, atol=1e-10)
    np.testing.assert_allclose(trained(start, torch.float32)[0], expected, atol=1e-4)
    np.testing.assert_allclose(trained(start, torch.bfloat16)[0], expected, atol=0.1)
    for other in ({"update_gap": 5}, {"rank": 2}, {"scale": 0.25}, {"weight_decay": 0.0}, {"eps": 0.1}):
        assert np.abs(trained(start, **other)[0] - expected).max() > 1e-3, other


def test_state_is_the_projector_and_two_moments_of_its_rows():
    for shape in ((6, 9), (9, 6)):
        _, optimizer = trained(np.ones(shape), torch.bfloat16)
        state = next(iter(optimizer.state.values()))
        tensors = {name: (tuple(one.shape), one.dtype) for name, one in state.items() if isinstance(one, torch.Tensor)}
        assert tensors == {
            "projector": ((6, 3), torch.bfloat16),
            "exp_avg": ((3, 9), torch.float32),
            "exp_avg_sq": ((3, 9), torch.float32),
        }
        assert all(state[name].untyped_storage().nbytes() == state[name].nbytes for name in tensors)
        assert state["step"] == STEPS


def test_a_decomposition_that_fails_is_replaced_by_a_search_of_the_space(monkeypatch):
    matrix = torch.randn(8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix * 10.0 ** -torch.arange(8, dtype=torch.float64)[:, None]
    exact = leading_vectors(matrix, 3)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    state = torch.random.get_rng_state()
    found = leading_vectors(matrix, 3)
    torch.testing.assert_close(found @ found.T, exact @ exact.T, atol=1e-6, rtol=0)
    assert torch.equal(found, leading_space(matrix, 3)), "the same each time"
    assert torch.equal(torch.random.get_rng_state(), state)
    matrix[0, 0] = torch.nan
    with pytest.raises(PluginError, match=r"not finite\. Lower the learning rate"):
        leading_vectors(matrix, 3)


def test_gradients_that_are_not_finite_are_refused_where_they_are_decomposed():
    weights = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = GaLore([weights], rank=2)
    weights.grad = torch.full((4, 5), torch.inf)
    with pytest.raises(PluginError, match="not finite"):
        optimizer.step()


def test_gradients_of_zeros_and_of_low_rank_are_stepped():
    for gradient in (torch.zeros(5, 7), torch.ones(5, 7)):
        weights = torch.nn.Parameter(torch.zeros(5, 7))
        optimizer = GaLore([weights], rank=3)
        weights.grad = gradient
        optimizer.step()
        assert torch.isfinite(weights).all()
        assert bool(weights.any()) == bool(gradient.any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5}, r"rank=5\) is above a matrix of shape \(4, 6\). Set rank to at most 4"),
        ({"rank": 0}, "rank=0.*1 or more"),
        ({"update_gap": 0}, "update_gap=0.*1 or more"),
        ({"scale": 0.0}, "scale=0.0.*more than 0"),
        ({"lr": -1.0}, "lr=-1.0.*0 or more"),
        ({"betas": (1.0, 0.9)}, "betas.*below 1"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    with pytest.raises(PluginError, match=message):
        GaLore([torch.nn.Parameter(torch.ones(4, 6))], **({"rank": 2} | settings))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4), (0, 4)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(PluginError, match=r"steps matrices, and got a parameter of shape.*rest to AdamW"):
        GaLore([torch.nn.Parameter(torch.ones(shape))], rank=1)


def test_a_matrix_that_is_cut_up_is_refused():
    class Shard(torch.Tensor):
        full_tensor = None

    with pytest.raises(PluginError, match="FSDP2 has cut up a matrix of shape"):
        precise(torch.ones(2, 3).as_subclass(Shard))
