"""What the data's labels and the model's config say about the task, and what is wrong with them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Subset

from ...errors import PluginError
from ...models.class_names import are_placeholders, match
from ...models.heads import head_names
from ...models.inputs import bare
from ...models.label_columns import (
    LABEL_COLUMNS,
    FirstBatches,
    collated_labels,
    columns_of,
    is_transformed,
    label_values,
    random_state_kept,
)
from ...models.labels import IGNORED, PROBLEM_TYPES, Kind, Labels, classifies_tokens, labels_of, other_labels

logger = logging.getLogger(__name__)

NEEDS_COUNTS = ("weights", "sampler", "logit_adjust")


def kind_of(model: Any, technique: str) -> Kind:
    """What the model predicts, by its class and its config.

    Raises:
        PluginError: it has no config that says so, or is one of transformers' that does something else.
    """
    base = bare(model)
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "num_labels"):
        raise PluginError(
            f"{technique}: the model, a {type(base).__name__}, has no config with num_labels. Use an "
            "AutoModelFor...Classification, or leave out the technique."
        )
    why = other_labels(model)
    if why is not None:
        raise PluginError(
            f"{technique}: the model, a {type(base).__name__}, neither classifies nor regresses: {why}. Load it with "
            "AutoModelForSequenceClassification or its like, or leave out the technique."
        )
    if classifies_tokens(model):
        return "token"
    if config.problem_type is None:
        return "regression" if config.num_labels == 1 else "single_label"
    return PROBLEM_TYPES[config.problem_type]


def read_labels(
    dataset: Any, model: Any, args: Any, technique: str, first_batches: FirstBatches | None = None
) -> Labels | None:
    """`labels_of`, and what of them cannot be learned.

    Returns:
        None where the data set does not tell: it has no features, or its labels are made by the collator.

    Raises:
        PluginError: labels and model do not fit, numbers that are NaN, all rows of one class.
    """
    kind_of(model, technique)
    labels = labels_of(dataset, technique, model, label_names=args.label_names or (), first_batches=first_batches)
    if labels is None:
        return None
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


def has_no_labels(dataset: Any, trainer: Any) -> bool:
    """Whether Trainer evaluates the rows without labels, as those of a test set may be, or there are no rows; the
    first is looked at.
    """
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        return True
    if hasattr(dataset, "take"):
        rows = dataset.take(1)
    elif hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        rows = Subset(dataset, [0])
    else:
        return False  # Reading it may take the row from the run.
    with random_state_kept():
        first: dict[str, Any] = next(iter(trainer.feature_batches(rows)), {})
    return any(first.get(name) is None for name in trainer.label_names)


def refuse_no_labels(dataset: Any, model: Any, args: Any, technique: str, first_batches: FirstBatches) -> None:
    """Say by the first rows what the data set does not tell: the problem type, as transformers' loss would; or that
    there are no labels.

    Raises:
        PluginError: the rows have none, and the model is one of transformers', whose loss needs them.
    """
    streamed = not hasattr(dataset, "__len__")
    if not streamed and not len(dataset):
        return
    names, columns, base = args.label_names or (), columns_of(dataset), bare(model)
    given = _first_of_stream(dataset, names) if streamed else collated_labels(first_batches, names)
    if given is None:
        if streamed:
            return
        if columns and type(base).__module__.startswith("transformers."):
            read = inspect.signature(base.forward).parameters
            column = next((name for name in columns if name not in read), "...")
            raise PluginError(
                f"{technique}: the training rows have no labels as they reach the model; their columns are "
                f"{', '.join(columns)}. Name the column of labels so: dataset.rename_column({column!r}, 'labels'), or "
                "have the collator give labels."
            )
        return
    fractional = any(isinstance(value, float) for row in given for value in (row if isinstance(row, list) else [row]))
    if base.config.problem_type is None and base.config.num_labels > 1 and fractional and not classifies_tokens(model):
        base.config.problem_type = "multi_label_classification"
        logger.warning("%s: problem_type was None, is multi_label_classification: the labels are fractions.", technique)


def _first_of_stream(dataset: Any, label_names: Sequence[str]) -> list[Any] | None:
    """The labels of a stream's first row, in a list of one; None where reading it would take it from the run."""
    if not hasattr(dataset, "take"):
        return None
    with random_state_kept():
        first: dict[str, Any] = next(iter(dataset.take(1)), {})
    name = next((name for name in (*label_names, *LABEL_COLUMNS) if name in first), None)
    return None if name is None else [first[name].tolist() if hasattr(first[name], "tolist") else first[name]]


def _flat(dataset: Any, column: Any) -> np.ndarray:
    rows = label_values(dataset, column)
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else np.empty(0, np.int64)


def class_counts(dataset: Any, labels: Labels) -> np.ndarray:
    """How often each class occurs, int64 [classes]: rows, tokens, or (several labels) rows that have the label."""
    if labels.kind == "token":
        found = _flat(dataset, labels.column)
        return np.bincount(found[found != IGNORED], minlength=len(labels.names))
    if labels.kind == "multi_label":
        return (np.asarray(label_values(dataset, labels.column)) > 0.5).sum(axis=0)
    return labels.counts()


def refuse_unfit(options: Any, trainer: Any, labels: Labels | None) -> None:
    """Raise `PluginError` where the data or the trainer cannot do what the options ask; warn of what is doubtful."""
    name, imbalance = options.name, options.imbalance
    if imbalance in NEEDS_COUNTS:
        streams = not hasattr(trainer.train_dataset, "__len__")
        if labels is None or streams:
            why = "is streamed" if streams else "has no column 'labels' or 'label' with features that reaches the model"
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
    parameters = dict(bare(model).named_parameters())
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
        features = columns_of(dataset)
        if labels is None or labels.kind != "single_label" or labels.column not in features:
            continue
        names = getattr(features[labels.column], "names", None)
        trained = getattr(columns_of(trainer.train_dataset).get(labels.column), "names", None)
        if names is not None and trained is not None and not _same_numbers(names, trained):
            raise PluginError(
                f"{options.name}: the classes of the {split} set ({', '.join(names[:6])}) are not those of the "
                f"training set ({', '.join(labels.names[:6])}), by name or order. Cast both to one ClassLabel."
            )
        if hasattr(dataset, "__len__"):
            found = label_values(dataset, labels.column)
            if all(value is None for value in found):
                continue  # Not labelled.
            fitting = (*range(len(labels.names)), IGNORED)
            wrong = [row for row, value in enumerate(found) if value not in fitting]
            if len(wrong):
                raise PluginError(
                    f"{options.name}: row {wrong[0]} of the {split} set has the label {found[wrong[0]]}, and the "
                    f"training set has {len(labels.names)} classes. Drop such rows, or train on them too."
                )


def _same_numbers(names: list[str], others: list[str]) -> bool:
    """Whether the classes that both name have the same numbers."""
    common = min(len(names), len(others))
    unnamed = are_placeholders(names) or are_placeholders(others)
    return unnamed or match(names[:common], others[:common]) == list(range(common))


def _refuse_nan(dataset: Any, labels: Labels, technique: str) -> None:
    if not hasattr(dataset, "__len__"):
        return
    values = np.asarray(label_values(dataset, labels.column), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise PluginError(
            f"{technique}: row {bad[0]} of the training set has the label {values[bad[0]]} in column "
            f"{labels.column!r} ({len(bad)} such rows). Drop or mend them."
        )


def refuse_not_a_number(dataset: Any, model: Any, args: Any, technique: str) -> None:
    """Raise `PluginError` where a column that the model reads holds NaN or infinity: one row would ruin the weights."""
    if not getattr(dataset, "features", None) or not hasattr(dataset, "__len__") or is_transformed(dataset):
        return
    read = set(inspect.signature(bare(model).forward).parameters)
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
