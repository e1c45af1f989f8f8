"""Trainer mix-in: passes over streaming data are counted, so that a run on a technique's stream resumes exactly."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers.trainer_callback import TrainerCallback, TrainerState

from .hook_calls import CallsHooks


class StreamPasses(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    train_batches: Any

    @contextlib.contextmanager
    def _counting_passes(self, epoch: int) -> Iterator[None]:
        """At the end of a pass of a technique's stream, the state says how many are done: a checkpoint is exact."""
        if not isinstance(self.train_batches, IterableDataset):
            yield
            return
        counting = _CountsPasses(epoch)
        self.callback_handler.callbacks.insert(0, counting)
        try:
            yield
        finally:
            self.callback_handler.callbacks.remove(counting)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if (
            resume_from_checkpoint is None
            or self.args.ignore_data_skip
            or not isinstance(self.train_batches, IterableDataset)
        ):
            return epochs, batches
        # Stock Trainer takes all steps of a stream for those of its first pass.
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        passes, steps = _place(saved.epoch or 0.0, saved.global_step, saved.max_steps)
        return passes, steps * self.args.gradient_accumulation_steps


def _place(epoch: float, global_step: int, max_steps: int) -> tuple[int, int]:
    """Passes done, and steps in the present one, from the state of a run on a stream of unknown length.

    Trainer counts `max_steps` steps to an epoch there, so `epoch` is the number of passes done plus the share of
    `max_steps` that the present pass has had.
    """
    if global_step == max_steps and epoch == 1.0:
        return 0, global_step  # The whole run was within its first pass.
    passes = math.floor(epoch)
    return passes, round((epoch - passes) * max_steps)


class _CountsPasses(TrainerCallback):
    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that has had all its steps may be given more, and then goes on within the pass.
        if not control.should_training_stop:
            state.epoch = float(self._epoch + 1)
