"""What the data's labels and the model's config say about the task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, Subset

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...models.label_columns import (
    LABEL_COLUMNS,
    FirstBatches,
    collated_labels,
    columns_of,
    first_batches_of,
    label_values,
    random_state_kept,
)
from ...models.labels import IGNORED, PROBLEM_TYPES, Kind, Labels, classifies_tokens, labels_of, other_labels
from . import NAME
from .not_finite import refuse_nan_labels

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)


def kind_of(model: Module) -> Kind:
    """What the model predicts, by its class and its config.

    Raises:
        PluginError: it has no config that says so, or is one of transformers' that does something else.
    """
    base = bare(model)
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "num_labels"):
        raise PluginError(
            f"{NAME}: the model, a {type(base).__name__}, has no config with num_labels. Use an "
            "AutoModelFor...Classification, or leave out the technique.",
            code="model-unsuited",
            mend=[mends.remove_technique(NAME)],
        )
    why = other_labels(model)
    if why is not None:
        raise PluginError(
            f"{NAME}: the model, a {type(base).__name__}, neither classifies nor regresses: {why}. Load it with "
            "AutoModelForSequenceClassification or its like, or leave out the technique.",
            code="model-unsuited",
            mend=[mends.remove_technique(NAME)],
        )
    if classifies_tokens(model):
        return "token"
    if config.problem_type is None:
        return "regression" if config.num_labels == 1 else "single_label"
    return PROBLEM_TYPES[config.problem_type]


def read_labels(
    dataset: Any, model: Module, args: TrainingArguments, first_batches: FirstBatches | None = None
) -> Labels | None:
    """`labels_of`, and what of them cannot be learned.

    Returns:
        None where the data set does not say what they are: it has no features, or its labels are made by the collator.

    Raises:
        PluginError: labels and model do not fit, numbers that are NaN, all rows of one class.
    """
    kind_of(model)
    labels = labels_of(dataset, NAME, model, label_names=args.label_names or (), first_batches=first_batches)
    if labels is None:
        return None
    if labels.kind in ("regression", "multi_label"):
        refuse_nan_labels(dataset, labels)
    if labels.values is not None:
        counts = labels.counts()
        if (counts > 0).sum() == 1 and len(labels.values) > 1:
            raise PluginError(
                f"{NAME}: all {len(labels.values)} training rows have the label "
                f"{labels.names[int(counts.argmax())]!r}, so there is nothing to learn. Was the data set sorted by "
                "label before it was cut? Shuffle it first.",
                code="labels-unsuited",
            )
    return labels


def labels_of_training(trainer: Trainer, dataset: Any = None) -> Labels | None:
    """`read_labels` of a built trainer's training set, or of `dataset` where it has been changed since."""
    dataset = trainer.train_dataset if dataset is None else dataset
    return read_labels(dataset, trainer.model, trainer.args, first_batches_of(trainer))


def has_no_labels(dataset: Any, trainer: Trainer) -> bool:
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


def refuse_no_labels(dataset: Any, model: Module, args: TrainingArguments, first_batches: FirstBatches) -> None:
    """Find in the first rows what the data set's features do not say: the problem type, as transformers' loss would;
    or that there are no labels.

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
            unread = [name for name in columns if name not in read]
            column = unread[0] if unread else "..."
            raise PluginError(
                f"{NAME}: the training rows have no labels as they reach the model; their columns are "
                f"{', '.join(columns)}. Name the column of labels so: dataset.rename_column({column!r}, 'labels'), or "
                "have the collator give labels.",
                code="data-columns",
                mend=[mends.rename_column(name, "labels") for name in _counts_first(unread, columns)],
            )
        return
    fractional = any(isinstance(value, float) for row in given for value in (row if isinstance(row, list) else [row]))
    if base.config.problem_type is None and base.config.num_labels > 1 and fractional and not classifies_tokens(model):
        base.config.problem_type = "multi_label_classification"
        logger.warning("%s: problem_type was None, is multi_label_classification: the labels are fractions.", NAME)


def _counts_first(names: list[str], features: Mapping[str, Any]) -> list[str]:
    """Columns of whole numbers, as labels are, before others."""
    return sorted(names, key=lambda name: "int" not in str(getattr(features[name], "dtype", "")))


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
