"""The order of evaluation data where Trainer would change it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import SequentialSampler


def in_order(trainer: Any, dataset: Any) -> SequentialSampler | None:
    """A sampler that keeps the data set's order under `group_by_length`; None where Trainer's own keeps it.

    Grouped by length, predictions would come in another order than the data set, and rows without `input_ids` have no
    length that Trainer knows.
    """
    grouped = getattr(trainer.args, "train_sampling_strategy", None) == "group_by_length"
    return SequentialSampler(dataset) if grouped and hasattr(dataset, "__len__") else None
