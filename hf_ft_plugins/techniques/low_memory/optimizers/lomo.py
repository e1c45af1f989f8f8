"""LOMO's update: plain gradient descent, which keeps no state at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .per_tensor import PerTensorOptimizer


class LOMO(PerTensorOptimizer):
    """theta <- theta - lr (g + weight_decay theta) (Lv et al. 2023, arXiv:2306.09782, algorithm 1).

    Low memory comes from stepping within the backward pass (`FusedBackward`). The paper's implementation has no weight
    decay; here it is `torch.optim.SGD`'s.

    Args:
        params: tensors, or groups of them.
        lr: as for gradient descent without momentum, well above AdamW's.
        weight_decay: 0 or more.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if group["weight_decay"] != 0:
            gradient.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(gradient, alpha=-group["lr"])
