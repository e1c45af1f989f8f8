"""APOLLO: gradients scaled by factors that Adam would give to their random projection."""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Literal

import torch

from .matrices import LowRankOptimizer, adam, descend, precise, wide

SMALLEST = 1e-30  # of a norm that is divided by


class APOLLO(LowRankOptimizer):
    """APOLLO (Zhu et al. 2024, arXiv:2412.05270, algorithm 1), and APOLLO-Mini with rank=1, scaling="tensor".

    For a matrix [m, n] with m <= n, and any other one transposed, with gradient G:

        R = P G, where P [rank, m] is random with variance 1 / rank, and another one every `update_gap` steps
        s_j = |Adam(R)[:, j]| / |R[:, j]| for each of the n channels; of scaling="tensor" s = |Adam(R)| / |R|
        U = G diag(s), and where |U| grew by more than `growth` since the step before, shortened to that
        theta <- theta - lr (scale U + weight_decay theta)

    P is computed anew in each step from (seed, step // update_gap, index of the matrix), and not kept. Moments are kept
    when it changes, as in the paper. On a GPU its numbers are those of that kind of GPU.

    State of a matrix: `exp_avg` and `exp_avg_sq`, float32 [rank, n]; `norm`, float32 []; `step`; `index`. That is
    2 rank n numbers where AdamW has 2 m n. Temporary memory: a matrix in float32, and P.

    Args:
        params: matrices, or groups of them.
        lr: see `scale`.
        betas, eps: Adam's.
        weight_decay: 0 or more, as AdamW's.
        rank: rows of P; at most the smaller side of each matrix.
        update_gap: steps with the same P.
        scale: the paper's alpha. Steps are sqrt(rank / m) of AdamW's in size, so that sqrt(m / rank) makes up for it;
            the paper has 1 for channels with a high learning rate, and sqrt(128) for rank=1.
        scaling: a factor for each channel, or one for the whole matrix.
        growth: 1 or more: the paper's gamma, the largest ratio of two updates' norms that follow each other.
        seed: of the projections.

    Raises:
        PluginError: see `LowRankOptimizer`.
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
        scale: float = 1.0,
        scaling: Literal["channel", "tensor"] = "channel",
        growth: float = 1.01,
        seed: int = 0,
    ) -> None:
        self.require(scaling in ("channel", "tensor"), "scaling", scaling, "channel or tensor")
        self.require(growth >= 1, "growth", growth, "1 or more, such as 1.01")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"rank": rank, "update_gap": update_gap, "scale": scale, "scaling": scaling}
        super().__init__(params, {**defaults, "growth": growth, "seed": seed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            # In the state: groups are split, and stepped tensor by tensor, and the projection must stay the same.
            self.state[parameter]["index"] = len(self.state)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        exact = precise(wide(gradient))
        step = state.get("step", 0)
        state["step"] = step + 1
        key = (group["seed"], step // group["update_gap"], state.get("index", 0))
        projected = projection(group["rank"], exact, key) @ exact
        direction = adam(projected, state, group)
        channels = 0 if group["scaling"] == "channel" else (0, 1)
        norms = (torch.linalg.vector_norm(one, dim=channels) for one in (direction, projected))
        wanted, present = norms
        update = exact.mul_(wanted / present.clamp(min=SMALLEST))
        limit_growth(update, state, group["growth"])
        descend(wide(parameter), update, group, group["scale"])


def projection(rank: int, gradient: torch.Tensor, key: tuple[int, int, int]) -> torch.Tensor:
    """[rank, m], of variance 1 / rank, for a gradient [m, n]; a function of `key`."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    generator = torch.Generator(gradient.device).manual_seed(int.from_bytes(digest, "little"))
    side = gradient.shape[0]
    numbers = torch.randn(rank, side, generator=generator, device=gradient.device, dtype=gradient.dtype)
    return numbers.div_(math.sqrt(rank))


def limit_growth(update: torch.Tensor, state: dict[str, Any], growth: float) -> None:
    """Shorten `update`, in place, to `growth` times the norm of the one before, which is `norm` of the state."""
    norm = torch.linalg.vector_norm(update)
    if "norm" in state:
        # After an update of zeros any other one may follow.
        most = torch.where(state["norm"] > 0, growth * state["norm"], norm)
        shorter = (most / norm.clamp(min=SMALLEST)).clamp_(max=1.0)
        update.mul_(shorter)
        norm = norm * shorter
    state["norm"] = norm
