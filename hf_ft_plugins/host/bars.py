"""Trainer mix-in: what takes long beside training shows no bar where the trainer's arguments disable bars."""

from __future__ import annotations

from typing import Any

from ..progress import bars_as_asked
from .hook_calls import CallsHooks


class Bars(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with bars_as_asked(self.args):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with bars_as_asked(self.args):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with bars_as_asked(self.args):
            return super().predict(*args, **kwargs)
