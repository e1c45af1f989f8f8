"""`Technique`: a named, option-bearing, immutable object that changes one thing about a training run.

A technique is a frozen dataclass. Its fields are its options, its `ft_...` methods are its answers to the hooks in
`hookspecs.py`. It keeps no state of a run: what must be remembered lives in the parts (callbacks, samplers, ...)
that its hooks return.

The same technique can be said in three ways, which mean the same thing:

    AdaptiveLR(patience=3)                              # the class
    "adaptive-lr:patience=3"                            # a string, as on the command line
    {"adaptive-lr": {"patience": 3}}                    # a mapping, as in a YAML recipe
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Union

from . import hookspecs, mends
from .errors import OptionError
from .near import closest, nearest, nearest_value
from .option_text import parse_spec, shown, written

if TYPE_CHECKING:
    from .suggest import RunFacts, Suggestion

__all__ = ["OptionInfo", "Technique", "convert", "data_seed", "nearest", "option", "parse_spec"]

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NONE_WORDS = ("none", "null", "")
# What counts, sizes and seeds are kept in by torch and by files.
LARGEST_NUMBER = 2**63 - 1


def option(default: Any, *, help: str) -> Any:
    """A technique's option: a dataclass field with a default and one line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class OptionInfo:
    """What `hf-ft show` tells about one option."""

    name: str
    type: str
    default: Any
    help: str


class Change(StrEnum):
    """What a technique may change about a run, so that techniques can refuse each other without knowing each other."""

    PREFERENCES = "trains on preferences between answers, by TRL's losses"
    CLASS_LABELS = "gives the model a head for the labels of the data, and a loss of that head"
    SEVERAL_HEADS = "trains a model of several heads around one encoder"
    GENERATION = "trains text generation from pairs: their collation, their loss and their metrics"
    DEPTH = "changes the number of the model's layers"
    GRADIENTS = "steps within the backward pass, and leaves no gradients"
    LAYERS = "decides which layers learn at which step"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """Base class of all techniques.

    A subclass is decorated with `@dataclass(frozen=True, kw_only=True)`, sets `name` (the name of its entry point)
    and `summary` (one line), declares its options with `option(...)` and answers hooks with methods of their names.
    Values of options are converted to their declared type (`"3"` to `3` for an `int`), so that strings, YAML and
    Python give equal objects.

    Raises:
        OptionError: an option has the wrong type, or `check` refuses its value.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    # Sub-commands of `ft_commands` that `hf-ft` knows without the technique's name before them.
    shortcuts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if "__dataclass_fields__" not in type(self).__dict__:
            raise OptionError(
                f"{type(self).__name__} is not a dataclass, so its options cannot be read. "
                "Decorate it with @dataclass(frozen=True, kw_only=True).",
                code="plugin-broken",
            )
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _converted(getattr(self, field.name), hints[field.name], self.name, field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that are out of range, with `require`. Called when the technique is made."""

    def require(self, holds: bool, name: str, mend: str, *, use: Any = None) -> None:
        """Raise an `OptionError` about option `name` unless `holds`; `mend` says which values are allowed.

        Args:
            use: an allowed value that is near to what people ask for: the bound that was crossed. None: there is none
                but the default.
        """
        if not holds:
            given = [mends.set_option(self.name, name, use)] if use is not None else []
            changed = [mends.remove_option(self.name, name)] if name in self.changed_options() else []
            raise OptionError(
                f"{self.name}: option {name}={written(getattr(self, name))} is not allowed: {mend}",
                mend=[*given, *changed],
            )

    def conflict(self, other: Technique) -> str | None:
        """Why this technique cannot run together with `other`, or None. Asked when the trainer is built."""
        return None

    def changes(self) -> frozenset[Change]:
        """What it changes about a run, with these options, that another technique may not bear (`excludes`)."""
        return frozenset()

    def excludes(self) -> Mapping[Change, str]:
        """Changes by other techniques that this one cannot run together with, and the reason for each, a sentence."""
        return {}

    def idle_options(self) -> dict[str, str]:
        """The options that were changed and cannot act beside the others, each with the reason; they are warned about.

        `{"max_scale": "the controller is plateau, which does not raise the rate"}`
        """
        return {}

    def packages(self) -> dict[str, str]:
        """What must be installed for these options beside the distribution's own dependencies.

        Names of modules, each with what pip is to install: `{"sklearn": "scikit-learn>=1.7"}`.
        """
        return {}

    def answers(self, hook: str) -> bool:
        """Whether it answers a hook with these options. One that it has a method for and does not answer is free for
        another technique to own.
        """
        return hook in self.hooks()

    def answers_on(self, hook: str, trainer_class: type | None) -> bool:
        """The same, of an owner hook, where that depends on the trainer's class; None: it is not known yet."""
        return self.answers(hook)

    def keeps_objective(self) -> bool:
        """Whether a loss of a run with this technique measures the same thing as the loss of a run without it.

        `hf-ft compare` gives no verdict on losses unless every technique says so.
        """
        return False

    def loss_differs(self, setting: Mapping[str, Any]) -> str | None:
        """Why stock Trainer evaluates another loss in such a run, though the objective is the same; None: it does not.

        Asked by `hf-ft compare` where `keeps_objective`. `setting` is what `cli/record.py` records of a run:
        `grouped_by_length`, `generates`, `smoothed`, `is_encoder_decoder`, `in_float32` and `fills_batches`, all bool.
        """
        return None

    def plan_for(self, model: Any) -> str | None:
        """What this technique would do with a model, for `hf-ft check --model`; the model holds no weights."""
        return None

    @classmethod
    def memory_savings(cls) -> tuple[str, ...]:
        """Its forms that make a run smaller, as strings, what changes least first: `hf-ft check --memory` tries them
        where a run is over its budget.
        """
        return ()

    def memory_effects(self, config: Any) -> dict[str, Any]:
        """What it changes of the arguments of `estimate_memory`, for a model of this configuration: `quant`, `removed`,
        and `change`, which gets a model without numbers and returns what is trained. Also how many copies of the whole
        model it keeps, on the model's device (`copies`) and in the host's memory (`host_copies`), and an
        `OptimizerMemory` (`memory/trial_run.py`) as `optimizer`.
        """
        return {}

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        """Whether it would help a run, for `hf-ft suggest`; None where it would not, or where that is not known.

        `facts` are measured before the first step (`suggest/facts.py`), and each reason is one of them. Nothing of the
        run may be changed.
        """
        return None

    @classmethod
    def hooks(cls) -> list[str]:
        """The hooks that this technique answers, in the order of `hookspecs.py`."""
        return [name for name in vars(hookspecs) if name.startswith(hookspecs.PREFIX) and hasattr(cls, name)]

    def options(self) -> dict[str, Any]:
        """All options by name, as plain values that JSON can hold."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def changed_options(self) -> dict[str, Any]:
        """The options whose value is not the default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def __str__(self) -> str:
        """The string form, which `parse_spec` reads back."""
        options = ",".join(f"{name}={written(value)}" for name, value in self.changed_options().items())
        return f"{self.name}:{options}" if options else self.name

    def _repr_html_(self) -> str:
        from .option_table import as_html

        return as_html(self)

    @classmethod
    def option_infos(cls) -> list[OptionInfo]:
        """Name, type, default and help of each option, in the order in which the class declares them."""
        hints = typing.get_type_hints(cls)
        return [
            OptionInfo(field.name, _type_name(hints[field.name]), field.default, field.metadata.get("help", ""))
            for field in dataclasses.fields(cls)
        ]

    @classmethod
    def option_choices(cls) -> dict[str, list[str]]:
        """Of the options that take a few values, and nothing else, these values as strings have them."""
        hints = typing.get_type_hints(cls)
        found = {field.name: _few_values(hints[field.name]) for field in dataclasses.fields(cls)}
        return {name: values for name, values in found.items() if values is not None}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the technique from a mapping of options; an unknown name raises `OptionError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = closest(str(name), known)
                renamed = [mends.rename_option(cls.name, str(name), near)] if near and near not in options else []
                raise OptionError(
                    f"{cls.name}: unknown option {shown(name)}.{nearest(str(name), known)} "
                    f"Its options are: {', '.join(known) or '(none)'}.",
                    code="option-unknown",
                    mend=renamed,
                )
        return cls(**options)


def data_seed(args: Any) -> int:
    """The seed, of a trainer's arguments, of what happens to the data."""
    seed: int = args.seed if args.data_seed is None else args.data_seed
    return seed


def _converted(value: Any, hint: Any, technique: str, name: str) -> Any:
    try:
        return convert(value, hint)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        quote = ' YAML reads bare yes, no, on and off so; quote them: "off".' if isinstance(value, bool) else ""
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        raise OptionError(
            f"{technique}: option {name}={shown(value)} has the wrong type: it must be {_type_name(hint)}.{quote}",
            mend=[*nearest_value(technique, name, word, _words_of(hint)), mends.remove_option(technique, name)],
        ) from error


def _words_of(hint: Any) -> list[str]:
    """The words that an option of this type takes."""
    parts = (hint, *typing.get_args(hint))
    return [str(word) for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`: bool, int, float, str, Literal, Optional, list or tuple of these.

    Spaces around a string count for `str` alone.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: the value cannot be read as that type without loss.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        bare = value.strip().lower() if isinstance(value, str) else value
        if type(None) in arguments and (bare is None or (isinstance(bare, str) and bare in NONE_WORDS)):
            return None
        for argument in arguments:
            if argument is type(None):
                continue
            try:
                return convert(value, argument)
            except (TypeError, ValueError, OverflowError):
                continue
        raise TypeError(f"{shown(value)} is none of {arguments}")
    if hint is str:
        if not isinstance(value, str):
            raise TypeError(f"{shown(value)} is not a string")
        return value
    value = value.strip() if isinstance(value, str) else value
    if origin is Literal:
        for argument in arguments:
            if (value == argument and isinstance(value, bool) == isinstance(argument, bool)) or value == str(argument):
                return argument
        raise ValueError(f"{shown(value)} is none of {arguments}")
    if origin in (list, tuple):
        return tuple(convert(item, arguments[0] if arguments else str) for item in _items(value))
    if hint is bool:
        word = str(value).lower() if isinstance(value, (str, bool, int)) else ""
        if word in TRUE_WORDS or word in FALSE_WORDS:
            return word in TRUE_WORDS
        raise ValueError(f"{shown(value)} is neither true nor false")
    if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float, str))):
        raise TypeError(f"{shown(value)} is not a number")
    if hint is int:
        if isinstance(value, float) and not value.is_integer():
            raise TypeError(f"{value!r} is not a whole number")
        number = int(value)
        if abs(number) > LARGEST_NUMBER:
            raise OverflowError(f"{shown(value)} is larger than {LARGEST_NUMBER}")
        return number
    if hint is float:
        real = float(value)
        if math.isnan(real):
            raise ValueError("nan is not a number")
        return real
    return value


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.split("+") if value else []
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{shown(value)} is not a list")
    return list(value)


def _few_values(hint: Any) -> list[str] | None:
    """All values of a type, as strings; None where they are more than a few."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return ["true", "false"]
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if origin in (Union, types.UnionType):
        found = [["none"] if part is type(None) else _few_values(part) for part in arguments]
        return None if None in found else [value for values in found if values is not None for value in values]
    return None


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _type_name(part) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}" if arguments else "list"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))
