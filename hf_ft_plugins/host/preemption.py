"""Trainer mix-in: a checkpoint at SIGTERM (`enable_jit_checkpoint`) is one that a run resumes from exactly.

Stock Trainer writes it wherever the signal finds the step: after the forward passes (whose dropout is then drawn
twice), before an evaluation that is due (whose decisions are then lost), and each rank at its own place (where the
others do not wait). Here it is written at the end of the step, on all ranks, and again after an evaluation that is due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from .hook_calls import CallsHooks

logger = logging.getLogger(__name__)

EVENTS = ("on_pre_optimizer_step", "on_step_begin", "on_step_end", "on_epoch_end")


class Preemption(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # Whether the run was told to end before its end, so that nothing is made of its model yet.
    preempted = False
    _jit_manager: Any = None
    _is_distributed: Callable[[], bool]

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
            # Trainer takes the end of the run for the end of an epoch; the run that goes on comes to that later.
            self.control.should_log = self.control.should_evaluate = self.control.should_save = False
            return
        if not self._sigterm_came():
            yield
            return
        logger.warning("SIGTERM: the run ends here, after a checkpoint of this step.")
        self.preempted, due = True, self.control.should_evaluate
        # Answered; a later `train()` of this trainer is not told to end.
        self._jit_manager.is_checkpoint_requested = False
        self.control.should_training_stop = self.control.should_save = True
        # It may outlast the time that is left.
        self.control.should_evaluate = False
        yield
        if due:
            self.control.should_evaluate = self.control.should_save = True
            yield

    def _sigterm_came(self) -> bool:
        if self._jit_manager is None or self.preempted:
            return False
        came = bool(self._jit_manager.is_checkpoint_requested)
        if self._is_distributed():
            flag = torch.tensor(int(came), device=self.args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            came = bool(flag)
        return came


def _leave_it(*_: Any, **__: Any) -> None:
    """What Trainer's callback would do at an event, the mix-in does at the end of the step."""
