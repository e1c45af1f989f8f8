"""A comparison in words: a table, and the sentences below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from ...training_log import EVALUATION_PREFIXES
from .verdicts import SAME, WITH, WITHOUT, Comparison, Row

ARROWS = {True: " ↑", False: " ↓", None: ""}
UNSHARED = "no metric was measured in both: have the script evaluate data that neither trains on, when it has trained"
COLOURS = {True: "green", False: "red", None: "dim"}


def table_of(rows: Iterable[Row], title: str, seeds: int) -> Table:
    """A row a quantity; an arrow says in which direction a metric is better, by its name."""
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    headings = ("", WITHOUT + mean, escape(f"{WITH} {title}") + mean, "change" + (", 95 %" if seeds > 1 else ""), "")
    table = Table(*headings, header_style="bold")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        word = "" if row.is_cost else verdict_of(row)
        cells = (row.name + arrow_of(row), _number(row.without), _number(row.with_), change_of(row))
        table.add_row(*map(escape, cells), f"[{COLOURS[row.better]}]{escape(word)}[/]")
    return table


def arrow_of(row: Row) -> str:
    return ARROWS[row.greater_is_better]


def verdict_of(row: Row) -> str:
    """Better, worse, or why that is not known."""
    return {True: "better", False: "worse", None: row.why or ""}[row.better]


def sentences(compared: Comparison) -> list[str]:
    """The metrics that were measured last (a test set's, if the script has one) and the steps, then the notes."""
    found = [_summary(compared.rows)]
    if compared.identical:
        found.insert(0, "[bold]no difference[/]: all that was logged, and the trained weights, are equal.")
    return found + [f"[yellow]note:[/] {escape(note)}" for note in compared.notes]


def _summary(rows: Sequence[Row]) -> str:
    # Of several trainings, those of the last; what one run alone has tells nothing of the other.
    every = [row for row in rows if _prefix(row) in EVALUATION_PREFIXES]
    metrics = [row for row in every if row.without is not None and row.with_ is not None]
    last = [row for row in metrics if _label(row) == _label(metrics[-1])]
    last = [row for row in last if _prefix(row) == _prefix(last[-1])]
    told = [UNSHARED] if every and not metrics else []
    for row in last:
        colour = COLOURS[row.better] if row.better is not None else "default"
        told.append(
            f"{escape(row.name)} {_number(row.without)} → {_number(row.with_)} [{colour}]{escape(_short(row))}[/]"
        )
    steps = next(row for row in rows if row.name == "optimizer steps")
    return "; ".join([*told, f"{_number(steps.without)} → {_number(steps.with_)} steps"])


def _short(row: Row) -> str:
    if row.better is None and row.why != SAME:
        return f"(no verdict: {row.why})"
    return verdict_of(row)


def _label(row: Row) -> str:
    return row.name.rpartition(": ")[0]


def _prefix(row: Row) -> str:
    return row.name.rpartition(": ")[2].partition("_")[0]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def change_of(row: Row) -> str:
    """The difference; of costs, which have a zero that means nothing at all, the share of it.

    The time of one run each says little: the first finds the disk's cache cold.
    """
    if row.change is None:
        return ""
    if row.is_cost and row.interval is None and "time" in row.name:
        return ""
    if row.is_cost and row.without:
        return f"{row.change / row.without:+.1%}" + _half_width(row, row.without)
    return f"{row.change:+.4g}" + _half_width(row, None)


def _half_width(row: Row, unit: float | None) -> str:
    if row.interval is None:
        return ""
    half = (row.interval[1] - row.interval[0]) / 2
    return f" ± {half:.2g}" if unit is None else f" ± {half / unit:.1%}"
