"""What stages have taught and what later ones have undone: the matrix R of Lopez-Paz & Ranzato 2017 (arXiv:1706.08840).

R[j][i] is what is measured on stage i when stage j has ended; row "start" is measured before the first. Of K stages,
with differences counted so that more is better, whatever the metric:

- average: mean over i of R[K][i], in the metric's unit;
- backward transfer: mean over i < K of R[K][i] - R[i][i]; what is forgotten makes it negative;
- forward transfer: mean over i > 1 of R[i-1][i] - R[start][i], where both were measured;
- forgetting: mean over i < K of the best R[j][i] of any j < K, less R[K][i] (Chaudhry et al. 2018, arXiv:1801.10112).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import PluginError
from ...host.manifest import write_atomically
from ...host.stash import StashKey
from ...metrics import greater_is_better
from ...report_sections import Grid
from .settings import NAME
from .stage_records import FinishedStage, Measured

START = "start"
FILE = "hf_ft_forgetting"


@dataclass(frozen=True)
class TransferMatrix:
    """R for one metric, by names.

    Attributes:
        metric: its name, without `eval_`.
        greater: whether it is better when greater.
        stages: the finished stages, in order.
        sets: evaluation sets, those of one stage behind another's; each with the stage that it is of.
        values: [1 + stages][sets]; the first row was measured before the first stage. NaN is not measured.
    """

    metric: str
    greater: bool
    stages: tuple[str, ...]
    sets: tuple[tuple[str, str], ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def rows(self) -> tuple[str, ...]:
        return (START, *self.stages)

    def average(self) -> float | None:
        """Mean over the sets of the finished stages of what the last one ended with."""
        return _mean(self.values[-1][at] for at, _ in self._of_stages(len(self.stages)))

    def backward_transfer(self) -> float | None:
        return _mean(self._gain(self.values[-1][at], self.values[1 + own][at]) for at, own in self._earlier())

    def forgetting(self) -> float | None:
        def lost(at: int) -> float:
            known = [row[at] for row in self.values[1:-1] if not math.isnan(row[at])]
            best = (max if self.greater else min)(known, default=math.nan)
            return self._gain(best, self.values[-1][at])

        return _mean(lost(at) for at, _ in self._earlier())

    def forward_transfer(self) -> float | None:
        later = [(at, own) for at, own in self._of_stages(len(self.stages)) if own > 0]
        return _mean(self._gain(self.values[own][at], self.values[0][at]) for at, own in later)

    def _gain(self, value: float, over: float) -> float:
        return value - over if self.greater else over - value

    def _earlier(self) -> list[tuple[int, int]]:
        return self._of_stages(len(self.stages) - 1)

    def _of_stages(self, count: int) -> list[tuple[int, int]]:
        """Place of each set of the first `count` stages, and the number of its stage."""
        return [
            (at, self.stages.index(stage)) for at, (_, stage) in enumerate(self.sets) if stage in self.stages[:count]
        ]

    def summary(self) -> dict[str, float | None]:
        return {
            "average": self.average(),
            "backward_transfer": self.backward_transfer(),
            "forward_transfer": self.forward_transfer(),
            "forgetting": self.forgetting(),
        }

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: what was not measured, or is not finite, is None."""
        return {
            "metric": self.metric,
            "greater_is_better": self.greater,
            "rows": list(self.rows),
            "sets": [{"name": name, "stage": stage} for name, stage in self.sets],
            "values": [[_finite(value) for value in row] for row in self.values],
            **{name: _finite(value) for name, value in self.summary().items()},
        }

    def as_section(self) -> Grid:
        values = [[_finite(value) for value in row] for row in self.values]
        known = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.summary().items() if value is not None]
        columns = [name for name, _ in self.sets]
        return Grid(
            *(f"{self.metric} on every stage's sets", self.rows, columns, values, "after stage", "measured on"),
            note="; ".join(known),
        )

    def as_text(self) -> str:
        """The matrix and what follows from it, in lines that a log can hold."""
        heads = ["after", *(name for name, _ in self.sets)]
        body = [
            [row, *("-" if math.isnan(value) else f"{value:.4g}" for value in values)]
            for row, values in zip(self.rows, self.values, strict=True)
        ]
        widths = [max(len(line[column]) for line in (heads, *body)) for column in range(len(heads))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in (heads, *body)
        ]
        known = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.summary().items() if value is not None]
        return "\n".join(
            [f"{self.metric}, {'greater' if self.greater else 'lower'} is better", *lines, ", ".join(known)]
        )


def matrix_of(
    stages: Sequence[FinishedStage], metric: str | None = None, greater: bool | None = None
) -> TransferMatrix | None:
    """The matrix of some finished stages; None where no set has the metric, or they have none in common.

    Args:
        metric: None: the first that all sets have and whose direction its name tells; the loss where there is no other.
        greater: whether it is better when greater; None: by its name.

    Raises:
        PluginError: the name does not tell it.
    """
    rows = [_started(stages), *(stage.after for stage in stages)]
    sets = tuple((name, stage) for name, stage in _sets(stages))
    last = [rows[-1].get(name, {}) for name, _ in sets]
    metric = metric.removeprefix("eval_") if metric else _common_metric(last)
    if metric is None or all(metric not in one for one in last):
        return None
    greater = greater_is_better(metric) if greater is None else greater
    if greater is None:
        raise PluginError(
            f"{NAME}: the name metric={metric} does not tell whether it is better when greater. Say "
            "greater_is_better=true or false.",
            code="metric-unknown",
        )
    for number, stage in enumerate(stages):
        # What the stage before has not measured was measured when this one began.
        rows[number] = {**stage.before, **rows[number]}
    values = tuple(tuple(row.get(name, {}).get(metric, math.nan) for name, _ in sets) for row in rows)
    return TransferMatrix(metric, greater, tuple(stage.name for stage in stages), sets, values)


def _started(stages: Sequence[FinishedStage]) -> Measured:
    return dict(stages[0].before) if stages else {}


def _sets(stages: Sequence[FinishedStage]) -> list[tuple[str, str]]:
    """The evaluation sets of all stages, in the order of the stages, each with its stage."""
    names = list(stages[-1].after) if stages else []
    return [(name, stage.name) for stage in stages for name in names if stage_of(name) == stage.name]


def set_name(stage: str, name: str, *, only: bool) -> str:
    """How an evaluation set of a stage is called; `only`: it has no other."""
    return stage if only else f"{stage}:{name}"


def stage_of(name: str) -> str:
    """The stage whose evaluation set it is; see `set_name`."""
    return name.partition(":")[0]


def _common_metric(measured: Sequence[dict[str, float]]) -> str | None:
    common = [name for name in (measured[0] if measured else {}) if all(name in one for one in measured)]
    known = [name for name in common if greater_is_better(name) is not None]
    return next((name for name in known if name != "loss"), "loss" if "loss" in common else None)


def _mean(values: Any) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_matrix(matrix: TransferMatrix, folder: Path) -> Path:
    """Write `hf_ft_forgetting.json` and draw `hf_ft_forgetting.png`, whose path is returned."""
    from .matrix_picture import draw_matrix

    write_atomically(folder / f"{FILE}.json", json.dumps(matrix.as_dict(), indent=1))
    return draw_matrix(matrix, folder / f"{FILE}.png")


MATRIX = StashKey[TransferMatrix]("sequential: what the stages so far have done to each other")
