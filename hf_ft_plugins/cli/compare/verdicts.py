"""Verdicts on two runs, or on two lists of runs: better, worse, the same, or the reason why there is no verdict.

A verdict needs a metric that both runs measured on a set that they share, in a unit that the techniques do not change,
whose name says which way is better, and a difference that the seeds' noise does not explain: zero lies outside of the
95 % interval (Student's t) of the mean of the differences, seed by seed.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...technique import Technique
from ...training_log import BEST, Training
from .outcomes import Outcome

WITHOUT, WITH = "without", "with"
MEGABYTE = 1024 * 1024
# Two-sided, 95 %, of 1, 2, ... degrees of freedom; beyond, by the expansion in their inverse.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.95996
ONE_SEED = "one seed: --seeds 3 tells a difference from noise"
SAME = "the same"
SEEDS_IGNORED = "every seed gave the same run: the script sets its own"
# In the unit of an objective: its temperature, its reference, its sampling.
OBJECTIVE_UNITS = re.compile(r"(?:^|[^a-z])(?:rewards?|margins?|logps?|logits?|entropy|kl)(?:[^a-z]|$)")
LOSS = re.compile(r"(?:^|[^a-z])loss$")


def is_of_the_objective(key: str) -> bool:
    """Whether a metric is in a unit of the objective's own, which another run need not share."""
    return OBJECTIVE_UNITS.search(key.lower()) is not None and "accurac" not in key


Outcomes = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Row:
    """One quantity of both runs.

    Attributes:
        without, with_: the mean over the seeds; None where it was not measured.
        greater_is_better: by the metric's name; None where that does not say, and for costs.
        better: whether the techniques made it better; None where that is not known.
        why: why `better` is not known.
        interval: of the mean difference, 95 %; None with one seed.
        values: of each seed, without and with.
        is_cost: time, memory, steps.
    """

    name: str
    without: float | None
    with_: float | None
    greater_is_better: bool | None
    better: bool | None
    why: str | None
    interval: tuple[float, float] | None
    values: tuple[tuple[float | None, ...], tuple[float | None, ...]]
    is_cost: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"with" if key == "with_" else key: value for key, value in asdict(self).items()}

    @property
    def change(self) -> float | None:
        if self.without is None or self.with_ is None:
            return None
        change = self.with_ - self.without
        return change if math.isfinite(change) else None


@dataclass(frozen=True)
class Comparison:
    """All rows, and what must be known to read them.

    Attributes:
        identical: whether, seed by seed, all that was logged and the trained weights are equal.
        notes: what makes the comparison less than it seems.
    """

    rows: list[Row]
    identical: bool
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {"identical": self.identical, "notes": self.notes, "rows": [row.as_dict() for row in self.rows]}


def judge(outcomes: Outcomes, techniques: Sequence[Technique]) -> Comparison:
    """Compare the runs without and with techniques, both listed by seed."""
    notes = _notes(outcomes)
    still = SEEDS_IGNORED if _seeds_change_nothing(outcomes[WITHOUT]) else None
    rows: list[Row] = []
    several = max(len(outcome.trainings) for which in outcomes.values() for outcome in which) > 1
    for position in range(_trainings_in_common(outcomes)):
        trainings = {which: [run.trainings[position] for run in runs] for which, runs in outcomes.items()}
        label = f"training {position + 1}: " if several else ""
        rows += _metric_rows(trainings, techniques, label, still)
    identical = all(
        _identical(before, after, techniques) for before, after in zip(outcomes[WITHOUT], outcomes[WITH], strict=True)
    )
    return Comparison(rows + _cost_rows(outcomes), identical, notes)


def _metric_rows(
    trainings: Mapping[str, Sequence[Training]], techniques: Sequence[Technique], label: str, still: str | None
) -> list[Row]:
    metrics = {which: [training.final_metrics() for training in listed] for which, listed in trainings.items()}
    # In the order of the run with techniques, whose own metrics stand beside their neighbours.
    names = dict.fromkeys(key for which in (WITHOUT, WITH) for found in metrics[which] for key in found)
    rows = []
    for key in names:
        values = tuple(tuple(found.get(key) for found in metrics[which]) for which in (WITHOUT, WITH))
        shown = trainings[WITH if key in metrics[WITH][0] else WITHOUT][0]
        why = _why_incomparable(key, trainings, techniques) or still
        rows.append(row(label + key, *values, greater=shown.direction(key), why=why))
    return rows


def _why_incomparable(
    key: str, trainings: Mapping[str, Sequence[Training]], techniques: Sequence[Technique]
) -> str | None:
    if key.removeprefix(BEST) == "train_loss":
        return "the mean over all steps taken: lower after more of them, or after learning wrong labels by heart"
    listed = [training for which in (WITHOUT, WITH) for training in trainings[which]]
    if not all(training.is_evaluated(key) for training in listed if training.times_measured(key)):
        return "measured on training batches, not on a set that both runs share"
    changing = [technique.name for technique in techniques if not technique.keeps_objective()]
    if LOSS.search(key) and changing:
        return f"{' and '.join(changing)} may change what the loss measures"
    differing = [why for each in techniques for one in listed if (why := each.loss_differs(one.setting)) is not None]
    if LOSS.search(key) and differing:
        return differing[0]
    if is_of_the_objective(key):
        return "in a unit of the objective's own, which another run need not share"
    if key.startswith(BEST) and len({training.times_measured(key) for training in listed}) > 1:
        return "the best of more evaluations is better by chance alone"
    return None


def row(
    name: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    greater: bool | None,
    why: str | None = None,
    is_cost: bool = False,
) -> Row:
    """Judge one quantity, of which `before` and `after` hold a value for each seed."""
    better, reason, interval = None, why, None
    measured = [value for value in (*before, *after) if value is not None]
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one is not None and other is not None]
    if len(measured) < len(before) + len(after):
        reason = _where_missing(before, after)
    elif any(math.isnan(value) for value in measured):
        better, reason = _of_not_a_number(before, after)
    elif all(one == other for one, other in pairs):
        reason = SAME
    else:
        interval = interval_of([other - one for one, other in pairs])
        if reason is None and greater is None and not is_cost:
            reason = "its name does not say which way is better"
        elif reason is None and not is_cost:
            better, reason = _of_interval(interval, greater)
    return Row(
        name, _mean(before), _mean(after), greater, better, reason, interval, (tuple(before), tuple(after)), is_cost
    )


def _of_interval(interval: tuple[float, float] | None, greater: bool | None) -> tuple[bool | None, str | None]:
    if interval is None:
        return None, ONE_SEED
    low, high = interval
    if low == high:
        return None, "every seed shows the same difference, which says nothing of its noise"
    if low <= 0 <= high:
        return None, "within the noise of the seeds"
    return (low > 0) == greater, None


def _of_not_a_number(before: Sequence[Any], after: Sequence[Any]) -> tuple[bool | None, str | None]:
    lost, now = ([math.isnan(value) for value in values] for values in (before, after))
    if all(lost) and all(now):
        return None, "not a number in any run"
    if all(lost) and not any(now):
        return True, None
    if all(now) and not any(lost):
        return False, None
    return None, "not a number in some of the runs"


def _where_missing(before: Sequence[Any], after: Sequence[Any]) -> str:
    if all(value is None for value in before):
        return "measured only with the techniques"
    if all(value is None for value in after):
        return "measured only without the techniques"
    return "not measured in some of the runs"


def interval_of(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean (Student's t); None for fewer than two, or where one is not finite."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    mean = statistics.fmean(differences)
    # Equal but for the last bits of a sum.
    if all(math.isclose(difference, differences[0], rel_tol=1e-9) for difference in differences):
        return mean, mean
    half = _student(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean - half, mean + half


def _student(freedom: int) -> float:
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _cost_rows(outcomes: Outcomes) -> list[Row]:
    quantities: dict[str, Any] = {
        "optimizer steps": lambda run: run.steps,
        "wall time, s": lambda run: round(run.wall, 1),
        "CPU time, s": lambda run: round(run.cpu, 1),
        "peak memory, MB": lambda run: run.peak // MEGABYTE,
        "peak GPU memory, MB": lambda run: run.gpu_peak // MEGABYTE,
    }
    rows = []
    for name, quantity in quantities.items():
        before, after = ([quantity(run) for run in outcomes[which]] for which in (WITHOUT, WITH))
        if "GPU" not in name or any(before) or any(after):
            rows.append(row(name, before, after, greater=None, is_cost=True))
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else statistics.fmean(known)


# ---- what makes a comparison less than it seems ----


def _notes(outcomes: Outcomes) -> list[str]:
    notes = []
    pairs = list(zip(outcomes[WITHOUT], outcomes[WITH], strict=True))
    if any(_began_elsewhere(before, after) for before, after in pairs):
        notes.append(
            "The two runs did not begin with the same weights: the script draws them from something that cannot be "
            "seeded from outside, or differently each time. A difference is not the techniques' alone."
        )
    counts = sorted({len(outcome.trainings) for pair in pairs for outcome in pair})
    if len(counts) > 1:
        notes.append(f"The runs trained {' and '.join(map(str, counts))} times; the first {counts[0]} are compared.")
    if len(pairs) > 1 and _seeds_change_nothing(outcomes[WITHOUT]):
        notes.append("Every seed gave the same run, so nothing is known of the noise: the script sets its own seed.")
    return notes


def _began_elsewhere(before: Outcome, after: Outcome) -> bool:
    return any(
        None not in (one.initial, other.initial) and one.initial != other.initial
        for one, other in zip(before.trainings, after.trainings, strict=False)
    )


def _seeds_change_nothing(outcomes: Sequence[Outcome]) -> bool:
    logs = [[(training.final, training.repeatable(())) for training in outcome.trainings] for outcome in outcomes]
    return len(logs) > 1 and all(log == logs[0] for log in logs)


def _trainings_in_common(outcomes: Outcomes) -> int:
    return min(len(outcome.trainings) for which in outcomes.values() for outcome in which)


def _identical(before: Outcome, after: Outcome, techniques: Sequence[Technique]) -> bool:
    names = tuple(technique.name for technique in techniques)
    return len(before.trainings) == len(after.trainings) and all(
        one.final == other.final and one.repeatable(names) == other.repeatable(names)
        for one, other in zip(before.trainings, after.trainings, strict=True)
    )
