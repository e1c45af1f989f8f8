"""What the adaptive learning rate watches: which metric, and in which direction it is better."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...errors import PluginError
from ...metrics import direction, evaluation_key
from .settings import NAME, WatchSettings

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

TRAINING_LOSS = "loss"


def watched_metric(settings: WatchSettings, args: TrainingArguments) -> str:
    """The metric to act on: the setting, the arguments' `metric_for_best_model`, `eval_loss`, or the training loss."""
    if settings.metric is not None:
        return settings.metric
    if args.eval_strategy == "no":
        return TRAINING_LOSS
    return evaluation_key(args.metric_for_best_model or "eval_loss")


def is_named(settings: WatchSettings, args: TrainingArguments) -> bool:
    """Whether the user or the script named the metric."""
    return settings.metric is not None or args.metric_for_best_model is not None


def value_of(metric: str, metrics: dict[str, float]) -> float | None:
    """The metric's value in what an evaluation gave; None where it is not there."""
    return metrics.get(metric, metrics.get(f"eval_{metric}"))


def refuse_absent_metric(metric: str, given: Iterable[str]) -> None:
    """Raise `PluginError` for a metric that is not among the keys `given` by a round of evaluations."""
    raise PluginError(
        f"{NAME}: metric={metric!r} is not among what the evaluation gave: {', '.join(sorted(given))}. "
        f"Name one of these: {NAME}:metric=..."
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
            f"Say it: {NAME}:greater_is_better=true (or false)."
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
        metric, greater: what is watched, and whether more of it is better; from `begin` on.
        seen_keys: what evaluations gave so far.
        metric_seen: whether the metric was among it.
        fell_back: whether the training loss is watched since, because the metric was not.
    """

    metric: str
    greater: bool

    def __init__(self, settings: WatchSettings) -> None:
        self.settings = settings
        self.seen_keys: set[str] = set()
        self.metric_seen = False
        self.fell_back = False

    def state_dict(self) -> dict[str, Any]:
        return {"keys": sorted(self.seen_keys), "seen": self.metric_seen, "fell_back": self.fell_back}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen_keys = set(state.get("keys", ()))
        self.metric_seen = state.get("seen", False)
        self.fell_back = state.get("fell_back", False)

    def begin(self, args: TrainingArguments, step: int, sets: Iterable[str]) -> None:
        """Training begins at `step`, with evaluation sets of these names where there are several."""
        self._began_at, self._decided_at = step, -1
        self.metric = TRAINING_LOSS if self.fell_back else watched_metric(self.settings, args)
        self.greater = watched_direction(self.settings, args, self.metric, sets)

    def is_repeated(self, step: int) -> bool:
        """Whether an evaluation at `step` is the `eval_on_start` of a resumed run: the uninterrupted run has none."""
        return step == self._began_at > 0

    def value_in(self, metrics: dict[str, float], step: int) -> float | None:
        """The value to decide on in what one evaluation gave; None where there is none."""
        if any(key.startswith("eval_") for key in metrics):
            # Others are the script's own, on its training or test set.
            self.seen_keys |= set(metrics)
        # One of several sets gives the metric; a second value at one step is the script's own evaluation of other data.
        return None if self._decided_at == step else value_of(self.metric, metrics)

    def decided(self, step: int) -> None:
        """A value was acted on at `step`."""
        self.metric_seen, self._decided_at = True, step

    @property
    def is_missing(self) -> bool:
        """Whether a whole round of evaluations did not give the metric."""
        return bool(self.seen_keys) and not self.metric_seen and self.metric != TRAINING_LOSS

    def fall_back(self, args: TrainingArguments) -> None:
        """Watch the training loss from here on, with a warning.

        Raises:
            PluginError: the user or the script named the metric that is missing.
        """
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
