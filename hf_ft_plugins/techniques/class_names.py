"""Names of classes: which are placeholders, and which of two sets mean the same class."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_PLACEHOLDER = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)


def placeholder(index: int) -> str:
    """What transformers calls an output that nobody named."""
    return f"LABEL_{index}"


def are_placeholders(names: Sequence[str]) -> bool:
    """Whether the names are only the classes' numbers: `LABEL_0`, `0`, `class 0`, ..."""
    found = [_PLACEHOLDER.fullmatch(name) for name in names]
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


def match(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For each of `names`, the place in `others` of the one that means the same class; None where none does.

    The same: the same letters and digits in any case, or, where that leaves no doubt, one the beginning of the other
    (`neg`, `NEGATIVE`). Where all but one are written alike, the two left over are the same too.
    """
    found: list[int | None] = [None] * len(names)
    for written, same in ((str, _equal), (_plain, _equal), (_plain, _abbreviates)):
        if same is _abbreviates:
            _match_the_last(found, len(others))
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


def _match_the_last(found: list[int | None], others: int) -> None:
    free = [place for place in range(others) if place not in found]
    if found.count(None) == len(free) == 1 and len(found) > 1:
        found[found.index(None)] = free[0]


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in letters if letter.isalnum()) or name


def _equal(one: str, other: str) -> bool:
    return one == other


def _abbreviates(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    # 1 does not abbreviate 10.
    cut_in_a_number = short[-1:].isdigit() and long[len(short) :][:1].isdigit()
    return len(short) < len(long) and long.startswith(short) and not cut_in_a_number
