"""The base of the host's mix-ins: a Trainer, as type checkers see it, and the calls of the techniques' hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from ..technique import Technique
from . import hooks
from .stash import Stash

if TYPE_CHECKING:
    # So that overrides and attributes are checked against Trainer's own.
    from transformers.trainer import Trainer as _Trainer
    from transformers.trainer_callback import TrainerCallback
else:
    # A mix-in comes before the script's own Trainer class, which must not come after `transformers.Trainer`.
    _Trainer = object


class CallsHooks(_Trainer):
    """Comes before a Trainer class in the method resolution order; the base of all parts of `Host`."""

    _ft_techniques: tuple[Technique, ...] = ()
    _ft_manager: pluggy.PluginManager
    ft_stash: Stash
    # The callbacks that techniques have supplied, each with its technique.
    _ft_owners: tuple[tuple[TrainerCallback, Technique], ...] = ()

    @property
    def _ft_callbacks(self) -> list[TrainerCallback]:
        return [callback for callback, _ in self._ft_owners]

    def _ask_all(self, hook: str, **arguments: Any) -> list[tuple[Technique, Any]]:
        """Each technique with its answer, in the order listed, without those that answer None."""
        return [
            (technique, answer)
            for technique in self._ft_techniques
            for answer in [hooks.ask(self._ft_manager, technique, hook, arguments)]
            if answer is not None
        ]

    def _ask_chain(self, hook: str, **arguments: Any) -> Any:
        """Each technique changes what the one before left; the first argument is what is passed on."""
        changed, *_ = arguments
        for technique in self._ft_techniques:
            answer = hooks.ask(self._ft_manager, technique, hook, arguments)
            if answer is not None:
                arguments[changed] = answer
        return arguments[changed]

    def _ask_owner(self, hook: str, **arguments: Any) -> Any:
        """The answer of the one technique that may give one, or None."""
        answers = [answer for _, answer in self._ask_all(hook, **arguments)]
        return answers[0] if answers else None
