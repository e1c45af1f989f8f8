"""What one training logged, read as quantities: series, metrics, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .metrics import greater_is_better, without_set_name

# Of Trainer's log: how fast, how much, when; not how good.
NOT_METRICS = (
    *("_runtime", "_per_second", "epoch", "step", "total_flos", "learning_rate"),
    # Trainer's and TRL's counts of tokens.
    *("num_input_tokens_seen", "num_tokens"),
)
# What two equal runs need not have in common.
UNREPEATABLE = re.compile(r"_runtime$|_per_second$|_mem_|time(?:_|$)")
# How fast a run was and what it took, from the host (`host/run_progress.py`).
OF_THE_RUN = "run/"
TIMED = re.compile(r"(.+)_runtime")
# Where nothing was timed.
EVALUATION_PREFIXES = ("eval", "test", "predict")
BEST = "best "


@dataclass(frozen=True)
class Decision:
    """What a technique decided; of several in one log entry, `action` holds the words of all."""

    technique: str
    action: str
    step: Any
    reason: str

    @property
    def actions(self) -> list[str]:
        return self.action.split(", ")

    @property
    def stops(self) -> bool:
        return "stop" in self.actions


def decisions_in(entry: Mapping[str, Any], step: int = 0) -> Iterator[Decision]:
    """The decisions that a log entry tells of: `NAME/action`, `NAME/step` and `NAME/reason`.

    Args:
        step: of an entry that names none.
    """
    for key, value in entry.items():
        if key.endswith("/action"):
            prefix = key.removesuffix("action")
            made = entry.get(f"{prefix}step", entry.get("step", step))
            technique = prefix.rstrip("/").replace("_", "-")
            yield Decision(technique, str(value), made, str(entry.get(f"{prefix}reason", "")))


def plain(value: Any) -> Any:
    """Of a log or an argument, what JSON has no form for: numbers of numpy and torch, and whatever else there is."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return str(value)


@dataclass(frozen=True)
class Training:
    """One call of `train()`, and what its trainer evaluated before the next one.

    Attributes:
        history: `log_history`.
        steps: optimizer steps taken.
        initial, final: digests of the weights that the script gave its trainer, and of those after training; None
            where they cannot be read.
        setting: how it computes its evaluation loss, see `Technique.loss_differs`.
    """

    history: list[dict[str, Any]]
    steps: int = 0
    initial: str | None = None
    final: str | None = None
    setting: Mapping[str, bool] = field(default_factory=dict)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity."""
        points = [(entry.get("step", 0), entry[key]) for entry in self.history if _is_number(entry.get(key))]
        return [step for step, _ in points], [value for _, value in points]

    def final_metrics(self) -> dict[str, float]:
        """The last value of every metric, in order of appearance; of what was evaluated repeatedly, the best too.

        What a technique logs about its own decisions (`NAME/action` and its neighbours) is none.
        """
        found: dict[str, list[float]] = {}
        for entry, key in self._metrics():
            found.setdefault(key, []).append(float(entry[key]))
        final = {key: values[-1] for key, values in found.items()}
        for key, values in found.items():
            greater = self.direction(key)
            if len(values) > 2 and greater is not None:
                final[BEST + key] = max(values) if greater else min(values)
        return final

    def times_measured(self, key: str) -> int:
        """How many values of a metric, or of the one that a best was taken of, were logged."""
        return len(self.series(key.removeprefix(BEST))[1])

    def direction(self, key: str) -> bool | None:
        """Whether a logged metric is better when greater; None where its name does not say."""
        # Trainer logs the time that each evaluation set took under the set's own name.
        sets = {prefix.removeprefix("eval_") for prefix in self.timed() if prefix.startswith("eval_")}
        return greater_is_better(without_set_name(key.removeprefix(BEST), sets))

    def is_evaluated(self, key: str) -> bool:
        """Whether a metric was measured on an evaluation set, and not on the batches of training."""
        bare = key.removeprefix(BEST)
        prefixes = {*EVALUATION_PREFIXES, *self.timed()} - {"train"}
        return any(bare.startswith(f"{prefix}_") for prefix in prefixes)

    def timed(self) -> set[str]:
        """The prefixes under which a time was logged: `train`, `eval`, `eval_SET`, `test`."""
        return {match[1] for entry in self.history for key in entry if (match := TIMED.fullmatch(key))}

    def repeatable(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """The log without times, and without what the techniques `names` log of themselves."""
        own = (OF_THE_RUN, *(f"{name.replace('-', '_')}/" for name in names))
        return [
            {
                # NaN, which a log may hold, is not equal to itself.
                key: repr(value)
                for key, value in entry.items()
                if not UNREPEATABLE.search(key) and not key.startswith(own)
            }
            for entry in self.history
            if not entry.keys() - {"epoch", "step"} or not all(key.startswith(own) for key in _what(entry))
        ]

    def _metrics(self) -> Iterator[tuple[dict[str, Any], str]]:
        for entry in self.history:
            own = (OF_THE_RUN, *(key.removesuffix("action") for key in entry if key.endswith("/action")))
            for key, value in entry.items():
                counts = _is_number(value) and not key.endswith(NOT_METRICS) and not key.startswith(own)
                if counts and key not in ("loss", "grad_norm"):
                    yield entry, key


def _what(entry: dict[str, Any]) -> list[str]:
    return [key for key in entry if key not in ("epoch", "step")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
