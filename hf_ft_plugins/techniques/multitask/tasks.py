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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import PluginError
from ...models.inputs import bare
from ...near import nearest, nearest_column

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
            root, words count from 1) and `deprel`, of causal_lm none. A regression or multi_label task may have one
            for each of its numbers.
        labels: names of the classes, of a dependency task those of the relations, of a regression one a target; ()
            where `with_labels` is to read them from the training data. Their order is the order of the classes, and
            they may be more than the data have; a text or a `ClassLabel` in the data is found by its name, a plain
            number is a place in them.
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
                f"{NAME}: there is no task of kind {self.kind!r}.{nearest(self.kind, KINDS)} "
                f"Kinds: {', '.join(KINDS)}.",
                code="option-value",
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise PluginError(
                f"{NAME}: a task's weight is {self.weight}; it must be a number above 0.", code="option-value"
            )
        for name in ("columns", "labels", "sources"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        self._check_labels()
        most = {"dependency": 2, "causal_lm": 0}.get(self.kind, None if self.kind in FLOAT_KINDS else 1)
        if most is not None and self.columns and len(self.columns) != most:
            raise PluginError(
                f"{NAME}: a task of kind {self.kind!r} has its labels in {most or 'no'} column{'s'[: most != 1]}, and "
                f"columns={self.columns}. Name as many, and make a task of each other.",
                code="option-value",
            )

    def _check_labels(self) -> None:
        numbers = [label for label in self.labels if not isinstance(label, str)]
        if numbers and [int(label) for label in numbers] != list(range(len(self.labels))):
            raise PluginError(
                f"{NAME}: labels={self.labels}: they are names, and a number in the data is the place of one, from 0. "
                f"Say labels={tuple(map(str, self.labels))}, and make the column texts: "
                "dataset.map(lambda row: {column: str(row[column])}).",
                code="option-value",
            )
        object.__setattr__(self, "labels", tuple(map(str, self.labels)))
        twice = next((label for label in self.labels if self.labels.count(label) > 1), None)
        if twice is not None:
            raise PluginError(f"{NAME}: labels={self.labels} has {twice!r} twice. Leave one out.", code="option-value")

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
    described = getattr(getattr(bare(model), "config", None), "tasks", None)
    if not described:
        raise PluginError(
            f"{NAME}: a {type(bare(model)).__name__} has one task. Make a model of several: "
            "MultiTaskModel.from_encoder(checkpoint, {'name': TaskSpec(kind='token'), ...}, train_dataset).",
            code="model-unsuited",
        )
    return {name: TaskSpec(**spec) for name, spec in described.items()}


def source_tasks(
    source: str, columns: Iterable[str], tasks: Mapping[str, TaskSpec], need_labels: bool = True
) -> tuple[str, ...]:
    """The tasks that a data set of this name with these columns teaches, in the order of `tasks`.

    Raises:
        PluginError: the columns of a task that it is for by its name are missing; not where `need_labels` is False.
    """
    columns = set(columns)
    named = [name for name, spec in tasks.items() if source in spec.sources]
    if not named and source in tasks and not tasks[source].sources:
        named = [source]
    for name in named:
        missing = [column for column in columns_of(name, tasks[name]) if column not in columns]
        if missing and need_labels:
            raise PluginError(
                f"{NAME}: the data set {source!r} has no column {missing[0]!r}, where the labels of task {name!r} are "
                f"to stand; it has {', '.join(sorted(columns))}. Say TaskSpec(columns=...).",
                code="data-columns",
                mend=nearest_column(missing[0], columns),
            )
    if named:
        return tuple(name for name in named if columns.issuperset(columns_of(name, tasks[name])))
    return tuple(
        name for name, spec in tasks.items() if not spec.sources and columns.issuperset(columns_of(name, spec))
    )
