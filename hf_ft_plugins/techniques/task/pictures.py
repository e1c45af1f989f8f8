"""The report's pictures. Drawn without pyplot, so that a script's own figures and backend stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .reliability_points import points

INK, MUTED, ACCENT, GRID = "#1b1f24", "#6a737d", "#1f6feb", "#e4e7eb"
LONGEST_NAME = 18
MOST_CELLS_WITH_NUMBERS = 20
MOST_NAMED_CLASSES = 40
DOTS_PER_INCH = 150
HISTOGRAM_BARS = 20
POINT: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 2}


def confusion(counts: np.ndarray, names: Sequence[str], file: Path) -> None:
    """Rows are true classes, columns predicted ones; colours are shares of the row, numbers are counts."""
    size = len(names)
    side = min(max(3.4, 0.46 * size + 2.2), 14)
    figure, axes = _figure(side + 0.3, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("Which class is taken for which", loc="left", fontsize=11, color=INK, pad=10)
    if size <= MOST_NAMED_CLASSES:
        shown = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
        upright = max(map(len, shown)) > 3 and size > 4
        axes.set_xticks(range(size), shown, rotation=45 if upright else 0, ha="right" if upright else "center")
        axes.set_yticks(range(size), shown)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    if size <= MOST_CELLS_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=colour)
    _save(figure, file)


def reliability(judged: Sequence[tuple[np.ndarray, np.ndarray]], found: Any, file: Path) -> None:
    """How sure against how right, before and after calibration; below, how often the model is how sure.

    Args:
        judged: before and after, what `calibration.sure_and_right` gives.
        found: the `Calibration`.
    """
    figure = Figure(figsize=(4.8, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    for axes in (upper, lower):
        _style(axes)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="as right as sure")
    labels = (
        f"as trained, error {found.ece_before:.3f}",
        f"temperature {found.temperature:.2f}, error {found.ece:.3f}",
    )
    drawn = [points(*each) for each in judged]
    # 0.9 where it is certain of all.
    left = min(np.floor(10 * min(sure.min() for sure, _ in judged)) / 10, 0.9)
    bottom = np.floor(10 * min(*(table.low.min() for table in drawn), left)) / 10
    edges = np.linspace(left, 1, HISTOGRAM_BARS + 1)
    width = edges[1] - edges[0]
    for position, (table, (sure, _), colour, label) in enumerate(
        zip(drawn, judged, (MUTED, ACCENT), labels, strict=True)
    ):
        reach = np.stack([table.right - table.low, table.high - table.right])
        upper.errorbar(table.sure, table.right, reach, color=colour, elinewidth=1, linewidth=1.4, label=label, **POINT)
        counts, _ = np.histogram(sure, edges)
        lower.bar(edges[:-1] + width * (0.28 + 0.44 * position), counts, width * 0.4, color=colour)
    upper.set(xlim=(left - 0.01, 1.01), ylim=(bottom - 0.02, 1.02), ylabel="share that is right")
    upper.set_title("How sure, how right", loc="left", fontsize=11, color=INK, pad=10)
    lower.set(xlabel="probability given", ylabel="predictions")
    lower.locator_params(axis="y", nbins=3, integer=True)
    counts = drawn[0].count
    many = f"{counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else f"{counts.min():,}"
    title = f"A point is the mean of {many} predictions; its bar, the 95 % interval of the share."
    # Outside: points may lie anywhere in the square.
    figure.legend(
        *upper.get_legend_handles_labels(),
        title=title,
        title_fontsize=7,
        alignment="left",
        frameon=False,
        fontsize=8,
        loc="outside lower left",
    )
    _save(figure, file)


def scatter(predicted: np.ndarray, true: np.ndarray, names: Sequence[str], file: Path) -> None:
    """Predicted against true numbers, one colour a target."""
    figure, axes = _figure(4.6, 4.4)
    ends = [min(predicted.min(), true.min()), max(predicted.max(), true.max())]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for column in range(true.shape[1]):
        axes.scatter(true[:, column], predicted[:, column], s=10, alpha=0.6, label=names[column], linewidths=0)
    axes.set(xlabel="true", ylabel="predicted")
    axes.set_title("Predicted against true", loc="left", fontsize=11, color=INK, pad=10)
    if true.shape[1] > 1:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, file)


def bars(table: Sequence[dict[str, Any]], file: Path) -> None:
    """Of several labels: precision and recall of each, the worst F1 on top."""
    rows = sorted(table, key=lambda row: -row["f1"])[-MOST_NAMED_CLASSES:]
    figure, axes = _figure(5.2, 1.4 + 0.34 * len(rows))
    places = np.arange(len(rows))
    axes.barh(places + 0.2, [row["precision"] for row in rows], 0.36, color=ACCENT, label="precision")
    axes.barh(places - 0.2, [row["recall"] for row in rows], 0.36, color="#9ec5fe", label="recall")
    axes.set_yticks(places, [f"{row['class'][:LONGEST_NAME]} ({row['examples']})" for row in rows])
    axes.set(xlim=(0, 1))
    axes.set_title("Labels, the worst on top", loc="left", fontsize=11, color=INK, pad=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, file)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=DOTS_PER_INCH)
