"""GaLore: Adam in the space of a gradient's largest singular vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .... import mends
from ....errors import PluginError
from ..settings import NAME
from .matrices import LowRankOptimizer, adam, descend, precise, wide

ITERATIONS = 4  # of the search for a space where the decomposition fails


class GaLore(LowRankOptimizer):
    """GaLore (Zhao et al. 2024, arXiv:2403.03507, algorithm 2), with AdamW's weight decay.

    For a matrix [m, n] with m <= n, and any other one transposed, with gradient G in step t = 0, 1, ...:

        P <- the first `rank` left singular vectors of G, [m, rank], if t is a multiple of `update_gap`
        N = Adam(P^T G)
        theta <- theta - lr (scale P N + weight_decay theta)

    Moments are kept when P changes, as in the paper. The vectors' signs, which a decomposition leaves open, are chosen
    so that none points against the one that it replaces, whose moments it goes on with.

    State of a matrix: `projector` [m, rank] of its dtype; `exp_avg` and `exp_avg_sq`, float32 [rank, n]; `step`. That
    is rank (m + 2 n) numbers where AdamW has 2 m n. Temporary memory: two matrices in float32, three every
    `update_gap` steps.

    Args:
        params: matrices, or groups of them.
        lr: as for AdamW or a few times as much, since `scale` takes from it.
        betas, eps: Adam's.
        weight_decay: 0 or more, as AdamW's.
        rank: of the space; at most the smaller side of each matrix.
        update_gap: steps between two decompositions.
        scale: the paper's alpha.

    Raises:
        PluginError: see `LowRankOptimizer`; in a step in which P is computed, where a gradient is not finite.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int = 128,
        update_gap: int = 200,
        scale: float = 0.25,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rank": rank, "update_gap": update_gap, "scale": scale})

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        exact = precise(wide(gradient))
        step = state.get("step", 0)
        if step % group["update_gap"] == 0:
            vectors = leading_vectors(exact, group["rank"])
            if "projector" in state:
                opposite = (vectors * state["projector"]).sum(0) < 0
                vectors = torch.where(opposite, -vectors, vectors)
            state["projector"] = vectors.to(parameter.dtype)
        state["step"] = step + 1
        projector = state["projector"].to(exact.dtype)
        direction = adam(projector.T @ exact, state, group)
        descend(wide(parameter), projector @ direction, group, group["scale"])


def leading_vectors(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """[m, min(rank, m)]: the left singular vectors of the largest singular values of `matrix` [m, n], m <= n.

    Where their computation does not converge, the space is searched by iterations from a fixed random start (Halko et
    al. 2011, arXiv:0909.4061, algorithm 4.4).

    Raises:
        PluginError: a number is not finite.
    """
    try:
        vectors = torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    except torch.linalg.LinAlgError:
        if not bool(torch.isfinite(matrix).all()):
            raise PluginError(
                f"{NAME}: GaLore computes its projection of a gradient of shape {tuple(matrix.shape)} in this step, "
                "and that gradient is not finite. Lower the learning rate, warm up for longer, or clip gradients.",
                code="not-finite",
                mend=[mends.set_argument("max_grad_norm", 1.0)],
            ) from None
        vectors = leading_space(matrix, rank)
    # Not a view, which would keep, and save, all vectors.
    return vectors.clone(memory_format=torch.contiguous_format)


def leading_space(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """[m, min(rank, m)]: orthonormal vectors that span about the same space as `leading_vectors`."""
    start = torch.randn(matrix.shape[1], min(rank, matrix.shape[0]), generator=torch.Generator().manual_seed(0))
    space = torch.linalg.qr(matrix @ start.to(matrix))[0]
    for _ in range(ITERATIONS):
        space = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ space)[0])[0]
    return space
