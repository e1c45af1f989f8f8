"""What the adaptive learning rate watches and steers: which metric, in which direction, and what it cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ...errors import PluginError
from ...metrics import direction, evaluation_key, set_names
from .technique import AdaptiveLR

logger = logging.getLogger(__name__)

NAME = AdaptiveLR.name
TRAINING_LOSS = "loss"
# These adapt the rate themselves, from quantities that a factor on it would falsify.
SELF_TUNING_OPTIMIZERS = ("prodigy", "dadapt", "schedulefree")


def watched_metric(options: AdaptiveLR, args: Any) -> str:
    """The metric to act on: the option, the arguments' `metric_for_best_model`, `eval_loss`, or the training loss."""
    if options.metric is not None:
        return options.metric
    if args.eval_strategy == "no":
        return TRAINING_LOSS
    return evaluation_key(args.metric_for_best_model or "eval_loss")


def is_named(options: AdaptiveLR, args: Any) -> bool:
    """Whether the user or the script said which metric counts."""
    return options.metric is not None or args.metric_for_best_model is not None


def value_of(metric: str, metrics: dict[str, float]) -> float | None:
    """The metric's value in what an evaluation gave; None where it is not there."""
    return metrics.get(metric, metrics.get(f"eval_{metric}"))


def refuse_absent_metric(metric: str, given: Iterable[str]) -> None:
    """Raise `PluginError` for a metric that is not among the keys `given` by a round of evaluations."""
    raise PluginError(
        f"{NAME}: metric={metric!r} is not among what the evaluation gave: {', '.join(sorted(given))}. "
        f"Name one of these: {NAME}:metric=..."
    )


def refuse_unnamed_of_several(options: AdaptiveLR, trainer: Any) -> None:
    """Raise `PluginError` where there are several evaluation sets and nobody said which one's metric counts.

    A script with an `evaluate` of its own may give a metric of all sets; there the first evaluation shows it.
    """
    sets = set_names(trainer.eval_dataset)
    own = not _evaluate_of(type(trainer)).__module__.startswith("transformers.")
    if not sets or own or watched_metric(options, trainer.args) != "eval_loss" or options.metric is not None:
        return
    first, *others = (f"eval_{name}_loss" for name in sets)
    raise PluginError(
        f"{NAME}: the evaluation sets are {', '.join(sets)}, so there is no eval_loss to watch. Name the metric that "
        f"counts: {NAME}:metric={' or '.join([first, *others])}, or one of compute_metrics, as eval_{sets[0]}_..."
    )


def _evaluate_of(trainer_class: type) -> Any:
    """The `evaluate` that runs: the most derived one that is not the host's."""
    return next(
        vars(kind)["evaluate"]
        for kind in trainer_class.__mro__
        if "evaluate" in vars(kind) and not kind.__module__.startswith("hf_ft_plugins.")
    )


def watched_direction(options: AdaptiveLR, args: Any, metric: str, sets: Iterable[str] = ()) -> bool:
    """Whether greater is better: the option, the arguments' word on the same metric, or the metric's name.

    Args:
        sets: the names of the evaluation sets where there are several.

    Raises:
        PluginError: none of them says.
    """
    if options.greater_is_better is not None:
        return options.greater_is_better
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


def refuse_arguments(options: AdaptiveLR, args: Any) -> None:
    """Raise `PluginError` where these `TrainingArguments` leave nothing to watch or nothing to steer."""
    if args.eval_strategy == "no" and options.metric not in (None, TRAINING_LOSS):
        raise PluginError(
            f"{NAME}: metric={options.metric!r} comes from evaluations, and eval_strategy='no'. "
            "Set eval_strategy, or watch the training loss with metric=loss."
        )
    if watched_metric(options, args) == TRAINING_LOSS and args.logging_strategy == "no":
        raise PluginError(
            f"{NAME}: there is nothing to watch: eval_strategy='no' and logging_strategy='no'. Set one of them."
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim:
        raise PluginError(
            f"{NAME}: optim={optim!r} steps inside the backward pass with a rate of its own, which no factor "
            "reaches. Use the variant without layerwise."
        )


def tunes_itself(optimizer_class: Any) -> bool:
    """Whether optimizers of this class adapt the learning rate themselves, by its name."""
    name = getattr(optimizer_class, "__name__", "").lower().replace("_", "")
    return any(word in name for word in SELF_TUNING_OPTIMIZERS)
