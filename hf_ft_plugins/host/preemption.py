"""Trainer mix-in: a run resumes exactly from the checkpoint written at SIGTERM (`enable_jit_checkpoint`).

Stock Trainer writes that checkpoint at whatever point of a step the signal arrives: after the forward passes (dropout
is then drawn twice), before a due evaluation (its decisions are then lost), and at a different point on each rank.
Here it is written at the end of the step, on all ranks, and again after a due evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from .hook_calls import CallsHooks

logger = logging.getLogger(__name__)

EVENTS = ("on_pre_optimizer_step", "on_step_begin", "on_step_end", "on_epoch_end")


class Preemption(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # Whether SIGTERM ended the run early; then the phases of `endings.py` are left to the run that resumes it.
    preempted = False
    _jit_manager: Any = None
    _agreed: Callable[[bool], bool]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.preempted = False
        return super().train(*args, **kwargs)

    def _take_over_sigterm(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, JITCheckpointCallback) and callback.jit_manager is not None:
                self._jit_manager = callback.jit_manager
                for event in EVENTS:
                    setattr(callback, event, _leave_it)

    def _turns_to_log_save_evaluate(self) -> Iterator[None]:
        """Yields once for each time that Trainer is to log, evaluate and save now, with `control` set for that turn.

        Usually once and with `control` as it is; at SIGTERM first the checkpoint of the step, then what was due.
        """
        if self.preempted and self.state.epoch % 1:
            # Trainer treats the end of training as the end of an epoch; the run that resumes reaches that end later.
            self.control.should_log = self.control.should_evaluate = self.control.should_save = False
            return
        if not self._sigterm_came():
            yield
            return
        logger.warning("SIGTERM: the run ends here, after a checkpoint of this step.")
        self.preempted, due = True, self.control.should_evaluate
        # Handled: a later `train()` of this trainer must not end at once.
        self._jit_manager.is_checkpoint_requested = False
        self.control.should_training_stop = self.control.should_save = True
        # It may outlast the time that is left.
        self.control.should_evaluate = False
        yield
        if due:
            self.control.should_evaluate = self.control.should_save = True
            yield

    def _may_end_early(self) -> bool:
        """Whether SIGTERM is to end this run with a checkpoint."""
        return self._jit_manager is not None

    def _sigterm_came(self) -> bool:
        if self._jit_manager is None or self.preempted:
            return False
        return self._agreed(bool(self._jit_manager.is_checkpoint_requested))


def _leave_it(*_: Any, **__: Any) -> None:
    """Replaces an event of Trainer's callback: the mix-in saves at the end of the step instead."""
