"""The names of the tasks' labels: those that the script gives, and the others from the training data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

from ... import mends
from ...errors import PluginError
from ...progress import progress
from .columns import class_names, column_names, column_values, plain
from .tasks import ABSENT, FLOAT_KINDS, NAME, TaskSpec, columns_of, source_tasks

# Numbers up to this are the places of classes, however few the data have; beyond it, only where most of them occur.
DENSE = 10_000


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
            raise PluginError(
                f"{NAME}: a task's name is {name!r}; use letters, digits and underscores.", code="option-value"
            )
        if lowered.setdefault(name.lower(), name) != name:
            raise PluginError(
                f"{NAME}: two tasks of one name: {lowered[name.lower()]!r} and {name!r}. Rename one.",
                code="option-value",
            )
    sources: list[tuple[str, Any]] = []
    for dataset in datasets:
        sources += dataset.items() if isinstance(dataset, Mapping) else [("", dataset)]
    complete = {}
    for name, spec in tasks.items():
        if spec.labels or spec.kind == "causal_lm":
            complete[name] = spec
            continue
        taught = [plain(data) for source, data in sources if name in source_tasks(source, column_names(data), tasks)]
        if not taught:
            found = sorted({column for _, data in sources for column in column_names(data)})
            wanted = " and ".join(columns_of(name, spec))
            raise PluginError(
                f"{NAME}: no data for task {name!r}: no data set has the columns {wanted}; "
                f"the columns are {', '.join(found) or '(none)'}. Say TaskSpec(columns=...), or leave the task out.",
                code="data-columns",
            )
        complete[name] = dataclasses.replace(spec, labels=names_in(name, spec.kind, columns_of(name, spec), taught))
    return complete


def names_in(task: str, kind: str, columns: Sequence[str], datasets: Sequence[Any]) -> tuple[str, ...]:
    """The names of one task's labels.

    A `ClassLabel` gives its names in order, and those of others that it holds too; texts that are none of them follow,
    sorted; whole numbers give `LABEL_0` to the highest. Numbers of a regression or multi_label task have a name each:
    their columns' where they have several columns.

    Raises:
        PluginError: no label; texts among numbers, fractions as classes, `ClassLabel`s that differ.
    """
    column = columns[-1]
    if kind in FLOAT_KINDS and len(columns) > 1:
        return tuple(columns)
    declared = _declared(column, datasets) if kind != "regression" else ()
    given = (value for data in datasets for (value,) in column_values(data, [column]))
    values = progress(given, f"{NAME}: label names of {task}", total=lambda: sum(map(len, datasets)))
    if kind in FLOAT_KINDS:
        names = _of_numbers(kind, task, column, values, declared)
    else:
        names = _of_classes(task, column, {_class(label, task, column) for label in _each(values)}, declared)
    if not names:
        raise PluginError(
            f"{NAME}: column {column!r} of task {task!r} holds no label. Leave the task out.", code="labels-unsuited"
        )
    return names


def flat(value: Any) -> list[Any]:
    """The labels of a value: itself, or those in its lists; without None and NaN."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [label for own in value for label in flat(own)]
    return [] if value is None or (isinstance(value, float) and math.isnan(value)) else [value]


def _each(values: Iterable[Any]) -> Iterator[Any]:
    return (label for value in values for label in flat(value))


def _class(label: Any, task: str, column: str) -> Any:
    """A label that is a text or a number."""
    if not isinstance(label, (str, Number)):
        raise PluginError(
            f"{NAME}: column {column!r} of task {task!r} holds {label!r}, a {type(label).__name__}, and a class is a "
            "text or a number. Make the column texts: dataset.map(lambda row: {column: str(row[column])}).",
            code="labels-unsuited",
            mend=[mends.encode_column(column)],
        )
    return label


def _declared(column: str, datasets: Sequence[Any]) -> tuple[str, ...]:
    """The names that `ClassLabel`s give; where one has all names of the others, its own."""
    found = dict.fromkeys(names for data in datasets for names in [class_names(data, column)] if names is not None)
    if not found:
        return ()
    most = max(found, key=len)
    if any(not set(names) <= set(most) for names in found):
        raise PluginError(
            f"{NAME}: the data sets name the labels of column {column!r} differently: "
            f"{' and '.join(str(list(names)[:6]) for names in sorted(found))}. Cast them to one ClassLabel, or say "
            "TaskSpec(labels=...) with all names.",
            code="labels-unsuited",
        )
    return most


def _of_classes(task: str, column: str, found: set[Any], declared: tuple[str, ...]) -> tuple[str, ...]:
    texts = sorted({label for label in found if isinstance(label, str)} - set(declared))
    if declared:
        return (*declared, *texts)
    numbers = sorted(label for label in found if not isinstance(label, str))
    if not numbers:
        return tuple(texts)
    where = f"{NAME}: column {column!r} of task {task!r}"
    if texts:
        raise PluginError(
            f"{where} has texts ({texts[0]!r}) and numbers ({numbers[0]}). Make them one or the other, or say "
            "TaskSpec(labels=...).",
            code="labels-unsuited",
        )
    fraction = next((number for number in numbers if number != int(number)), None)
    if fraction is not None:
        raise PluginError(
            f"{where} has the fraction {fraction}, which is no class. Say kind='regression'.", code="labels-unsuited"
        )
    below = next((int(number) for number in numbers if number < 0 and number != ABSENT), None)
    if below is not None:
        raise PluginError(
            f"{where} has the number {below}, and classes count from 0 ({ABSENT} is none). Make the column texts: "
            "dataset.map(lambda row: {column: str(row[column])}).",
            code="labels-unsuited",
        )
    highest = int(numbers[-1])
    if highest >= max(DENSE, 10 * len(numbers)):
        raise PluginError(
            f"{where} has numbers up to {highest}, {len(numbers)} of them: a head would have a class for each below. "
            "Make the column texts: dataset.map(lambda row: {column: str(row[column])}).",
            code="labels-unsuited",
        )
    return tuple(f"LABEL_{number}" for number in range(highest + 1))


def _of_numbers(kind: str, task: str, column: str, values: Iterable[Any], declared: tuple[str, ...]) -> tuple[str, ...]:
    first: list[Any] | None = None
    names: set[str] = set()
    for value in values:
        labels = flat(value)
        if first is None and labels:
            first = labels
            if kind == "regression" or not (declared or isinstance(labels[0], str)):
                break
        names.update(label for label in labels if isinstance(label, str))
    if declared or names:
        return (*declared, *sorted(names - set(declared)))
    return tuple(f"LABEL_{index}" for index in range(len(first or ())))
