"""When `hf-ft suggest` names `task`: rare classes, a loss that is too large, no metrics, a head that does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...suggest.reasons import loss_is_too_large
from ...suggest.suggestion import Because, Suggestion
from . import NAME

if TYPE_CHECKING:
    from ...suggest import RunFacts

# Rows of the most frequent class to those of the rarest. The least that was tried: with ten negative film reviews to a
# positive one, macro-F1 and accuracy on equally many of each rose by more than the noise of three seeds.
IMBALANCE = 10
FOR_RARE_CLASSES = f"{NAME}:imbalance=logit_adjust,frequencies=equal"


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from ...suggest.model_facts import CLASSIFIER, TOKENS

    if facts.model.kind not in (CLASSIFIER, TOKENS) or facts.trl or facts.wrong_labels:
        return None
    rare, unfit = _rare_classes(facts), _unfit_head(facts)
    reasons = [one for one in (unfit, rare, loss_is_too_large(facts), _no_metrics(facts)) if one is not None]
    if not reasons:
        return None
    does = "The head fits the labels, the loss is the mean over the step, metrics choose the checkpoint, and the model "
    does += "is calibrated on the evaluation set; a report lists what it gets wrong."
    if rare is not None:
        does = f"Training shifts the logits by how frequent each class is, so that every class counts as much. {does}"
    return Suggestion(
        spec=FOR_RARE_CLASSES if rare is not None else NAME,
        does=does,
        because=tuple(reasons),
        not_when="Where plain accuracy at these frequencies is what counts, answers for equal classes cost some: leave "
        "out frequencies=equal."
        if rare is not None
        else "On balanced classes the accuracy stays stock's. It stops a run after three evaluations without "
        "improvement: early_stopping_patience=none does not.",
        weight=3 if unfit is not None else 2 if rare is not None else 1,
    )


def _rare_classes(facts: RunFacts) -> Because | None:
    labels = facts.labels
    if labels is None or labels.kind != "single_label" or not labels.declared or facts.schedule.own_loss:
        return None
    ratio = labels.imbalance
    if ratio is None or ratio < IMBALANCE:
        return None
    most, least = max(labels.counts, key=labels.counts.__getitem__), min(labels.counts, key=labels.counts.__getitem__)
    return Because(
        "labels.imbalance",
        round(ratio, 1),
        f"{labels.counts[most]:,} training rows are {most!r} and {labels.counts[least]:,} are {least!r}: {ratio:.0f} "
        "to 1. A loss that counts rows alike teaches the rare classes least.",
    )


def _unfit_head(facts: RunFacts) -> Because | None:
    labels, outputs = facts.labels, facts.model.outputs
    if labels is None or outputs is None or labels.classes <= outputs or facts.model.adapter:
        return None
    return Because(
        "labels.classes",
        labels.classes,
        f"The labels in {labels.column!r} are of {labels.classes} classes, and the head has {outputs} outputs: the "
        "script alone would fail.",
    )


def _no_metrics(facts: RunFacts) -> Because | None:
    if facts.schedule.metrics or not facts.schedule.evaluations or facts.labels is None:
        return None
    return Because(
        "schedule.metrics",
        False,
        f"The run is evaluated {facts.schedule.evaluations} times and computes no metrics, so it can tell a loss alone "
        "and choose no checkpoint by what the classifier gets right.",
    )
