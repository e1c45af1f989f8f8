"""A picture of a `TransferMatrix`: a row after each stage, a column for each evaluation set.

Below its own stage's row a set has been at the mercy of later ones, and only there it has colours: its change since
that row, as a share of how far its values lie apart, since sets may have different scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .transfer_matrix import START, TransferMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches.
CELL, MARGIN, LEAST = (1.3, 0.6), (1.7, 1.5), 5.2
ROTATED_FROM = 14
MISSING, EARLIER = "#ffffff", "#ededed"


def changes_since_learned(matrix: TransferMatrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How much greater each value is than its set's was when its stage had ended, [1 + stages][sets].

    NaN where the stage had not ended yet, and where either was not measured or is not finite.
    """
    values = np.array(matrix.values, dtype=float)
    finite, changes = np.where(np.isfinite(values), values, np.nan), np.full_like(values, np.nan)
    for column, (_, stage) in enumerate(matrix.sets):
        own = matrix.rows.index(stage)
        changes[own + 1 :, column] = finite[own + 1 :, column] - finite[own, column]
    return changes


def draw_matrix(matrix: TransferMatrix, file: Path) -> Path:
    """Draw it as a PNG; the file is returned. Values are the metric's, changes have their sign, whichever is better."""
    # Not pyplot: a notebook's own backend stays as it is.
    from matplotlib.figure import Figure

    values, changes = np.array(matrix.values, dtype=float), changes_since_learned(matrix)
    rows, columns = values.shape
    size = (max(MARGIN[0] + CELL[0] * columns, LEAST), MARGIN[1] + CELL[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(_colours(values, changes, matrix.greater), aspect="auto")
    for row, column in np.ndindex(rows, columns):
        own = matrix.rows[row] == matrix.sets[column][1]
        _write(axes, row, column, float(values[row, column]), float(changes[row, column]), own)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    names = [name for name, _ in matrix.sets]
    turned: dict[str, Any] = {"rotation": 20, "ha": "left"} if max(map(len, names)) >= ROTATED_FROM else {}
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), names, **turned)
    axes.set_yticks(range(rows), ["at the start" if row == START else f"after {row}" for row in matrix.rows])
    figure.suptitle(_title(matrix), fontsize=10)
    figure.supxlabel("in bold: when its stage had ended; below: since then, red worse, blue better", fontsize=8)
    figure.savefig(file, dpi=120)
    return file


def _colours(values: Any, changes: Any, greater: bool) -> Any:
    """Of each cell, [rows][columns][4]."""
    import matplotlib
    from matplotlib.colors import to_rgba

    finite = np.isfinite(values)
    span = np.where(finite, values, -np.inf).max(0) - np.where(finite, values, np.inf).min(0)
    # A column that was never measured has no range.
    gains = (changes if greater else -changes) / np.where((span > 0) & np.isfinite(span), span, 1)
    # The map's ends are too dark to be written on.
    colours = matplotlib.colormaps["RdBu"](np.nan_to_num(gains) * 0.35 + 0.5)
    colours[np.isnan(changes)] = to_rgba(EARLIER)
    colours[np.isnan(values)] = to_rgba(MISSING)
    return colours


def _write(axes: Axes, row: int, column: int, value: float, change: float, own: bool) -> None:
    if np.isnan(value):
        axes.text(column, row, "not measured", ha="center", va="center", color="0.6", fontsize=8)
        return
    since = "" if np.isnan(change) else f"\n{change:+.3g}"
    weight, colour = "bold" if own else "normal", "black" if own or since else "0.45"
    axes.text(column, row, f"{value:.4g}{since}", ha="center", va="center", weight=weight, color=colour)


def _title(matrix: TransferMatrix) -> str:
    named = {name.replace("_", " "): value for name, value in matrix.summary().items() if value is not None}
    return "\n".join(
        [
            f"{matrix.metric}, {'greater' if matrix.greater else 'lower'} is better",
            ", ".join(f"{name} {value:.3g}" for name, value in named.items() if name != "forward transfer"),
        ]
    )
