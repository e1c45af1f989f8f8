"""Trainer mix-in: when training ends, what changes the model acts first, then what reports on it, then what exports it.

A technique's callback with an attribute `end_phase`, one of `END_PHASES`, has its `on_train_end` called in that phase,
independent of the order of the techniques. Callbacks without one come first (they restore weights, or complete the
model). Exports come last, after the script's own callbacks, so that the final model is exported. A run that SIGTERM
ends early, and a trial that is pruned, reaches no phase. Where training ends by an exception, a callback's method
`on_train_raised()` is called instead of `on_train_end`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from .hook_calls import CallsHooks

logger = logging.getLogger(__name__)

END_PHASES = ("gate", "calibrate", "report", "export")


def phase_of(callback: Any) -> str | None:
    """The phase in which a callback's `on_train_end` is called; None for the usual moment."""
    return getattr(callback, "end_phase", None)


def in_phases(callbacks: Sequence[Any], supplied: Sequence[Any]) -> list[Any]:
    """All callbacks in the order in which `on_train_end` is to be called; `supplied` are those of the techniques."""
    ours = {id(callback) for callback in supplied}
    by_phase: dict[str | None, list[Any]] = {phase: [] for phase in (None, *END_PHASES)}
    others: tuple[list[Any], list[Any]] = ([], [])
    for callback in callbacks:
        if id(callback) in ours:
            by_phase[phase_of(callback)].append(callback)
        else:
            others[any(by_phase.values())].append(callback)
    before, after = others
    exports = by_phase.pop("export")
    return [*before, *(callback for phase in by_phase.values() for callback in phase), *after, *exports]


class Endings(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    preempted: bool

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            # No event is left that could undo what was for the duration of the run.
            for callback in self._ft_callbacks:
                if hasattr(callback, "on_train_raised"):
                    callback.on_train_raised()
            raise

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        with self._phases(reached=not self.preempted):
            return super()._finalize_training(*args, **kwargs)

    def _report_to_hp_search(self, *args: Any, **kwargs: Any) -> None:
        # For a pruned trial it calls `on_train_end` and raises.
        with self._phases(reached=False):
            super()._report_to_hp_search(*args, **kwargs)

    @contextlib.contextmanager
    def _phases(self, *, reached: bool) -> Iterator[None]:
        callbacks = self.callback_handler.callbacks
        usual = list(callbacks)
        callbacks[:] = in_phases(usual, self._ft_callbacks) if reached else _without_phases(usual, self._ft_callbacks)
        meanwhile = list(callbacks)
        try:
            yield
        finally:
            # Keep what was added or removed meanwhile.
            came, gone = _beyond(callbacks, meanwhile), _beyond(meanwhile, callbacks)
            callbacks[:] = [*_beyond(usual, gone), *came]


def _without_phases(callbacks: Sequence[Any], supplied: Sequence[Any]) -> list[Any]:
    return _beyond(callbacks, [callback for callback in supplied if phase_of(callback) is not None])


def _beyond(callbacks: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The callbacks that are not in `others`, compared by identity."""
    known = {id(callback) for callback in others}
    return [callback for callback in callbacks if id(callback) not in known]
