"""Scores of a `MultiTaskModel`: those that each kind of task is known by, and one for all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import mends
from ...errors import PluginError
from .tasks import ABSENT, NAME, TaskSpec

logger = logging.getLogger(__name__)

SCORE = "multitask_score"
INSTALL = "pip install seqeval; from a clone of hf-ft-plugins, pip install -c constraints.txt -e '.[all]'"


class MultiTaskMetrics:
    """`compute_metrics` for a `MultiTaskModel`.

    Keys are a task's name and a metric: `accuracy` and `macro_f1` (over the classes that some row has) of `sequence`,
    `micro_f1` and `macro_f1` of `multi_label`, `rmse` and `pearson` of `regression` (over its numbers, `pearson` the
    mean of theirs), `precision`, `recall` and `f1` of whole entities where the labels of `token` or `crf` are B-...,
    I-... and O, else `accuracy`, `uas` and `las` of `dependency`, `accuracy` of `causal_lm`. `multitask_score` is the
    mean over tasks of the metric that `main_metric` names.

    Args:
        tasks: the model's, by name.
    """

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        self.tasks = dict(tasks)

    def __call__(self, evaluated: Any) -> dict[str, float]:
        """Score a `transformers.EvalPrediction` whose predictions and labels are dicts of arrays by task."""
        metrics: dict[str, float] = {}
        main = []
        for name, spec in self.tasks.items():
            if name not in evaluated.label_ids:
                continue
            scores = scores_of(spec, np.asarray(evaluated.predictions[name]), np.asarray(evaluated.label_ids[name]))
            if scores is None:
                logger.warning("%s: the evaluation data have no label for task %r; it is not scored.", NAME, name)
                continue
            metrics |= {f"{name}_{metric}": value for metric, value in scores.items()}
            main.append(scores[main_metric(spec)])
        if main:
            metrics[SCORE] = float(np.mean(main))
        return metrics


def main_metric(spec: TaskSpec) -> str:
    """The metric that a task counts with in `multitask_score`; higher is better."""
    if spec.kind in ("token", "crf"):
        return "f1" if of_entities(spec.labels) else "accuracy"
    return {"multi_label": "micro_f1", "regression": "pearson", "dependency": "las"}.get(spec.kind, "accuracy")


def of_entities(labels: Sequence[str]) -> bool:
    """Whether labels are those of entities: O, and B-... or I-..."""
    return all(label == "O" or label[:2] in ("B-", "I-") for label in labels) and any(label != "O" for label in labels)


def scores_of(spec: TaskSpec, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float] | None:
    """One task's scores, fractions of 1 but for `rmse`; None where no item has a label.

    Args:
        predicted: as in `MultiTaskOutput.predictions`; words that a prediction lacks (-100) count as wrong.
        labels: as its head takes them, -100 or NaN where absent.
    """
    if spec.kind in ("multi_label", "regression"):
        labels = labels.reshape(len(labels), -1).astype(np.float64)
        if spec.kind == "multi_label":
            labels = np.where(labels == ABSENT, np.nan, labels)
        if np.isnan(labels).all():
            return None
        scorer = _multi_label if spec.kind == "multi_label" else _regression
        return scorer(predicted.reshape(labels.shape), labels)
    if spec.kind == "sequence":
        known = labels != ABSENT
        return _classes(predicted.argmax(-1)[known], labels[known]) if known.any() else None
    if spec.kind == "dependency":
        return _trees(spec, predicted, labels)
    if spec.kind == "causal_lm":
        predicted, labels = _as_wide(predicted, labels)[:, :-1], labels[:, 1:]
    elif of_entities(spec.labels):
        return _entities(spec, predicted, labels)
    known = labels != ABSENT
    return {"accuracy": float((_as_wide(predicted, labels)[known] == labels[known]).mean())} if known.any() else None


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, micro-averaged, by seqeval as in the CoNLL-2003 scorer.

    Raises:
        PluginError: seqeval is not installed.
    """
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ImportError as error:
        raise PluginError(
            f"{NAME}: entities are scored by seqeval, which is not installed. {INSTALL}",
            code="package-missing",
            mend=[mends.install("seqeval>=1.2")],
        ) from error
    scorers = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {name: float(score(list(gold), list(predicted), zero_division=0)) for name, score in scorers.items()}


def attachment_scores(
    gold_heads: np.ndarray, gold_relations: Sequence[str], heads: np.ndarray, relations: Sequence[str]
) -> dict[str, float]:
    """The shares of words with the right head (`uas`), and with the right relation, too (`las`).

    By the rules of the CoNLL 2018 shared task (Zeman et al. 2018, section 4), on gold words: punctuation counts, and of
    a relation the part before the colon. A gold relation of "" is one that nobody gave: any is right.

    Args:
        gold_heads, heads: int [words].
        gold_relations, relations: names [words].
    """
    attached = gold_heads == heads
    universal = np.array(
        [
            not gold or gold.partition(":")[0] == found.partition(":")[0]
            for gold, found in zip(gold_relations, relations, strict=True)
        ],
        dtype=bool,
    )
    return {"uas": float(attached.mean()), "las": float((attached & universal).mean())}


def _trees(spec: TaskSpec, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float] | None:
    known = labels[..., 0] != ABSENT
    if not known.any():
        return None
    gold, found = labels[known], _as_wide(predicted, labels)[known]
    names = (*spec.labels, "")  # A relation that is absent is the last name, and no relation's.
    return attachment_scores(
        gold[:, 0],
        [names[max(int(number), -1)] for number in gold[:, 1]],
        found[:, 0],
        [names[max(int(number), -1)] for number in found[:, 1]],
    )


def _entities(spec: TaskSpec, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float] | None:
    known = labels != ABSENT
    if not known.any():
        return None
    predicted = _as_wide(predicted, labels)
    names = np.array([*spec.labels, "O"], dtype=object)  # What is not predicted is no entity.
    rows = [row for row in range(len(labels)) if known[row].any()]
    gold = [names[labels[row][known[row]]].tolist() for row in rows]
    found = [names[np.maximum(predicted[row][known[row]], -1)].tolist() for row in rows]
    return entity_scores(gold, found)


def _classes(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    classes = np.unique(labels)
    scores = _f1(labels[:, None] == classes, predicted[:, None] == classes)
    return {"accuracy": float((predicted == labels).mean()), "macro_f1": scores["macro_f1"]}


def _multi_label(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    # What is neither gold nor found has no part in F1.
    gold, found = labels > 0.5, (logits > 0) & ~np.isnan(labels)
    return _f1(gold, found)


def _f1(gold: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """F1 of all classes together, and the mean of each one's, from bool [rows, classes]; 0 for a class without any."""
    both, either = 2 * (gold & found).sum(0), gold.sum(0) + found.sum(0)
    return {
        "micro_f1": float(both.sum() / max(either.sum(), 1)),
        "macro_f1": float((both / np.maximum(either, 1)).mean()),
    }


def _regression(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    known = ~np.isnan(labels)
    targets = [target for target in range(labels.shape[1]) if known[:, target].any()]
    together = [_pearson(values[known[:, target], target], labels[known[:, target], target]) for target in targets]
    return {"rmse": float(np.sqrt(((values - labels)[known] ** 2).mean())), "pearson": float(np.mean(together))}


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0  # All alike: nothing of the order is known.
    first, second = (values - values.mean() for values in (first.astype(np.float64), second))
    return float(np.nan_to_num((first @ second) / np.sqrt((first @ first) * (second @ second))))


def _as_wide(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predictions for as many words as there are labels; -100 where there is none."""
    missing = labels.shape[1] - predicted.shape[1]
    if missing <= 0:
        return predicted[:, : labels.shape[1]]
    shape = [(0, 0), (0, missing)] + [(0, 0)] * (predicted.ndim - 2)
    return np.pad(predicted, shape, constant_values=ABSENT)
