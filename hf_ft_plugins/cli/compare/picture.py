"""A comparison as a picture: loss, evaluation and learning rate of all runs over the steps, a row a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...training_log import NOT_METRICS, Training, decisions_in
from .outcomes import Outcome
from .verdicts import WITH, WITHOUT, Outcomes, is_of_the_objective

COLOURS = {WITHOUT: "#888888", WITH: "#0072b2"}
DECISION_COLOUR = "#d55e00"
MOST_ROWS = 6
MOST_LETTERS = 150
FEW_POINTS = 40


def draw(outcomes: Outcomes, file: Path, *, title: str) -> Path:
    """Write the picture as a PNG; decisions are marked. Of more than `MOST_ROWS` trainings, the first are drawn."""
    # Not pyplot: a notebook's own backend stays as it is.
    from matplotlib.figure import Figure

    several = max(len(outcome.trainings) for outcome in _all(outcomes)) > 1
    count = min(MOST_ROWS, *(len(outcome.trainings) for outcome in _all(outcomes)))
    rows = [{which: [run.trainings[row] for run in runs] for which, runs in outcomes.items()} for row in range(count)]
    keys = [["loss", *_evaluated(row[WITHOUT][0]), "learning_rate"] for row in rows]
    columns = max(map(len, keys))
    figure = Figure(figsize=(4.2 * columns, 3.6 * count), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False)
    for position, (row, names) in enumerate(zip(rows, keys, strict=True)):
        for panel in panels[position][len(names) :]:
            panel.set_visible(False)
        label = f"training {position + 1}: " if several else ""
        for panel, key in zip(panels[position], names, strict=False):
            _draw_panel(panel, row, key, label)
    panels[0][0].legend(frameon=False)
    words = title if len(title) <= MOST_LETTERS else f"{title[:MOST_LETTERS]}..."
    figure.suptitle(
        f"without and with {words}   (dotted: it decided something; solid: it stopped)", fontsize=10, parse_math=False
    )
    figure.savefig(file, dpi=110)
    return file


def _draw_panel(panel: Any, row: Mapping[str, Sequence[Training]], key: str, label: str) -> None:
    for which, colour in COLOURS.items():
        several = len(row[which]) > 1
        for seed, training in enumerate(row[which]):
            steps, values = training.series(key)
            hides = which == WITH and (steps, values) == row[WITHOUT][seed].series(key)
            panel.plot(
                steps,
                values,
                color=colour,
                label=which if seed == 0 else None,
                marker="." if len(steps) < FEW_POINTS else "",
                linewidth=1.0 if several else 1.6,
                linestyle="--" if hides else "-",
                alpha=0.6 if several else 1.0,
            )
    # Those of several seeds would hide the lines.
    for entry in row[WITH][0].history if len(row[WITH]) == 1 else ():
        for one in decisions_in(entry):
            for action in one.actions:
                style = "-" if action == "stop" else ":"
                panel.axvline(one.step, color=DECISION_COLOUR, linewidth=0.9, linestyle=style)
    words = {"loss": "training loss", "learning_rate": "learning rate, as applied"}.get(key, key)
    panel.set_title(label + words, parse_math=False)
    panel.set_xlabel("optimizer step")
    panel.grid(alpha=0.25)
    if key == "learning_rate" and any(value > 0 for training in row[WITH] for value in training.series(key)[1]):
        panel.set_yscale("log")


def _evaluated(training: Training) -> list[str]:
    """The evaluation's loss and its first other metric, where there are any: one that both runs share goes first."""
    keys = [
        key
        for entry in training.history
        for key in entry
        if key.startswith("eval_") and not key.endswith(NOT_METRICS) and training.series(key)[0]
    ]
    return sorted(dict.fromkeys(keys), key=is_of_the_objective)[:2]


def _all(outcomes: Outcomes) -> list[Outcome]:
    return [outcome for runs in outcomes.values() for outcome in runs]
