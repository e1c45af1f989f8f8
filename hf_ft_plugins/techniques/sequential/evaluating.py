"""Evaluate a trainer on other rows than its own, unnoticed by the script's callbacks and by what reads the log."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import PluginError
from ...host.stash import parts_of
from ...progress import progress
from .settings import NAME
from .stage_records import Measured
from .unfit_losses import is_trls

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

PREFIX = "eval"
# Columns that TRL's trainers make.
TOKENIZED = ("input_ids", "prompt_ids", "chosen_ids", "completion_ids")
# Of what `evaluate` gives: what depends on the clock, and where the run is.
NO_METRICS = ("_runtime", "_per_second", "_preparation_time", "epoch", "num_tokens", "num_input_tokens_seen")


def measured(trainer: Trainer, sets: Mapping[str, Any], own: Collection[str] = ()) -> Measured:
    """What `trainer.evaluate` gives of each of some data sets: its numbers, without the prefix.

    The log, the run's random numbers and whoever listens to evaluations are as they were afterwards. What a technique
    refuses of a set that is not among the trainer's `own` is left out, and a warning says why.
    """
    results: Measured = {}
    with _unnoticed(trainer):
        for name, rows in progress(sets.items(), f"{NAME}: evaluating the stages' sets", unit="sets"):
            try:
                found = _evaluated(trainer, rows)
            except PluginError as error:
                if name in own:
                    raise
                logger.warning("%s: the evaluation set %s is not measured: %s", NAME, name, error)
                continue
            results[name] = {
                key.removeprefix(f"{PREFIX}_"): float(value)
                for key, value in found.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith(NO_METRICS)
            }
    return results


def _evaluated(trainer: Trainer, rows: Any) -> dict[str, float]:
    given, persistent = trainer.eval_dataset, trainer.args.dataloader_persistent_workers
    # Trainer gives any data the persistent workers of those that it was given first.
    trainer.args.dataloader_persistent_workers = False
    try:
        if not (is_trls(trainer) and is_tokenized(rows)):
            return trainer.evaluate(eval_dataset=rows, metric_key_prefix=PREFIX)
        # TRL's trainers prepare again what is not named.
        trainer.eval_dataset = {PREFIX: rows}
        return trainer.evaluate(eval_dataset=PREFIX, metric_key_prefix=PREFIX)
    finally:
        trainer.eval_dataset = given
        trainer.args.dataloader_persistent_workers = persistent


def is_tokenized(rows: Any) -> bool:
    """Whether TRL has made token ids of the rows."""
    return any(name in TOKENIZED for name in getattr(rows, "column_names", None) or ())


@contextmanager
def _unnoticed(trainer: Trainer) -> Iterator[None]:
    handler, history = trainer.callback_handler, trainer.state.log_history
    callbacks, entries = handler.callbacks, len(history)
    waiting = [part.log_notes for part in parts_of(trainer).values() if hasattr(part, "log_notes")]
    kept = [dict(notes) for notes in waiting]
    states = random.getstate(), np.random.get_state()
    handler.callbacks = []
    try:
        with torch.random.fork_rng():
            yield
    finally:
        handler.callbacks = callbacks
        del history[entries:]
        for notes, before in zip(waiting, kept, strict=True):
            notes.clear()
            notes.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
