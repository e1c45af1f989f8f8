"""The report in `output_dir/task`: what the model gets right and wrong on the evaluation set.

report.json       metrics, per class, calibration, the confusion matrix: a row a true class, a column a predicted one
confusion.png     which class is taken for which (numbers: predicted against true)
reliability.png   how sure and how right, before and after calibration, on the half that was not fitted on; with
                  other `frequencies`, on so many of its rows as have these, where there are enough
worst.jsonl       the examples of the highest loss, worst first
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...host.stash import StashKey
from ...models.class_names import names_in
from ...models.labels import IGNORED, Kind
from ...report_sections import Facts, Grid, Rows, Section
from . import calibration, pictures
from .calibration import Calibration
from .frequencies import rows_at
from .metrics import evaluate, flat_predictions, per_class, probabilities

MOST_TEXT = 500
# Of more classes, a page shows no matrix: the picture is in the folder.
MOST_CLASSES = 30

WRITTEN = StashKey[dict[str, Any]]("task: its report")


@dataclass(frozen=True)
class Findings:
    """What there is to report.

    Attributes:
        predictions: logits of every row, float64 [rows, C], of tokens [rows, T, C]; calibrated.
        label_ids: as Trainer gathers them.
        calibrated: None where nothing was.
        judged: the half that calibration was judged on: logits before it, and labels.
    """

    kind: Kind
    names: Sequence[str]
    predictions: np.ndarray
    label_ids: np.ndarray
    calibrated: Calibration | None
    judged: tuple[np.ndarray, np.ndarray] | None


def class_names(config: Any) -> list[str]:
    """The model's names of its outputs."""
    return list(names_in(config))


def write(found: Findings, dataset: Any, output_dir: str, worst: int) -> tuple[Path, dict[str, Any]]:
    """Write the files; returns their folder, and the content of report.json."""
    folder = Path(output_dir) / "task"
    folder.mkdir(parents=True, exist_ok=True)
    logits, labels = flat_predictions(found.kind, found.predictions, found.label_ids)
    content: dict[str, Any] = {
        "kind": found.kind,
        "rows": len(found.label_ids),
        "metrics": evaluate(found.kind, logits, labels),
    }
    if found.kind == "regression":
        pictures.scatter(logits, labels, found.names, folder / "confusion.png")
    else:
        thresholds = found.calibrated.thresholds if found.calibrated and found.kind == "multi_label" else None
        content["per_class"] = per_class(found.kind, logits, labels, found.names, thresholds)
        if found.kind == "multi_label":
            pictures.bars(content["per_class"], folder / "confusion.png")
        else:
            counts = np.zeros((len(found.names),) * 2, dtype=np.int64)
            np.add.at(counts, (labels, logits.argmax(axis=-1)), 1)
            content["confusion"] = counts.tolist()
            pictures.confusion(counts, found.names, folder / "confusion.png")
    if found.calibrated is not None and found.judged is not None:
        content["calibration"] = found.calibrated.as_config(folded=False)
        del content["calibration"]["temperature_in_weights"]
        scores, truth = _at_frequencies(found.judged, found.calibrated.target)
        if len(truth) >= calibration.FEWEST_ROWS:
            shown = [
                calibration.sure_and_right(found.kind, logits, truth)
                for logits in (scores, found.calibrated.applied(scores))
            ]
            pictures.reliability(shown, found.calibrated, folder / "reliability.png")
    (folder / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    with (folder / "worst.jsonl").open("w", encoding="utf-8") as lines:
        for entry in worst_examples(found, dataset, worst):
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return folder, content


def sections_of(content: dict[str, Any]) -> list[Section]:
    """What `report.json` holds, for the run's own report."""
    found: list[Section] = [Facts(f"Evaluation set, {content['rows']} rows", content["metrics"])]
    classes = content.get("per_class", [])
    if classes:
        heads = list(classes[0])
        found.append(Rows("By class", heads, [[one[head] for head in heads] for one in classes]))
    if "confusion" in content and len(classes) <= MOST_CLASSES:
        names = [one["class"] for one in classes]
        found.append(Grid("Which class is taken for which", names, names, content["confusion"], "true", "predicted"))
    if "calibration" in content:
        values = content["calibration"]
        simple = {name: value for name, value in values.items() if isinstance(value, (int, float, str))}
        found.append(Facts("Calibration", simple, "ece: expected calibration error on the half that was not fitted on"))
    return found


def _at_frequencies(
    judged: tuple[np.ndarray, np.ndarray], target: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows, as many as have the frequencies for which the answers are meant."""
    if target is None:
        return judged
    rows = rows_at(judged[1], np.array(target))
    return judged[0][rows], judged[1][rows]


def worst_examples(found: Findings, dataset: Any, count: int) -> list[dict[str, Any]]:
    """The rows of the highest loss (of tokens, by their worst token), with prediction, label and texts."""
    details = [_judged(found, row) for row in range(len(found.label_ids))]
    # Rows without a label, as a sentence whose tokens are all ignored, have no loss.
    order = sorted((row for row, detail in enumerate(details) if detail), key=lambda row: -details[row]["loss"])
    return [{"index": row, **details[row], **_texts(dataset, row)} for row in order[:count]]


def _judged(found: Findings, row: int) -> dict[str, Any]:
    logits, labels = found.predictions[row], np.asarray(found.label_ids[row])
    if found.kind == "regression":
        predicted, true = np.ravel(logits), np.ravel(labels).astype(np.float64)
        loss = float(((predicted - true) ** 2).mean())
        return {"loss": loss, "label": true.tolist(), "prediction": predicted.tolist()}
    shares = probabilities(found.kind, logits[None] if logits.ndim == 1 else logits)
    if found.kind == "multi_label":
        missed = np.where(labels > 0.5, shares[0], 1 - shares[0])
        return {
            "loss": float(-np.log(np.maximum(missed, 1e-300)).mean()),
            "label": [name for name, true in zip(found.names, labels, strict=True) if true > 0.5],
            "prediction": [name for name, share in zip(found.names, shares[0], strict=True) if share > 0.5],
            "probability": float(missed.min()),
        }
    labels = np.atleast_1d(labels)
    real = np.flatnonzero(labels != IGNORED)
    if not len(real):
        return {}
    given = shares[real, labels[real]]
    position = real[given.argmin()]
    detail = {
        "loss": float(-np.log(max(given.min(), 1e-300))),
        "label": found.names[labels[position]],
        "prediction": found.names[shares[position].argmax()],
        "probability": float(given.min()),
    }
    return detail if found.kind == "single_label" else detail | {"token": int(position)}


def _texts(dataset: Any, row: int) -> dict[str, str]:
    """The row's columns of text, cut."""
    features = getattr(dataset, "features", None) or {}
    columns = [
        name for name, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if not columns:
        return {}
    values = dataset.select_columns(columns).with_format(None)[row]
    return {name: value[:MOST_TEXT] for name, value in values.items() if value is not None}
