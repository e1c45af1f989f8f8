"""The string form of a technique, `name:option=value,option=value`: read and written without loss.

A value is text up to the next comma outside of brackets. What begins with a double quote is a JSON string, for texts
that hold commas or single brackets: `text2text:source_prefix="translate, please: "`. Spaces around names do not count;
those of a value do, where the option is a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import OptionError

CLOSING = {")": "(", "]": "[", "}": "{"}
# What would end a value, or be read as something else than text.
QUOTED_FOR = frozenset(',"[](){}')
LONGEST_SHOWN = 200
QUOTES = 'Put a text with commas, brackets or quotes into double quotes: option="a, b".'


def parse_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Read a technique's string or mapping form into its name and its options.

    A string is `name` or `name:option=value,option=value`; commas inside brackets or a quoted value do not separate. A
    mapping has one key, the name; its value is a mapping of options or None.

    Raises:
        OptionError: the text does not have that form, or says an option twice.
    """
    if isinstance(spec, str):
        name, _, rest = spec.partition(":")
        return name.strip(), _assignments(rest, spec)
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, options = next(iter(spec.items()))
        if options is None or isinstance(options, Mapping):
            for key in (name, *(options or {})):
                if not isinstance(key, str):
                    raise OptionError(
                        f"cannot read the technique {shown(spec)}: {shown(key)} is a {type(key).__name__} where a name "
                        "is expected; YAML reads bare no, yes, on, off, null and numbers so. Quote it: "
                        f'"{shown(key)}".',
                        code="recipe-unreadable",
                    )
            return name, dict(options or {})
    raise OptionError(
        f"cannot read the technique {shown(spec)}: write 'name', 'name:option=value,option=value' "
        "or a mapping {name: {option: value}}.",
        code="recipe-unreadable",
    )


def written(value: Any) -> str:
    """An option's value as `parse_spec` reads it back."""
    if isinstance(value, str):
        plain = value.isprintable() and value == value.strip() and not QUOTED_FOR & set(value)
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value) if value is not None else "none"


def shown(value: Any) -> str:
    """A value for the text of an error: its `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # More digits than Python writes, or deeper than it goes.
        return f"(a {type(value).__name__} that is too large to show)"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"


def default_text(value: Any) -> str:
    """An option's default as tables show it: None is `none`, which its help explains, and an empty text is `empty`."""
    return "none" if value is None else json.dumps(value).strip('"') or "empty"


def _assignments(text: str, spec: str) -> dict[str, str]:
    options: dict[str, str] = {}
    position = 0
    while position < len(text) and (options or text.strip()):
        part = text[position:].partition(",")[0]
        name, sign, _ = part.partition("=")
        if not sign:
            raise OptionError(
                f"cannot read {shown(part)} in {shown(spec)}: write option=value. {QUOTES}", code="recipe-unreadable"
            )
        value, position = _value(text, position + len(name) + 1, spec)
        name = name.strip()
        if name in options:
            raise OptionError(
                f"{shown(spec)}: option {name} is given twice, as {shown(options[name])} and as {shown(value)}. "
                "Keep one of them.",
                code="recipe-unreadable",
            )
        options[name] = value
        if position < len(text):
            position += 1
            if position == len(text):
                raise OptionError(
                    f"cannot read {shown(spec)}: it ends in a comma. Remove it. {QUOTES}", code="recipe-unreadable"
                )
    return options


def _value(text: str, start: int, spec: str) -> tuple[str, int]:
    """The value that begins at `start`, and where its comma or the text's end is."""
    first = start + len(text[start:]) - len(text[start:].lstrip())
    if text[first : first + 1] in ('"', "[", "{"):
        try:
            found, end = json.JSONDecoder().raw_decode(text, first)
        except (ValueError, RecursionError) as error:
            if text[first] == '"':
                raise OptionError(
                    f"cannot read the value {shown(text[first:])} in {shown(spec)}: it begins with a double quote and "
                    'is no quoted text. Close the quote, and write \\" for a quote inside.',
                    code="recipe-unreadable",
                ) from error
        else:
            end += len(text[end:]) - len(text[end:].lstrip())
            if end == len(text) or text[end] == ",":
                return (found if isinstance(found, str) else text[first:end].rstrip()), end
            if isinstance(found, str):
                raise OptionError(
                    f"cannot read {shown(text[first:])} in {shown(spec)}: there is text behind the quotes. {QUOTES}",
                    code="recipe-unreadable",
                )
    return _unquoted(text, start, spec)


def _unquoted(text: str, start: int, spec: str) -> tuple[str, int]:
    open_brackets: list[str] = []
    for position in range(start, len(text)):
        character = text[position]
        if character == "," and not open_brackets:
            return text[start:position], position
        if character in CLOSING.values():
            open_brackets.append(character)
        elif character in CLOSING and (not open_brackets or open_brackets.pop() != CLOSING[character]):
            raise OptionError(
                f"cannot read {shown(spec)}: a bracket {character!r} is not opened before. {QUOTES}",
                code="recipe-unreadable",
            )
    if open_brackets:
        raise OptionError(
            f"cannot read {shown(spec)}: the bracket {open_brackets[-1]!r} is not closed. {QUOTES}",
            code="recipe-unreadable",
        )
    return text[start:], len(text)
