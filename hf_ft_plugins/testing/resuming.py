"""A run that is cut off, resumed and compared: what two equal runs have in common, and a process that is killed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from .. import lr_scale
from ..technique import Technique
from .tiny_run import tiny_trainer

# Of a log entry: what depends on the clock.
TIMED = ("_runtime", "_per_second")


class Interruption(BaseException):
    """Ends a run where a killed process would; no handler of ordinary errors catches it."""


@dataclass
class InterruptAt(TrainerCallback):
    """Ends the run in the middle of the accumulation that follows optimizer step `step`; without one, in that step."""

    step: int

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and args.gradient_accumulation_steps == 1:
            raise Interruption

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


def outcome(trainer: Any) -> dict[str, Any]:
    """What two equal runs have in common, bit for bit: weights, optimizer, rates, logs without times.

    The log as JSON keeps it: a resumed run has read the first part of its own from its checkpoint.
    """
    log = [
        {key: value for key, value in entry.items() if not key.endswith(TIMED)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()},
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
        "rates": lr_scale.effective_lrs(trainer.optimizer),
        "log": json.loads(json.dumps(log)),
        "steps": trainer.state.global_step,
    }


def resumed(
    output_dir: Path,
    *techniques: Technique | str,
    stop_at: int = 9,
    make_setting: Callable[[], dict[str, Any]] = dict,
    **changes: Any,
) -> Trainer:
    """A run ended in the middle of an epoch and of an accumulation, then resumed by a new trainer to its end.

    `make_setting` gives further `changes` for each of the two trainers, such as a new model.

    Raises:
        AssertionError: the run ended by itself before it could be cut off.
    """
    callbacks = list(changes.pop("callbacks", None) or [])
    stopping = [*callbacks, InterruptAt(stop_at)]
    trainer = tiny_trainer(output_dir, *techniques, callbacks=stopping, **changes, **make_setting())
    try:
        trainer.train()
    except Interruption:
        pass
    else:
        raise AssertionError(
            f"the run ended by itself after step {trainer.state.global_step}, and was to be cut off after step "
            f"{stop_at}. Give options with which it takes more steps."
        )
    trainer = tiny_trainer(output_dir, *techniques, callbacks=callbacks, **changes, **make_setting())
    trainer.train(resume_from_checkpoint=True)
    return trainer
