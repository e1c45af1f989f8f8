"""The page: what the runs were, what came of them, and how to repeat them: one file, without scripts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from ... import report_sections as sections
from ...errors import PluginError
from ...option_text import written
from ..compare.table import arrow_of, change_of, verdict_of
from ..compare.verdicts import Row
from .drawing import draw, draw_curve
from .panels import Line, Panel, decisions_of, panels_of
from .reading import Found, Run

# Rows of the table of numbers under a drawing.
MOST_ROWS = 12
MOST_DECISIONS = 200
STATES = {
    "ended": "ended",
    "running": "still running, or killed, when this was written",
    "stopped": "stopped early",
    "raised": "ended by an error",
}


@dataclass(frozen=True)
class Drawing:
    """A panel as the page has it: `rows` are its numbers, `names` the lines that are not runs."""

    title: str
    svg: Markup
    heads: list[str]
    rows: list[list[str]]
    names: list[str] = field(default_factory=list)


def page(found: Found, title: str) -> str:
    """The whole page as HTML."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "shade": shade, "command": shlex.join}
    template = environment.from_string((files(__package__) / "page.html.jinja").read_text(encoding="utf-8"))
    runs = found.runs
    groups = list(dict.fromkeys(run.group for run in runs))
    return template.render(
        title=title,
        runs=runs,
        groups=groups,
        styles={run.name: groups.index(run.group) for run in runs},
        states=STATES,
        comparison=_comparison(found.comparison),
        finals=_finals(runs),
        drawings=[_drawing(panel, f"d{position}") for position, panel in enumerate(panels_of(runs))],
        decisions=_decisions(runs),
        curves=_curves(runs),
        options=_options(runs),
        arguments=_table(runs, "arguments"),
        versions=_table(runs, "versions"),
    )


def number(value: Any) -> str:
    """A value as text: numbers short, with thousands apart."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e6 and math.isfinite(value) else f"{value:.4g}"
    return str(value)


def shade(value: Any, row: Sequence[Any], grid: sections.Grid) -> int:
    """How much of the colour a cell of a grid has, in per cent: of counts by their row, else by the range."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    known = [one for each in grid.values for one in each if isinstance(one, (int, float)) and math.isfinite(one)]
    if all(isinstance(one, int) for one in known):
        total = sum(one for one in row if one)
        return round(60 * value / total) if total else 0
    low, high = min(known), max(known)
    return round(60 * (value - low) / (high - low)) if high > low else 0


def _drawing(panel: Panel, identity: str) -> Drawing:
    heads = ["step", *(line.name for line in panel.lines)]
    return Drawing(
        panel.title,
        Markup(draw(panel, identity)),
        heads,
        _numbers(panel.lines),
        [line.name for line in panel.lines] if panel.named else [],
    )


def _numbers(lines: Sequence[Line]) -> list[list[str]]:
    steps = sorted({step for line in lines for step in line.steps})
    if len(steps) > MOST_ROWS:
        steps = [steps[round(at * (len(steps) - 1) / (MOST_ROWS - 1))] for at in range(MOST_ROWS)]
    values = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    return [[number(step), *(number(known.get(step)) for known in values)] for step in steps]


def _curves(runs: Sequence[Run]) -> dict[str, Markup]:
    """The drawings of sections that are curves, by run, technique and place."""
    return {
        f"{run.name}{technique}{place}": Markup(draw_curve(one, f"c{number}x{place}x{technique}"))
        for number, run in enumerate(runs)
        for technique, listed in run.report.items()
        for place, one in enumerate(listed)
        if isinstance(one, sections.Curve)
    }


def _finals(runs: Sequence[Run]) -> dict[str, Any]:
    """The last value of each metric and the best of it, a row a metric and a column a run."""
    metrics = [run.training.final_metrics() for run in runs]
    names = list(dict.fromkeys(name for found in metrics for name in found))
    return {"names": names, "values": {name: [found.get(name) for found in metrics] for name in names}}


def _decisions(runs: Sequence[Run]) -> dict[str, Any]:
    listed = [(run.name, one) for run in runs for one in decisions_of(run)]
    return {"listed": listed[:MOST_DECISIONS], "more": max(0, len(listed) - MOST_DECISIONS)}


def _options(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each technique of each run with its options, as a command line gives them."""
    return [
        {"run": run.name, "name": one.get("name", ""), "from": one.get("distribution", ""), "options": options}
        for run in runs
        for one in run.about.get("techniques", ())
        for options in [{key: written(value) for key, value in dict(one.get("options") or {}).items()}]
    ]


def _table(runs: Sequence[Run], key: str) -> dict[str, list[Any]]:
    """What the records say under a key, by name, a value a run."""
    names = sorted({name for run in runs for name in run.about.get(key, {})})
    return {name: [run.about.get(key, {}).get(name) for run in runs] for name in names}


def _comparison(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if content is None:
        return None
    try:
        return _compared(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise PluginError(
            f"report: compare.json cannot be read ({type(error).__name__}: {error}). Compare the runs again.",
            code="file-unusable",
        ) from error


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        Row(**{("with_" if key == "with" else key): value for key, value in row.items()}) for row in content["rows"]
    ]
    return {
        "notes": content["notes"],
        "identical": content["identical"],
        "rows": [
            {
                "name": row.name + arrow_of(row),
                "without": row.without,
                "with": row.with_,
                "change": change_of(row),
                "verdict": "" if row.is_cost else verdict_of(row),
                "better": row.better,
            }
            for row in rows
        ],
    }
