"""What a technique says of a finished run, for the report and the model card: answers to the hook `ft_report`.

Each section is plain data: numbers, texts and None, which JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import PluginError

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Facts:
    """A few named values: how much was removed, how good it is now."""

    title: str
    facts: Mapping[str, Cell]
    note: str = ""
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Rows:
    """A table: one list of cells a row, as long as `heads`."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: str = field(default="rows", init=False)


@dataclass(frozen=True)
class Grid:
    """Numbers by row and column, shaded by their size: a confusion matrix, what stages did to each other.

    Attributes:
        rows, columns: the names; row_word, column_word: what they are names of.
        values: [rows][columns]; None was not measured.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | int | None]]
    row_word: str = ""
    column_word: str = ""
    note: str = ""
    kind: str = field(default="grid", init=False)


@dataclass(frozen=True)
class Curve:
    """Lines over one quantity: what each removed layer costs.

    Attributes:
        x: the quantity; x_word: its name; lines: by name, a value for each of `x`; None is a gap.
    """

    title: str
    x: Sequence[float | int]
    lines: Mapping[str, Sequence[float | int | None]]
    x_word: str = ""
    note: str = ""
    kind: str = field(default="curve", init=False)


Section = Facts | Rows | Grid | Curve
KINDS: dict[str, type] = {"facts": Facts, "rows": Rows, "grid": Grid, "curve": Curve}


def as_json(section: Section) -> dict[str, Any]:
    return asdict(section)


def from_json(content: Any) -> Section:
    """The section that `as_json` wrote.

    Raises:
        PluginError: it is of another form.
    """
    try:
        given = dict(content)
        section: Section = KINDS[given.pop("kind")](**given)
    except (KeyError, TypeError, ValueError) as error:
        raise PluginError(
            f"report: a section of the record cannot be read ({type(error).__name__}: {error}). Its kind must be "
            f"one of {', '.join(KINDS)}, with the fields of that kind.",
            code="file-unusable",
        ) from error
    wrong = misshapen(section)
    if wrong:
        raise PluginError(
            f"report: the section {section.title!r} of the record cannot be read: {wrong}.", code="file-unusable"
        )
    return section


def misshapen(section: Section) -> str | None:
    """What is wrong with the shape of a section, or None."""
    if isinstance(section, Rows) and any(len(row) != len(section.heads) for row in section.rows):
        return f"each row must have {len(section.heads)} cells, as there are heads"
    if isinstance(section, Grid):
        shapes = {len(row) for row in section.values}
        if len(section.values) != len(section.rows) or shapes - {len(section.columns)}:
            return f"values must be {len(section.rows)} lists of {len(section.columns)} numbers"
    if isinstance(section, Curve) and any(len(line) != len(section.x) for line in section.lines.values()):
        return f"each line must have {len(section.x)} values, as x has"
    return None
