"""The name that was likely meant, for the text of an error and for its mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from . import mends

# Of difflib's ratio: `wieghts` is 0.86 of `weights`, and `mixture` 0.57 of `mixed`.
NEAR = 0.7
BEGINNING = 3  # letters of a name that may stand for it


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was likely meant to be; None where none is near."""
    # Two names that differ in their separators, or their case, are written alike.
    plain = {str(name).lower().replace("_", "-"): name for name in known}
    wanted = word.lower().replace("_", "-")
    begun = [name for name in plain if len(wanted) >= BEGINNING and name.startswith(wanted)]
    matches = difflib.get_close_matches(wanted, list(plain), n=1, cutoff=NEAR) or (begun if len(begun) == 1 else [])
    return plain[matches[0]] if matches else None


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of `known`, or an empty string where none is near."""
    found = closest(word, known)
    return f" Did you mean {found!r}?" if found is not None else ""


def nearest_value(technique: str, option: str, word: Any, known: Iterable[str]) -> list[mends.Step]:
    """The mend of an option that takes one of several words; empty where none is near."""
    found = closest(word, known) if isinstance(word, str) else None
    return [] if found is None else [mends.set_option(technique, option, found)]


def nearest_column(wanted: str, present: Iterable[str]) -> list[mends.Step]:
    """The mend of a column that is missing: one of another name that was likely meant; empty where none is near."""
    found = closest(wanted, present)
    return [] if found is None else [mends.rename_column(found, wanted)]
