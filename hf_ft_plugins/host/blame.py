"""Trainer mix-in: an exception that comes out of a technique's callback says whose it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .hook_calls import CallsHooks
from .hooks import add_note


class Blame(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            trace = error.__traceback__
            while trace is not None:
                frame = trace.tb_frame
                for part, technique in self._ft_owners:
                    if frame.f_locals.get("self") is part:
                        add_note(error, f"{type(part).__name__}.{frame.f_code.co_name}", technique)
                trace = trace.tb_next
            raise
