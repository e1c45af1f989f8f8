"""What the example scripts need of `evaluate`, without its hub: the same names of results from scikit-learn and others.

The numbers are those of the libraries that `evaluate` calls, except `rouge`, which is here the overlap of words alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sklearn.metrics


@dataclass
class Metric:
    function: Callable[..., dict[str, Any]]

    def compute(self, predictions: Any, references: Any, **settings: Any) -> dict[str, Any]:
        return self.function(predictions, references)


def load(name: str, *settings: Any, **more: Any) -> Metric:
    return Metric(METRICS[name])


def accuracy(predictions: Any, references: Any) -> dict[str, Any]:
    return {"accuracy": float(sklearn.metrics.accuracy_score(references, predictions))}


def mse(predictions: Any, references: Any) -> dict[str, Any]:
    return {"mse": float(sklearn.metrics.mean_squared_error(references, predictions))}


def seqeval(predictions: Any, references: Any) -> dict[str, Any]:
    from seqeval import metrics

    return {
        "overall_precision": float(metrics.precision_score(references, predictions, zero_division=0)),
        "overall_recall": float(metrics.recall_score(references, predictions, zero_division=0)),
        "overall_f1": float(metrics.f1_score(references, predictions, zero_division=0)),
        "overall_accuracy": float(metrics.accuracy_score(references, predictions)),
    }


def squad(predictions: Any, references: Any) -> dict[str, Any]:
    answers = {one["id"]: one["answers"]["text"] or [""] for one in references}
    said = {one["id"]: one["prediction_text"] for one in predictions}
    exact = [float(any(said[name] == text for text in texts)) for name, texts in answers.items()]
    close = [max(overlap(said[name], text) for text in texts) for name, texts in answers.items()]
    return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(close) / len(close)}


def squad_v2(predictions: Any, references: Any) -> dict[str, Any]:
    found = squad(predictions, references)
    return {"exact": found["exact_match"], "f1": found["f1"], "total": len(references)}


def sacrebleu(predictions: Any, references: Any) -> dict[str, Any]:
    import sacrebleu as library

    return {"score": library.corpus_bleu(predictions, [[texts[0] for texts in references]]).score}


def rouge(predictions: Any, references: Any) -> dict[str, Any]:
    scores = [overlap(said, text) for said, text in zip(predictions, references, strict=True)]
    return {"rouge1": sum(scores) / len(scores)}


def overlap(said: str, text: str) -> float:
    """F1 of the words."""
    ours, theirs = Counter(said.split()), Counter(text.split())
    common = sum((ours & theirs).values())
    return 2 * common / max(1, ours.total() + theirs.total())


METRICS = {
    "accuracy": accuracy,
    "mse": mse,
    "seqeval": seqeval,
    "squad": squad,
    "squad_v2": squad_v2,
    "sacrebleu": sacrebleu,
    "rouge": rouge,
}
