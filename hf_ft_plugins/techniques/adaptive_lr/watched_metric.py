"""What the adaptive learning rate watches: which metric, and in which direction it is better."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ... import mends
from ...errors import PluginError
from ...metrics import direction, evaluation_key, without_set_name
from ...near import nearest_value
from .held_out import steps_between
from .settings import NAME, TRAINING_LOSS, WatchSettings

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

FEW = 3  # fewer values decide nothing that a run could gain by


def watched_metric(settings: WatchSettings, args: TrainingArguments, held_out: int = 0) -> str:
    """The metric to act on: the setting, the arguments' `metric_for_best_model`, `eval_loss`, or the training loss.

    Args:
        held_out: how many training rows are evaluated although the arguments evaluate nothing.
    """
    if settings.metric is not None:
        return settings.metric
    if args.eval_strategy == "no" and not held_out:
        return TRAINING_LOSS
    return evaluation_key(args.metric_for_best_model or "eval_loss")


def values_ahead(
    settings: WatchSettings, args: TrainingArguments, metric: str, steps: int, warmup: int, held_out: int = 0
) -> int:
    """How many values of the metric a run of `steps` gives after its warm-up; of evaluations a whole set is one."""
    if metric == TRAINING_LOSS:
        return (steps - warmup) // max(settings.ema_steps, 1)
    if held_out:
        return (steps - warmup) // steps_between(args, steps, held_out)
    if args.eval_strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else FEW
    every = args.eval_steps or args.logging_steps
    return int((steps - warmup) // (every if every >= 1 else max(1, math.ceil(every * steps))))


def is_named(settings: WatchSettings, args: TrainingArguments) -> bool:
    """Whether the user or the script named the metric."""
    return settings.metric is not None or args.metric_for_best_model is not None


def keys_by_set(metric: str, sets: Iterable[str]) -> dict[str, str]:
    """How Trainer calls a metric that names none of several evaluation sets, by set; {} where it names one of them."""
    names = tuple(sets)
    if metric == TRAINING_LOSS or without_set_name(metric, names) != metric:
        return {}
    return {name: f"eval_{name}_{metric.removeprefix('eval_')}" for name in names}


def sets_in(keys: Iterable[str]) -> list[str]:
    """The names of several evaluation sets, by what their evaluations gave."""
    return [found[1] for key in keys if (found := re.fullmatch("eval_(.+)_runtime", key))]


def value_of(metric: str, metrics: dict[str, float]) -> float | None:
    """The metric's value in what an evaluation gave; None where it is not there."""
    return metrics.get(metric, metrics.get(f"eval_{metric}"))


def refuse_absent_metric(metric: str, given: Iterable[str]) -> None:
    """Raise `PluginError` for a metric that is not among the keys `given` by a round of evaluations."""
    raise PluginError(
        f"{NAME}: metric={metric!r} is not among what the evaluation gave: {', '.join(sorted(given))}. "
        f"Name one of these: {NAME}:metric=...",
        code="metric-unknown",
        mend=[*nearest_value(NAME, "metric", metric, given), mends.remove_option(NAME, "metric")],
    )


def watched_direction(settings: WatchSettings, args: TrainingArguments, metric: str, sets: Iterable[str] = ()) -> bool:
    """Whether greater is better: the setting, what the arguments say of the same metric, or the metric's name.

    Args:
        sets: the names of the evaluation sets where there are several.

    Raises:
        PluginError: none of them says.
    """
    if settings.greater_is_better is not None:
        return settings.greater_is_better
    if metric == TRAINING_LOSS:
        return False
    found = direction(metric, args, sets)
    if found is None:
        raise PluginError(
            f"{NAME}: the name of metric={metric!r} does not say whether it is better when greater. "
            f"Say it: {NAME}:greater_is_better=true (or false).",
            code="metric-unknown",
        )
    best = args.metric_for_best_model
    same = best is not None and evaluation_key(best) == evaluation_key(metric)
    if same and args.greater_is_better is not None and args.greater_is_better != found:
        logger.warning(
            "%s: %s counts as better when %s, by its name; the arguments' greater_is_better=%s (Trainer's own default) "
            "says otherwise, so Trainer keeps another checkpoint as the best. Say greater_is_better in the arguments; "
            "the option %s:greater_is_better=... goes before both.",
            NAME,
            metric,
            "greater" if found else "lower",
            args.greater_is_better,
            NAME,
        )
    return found


class Watch:
    """The metric that one run is steered by, and what the run's evaluations have shown of it.

    Attributes:
        metric, greater: what is watched, and whether more of it is better; from `begin` on. Of several evaluation
            sets of which it names none, it is their mean.
        seen_keys: what evaluations gave so far, in their order.
        metric_seen: whether the metric was among it.
        fell_back: whether the training loss is watched since, because the metric was not.
    """

    metric: str
    greater: bool
    _keys: dict[str, str]
    _values: dict[str, float]

    def __init__(self, settings: WatchSettings) -> None:
        self.settings = settings
        self.seen_keys: list[str] = []
        self.metric_seen = False
        self.fell_back = False

    def state_dict(self) -> dict[str, Any]:
        return {"keys": list(self.seen_keys), "seen": self.metric_seen, "fell_back": self.fell_back}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen_keys = list(state.get("keys", ()))
        self.metric_seen = state.get("seen", False)
        self.fell_back = state.get("fell_back", False)

    def begin(self, args: TrainingArguments, step: int, sets: Iterable[str], held_out: int = 0) -> None:
        """Training begins at `step`, with evaluation sets of these names where there are several and they are known."""
        self._began_at, self._decided_at = step, -1
        self.metric = TRAINING_LOSS if self.fell_back else watched_metric(self.settings, args, held_out)
        self.greater = watched_direction(self.settings, args, self.metric, sets)
        self._values, self._keys = {}, keys_by_set(self.metric, sets) or self._keys_seen()
        self._say_mean()

    def is_repeated(self, step: int) -> bool:
        """Whether an evaluation at `step` is the `eval_on_start` of a resumed run: the uninterrupted run has none."""
        return step == self._began_at > 0

    def value_in(self, metrics: dict[str, float], step: int) -> float | None:
        """The value to decide on in what one evaluation gave; None where there is none."""
        if any(key.startswith("eval_") for key in metrics):
            # Others are the script's own, on its training or test set.
            self.seen_keys += [key for key in metrics if key not in self.seen_keys]
        # One of several sets gives the metric; a second value at one step is the script's own evaluation of other data.
        if self._decided_at == step:
            return None
        value = value_of(self.metric, metrics)
        return self._mean_of_sets(metrics) if value is None and self._keys else value

    def _mean_of_sets(self, metrics: dict[str, float]) -> float | None:
        """The mean of the metric over those sets that give it, once the last one has been evaluated."""
        self._values |= {name: metrics[key] for name, key in self._keys.items() if key in metrics}
        last = list(self._keys)[-1]
        if last not in self._values and f"eval_{last}_runtime" not in metrics:
            return None
        values = [float(value) for value in self._values.values()]
        self._values = {}
        return sum(values) / len(values) if values else None

    def _keys_seen(self) -> dict[str, str]:
        """What a callback without its trainer, which does not know the sets, has learned from their evaluations."""
        if value_of(self.metric, dict.fromkeys(self.seen_keys, 0.0)) is not None:
            return {}
        found = keys_by_set(self.metric, sets_in(self.seen_keys))
        return {name: key for name, key in found.items() if key in self.seen_keys}

    def _say_mean(self) -> None:
        if len(self._keys) > 1:
            logger.warning(
                "%s: metric=%s is of no one of the evaluation sets, so the mean of %s is watched; name one of them for "
                "that one alone.",
                *(NAME, self.metric, ", ".join(self._keys.values())),
            )

    def decided(self, step: int) -> None:
        """A value was acted on at `step`."""
        self.metric_seen, self._decided_at = True, step

    @property
    def is_missing(self) -> bool:
        """Whether a whole round of evaluations did not give the metric, and nothing else is watched yet."""
        waits = any(key in self.seen_keys for key in self._keys.values())
        return bool(self.seen_keys) and not self.metric_seen and not waits and self.metric != TRAINING_LOSS

    def fall_back(self, args: TrainingArguments) -> None:
        """Watch the mean over several sets from here on, or, with a warning, the training loss.

        Raises:
            PluginError: the user or the script named the metric that is missing.
        """
        self._keys = self._keys_seen()
        if self._keys:
            self._say_mean()
            return
        if is_named(self.settings, args):
            refuse_absent_metric(self.metric, self.seen_keys)
        logger.warning(
            "%s: nobody named a metric, and the evaluation gives no %s; from here on %s. It gives %s: name one with "
            "%s:metric=...",
            NAME,
            self.metric,
            "nothing is watched" if args.logging_strategy == "no" else "the training loss is watched",
            ", ".join(sorted(self.seen_keys)),
            NAME,
        )
        self.metric, self.greater, self.fell_back = TRAINING_LOSS, False, True
