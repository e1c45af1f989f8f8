"""One optimizer step of several tasks: what its batches on all ranks hold, and by how much each task's loss counts.

A task's loss is a mean over its items in the whole step, whatever the accumulation and the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ....errors import PluginError
from ..heads.task_heads import count_items
from ..tasks import ABSENT, NAME, TaskSpec
from .task_gradients import TaskGradients


@dataclass
class TaskStep:
    """What the batches of one optimizer step hold.

    Attributes:
        tasks: names of the model's tasks.
        items: of each task, on all ranks; int64 [tasks].
        rows: those that have a label of each task, and all of them, on all ranks; int64 [tasks + 1].
        batches: their number on this rank.
        world_size: ranks.
        left: batches of this rank whose backward pass is still to come.
        gradients: each task's, where its balance needs them (`gradient_steps.py`); None before the first batch.
    """

    tasks: tuple[str, ...]
    items: Tensor
    rows: Tensor
    batches: int
    world_size: int
    left: int = field(init=False)
    gradients: TaskGradients | None = None

    def __post_init__(self) -> None:
        self.left = self.batches

    def present(self) -> list[str]:
        """The tasks that have an item, on any rank."""
        return [name for name, items in zip(self.tasks, self.items.tolist(), strict=True) if items]


def weigh(
    batches: Sequence[dict[str, Any]],
    specs: Mapping[str, TaskSpec],
    weights: Sequence[float],
    *,
    device: torch.device,
    world_size: int = 1,
) -> TaskStep:
    """Give each batch of an optimizer step its `task_scale`, float32 [tasks]: a task's weight over its items in all of
    them, times batches and ranks, by which Trainer and DDP divide.

    Args:
        batches: collated, with `labels` by task; changed in place.
        specs: the model's tasks, by name.
        weights: what each task's own weight is multiplied by, in their order.
        device: where counts are summed, and `task_scale` stands.
        world_size: ranks; each calls this at once.

    Raises:
        PluginError: a batch has no labels by task.
    """
    counts = torch.zeros(2 * len(specs) + 1, dtype=torch.int64, device=device)
    for batch in batches:
        if not isinstance(batch.get("labels"), Mapping):
            raise PluginError(
                f"{NAME}: a training batch has {', '.join(batch)} and no labels by task. Use MultiTaskCollator, or "
                "give it labels={task: tensor, ...}.",
                code="part-misused",
            )
        for index, (name, spec) in enumerate(specs.items()):
            if name in batch["labels"]:
                labels = batch["labels"][name]
                counts[index] += count_items(spec.kind, labels).to(device)
                counts[len(specs) + index] += labelled_rows(labels).to(device)
        counts[-1] += len(next(iter(batch["labels"].values())))
    sum_over_ranks(counts, world_size)
    step = TaskStep(tuple(specs), counts[: len(specs)], counts[len(specs) :], len(batches), world_size)
    scaled = torch.tensor([spec.weight * weight for spec, weight in zip(specs.values(), weights, strict=True)])
    scale = scaled.to(device) / step.items.clamp(min=1) * (len(batches) * world_size)
    for batch in batches:
        batch["task_scale"] = scale.float()
    return step


def sum_over_ranks(values: Tensor, world_size: int) -> None:
    """Add the values of all ranks, in place."""
    if world_size > 1 and dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)


def labelled_rows(labels: Tensor) -> Tensor:
    """Rows that have a label; int64 scalar from [rows, ...]."""
    flat = labels.reshape(len(labels), -1)
    present = ~flat.isnan() if flat.is_floating_point() else flat != ABSENT
    return present.any(dim=1).sum()
