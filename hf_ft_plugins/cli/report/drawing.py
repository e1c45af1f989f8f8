"""A panel as inline SVG that follows the page's colours, light and dark, and can be read without being seen."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...report_sections import Curve
from .panels import Line, Panel

# Colours that nothing else has stand for the page's own until the drawing is done.
INK, RULE, MARK = "#010101", "#010102", "#010103"
SERIES = [f"#0101{number:02x}" for number in range(16, 24)]
VARIABLES = {
    INK: "var(--soft)",
    RULE: "var(--line)",
    MARK: "var(--mark)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
}
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
FEW_POINTS = 40
# More than a panel has pixels for.
MOST_POINTS = 400
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.formatter.useoffset": False,
}


def draw(panel: Panel, identity: str) -> str:
    """The panel's SVG; `identity` keeps what is named in it apart from other drawings of the page."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": identity}):
        figure, axes = _axes()
        for mark in panel.marks:
            line = axes.axvline(mark.step, color=MARK, linewidth=1.0, linestyle="-" if mark.stops else ":")
            line.set_gid(f"{identity}-{len(axes.lines)}")
        for line in panel.lines:
            _plot(axes, line)
        if panel.logarithmic:
            axes.set_yscale("log")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        titles = {f"{identity}-{number + 1}": mark.words for number, mark in enumerate(panel.marks)}
        return _as_svg(figure, identity, words_of(panel), titles)


def draw_curve(curve: Curve, identity: str) -> str:
    lines = [
        Line(name, number, list(range(len(curve.x))), [float("nan") if value is None else value for value in values])
        for number, (name, values) in enumerate(curve.lines.items())
    ]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": identity}):
        figure, axes = _axes()
        for line in lines:
            axes.plot(curve.x, line.values, color=SERIES[line.style % len(SERIES)], marker="o", markersize=3)
        axes.set_xlabel(curve.x_word)
        return _as_svg(figure, identity, f"{curve.title}: {', '.join(curve.lines)} over {curve.x_word}", {})


def words_of(panel: Panel) -> str:
    """The panel in words, for who does not see it."""
    told = [
        f"{line.name} from {_number(line.values[0])} at step {line.steps[0]} to {_number(line.values[-1])} at step "
        f"{line.steps[-1]}, lowest {_number(min(line.values))}, highest {_number(max(line.values))}"
        for line in panel.lines
    ]
    return f"{panel.title}: {'; '.join(told)}."


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most about `MOST_POINTS` of the points: the lowest and the highest of each stretch, in their order."""
    if len(steps) <= MOST_POINTS:
        return list(steps), list(values)
    size = -(-len(steps) * 2 // MOST_POINTS)
    kept: set[int] = {0, len(steps) - 1}
    for start in range(0, len(steps), size):
        stretch = range(start, min(start + size, len(steps)))
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return [steps[at] for at in sorted(kept)], [values[at] for at in sorted(kept)]


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 2.7), layout="constrained")
    return figure, figure.add_subplot()


def _plot(axes: Any, line: Line) -> None:
    steps, values = thinned(line.steps, line.values)
    axes.plot(
        steps,
        values,
        color=SERIES[line.style % len(SERIES)],
        linestyle=DASHES[line.style % len(DASHES)],
        marker="." if len(steps) < FEW_POINTS else "",
        markersize=4,
        linewidth=1.4,
    )


def _as_svg(figure: Figure, identity: str, words: str, titles: dict[str, str]) -> str:
    from markupsafe import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    # The page says how wide it is.
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Names of matplotlib's own would stand in the page once for each drawing.
    svg = re.sub(r' id="(?!' + re.escape(identity) + r')[A-Za-z.\d]+_\d+"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    for name, title in titles.items():
        svg = svg.replace(f'<g id="{name}">', f'<g id="{name}"><title>{escape(title)}</title>', 1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)


def _number(value: float) -> str:
    return f"{value:.4g}"
