"""What the data's labels and the model's config say about the task, and what is wrong with them."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np

from ...errors import PluginError
from ..heads import IGNORED, LABEL_COLUMNS, Kind, Labels, base_of, head_names, labels_of

logger = logging.getLogger(__name__)

NEEDS_COUNTS = ("weights", "sampler", "logit_adjust")


def kind_of(model: Any, technique: str) -> Kind:
    """What the model predicts, by its class and its config.

    Raises:
        PluginError: it has no config that says so, or is one of transformers' that does something else.
    """
    base = base_of(model)
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "num_labels"):
        raise PluginError(
            f"{technique}: the model, a {type(base).__name__}, has no config with num_labels. Use an "
            "AutoModelFor...Classification, or leave out the technique."
        )
    if type(base).__module__.startswith("transformers.") and "Classification" not in type(base).__name__:
        raise PluginError(
            f"{technique}: the model, a {type(base).__name__}, neither classifies nor regresses. Load it with "
            "AutoModelForSequenceClassification or its like, or leave out the technique."
        )
    if type(base).__name__.endswith("ForTokenClassification"):
        return "token"
    if config.problem_type is None:
        return "regression" if config.num_labels == 1 else "single_label"
    kinds: dict[str, Kind] = {"multi_label_classification": "multi_label", "regression": "regression"}
    return kinds.get(config.problem_type, "single_label")


def read_labels(dataset: Any, model: Any, technique: str) -> Labels | None:
    """`labels_of`, in the light of the model: labels of tokens that are padded with -100, ratings to regress on.

    Returns:
        None where the data set does not tell: it has no features, or no column `labels` or `label`.

    Raises:
        PluginError: labels and model do not fit, numbers that are NaN, all rows of one class.
    """
    kind = kind_of(model, technique)
    labels = _token_labels(dataset, model, technique) if kind == "token" else labels_of(dataset, technique)
    if labels is None:
        return None
    if labels.kind == "token" != kind:
        raise PluginError(
            f"{technique}: the column {labels.column!r} holds a list of class numbers in each row, and the model, a "
            f"{type(base_of(model)).__name__}, is not for token classification. Where a row has several classes, make "
            f"the column a list of {len(labels.names)} numbers, 0.0 or 1.0."
        )
    if kind == "regression" == base_of(model).config.problem_type and labels.kind == "single_label":
        labels = Labels(labels.column, "regression", (labels.column,))
    if labels.kind in ("regression", "multi_label"):
        _refuse_nan(dataset, labels, technique)
    if labels.values is not None:
        counts = labels.counts()
        if (counts > 0).sum() == 1 and len(labels.values) > 1:
            raise PluginError(
                f"{technique}: all {len(labels.values)} training rows have the label "
                f"{labels.names[int(counts.argmax())]!r}, so there is nothing to learn. Was the data set sorted by "
                "label before it was cut? Shuffle it first."
            )
    return labels


def _token_labels(dataset: Any, model: Any, technique: str) -> Labels | None:
    features = getattr(dataset, "features", None) or {}
    column = next((name for name in LABEL_COLUMNS if name in features), None)
    inner = getattr(features.get(column), "feature", None)
    if inner is None or not str(getattr(inner, "dtype", "")).startswith("int"):
        return None
    config = base_of(model).config
    # A ClassLabel says the names; tokenizing usually leaves plain numbers, and the model's config then says them.
    names = tuple(getattr(inner, "names", None) or config.id2label.values())
    if hasattr(dataset, "__len__"):
        found = _flat(dataset, column)
        wrong = found[(found != IGNORED) & ((found < 0) | (found >= len(names)))]
        if len(wrong):
            raise PluginError(
                f"{technique}: the column {column!r} holds the label {wrong[0]}, and there are {len(names)} classes "
                f"({', '.join(names[:6])}). Load the model with num_labels={int(found.max()) + 1}, or mark what is "
                f"to be ignored with {IGNORED}."
            )
    return Labels(str(column), "token", names)


def _flat(dataset: Any, column: Any) -> np.ndarray:
    rows = dataset.with_format(None)[column]
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else np.empty(0, np.int64)


def class_counts(dataset: Any, labels: Labels) -> np.ndarray:
    """How often each class occurs, int64 [classes]: rows, tokens, or (several labels) rows that have the label."""
    if labels.kind == "token":
        found = _flat(dataset, labels.column)
        return np.bincount(found[found != IGNORED], minlength=len(labels.names))
    if labels.kind == "multi_label":
        return (np.asarray(dataset.with_format(None)[labels.column]) > 0.5).sum(axis=0)
    return labels.counts()


def refuse_unfit(options: Any, trainer: Any, labels: Labels | None) -> None:
    """Raise `PluginError` where the data or the trainer cannot do what the options ask; warn of what is doubtful."""
    name, imbalance = options.name, options.imbalance
    if imbalance in NEEDS_COUNTS:
        streams = not hasattr(trainer.train_dataset, "__len__")
        if labels is None or streams:
            why = "is streamed" if streams else "has no column 'labels' or 'label' with features"
            raise PluginError(
                f"{name}: imbalance={imbalance} counts the labels before training, and the training set {why}. Pass a "
                "datasets.Dataset with a ClassLabel column, or use imbalance=focal."
            )
        if labels.kind == "regression" or (imbalance == "sampler" and labels.kind != "single_label"):
            raise PluginError(
                f"{name}: imbalance={imbalance} needs one class a row, and the column {labels.column!r} holds "
                f"{'numbers' if labels.kind == 'regression' else 'several'}. Use "
                f"imbalance={'none' if labels.kind == 'regression' else 'weights'}."
            )
    if imbalance == "focal" and labels is not None and labels.kind == "regression":
        raise PluginError(f"{name}: imbalance=focal needs classes, and the labels are numbers. Use imbalance=none.")
    if labels is not None and labels.kind != "regression" and hasattr(trainer.train_dataset, "__len__"):
        _judge_counts(options, trainer.train_dataset, labels)
    _refuse_frozen_head(options, trainer.model)
    _refuse_other_evaluation_labels(options, trainer, labels)


def _judge_counts(options: Any, dataset: Any, labels: Labels) -> None:
    if labels.kind == "single_label" and labels.values is None:
        return
    counts = class_counts(dataset, labels)
    absent = [name for name, count in zip(labels.names, counts, strict=True) if count == 0]
    if absent and options.imbalance in NEEDS_COUNTS:
        raise PluginError(
            f"{options.name}: imbalance={options.imbalance}, and no training row has the label {absent[0]!r} "
            f"({len(absent)} of {len(counts)} labels have none). Add rows, or drop the label from the column's names."
        )
    single = [name for name, count in zip(labels.names, counts, strict=True) if count == 1]
    for found, said in ((absent, "no example"), (single, "a single example")):
        if found:
            logger.warning(
                "%s: %d classes have %s in the training set: %s. They will hardly be learned; add rows or merge "
                "classes.",
                options.name,
                len(found),
                said,
                ", ".join(found[:6]),
            )


def _refuse_frozen_head(options: Any, model: Any) -> None:
    if not hasattr(model, "peft_config"):
        return
    parameters = dict(base_of(model).named_parameters())
    head = head_names(model)
    if head and not any(parameters[name].requires_grad for name in head):
        module = head[0].split(".")[0]
        raise PluginError(
            f"{options.name}: the model has adapters and its head, {module!r}, is frozen as it was initialised, so it "
            f"would neither be trained nor saved. Set modules_to_save=[{module!r}] (or task_type) in the PeftConfig."
        )


def _refuse_other_evaluation_labels(options: Any, trainer: Any, labels: Labels | None) -> None:
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for split, dataset in sets.items():
        features = getattr(dataset, "features", None) or {}
        if labels is None or labels.kind != "single_label" or labels.column not in features:
            continue
        names = getattr(features[labels.column], "names", None)
        if names is not None and tuple(names) != labels.names:
            raise PluginError(
                f"{options.name}: the classes of the {split} set ({', '.join(names[:6])}) are not those of the "
                f"training set ({', '.join(labels.names[:6])}), by name or order. Cast both to one ClassLabel."
            )
        if hasattr(dataset, "__len__"):
            found = np.asarray(dataset.with_format(None)[labels.column])
            wrong = np.flatnonzero([not 0 <= value < len(labels.names) for value in found])
            if len(wrong):
                raise PluginError(
                    f"{options.name}: row {wrong[0]} of the {split} set has the label {found[wrong[0]]}, and the "
                    f"training set has {len(labels.names)} classes. Drop such rows, or train on them too."
                )


def _refuse_nan(dataset: Any, labels: Labels, technique: str) -> None:
    if not hasattr(dataset, "__len__"):
        return
    values = np.asarray(dataset.with_format(None)[labels.column], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise PluginError(
            f"{technique}: row {bad[0]} of the training set has the label {values[bad[0]]} in column "
            f"{labels.column!r} ({len(bad)} such rows). Drop or mend them."
        )


def refuse_not_a_number(dataset: Any, model: Any, args: Any, technique: str) -> None:
    """Raise `PluginError` where a column that the model reads holds NaN or infinity: one row would ruin the weights."""
    if not getattr(dataset, "features", None) or not hasattr(dataset, "__len__"):
        return
    read = set(inspect.signature(base_of(model).forward).parameters)
    seen = 0
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        for column in batch.column_names:
            if args.remove_unused_columns and column not in read:
                continue
            row = _first_not_finite(batch.column(column).combine_chunks())
            if row is not None:
                raise PluginError(
                    f"{technique}: row {seen + row} of the training set holds NaN or infinity in column {column!r}. "
                    "One such row ruins the weights: drop or mend it."
                )
        seen += batch.num_rows


def _first_not_finite(array: Any) -> int | None:
    import pyarrow.compute
    import pyarrow.types

    array = getattr(array, "storage", array)
    numbers = array
    while hasattr(numbers, "flatten") and hasattr(numbers.type, "value_field"):
        numbers = numbers.flatten()
    if not pyarrow.types.is_floating(numbers.type):
        return None
    if pyarrow.compute.all(pyarrow.compute.is_finite(numbers)).as_py() is not False:
        return None
    return next(row for row, value in enumerate(array) if not _all_finite(value.as_py()))


def _all_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return value is None or bool(np.isfinite(value))


def tiny_rows(size: int, seed: int = 0) -> Any:
    """`testing.tiny_dataset` as a `datasets.Dataset` with named classes, one of them rarer."""
    from datasets import ClassLabel, Dataset

    from ...testing import tiny_dataset

    rows = [row for index, row in enumerate(tiny_dataset(2 * size, seed)) if row["labels"] == 0 or index % 2 == 0]
    columns = {name: [row[name] for row in rows[:size]] for name in rows[0]}
    columns = {
        name: [getattr(value, "tolist", lambda value=value: value)() for value in column]
        for name, column in columns.items()
    }
    return Dataset.from_dict(columns).cast_column("labels", ClassLabel(names=["low", "high"]))
