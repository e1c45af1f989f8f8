"""Evaluate a trainer on other rows than its own, unnoticed by the script's callbacks and by what reads the log."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...host.stash import parts_of
from .stage_records import Measured

if TYPE_CHECKING:
    from transformers import Trainer

PREFIX = "eval"
# Of what `evaluate` gives: what depends on the clock, and where the run is.
NO_METRICS = ("_runtime", "_per_second", "_preparation_time", "epoch", "num_tokens", "num_input_tokens_seen")


def measured(trainer: Trainer, sets: Mapping[str, Any]) -> Measured:
    """What `trainer.evaluate` gives of each of some data sets: its numbers, without the prefix.

    The log, the run's random numbers and whoever listens to evaluations are as they were afterwards.
    """
    results: Measured = {}
    with _unnoticed(trainer):
        for name, rows in sets.items():
            # Workers that stay for later evaluations would read the rows of the set before.
            vars(trainer).pop("_eval_dataloaders", None)
            found = trainer.evaluate(eval_dataset=rows, metric_key_prefix=PREFIX)
            results[name] = {
                key.removeprefix(f"{PREFIX}_"): float(value)
                for key, value in found.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith(NO_METRICS)
            }
    return results


@contextmanager
def _unnoticed(trainer: Trainer) -> Iterator[None]:
    handler, history = trainer.callback_handler, trainer.state.log_history
    callbacks, entries = handler.callbacks, len(history)
    waiting = [part.log_notes for part in parts_of(trainer).values() if hasattr(part, "log_notes")]
    kept = [dict(notes) for notes in waiting]
    states = random.getstate(), np.random.get_state()
    loaders = vars(trainer).pop("_eval_dataloaders", None)
    handler.callbacks = []
    try:
        with torch.random.fork_rng():
            yield
    finally:
        handler.callbacks = callbacks
        vars(trainer).pop("_eval_dataloaders", None)
        if loaders is not None:
            trainer._eval_dataloaders = loaders
        del history[entries:]
        for notes, before in zip(waiting, kept, strict=True):
            notes.clear()
            notes.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
