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
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self, Union

from . import hookspecs
from .errors import OptionError

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NONE_WORDS = ("none", "null", "")


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

    def __post_init__(self) -> None:
        if "__dataclass_fields__" not in type(self).__dict__:
            raise OptionError(
                f"{type(self).__name__} is not a dataclass, so its options cannot be read. "
                "Decorate it with @dataclass(frozen=True, kw_only=True)."
            )
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _converted(getattr(self, field.name), hints[field.name], self.name, field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that are out of range, with `require`. Called when the technique is made."""

    def require(self, holds: bool, name: str, mend: str) -> None:
        """Raise an `OptionError` about option `name` unless `holds`; `mend` says which values are allowed."""
        if not holds:
            raise OptionError(f"{self.name}: option {name}={_plain(getattr(self, name))} is not allowed: {mend}")

    def conflict(self, other: Technique) -> str | None:
        """Why this technique cannot run together with `other`, or None. Asked when the trainer is built."""
        return None

    def changes(self) -> frozenset[Change]:
        """What it changes about a run, with these options, that another technique may not bear (`excludes`)."""
        return frozenset()

    def excludes(self) -> Mapping[Change, str]:
        """Changes by other techniques that this one cannot run together with, and the reason for each, a sentence."""
        return {}

    def plan_for(self, model: Any) -> str | None:
        """What this technique would do with a model, for `hf-ft check --model`; the model holds no weights."""
        return None

    def memory_effects(self, config: Any) -> dict[str, Any]:
        """What it changes of the arguments of `estimate_memory`, for a model of this configuration: `quant`, `removed`,
        and `change`, which gets a model without numbers and returns what is trained. Also how many copies of the whole
        model it keeps, on the model's device (`copies`) and in the host's memory (`host_copies`).
        """
        return {}

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
        said = ",".join(f"{name}={_plain(value)}" for name, value in self.changed_options().items())
        return f"{self.name}:{said}" if said else self.name

    @classmethod
    def option_infos(cls) -> list[OptionInfo]:
        """Name, type, default and help of each option, in the order in which the class declares them."""
        hints = typing.get_type_hints(cls)
        return [
            OptionInfo(field.name, _type_name(hints[field.name]), field.default, field.metadata.get("help", ""))
            for field in dataclasses.fields(cls)
        ]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the technique from a mapping of options; an unknown name raises `OptionError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise OptionError(
                    f"{cls.name}: unknown option {name!r}.{nearest(name, known)} "
                    f"Its options are: {', '.join(known) or '(none)'}."
                )
        return cls(**options)


def data_seed(args: Any) -> int:
    """The seed, of a trainer's arguments, of what happens to the data."""
    seed: int = args.seed if args.data_seed is None else args.data_seed
    return seed


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of `known`, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def parse_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Read a technique's string or mapping form into its name and its options.

    A string is `name` or `name:option=value,option=value`; commas inside brackets do not separate. A mapping has one
    key, the name; its value is a mapping of options or None.

    Raises:
        OptionError: the text does not have that form.
    """
    if isinstance(spec, str):
        name, _, rest = spec.partition(":")
        return name.strip(), dict(_assignment(part, spec) for part in _split_commas(rest))
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, options = next(iter(spec.items()))
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
    raise OptionError(
        f"cannot read the technique {spec!r}: write 'name', 'name:option=value,option=value' "
        "or a mapping {name: {option: value}}."
    )


def _assignment(part: str, spec: str) -> tuple[str, str]:
    name, sign, value = part.partition("=")
    if not sign:
        raise OptionError(f"cannot read {part!r} in {spec!r}: write option=value.")
    return name.strip(), value.strip()


def _split_commas(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value) if value is not None else "none"


def _converted(value: Any, hint: Any, technique: str, name: str) -> Any:
    try:
        return convert(value, hint)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{technique}: option {name}={value!r} has the wrong type: it must be {_type_name(hint)}."
        ) from error


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`: bool, int, float, str, Literal, Optional, list or tuple of these.

    Raises:
        TypeError, ValueError: the value cannot be read as that type without loss.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and (value is None or (isinstance(value, str) and value.lower() in NONE_WORDS)):
            return None
        for argument in arguments:
            if argument is type(None):
                continue
            try:
                return convert(value, argument)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{value!r} is none of {arguments}")
    if origin is Literal:
        for argument in arguments:
            if value == argument or value == str(argument):
                return argument
        raise ValueError(f"{value!r} is none of {arguments}")
    if origin in (list, tuple):
        items = json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        items = items.split("+") if isinstance(items, str) else items
        return tuple(convert(item, arguments[0] if arguments else str) for item in items)
    if hint is bool:
        word = str(value).lower()
        if word in TRUE_WORDS or word in FALSE_WORDS:
            return word in TRUE_WORDS
        raise ValueError(f"{value!r} is neither true nor false")
    if hint is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise TypeError(f"{value!r} is not a whole number")
        return int(value)
    if hint is float:
        if isinstance(value, bool):
            raise TypeError("a truth value is not a number")
        return float(value)
    if hint is str and not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _type_name(part) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}" if arguments else "list"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))
