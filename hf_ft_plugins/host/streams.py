"""Trainer mix-in: counts the passes over a technique's streaming data, so that a run on them resumes exactly."""

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
        """At the end of a pass over a technique's stream, set `state.epoch` to the number of passes done, so that a
        checkpoint has it.
        """
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
        # Stock Trainer assumes that all steps so far belong to the first pass over a stream.
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        passes, steps = _place(saved.epoch or 0.0, saved.global_step, saved.max_steps)
        return passes, steps * self.args.gradient_accumulation_steps


def _place(epoch: float, global_step: int, max_steps: int) -> tuple[int, int]:
    """The number of completed passes, and of steps in the current pass, of a run on a stream of unknown length.

    For such a stream Trainer assumes an epoch of `max_steps` steps, so `epoch` is the number of completed passes plus
    the steps of the current pass divided by `max_steps`.
    """
    if global_step == max_steps and epoch == 1.0:
        return 0, global_step  # The first pass was long enough for the whole run.
    passes = math.floor(epoch)
    return passes, round((epoch - passes) * max_steps)


class _CountsPasses(TrainerCallback):
    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A finished run may be resumed with more steps; it then continues within this pass.
        if not control.should_training_stop:
            state.epoch = float(self._epoch + 1)
