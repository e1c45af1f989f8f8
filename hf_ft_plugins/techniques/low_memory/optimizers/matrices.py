"""What optimizers of matrices share: their base class, and a matrix seen with its smaller side first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .... import mends
from ....errors import PluginError
from ..settings import NAME
from .per_tensor import PerTensorOptimizer


class MatrixOptimizer(PerTensorOptimizer):
    """Base of optimizers whose rule is one of matrices: every parameter has two dimensions, none of them 0.

    What is computed, and moments, are float32 (float64 of such a parameter), whatever the parameters are: a mean over
    1,000 steps does not move in bfloat16. Weight decay is decoupled from the gradient, as AdamW's.

    Raises:
        PluginError: a parameter is no matrix; an argument is out of range; in a step, see `precise`.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.require(defaults["lr"] >= 0, "lr", defaults["lr"], "0 or more")
        self.require(defaults["weight_decay"] >= 0, "weight_decay", defaults["weight_decay"], "0 or more")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim != 2 or parameter.numel() == 0:
                raise PluginError(
                    f"{NAME}: {type(self).__name__} steps matrices, and got a parameter of shape "
                    f"{tuple(parameter.shape)}. Give it the weights of linear layers, and the rest to AdamW: see "
                    "CombinedOptimizer.",
                    code="part-misused",
                )

    def require(self, holds: bool, argument: str, value: Any, wanted: str) -> None:
        if not holds:
            raise PluginError(
                f"{NAME}: {type(self).__name__}({argument}={value!r}) is out of range. Set {argument} to {wanted}.",
                code="option-value",
            )


class LowRankOptimizer(MatrixOptimizer):
    """Base of those that keep Adam's moments of `rank` rows instead of a whole matrix."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        for name in ("rank", "update_gap"):
            self.require(defaults[name] >= 1, name, defaults[name], "1 or more")
        self.require(defaults["scale"] > 0, "scale", defaults["scale"], "more than 0")
        betas, eps = defaults["betas"], defaults["eps"]
        self.require(all(0 <= beta < 1 for beta in betas), "betas", betas, "two numbers from 0 to below 1")
        self.require(eps > 0, "eps", eps, "more than 0, such as 1e-8")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if group["rank"] > min(parameter.shape):
                raise PluginError(
                    f"{NAME}: {type(self).__name__}(rank={group['rank']}) is above a matrix of shape "
                    f"{tuple(parameter.shape)}. Set rank to at most {min(parameter.shape)}, or give that matrix to "
                    "AdamW.",
                    code="option-value",
                )


def wide(matrix: torch.Tensor) -> torch.Tensor:
    """[n, m] as [m, n] where that is its smaller side first: a view of the same numbers."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def precise(gradient: torch.Tensor) -> torch.Tensor:
    """float32, or float64 as it is.

    Raises:
        PluginError: it is cut up over several devices, as FSDP2 does once the optimizer is made.
    """
    if hasattr(gradient, "full_tensor"):
        raise PluginError(
            f"{NAME}: FSDP2 has cut up a matrix of shape {tuple(gradient.shape)}, and this algorithm needs whole ones. "
            "Train with DDP, or with an algorithm that steps each number alone, such as algorithm=script with AdamW.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    return gradient if gradient.dtype == torch.float64 else gradient.float()


def adam(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """Adam's direction, m / (sqrt(v) + eps) with the bias of both taken out (Kingma & Ba 2014, algorithm 1).

    Args:
        gradient: of any shape.
        state: `step`, the number of this step, from 1; `exp_avg` and `exp_avg_sq`, of the gradient's shape and dtype,
            are made in the first and changed in place.
        group: `betas` and `eps`.
    """
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    (beta1, beta2), step = group["betas"], state["step"]
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    spread = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
    return state["exp_avg"] / (1 - beta1**step) / spread


def descend(parameter: torch.Tensor, update: torch.Tensor, group: dict[str, Any], scale: float) -> None:
    """theta <- theta - lr (scale update + weight_decay theta).

    Args:
        parameter, update: of the same shape; `update` may be more precise.
    """
    if group["weight_decay"] != 0:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"] * scale)
