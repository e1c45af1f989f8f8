"""Clipping while gradients are freed as they arrive, when the norm of all of them is known only at the end.

Each way is a lower or an upper bound of what `torch.nn.utils.clip_grad_norm_` does with the norm of all gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...shards import whole_tensor

# Of the first parameter group, which is saved with the optimizer's state, so that a resumed run clips as before.
BEFORE = "hf_ft_norm_before"
EPSILON = 1e-6  # as clip_grad_norm_'s


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped.

    Attributes:
        max_norm: as Trainer's `max_grad_norm`.
        way: lagged: by the norm of all gradients in the step before, or of those that have come so far in this one if
            that is larger. per_tensor: each by its own norm.
    """

    max_norm: float
    way: Literal["lagged", "per_tensor"]

    def begin(self, group: dict[str, Any]) -> None:
        """Make the entry that `remember` fills: sharded checkpoints load only entries that are there."""
        if self.way == "lagged":
            group.setdefault(BEFORE, 0.0)

    def coefficient(self, group: dict[str, Any], norm: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """[]: what to multiply a gradient by.

        Args:
            group: the first parameter group.
            norm: [] of the gradient.
            total: [] norm of this gradient and all that came before it in this step.
        """
        known = norm if self.way == "per_tensor" else total.clamp(min=group.get(BEFORE, 0.0))
        return _coefficient(self.max_norm, known)

    def exact(self, norm: float) -> float:
        """What to multiply all gradients by, their norm being known."""
        return min(1.0, self.max_norm / (norm + EPSILON))

    def remember(self, group: dict[str, Any], total: torch.Tensor) -> None:
        """Keep the norm of all gradients of a step for the next one, unless all are 0.

        Sharded checkpoints let an optimizer without state step with gradients of 0 before they save it.
        """
        norm = float(total) if self.way == "lagged" else 0.0
        if norm > 0:
            group[BEFORE] = norm


def _coefficient(max_norm: float, norm: torch.Tensor) -> torch.Tensor:
    return (max_norm / (norm + EPSILON)).clamp(max=1.0)


def norm_of(gradient: torch.Tensor) -> torch.Tensor:
    """[] float32: the 2-norm of a gradient, of all shards of one that is cut up."""
    return whole_tensor(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32))


def total_of(total: torch.Tensor | None, norm: torch.Tensor) -> torch.Tensor:
    """[] float32: the norm of what has the norms `total` and `norm`."""
    return norm if total is None else torch.hypot(total, norm.to(total.device))
