"""Notes that techniques' parts add to the log without log entries of their own.

Scripts index `trainer.state.log_history` (`[-2]` after an evaluation, `[-1]` after training), and their own `log()`
receives every entry, so techniques add none. A part puts its decisions into its attribute `log_notes`, a dict of JSON
values, and the host merges them into the next entry: a training log, an evaluation's, or the summary at the end. Notes
are part of the part's saved state, so that a resumed run logs the same as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .stash import parts_of

STEP = "step"


class Text(str):
    """A text among the numbers of a log: if a script rounds or formats every value, it stays as it is."""

    __slots__ = ()

    def __round__(self, digits: int | None = None) -> Text:
        return self

    def __format__(self, form: str) -> str:
        try:
            return super().__format__(form)
        except ValueError:
            # A format for numbers.
            return str(self)

    def __float__(self) -> float:
        return math.nan


def as_logged(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes as they go through a script's own `log()` and its callbacks."""
    return {key: Text(value) if isinstance(value, str) else value for key, value in notes.items()}


def add_note(notes: dict[str, Any], note: dict[str, Any]) -> None:
    """Merge `note` into the pending `notes`: two texts under one key are joined, a number is replaced by the later one.

    When reasons (`NAME/reason`) are joined, each is preceded by its step (`NAME/step`).
    """
    for key, value in note.items():
        waiting = notes.get(key)
        if not (isinstance(value, str) and isinstance(waiting, str)):
            continue
        prefix, _, name = key.rpartition("/")
        step = f"{prefix}/{STEP}"
        if name == "reason" and step in note:
            first = waiting if waiting.startswith("step ") else f"step {notes[step]}: {waiting}"
            note = {**note, key: f"{first}; step {note[step]}: {value}"}
        else:
            note = {**note, key: f"{waiting}, {value}"}
    notes.update(note)


def taken_notes(parts: Iterable[Any]) -> dict[str, Any]:
    """Remove and return all notes of these parts."""
    taken: dict[str, Any] = {}
    for part in parts:
        notes = getattr(part, "log_notes", None)
        if notes:
            taken.update(notes)
            notes.clear()
    return as_logged(taken)


def log_into_last_entry(trainer: Any, values: dict[str, Any]) -> None:
    """Log `values` that belong to the latest entry but were not known when it was logged.

    They go through the script's own `log()` and the trackers, and are merged into that entry of the history.
    """
    history = trainer.state.log_history
    entries = len(history)
    waiting = [part.log_notes for part in parts_of(trainer).values() if hasattr(part, "log_notes")]
    kept = [dict(notes) for notes in waiting]
    for notes in waiting:
        notes.clear()
    trainer.log(as_logged(values))
    for notes, old in zip(waiting, kept, strict=True):
        notes.update(old)
    if 0 < entries < len(history):
        added = [history.pop() for _ in range(len(history) - entries)]
        late = {key: value for entry in reversed(added) for key, value in entry.items() if key in values}
        add_note(history[-1], late)


def tell_at_the_end(trainer: Any, state: Any, notes: dict[str, Any]) -> None:
    """Log the remaining notes at the end of training; `trainer` is None if the callback has none."""
    left = dict(notes)
    notes.clear()
    if left and trainer is not None:
        log_into_last_entry(trainer, left)
    elif left and state.log_history:
        add_note(state.log_history[-1], left)


class StockLog:
    """Adds notes to log entries of a stock Trainer, in a callback's `on_log`.

    The dict that is logged for an evaluation or the summary is also returned to the script as metrics: `untell` removes
    the notes from it in the next event (`on_evaluate`, `on_train_end`).
    """

    def __init__(self) -> None:
        self._logs: dict[str, Any] = {}
        self._told: dict[str, Any] = {}

    def tell(self, notes: dict[str, Any], logs: dict[str, Any], state: Any) -> None:
        self.untell()
        self._logs, self._told = logs, as_logged(notes)
        logs.update(self._told)
        state.log_history[-1].update(self._told)
        notes.clear()

    def untell(self) -> None:
        for key in self._told:
            self._logs.pop(key, None)
        self._logs, self._told = {}, {}
