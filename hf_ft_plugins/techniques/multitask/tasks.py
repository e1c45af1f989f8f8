"""What a task is: which head it has, in which columns its labels stand, and how they are read.

tasks = {
    "upos": TaskSpec(kind="token"),
    "ner": TaskSpec(kind="crf"),
    "parse": TaskSpec(kind="dependency", columns=("head", "deprel")),
}
tasks = with_labels(tasks, train_dataset)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import PluginError
from ...technique import nearest

NAME = "multitask"
ABSENT = -100
KINDS = ("sequence", "multi_label", "regression", "token", "crf", "dependency", "causal_lm")
WORD_KINDS = ("token", "crf", "dependency")
FLOAT_KINDS = ("multi_label", "regression")


@dataclass(frozen=True)
class TaskSpec:
    """One task of a model.

    Attributes:
        kind: `sequence` (one class a row), `multi_label`, `regression`, `token` (one class a word), `crf` (the same,
            decoded as a whole), `dependency` (a tree over the words), `causal_lm`.
        columns: where its labels stand; () for a column of the task's own name, of a dependency task `head` (0 for the
            root, words count from 1) and `deprel`, of causal_lm none.
        labels: names of the classes, of a dependency task those of the relations, of a regression one a target; ()
            where `with_labels` is to read them from the training data.
        sources: the data sets that it learns from; () for the one of the task's own name, or else all that have its
            columns.
        weight: what its mean loss is multiplied by.
        options: the head's own, such as `arc_dim` or `pooling`.
    """

    kind: str
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    weight: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PluginError(
                f"{NAME}: there is no task of kind {self.kind!r}.{nearest(self.kind, KINDS)} Kinds: {', '.join(KINDS)}."
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise PluginError(f"{NAME}: a task's weight is {self.weight}; it must be a number above 0.")
        for name in ("columns", "labels", "sources"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a model's config."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }


def columns_of(name: str, spec: TaskSpec) -> tuple[str, ...]:
    """The columns that hold a task's labels."""
    if spec.columns:
        return spec.columns
    return {"dependency": ("head", "deprel"), "causal_lm": ()}.get(spec.kind, (name,))


def tasks_of(model: Any) -> dict[str, TaskSpec]:
    """The tasks of a `MultiTaskModel`, also of one under PEFT.

    Raises:
        PluginError: the model has none.
    """
    from ..heads import base_of

    described = getattr(getattr(base_of(model), "config", None), "tasks", None)
    if not described:
        raise PluginError(
            f"{NAME}: a {type(base_of(model)).__name__} has one task. Make a model of several: "
            "MultiTaskModel.from_encoder(checkpoint, {'name': TaskSpec(kind='token'), ...}, train_dataset)."
        )
    return {name: TaskSpec(**spec) for name, spec in described.items()}


def source_tasks(source: str, columns: Iterable[str], tasks: Mapping[str, TaskSpec]) -> tuple[str, ...]:
    """The tasks that a data set of this name with these columns teaches, in the order of `tasks`."""
    columns = set(columns)
    named = [name for name, spec in tasks.items() if source in spec.sources]
    if not named and source in tasks and not tasks[source].sources:
        named = [source]
    for name in named:
        missing = [column for column in columns_of(name, tasks[name]) if column not in columns]
        if missing:
            raise PluginError(
                f"{NAME}: the data set {source!r} has no column {missing[0]!r}, where the labels of task {name!r} are "
                f"to stand; it has {', '.join(sorted(columns))}. Say TaskSpec(columns=...)."
            )
    if named:
        return tuple(named)
    return tuple(
        name for name, spec in tasks.items() if not spec.sources and columns.issuperset(columns_of(name, spec))
    )


def with_labels(tasks: Mapping[str, TaskSpec], *datasets: Any) -> dict[str, TaskSpec]:
    """The tasks with the names of their labels, read from data where the spec does not say them.

    Args:
        datasets: data sets, or mappings of them: rows by position, each a mapping by column. A `ClassLabel` gives its
            names in order; texts are sorted; whole numbers give the names `LABEL_0` to the highest.

    Raises:
        PluginError: two tasks of one name (in different case), no data for a task, no label in a column.
    """
    lowered: dict[str, str] = {}
    for name in tasks:
        if not name.isidentifier():
            raise PluginError(f"{NAME}: a task's name is {name!r}; use letters, digits and underscores.")
        if lowered.setdefault(name.lower(), name) != name:
            raise PluginError(f"{NAME}: two tasks of one name: {lowered[name.lower()]!r} and {name!r}. Rename one.")
    sources: list[tuple[str, Any]] = []
    for dataset in datasets:
        sources += dataset.items() if isinstance(dataset, Mapping) else [("", dataset)]
    complete = {}
    for name, spec in tasks.items():
        if spec.labels or spec.kind == "causal_lm":
            complete[name] = spec
            continue
        taught = [data for source, data in sources if name in source_tasks(source, column_names(data), tasks)]
        if not taught:
            found = sorted({column for _, data in sources for column in column_names(data)})
            wanted = " and ".join(columns_of(name, spec))
            raise PluginError(
                f"{NAME}: no data for task {name!r}: no data set has the columns {wanted}; "
                f"the columns are {', '.join(found) or '(none)'}. Say TaskSpec(columns=...), or leave the task out."
            )
        column = columns_of(name, spec)[-1]
        labels = _names(spec.kind, column, taught)
        if not labels:
            raise PluginError(f"{NAME}: column {column!r} of task {name!r} holds no label. Leave the task out.")
        complete[name] = dataclasses.replace(spec, labels=labels)
    return complete


def column_names(dataset: Any) -> list[str]:
    """The columns of a `datasets.Dataset`, or of the first row of any other data set of mappings."""
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return list(names)
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        return []
    first = dataset[0]
    return list(first) if isinstance(first, Mapping) else []


def column_values(dataset: Any, column: str) -> Iterable[Any]:
    """One column, row by row."""
    if hasattr(dataset, "with_format"):
        return dataset.with_format(None)[column]
    return (dataset[index][column] for index in range(len(dataset)))


def class_names(dataset: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column of `ClassLabel`, or of lists of them; None for any other."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    while feature is not None and not hasattr(feature, "names"):
        feature = getattr(feature, "feature", None)
    return tuple(feature.names) if feature is not None else None


def _names(kind: str, column: str, datasets: Sequence[Any]) -> tuple[str, ...]:
    if kind in FLOAT_KINDS:
        value = next((value for data in datasets for value in column_values(data, column) if value is not None), None)
        width = 0 if value is None else np.asarray(value).size
        return tuple(f"LABEL_{index}" for index in range(width))
    declared = {names for data in datasets for names in [class_names(data, column)] if names is not None}
    if len(declared) > 1:
        raise PluginError(
            f"{NAME}: the data sets name the labels of column {column!r} differently: "
            f"{' and '.join(str(list(names)[:6]) for names in sorted(declared))}. Cast them to one ClassLabel."
        )
    if declared:
        return declared.pop()
    found: set[Any] = set()
    for data in datasets:
        for value in column_values(data, column):
            found.update(value if isinstance(value, (list, tuple)) else [value])
    found.discard(None)
    numbers = [label for label in found if not isinstance(label, str)]
    if numbers:
        return tuple(f"LABEL_{index}" for index in range(max(numbers) + 1))
    return tuple(sorted(found))
