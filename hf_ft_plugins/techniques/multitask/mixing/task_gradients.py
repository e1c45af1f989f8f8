"""Gradients of parameters that several tasks share, kept apart by task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TaskGradients:
    """Each task's gradient of some parameters, summed over the batches of a step and over ranks.

    Args:
        parameters: those that the tasks share.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.of: dict[str, list[Tensor]] = {}

    def add(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        """Add one batch's gradients of a task's loss; None is zero."""
        if name not in self.of:
            self.of[name] = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        for total, gradient in zip(self.of[name], gradients, strict=True):
            if gradient is not None:
                total += gradient.float()

    def over_ranks(self, names: Sequence[str], world_size: int) -> None:
        """Sum over ranks, for these tasks, the same and in the same order on every rank."""
        for name in names:
            self.add(name, [None] * len(self.parameters))
            if world_size > 1:
                for total in self.of[name]:
                    dist.all_reduce(total)

    def gramian(self, names: Sequence[str]) -> Tensor:
        """Inner products of the tasks' gradients; float64 [tasks, tasks]."""
        products = torch.zeros(len(names), len(names), dtype=torch.float64)
        for row, first in enumerate(names):
            for column, second in enumerate(names[: row + 1]):
                pairs = zip(self.of[first], self.of[second], strict=True)
                product = sum(float((one.double() * two.double()).sum()) for one, two in pairs)
                products[row, column] = products[column, row] = product
        return products
