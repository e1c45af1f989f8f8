"""What the labels of a classifier's training data are, and how many rows each class has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PluginError
from ..models.inputs import bare
from ..models.label_columns import LABEL_COLUMNS
from ..models.labels import IGNORED, labels_of, other_labels
from .model_facts import CLASSIFIER, TOKENS, kind_of

# Rows of a list whose labels are read one by one.
MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Attributes:
    column: where they stand.
    kind: single_label, multi_label, regression or token.
    classes: how many outputs they ask for.
    counts: of one class a row, the rows of each class by its name; {} where they are not counted.
    declared: the data set has columns with types, by which techniques count.
    """

    column: str
    kind: str
    classes: int
    counts: dict[str, int]
    declared: bool = True

    @property
    def imbalance(self) -> float | None:
        """Rows of the most frequent class to those of the rarest; None where they are not counted, or one has none."""
        rows = self.counts.values()
        return max(rows) / min(rows) if rows and min(rows) else None

    @property
    def rows_a_class(self) -> float | None:
        """Labelled rows for each class, on average."""
        return sum(self.counts.values()) / self.classes if self.counts else None


def label_facts(trainer: Any) -> tuple[LabelFacts | None, str]:
    """The labels, or None where the model is no classifier, or where they are not found; and what is wrong with them,
    which would end the training or teach nonsense.
    """
    model, dataset = trainer.model, trainer.train_dataset
    if kind_of(bare(model)) not in (CLASSIFIER, TOKENS) or other_labels(model) is not None:
        return None, ""
    try:
        labels = labels_of(dataset, "labels", model, label_names=trainer.args.label_names or ())
    except PluginError as error:
        return None, str(error)
    if labels is None:
        return _listed(dataset, bare(model).config), ""
    counted = labels.values is not None
    counts = dict(zip(labels.names, labels.counts().tolist(), strict=True)) if counted else {}
    return LabelFacts(column=labels.column, kind=labels.kind, classes=len(labels.names), counts=counts), ""


def _listed(dataset: Any, config: Any) -> LabelFacts | None:
    """Of a list of mappings, each with the whole number of a class."""
    # Reading a row of another kind may decode a picture.
    if not isinstance(dataset, Sequence) or not 0 < len(dataset) <= MOST or not isinstance(dataset[0], Mapping):
        return None
    column = next((name for name in LABEL_COLUMNS if name in dataset[0]), None)
    values = [_whole(dataset[row].get(column)) for row in range(len(dataset))] if column else [None]
    if column is None or any(value is None for value in values) or config.num_labels < 2:
        return None
    found = Counter(value for value in values if value is not None and value != IGNORED)
    classes = max(config.num_labels, max(found, default=0) + 1)
    counts = {str(config.id2label.get(number, number)): found[number] for number in range(classes)}
    return LabelFacts(column=column, kind="single_label", classes=classes, counts=counts, declared=False)


def _whole(value: Any) -> int | None:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if whole else None
