"""The base of the host's mix-ins: a Trainer, as type checkers see it, and the calls of the techniques' hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..technique import Technique
from . import hooks
from .stash import Stash

if TYPE_CHECKING:
    # So that overrides and attributes are checked against Trainer's own.
    from transformers.trainer import Trainer as _Trainer
    from transformers.trainer_callback import TrainerCallback

    from .run_progress import Progress
else:
    # A mix-in comes before the script's own Trainer class, which must not come after `transformers.Trainer`.
    _Trainer = object

# Hooks whose answer is an object or a function that Trainer calls later.
HOOKS_OF_PARTS = (
    *("ft_raw_dataset", "ft_dataset", "ft_collator", "ft_metrics", "ft_loss_function"),
    *("ft_sampler", "ft_batch_sampler", "ft_scheduler", "ft_eval_sampler"),
)


class CallsHooks(_Trainer):
    """Comes before a Trainer class in the method resolution order; the base of all parts of `Host`."""

    _ft_techniques: tuple[Technique, ...] = ()
    _ft_manager: hooks.Manager
    ft_stash: Stash
    # None before the first step, and of a trial of a search, which writes none.
    _ft_progress: Progress | None = None
    # The callbacks that techniques have supplied, each with its technique.
    _ft_owners: tuple[tuple[TrainerCallback, Technique], ...] = ()
    # The other parts, by technique, hook and split of the data: the latest of each, so that no old loader is kept.
    _ft_parts: dict[tuple[str, str, str], tuple[Any, Technique]] | None = None

    @property
    def _ft_callbacks(self) -> list[TrainerCallback]:
        return [callback for callback, _ in self._ft_owners]

    @property
    def _ft_owned_parts(self) -> list[tuple[Any, Technique]]:
        """Whatever techniques have supplied and Trainer calls, each with its technique."""
        return [*self._ft_owners, *(self._ft_parts or {}).values()]

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
                self._note_owner(technique, hook, answer, arguments)
                arguments[changed] = answer
        return arguments[changed]

    def _ask_owner(self, hook: str, **arguments: Any) -> Any:
        """The answer of the one technique that may give one, or None."""
        for technique, answer in self._ask_all(hook, **arguments):
            self._note_owner(technique, hook, answer, arguments)
            return answer
        return None

    def _contexts(self, hook: str, **arguments: Any) -> contextlib.AbstractContextManager[None]:
        """Within the contexts that the techniques answer, entered in the order listed; their errors say whose."""
        asked = hooks.asked(self._ft_manager, self._ft_techniques, hook)
        return self._entered(hook, arguments) if asked else contextlib.nullcontext()

    @contextlib.contextmanager
    def _entered(self, hook: str, arguments: dict[str, Any]) -> Iterator[None]:
        with contextlib.ExitStack() as contexts:
            for technique, context in self._ask_all(hook, **arguments):
                contexts.enter_context(_NamedContext(context, hook, technique))
            yield

    def _note_owner(self, technique: Technique, hook: str, answer: Any, arguments: dict[str, Any]) -> None:
        # What a technique answers with may be what it was asked about: the script's own collator. And a data set of the
        # library `datasets` also calls functions of the script's.
        known = any(answer is given for given in arguments.values()) or type(answer).__module__.startswith("datasets.")
        if hook in HOOKS_OF_PARTS and not known:
            key = (technique.name, hook, str(arguments.get("split", "")))
            self._ft_parts = {**(self._ft_parts or {}), key: (answer, technique)}


class _NamedContext:
    """A technique's context; an error of its own gets a note, and one that comes from within the block does not."""

    def __init__(self, context: Any, hook: str, technique: Technique) -> None:
        self._context = context
        self._hook = hook
        self._technique = technique

    def __enter__(self) -> Any:
        try:
            if not hasattr(type(self._context), "__enter__"):
                raise TypeError(f"{self._hook} answers a {type(self._context).__name__}, which is no context manager.")
            return self._context.__enter__()
        except Exception as error:
            hooks.add_note(error, f"the context of {self._hook}", self._technique)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Any:
        try:
            return self._context.__exit__(kind, error, trace)
        except Exception as raised:
            if raised is not error:
                hooks.add_note(raised, f"the context of {self._hook}", self._technique)
            raise
