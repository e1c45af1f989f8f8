"""SinkGD: gradient descent with gradients whose rows and columns are made equally long; it keeps no state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .matrices import MatrixOptimizer, descend, precise

SMALLEST = 1e-30  # of a norm that is divided by


class SinkGD(MatrixOptimizer):
    """SinkGD (Scetbon et al. 2025, arXiv:2502.06742, algorithms 3 and 4).

        X <- the gradient [m, n];  `iterations` times: X <- sqrt(n) X with rows of length 1, X <- sqrt(m) X with columns
        of length 1;  theta <- theta - lr (scale X + weight_decay theta)

    So an update's root mean square is `scale`, whatever the gradient's size: clipping changes nothing. Rows and columns
    of zeros stay as they are. No state; temporary memory: a matrix in float32.

    Deviation: the paper has no weight decay.

    Args:
        params: matrices, or groups of them.
        lr: as AdamW's where `scale` is about the root mean square of AdamW's updates.
        weight_decay: 0 or more, as AdamW's.
        scale: the paper's alpha, there 0.05 with lr=0.02.
        iterations: the paper's L.

    Raises:
        PluginError: see `MatrixOptimizer`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        scale: float = 0.2,
        iterations: int = 5,
    ) -> None:
        self.require(scale > 0, "scale", scale, "more than 0")
        self.require(iterations >= 1, "iterations", iterations, "1 or more")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "scale": scale, "iterations": iterations})

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        update = balanced_(precise(gradient), group["iterations"])
        descend(parameter, update, group, group["scale"])


def balanced_(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """`matrix` [m, n], changed in place: its rows about sqrt(n) long, and its columns exactly sqrt(m)."""
    rows, columns = matrix.shape
    for _ in range(iterations):
        for dimension, length in ((1, math.sqrt(columns)), (0, math.sqrt(rows))):
            norms = torch.linalg.vector_norm(matrix, dim=dimension, keepdim=True)
            matrix.mul_(length / norms.clamp_(min=SMALLEST))
    return matrix
