"""`TaskMetrics`: a `compute_metrics` that fits what the model predicts, by scikit-learn.

Trainer(..., compute_metrics=TaskMetrics("single_label"))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models.labels import IGNORED, Kind

BEST_METRIC: dict[str, str] = {
    # Accuracy does not see a rare class; on balanced data both rank checkpoints alike. The loss rises with
    # overconfidence while decisions still improve, and calibration corrects the overconfidence.
    "single_label": "macro_f1",
    "token": "macro_f1",
    # Needs no threshold; those are fitted after training.
    "multi_label": "average_precision",
    "regression": "rmse",
}


@dataclass(frozen=True)
class TaskMetrics:
    """A `compute_metrics` for Trainer.

    Attributes:
        kind: what is predicted: `single_label` and `token` give accuracy, macro_f1, mcc and (not of tokens) auc;
            `multi_label` micro_f1, macro_f1 (at probability 0.5), average_precision and auc; `regression` rmse, mae,
            r2, pearson and spearman, of several targets the mean.
    """

    kind: Kind

    def __call__(self, prediction: Any) -> dict[str, float]:
        logits, labels = flat_predictions(self.kind, prediction.predictions, prediction.label_ids)
        return evaluate(self.kind, logits, labels)


def flat_predictions(kind: Kind, predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits float64 [N, C] and labels int64 [N] (of several labels or numbers: float64 [N, C]), padding left out."""
    logits = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions, dtype=np.float64)
    labels = np.asarray(labels)
    if kind in ("regression", "multi_label"):
        return logits.reshape(len(labels), -1), labels.astype(np.float64).reshape(len(labels), -1)
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    real = labels != IGNORED
    return logits[real], labels[real].astype(np.int64)


def probabilities(kind: Kind, logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, of several labels the sigmoid of each; float64 [N, C]."""
    if kind == "multi_label":
        return np.exp(-np.logaddexp(0, -logits))
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def evaluate(kind: Kind, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of `flat_predictions`; NaN where a metric is not defined, as an AUC of one class."""
    with warnings.catch_warnings():
        # scikit-learn and scipy warn of classes without examples or predictions; NaN and 0 say that here.
        warnings.simplefilter("ignore")
        found = {"multi_label": _several, "regression": _numbers}.get(kind, _one)(logits, labels)
        if kind == "single_label":
            found["auc"] = _auc(probabilities(kind, logits), labels)
        return {name: float(value) for name, value in found.items()}


def _one(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    chosen = logits.argmax(axis=-1)
    return {
        "accuracy": accuracy_score(labels, chosen),
        "macro_f1": f1_score(labels, chosen, average="macro"),
        "mcc": matthews_corrcoef(labels, chosen),
    }


def _auc(shares: np.ndarray, labels: np.ndarray) -> float:
    """One class against the rest, the mean over the classes that occur."""
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    if len(present) < 2:
        return float("nan")
    if shares.shape[1] == 2:
        return roc_auc_score(labels, shares[:, 1])
    return _mean(roc_auc_score(labels == label, shares[:, label]) for label in present)


def _several(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    chosen, truth = logits > 0, labels > 0.5
    mixed = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]

    def mean_of(score: Callable[..., float]) -> float:
        return _mean(score(truth[:, column], logits[:, column]) for column in mixed)

    return {
        "micro_f1": f1_score(truth, chosen, average="micro", zero_division=0),
        "macro_f1": f1_score(truth, chosen, average="macro", zero_division=0),
        "average_precision": mean_of(average_precision_score),
        "auc": mean_of(roc_auc_score),
    }


def _numbers(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    columns = list(zip(predicted.T, truth.T, strict=True))
    return {
        "rmse": root_mean_squared_error(truth, predicted),
        "mae": mean_absolute_error(truth, predicted),
        "r2": r2_score(truth, predicted),
        "pearson": _mean(pearsonr(a, b).statistic for a, b in columns),
        "spearman": _mean(spearmanr(a, b).statistic for a, b in columns),
    }


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def per_class(
    kind: Kind, logits: np.ndarray, labels: np.ndarray, names: Sequence[str], thresholds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of examples of each class; of several labels at `thresholds`, else at 0.5."""
    from sklearn.metrics import precision_recall_fscore_support

    if kind == "multi_label":
        chosen = probabilities(kind, logits) > np.asarray(thresholds or [0.5] * len(names))
        truth, over = labels > 0.5, list(range(len(names)))
    else:
        chosen, truth, over = logits.argmax(axis=-1), labels, list(range(len(names)))
    columns = precision_recall_fscore_support(truth, chosen, labels=over, zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
        for name, p, r, f, n in zip(names, *columns, strict=True)
    ]
