"""Names of classes: which are placeholders, and which of two sets mean the same class."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_PLACEHOLDER = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)
# Accents, blanks, and what may stand between words. The point of a number, and the signs of `C++`, `A-` and `-1`, stay.
_BLANKS = re.compile(r"[\u0300-\u036f\s_]")
_SEPARATORS = re.compile(r"""["'()\[\];&]|[.,:/](?!\d)|(?<=[^\W\d])[.,:/]|(?<=\w)-(?=[^\W\d])|(?<=[^\W\d])-(?=\w)""")


def placeholder(index: int) -> str:
    """What transformers calls an output that nobody named."""
    return f"LABEL_{index}"


def are_placeholders(names: Sequence[str | int]) -> bool:
    """Whether the names are only the classes' numbers: `LABEL_0`, `0`, `class 0`, ..., as texts or as such."""
    found = [_PLACEHOLDER.fullmatch(str(name)) for name in names]
    return all(match and int(match[1]) == index for index, match in enumerate(found))


def names_in(config: Any) -> tuple[str, ...]:
    """The config's names of its outputs, by their numbers; placeholders where it has none."""
    numbers = range(config.num_labels)
    named = {int(index): str(name) for index, name in config.id2label.items()}
    names = tuple(named.get(index, placeholder(index)) for index in numbers)
    # A script may set one of the two maps alone.
    other = {int(index): str(name) for name, index in (config.label2id or {}).items()}
    if are_placeholders(names) and sorted(other) == list(numbers):
        return tuple(other[index] for index in numbers)
    return names


def match(names: Sequence[str], others: Sequence[str], *, abbreviated: bool = True) -> list[int | None]:
    """For each of `names`, the place in `others` of the one that means the same class; None where none does.

    The same: the same letters, digits and signs in any case, or, where that leaves no doubt and `abbreviated` allows
    it, one the beginning of the other (`neg`, `NEGATIVE`). Of two classes each, where one is written alike, so is the
    other: it is all that the one is not (`ham`, `not spam`).
    """
    found: list[int | None] = [None] * len(names)
    for written, same in ((str, _equal), (_plain, _equal), (_plain, _abbreviates)):
        if same is _abbreviates:
            _match_the_other(found, len(others))
            if not abbreviated:
                break
        free = [place for place in range(len(others)) if place not in found]
        candidates = {
            index: [place for place in free if same(written(names[index]), written(others[place]))]
            for index, place in enumerate(found)
            if place is None
        }
        for index, places in candidates.items():
            if len(places) == 1 and sum(places[0] in rivals for rivals in candidates.values()) == 1:
                found[index] = places[0]
    return found


def written_alike(one: str, other: str) -> bool:
    """Whether two names differ in case, accents and separators at most."""
    return _plain(one) == _plain(other)


def _match_the_other(found: list[int | None], others: int) -> None:
    if len(found) == others == 2 and found.count(None) == 1:
        index = found.index(None)
        found[index] = 1 - (found[1 - index] or 0)


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).casefold()
    return _SEPARATORS.sub("", _BLANKS.sub("", letters)) or name


def _equal(one: str, other: str) -> bool:
    return one == other


def _abbreviates(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    # 1 does not abbreviate 10, nor C C++.
    cut_in_a_number = short[-1:].isdigit() and long[len(short) :][:1].isdigit()
    return len(short) < len(long) and long.startswith(short) and not cut_in_a_number and long[len(short)].isalnum()
