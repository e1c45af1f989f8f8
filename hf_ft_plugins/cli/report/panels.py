"""What is drawn of runs: a panel a quantity, its lines by run, with the decisions of techniques marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...training_log import NOT_METRICS, Decision, decisions_in
from .reading import Run

MIB = 1024 * 1024
MOST_METRICS = 8
# Of a technique's own numbers, fewer tell nothing that the table does not.
FEW_POINTS = 3
SHARE, LOSS_OF = "share_", "loss_"


@dataclass(frozen=True)
class Line:
    """`values` at `steps`; lines of one `style` are drawn alike."""

    name: str
    style: int
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Mark:
    """A decision: what a technique did at a step, and why."""

    step: int
    words: str
    stops: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[Line]
    marks: tuple[Mark, ...] = ()
    # Whether each line has a name of its own, beside those of the runs.
    named: bool = False
    logarithmic: bool = False


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels of which at least one run has two values, loss first."""
    styles = {group: number for number, group in enumerate(dict.fromkeys(run.group for run in runs))}
    # Of several runs, whose decisions each mark is would not be seen.
    marks = tuple(marks_of(runs)) if len({run.group for run in runs}) <= 2 and len(runs) <= 2 else ()
    found = [_logged(runs, styles, "loss", "training loss", marks)]
    found += [_logged(runs, styles, key, key, marks) for key in metrics_of(runs)[:MOST_METRICS]]
    found.append(_logged(runs, styles, "learning_rate", "learning rate, as applied", marks))
    found.append(_logged(runs, styles, "grad_norm", "norm of the gradients", ()))
    found += _by_task(runs)
    found += _of_points(runs, styles)
    found += _own_numbers(runs, styles)
    return [panel for panel in found if any(len(line.steps) > 1 for line in panel.lines)]


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """What was evaluated, the losses first."""
    keys = [
        key
        for run in runs
        for entry in run.training.history
        for key in entry
        if run.training.is_evaluated(key) and "/" not in key and not key.endswith(NOT_METRICS)
    ]
    return sorted(dict.fromkeys(keys), key=lambda key: not key.endswith("loss"))


def decisions_of(run: Run) -> Iterator[Decision]:
    """What the techniques of a run decided, each at a whole step, whatever the file says."""
    for entry in run.training.history:
        for one in decisions_in(entry):
            yield one if isinstance(one.step, int) else replace(one, step=int(entry.get("step") or 0))


def marks_of(runs: Sequence[Run]) -> Iterator[Mark]:
    for run in runs:
        for one in decisions_of(run):
            words = f"step {one.step}, {one.technique}: {one.action}. {one.reason}".strip()
            yield Mark(one.step, words, one.stops)


def _logged(runs: Sequence[Run], styles: dict[str, int], key: str, title: str, marks: tuple[Mark, ...]) -> Panel:
    lines = [Line(run.name, styles[run.group], *_finite(*run.training.series(key))) for run in runs]
    lines = [line for line in lines if line.steps]
    values = [value for line in lines for value in line.values if value > 0]
    wide = bool(values) and max(values) > 50 * min(values)
    return Panel(title, lines, marks, logarithmic=wide and key in ("learning_rate", "grad_norm", "loss"))


def _by_task(runs: Sequence[Run]) -> Iterator[Panel]:
    """Of a run of several tasks: each task's share of the rows, and its training loss."""
    for run in runs:
        tasks = [key.removeprefix(SHARE) for key in _keys(run) if key.startswith(SHARE)]
        if len(tasks) < 2:
            continue
        of = f" ({run.name})" if len(runs) > 1 else ""
        for prefix, words in ((SHARE, "share of the rows, by task"), (LOSS_OF, "training loss, by task")):
            lines = [
                Line(task, number, *_finite(*run.training.series(prefix + task))) for number, task in enumerate(tasks)
            ]
            yield Panel(words + of, [line for line in lines if line.steps], named=True)


def _of_points(runs: Sequence[Run], styles: dict[str, int]) -> Iterator[Panel]:
    known = [(run, points) for run in runs for points in [_points(run)] if len(points) > 1]
    for title, values_of in (("tokens a second", _speed("tokens")), ("rows a second", _speed("rows"))):
        lines = [Line(run.name, styles[run.group], *values_of(points)) for run, points in known]
        lines = [line for line in lines if line.steps]
        if lines:
            yield Panel(title, lines)
            break
    for key, title, unit in (("memory", "memory, most so far, MiB", MIB), ("learning", "parameters that learn", 1)):
        lines = [
            Line(run.name, styles[run.group], [p["step"] for p in points], [p[key] / unit for p in points])
            for run, points in known
            if all(isinstance(p.get(key), (int, float)) for p in points)
        ]
        if key == "memory" or any(len(set(line.values)) > 1 for line in lines):
            yield Panel(title, lines)


def _speed(key: str) -> Any:
    def values_of(points: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
        steps, values = [], []
        for before, after in itertools.pairwise(points):
            seconds = (after.get("seconds") or 0) - (before.get("seconds") or 0)
            done = (after.get(key) or 0) - (before.get(key) or 0)
            if seconds > 0 and done > 0:
                steps.append(after["step"])
                values.append(done / seconds)
        return steps, values

    return values_of


def _own_numbers(runs: Sequence[Run], styles: dict[str, int]) -> Iterator[Panel]:
    """What techniques log of themselves under `NAME/...`."""
    for key in dict.fromkeys(key for run in runs for key in _keys(run) if "/" in key):
        if key.endswith("/step"):
            continue
        panel = _logged(runs, styles, key, key, ())
        if any(len(line.steps) >= FEW_POINTS for line in panel.lines):
            yield panel


def _points(run: Run) -> list[dict[str, Any]]:
    return [point for point in run.about.get("points", ()) if isinstance(point.get("step"), int)]


def _keys(run: Run) -> list[str]:
    return list(dict.fromkeys(key for entry in run.training.history for key in entry))


def _finite(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    kept = [(step, float(value)) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]
