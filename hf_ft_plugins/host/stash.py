"""The state of one run, under typed keys that their owners alone hold (after pytest's `Stash`).

    SURGERY = StashKey[Surgery]("layer-removal: what was removed")

    stash[SURGERY] = Surgery(...)        # in a hook that takes `stash`
    stash_of(trainer)[SURGERY]           # wherever the trainer is known

A trainer has one stash from before its `__init__` on. Nothing in it is saved, except `parts`: what has `state_dict()`
and `load_state_dict()` there is in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

from .. import mends
from ..errors import PluginError

T = TypeVar("T")
D = TypeVar("D")


class StashKey(Generic[T]):
    """A key for values of one type. It is found by identity: only who imports the key reaches what is under it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """`name` says in messages what is kept under the key."""
        self.name = name

    def __repr__(self) -> str:
        return f"StashKey({self.name!r})"


class Stash:
    """What the techniques of one trainer know of its run.

    Attributes:
        parts: what each checkpoint holds the state of, by `technique/Class`.
    """

    def __init__(self) -> None:
        self._values: dict[StashKey[Any], Any] = {}
        self.parts: dict[str, Any] = {}

    def __setitem__(self, key: StashKey[T], value: T) -> None:
        self._values[key] = value

    def __getitem__(self, key: StashKey[T]) -> T:
        try:
            return self._values[key]
        except KeyError:
            raise PluginError(
                f"{key.name} is not known yet: the trainer was not built with the technique that finds it out. Build "
                "it by with_plugins(...), or pass the value yourself.",
                code="part-misused",
            ) from None

    @overload
    def get(self, key: StashKey[T]) -> T | None: ...

    @overload
    def get(self, key: StashKey[T], default: D) -> T | D: ...

    def get(self, key: StashKey[Any], default: Any = None) -> Any:
        return self._values.get(key, default)

    def __contains__(self, key: StashKey[Any]) -> bool:
        return key in self._values

    def __delitem__(self, key: StashKey[Any]) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[StashKey[Any]]:
        return iter(self._values)

    def keep_part(self, technique: str, part: Any) -> None:
        """Have every checkpoint hold the state of `part`, if it has one.

        Raises:
            PluginError: the technique has a part of that class already.
        """
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            return
        key = f"{technique}/{type(part).__name__}"
        if key in self.parts:
            raise PluginError(
                f"{technique}: it supplies two parts of class {type(part).__name__} with state. "
                "Give them different classes, so that a checkpoint can tell them apart.",
                code="plugin-broken",
                mend=[mends.remove_technique(technique)],
            )
        self.parts[key] = part


def stash_of(trainer: Any) -> Stash:
    """The trainer's stash; a stock trainer gets one at the first call, so that parts work alone."""
    attributes: dict[str, Any] = vars(trainer)
    stash: Stash = attributes.setdefault("ft_stash", Stash())
    return stash


def parts_of(trainer: Any) -> Mapping[str, Any]:
    """What every checkpoint of this trainer holds the state of; nothing for a stock trainer."""
    return stash_of(trainer).parts if trainer is not None else {}


class WithTrainer:
    """Mix-in of a part that needs the trainer: the host calls `set_trainer`; copies and pickles are without it."""

    _trainer: Any = None

    def set_trainer(self, trainer: Any) -> None:
        """Called by the host when the trainer is built; by hand where the part is used in a stock Trainer."""
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}
