"""Reading the labels of a row, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from ...errors import PluginError
from ...near import nearest
from ...progress import progress
from .columns import class_names, column_names, column_values
from .heads.trees import tree_error
from .label_names import flat
from .tasks import ABSENT, FLOAT_KINDS, NAME, WORD_KINDS, TaskSpec, columns_of

# Where a row's words stand.
WORD_COLUMNS = ("tokens", "words")
# Rows checked before training begins; the collator checks each row that it sees.
CHECKED_ROWS = 200_000


def class_number(label: Any, numbers: Mapping[str, int], task: str, where: str, strict: bool = True) -> int:
    """The number of a class: of a text its place in the task's labels, a whole number as it is, None or NaN absent
    (-100), and -1 where not `strict`: test sets have it for labels that nobody is to know.
    """
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return ABSENT
    if isinstance(label, str):
        if label in numbers:
            return numbers[label]
        raise PluginError(
            f"{NAME}: {where} has the label {label!r} for task {task!r}, which the task does not know."
            f"{nearest(label, numbers)} Read the labels from all splits: "
            "MultiTaskModel.from_encoder(checkpoint, tasks, train_dataset, eval_dataset).",
            code="labels-unsuited",
        )
    if getattr(label, "ndim", 0) or isinstance(label, (list, tuple, Mapping)):
        raise PluginError(
            f"{NAME}: {where} has {label!r} for task {task!r} where one class is to stand. Say kind='multi_label' for "
            "several of a row, kind='token' for one of each word.",
            code="labels-unsuited",
        )
    if not (isinstance(label, Number) or hasattr(label, "item")):
        raise PluginError(
            f"{NAME}: {where} has {label!r} for task {task!r}, a {type(label).__name__}, and a class is a text or a "
            "number. Make it a text.",
            code="labels-unsuited",
        )
    number = int(label)
    if number != label:
        raise PluginError(
            f"{NAME}: {where} has the fraction {label} for task {task!r}, which is no class. Say kind='regression'.",
            code="labels-unsuited",
        )
    if number == -1 and not strict:
        return ABSENT
    if number != ABSENT and not 0 <= number < len(numbers):
        raise PluginError(
            f"{NAME}: {where} has the label {number} for task {task!r}, which has {len(numbers)} labels. Use 0 to "
            f"{len(numbers) - 1}, or {ABSENT} for none.",
            code="labels-unsuited",
        )
    return number


def row_labels(
    task: str,
    spec: TaskSpec,
    row: Mapping[str, Any],
    numbers: Mapping[str, int],
    where: str,
    words: int | None,
    strict: bool = True,
) -> np.ndarray | None:
    """One row's labels for one task; None where it has none.

    Args:
        numbers: of the task's labels.
        where: the row, in errors.
        words: how many it has; None where it has no words.
        strict: as training data are read: a row without words is an error, and the label -1.

    Returns:
        int64: [] of `sequence`, [words] of `token` and `crf`, [words, 2] of `dependency` (head, relation). float32:
        [labels] of `multi_label` and `regression`.

    Raises:
        PluginError: a label that the task does not know, labels not as many as words, a tree that is none, a fraction
            that is not finite.
    """
    columns = columns_of(task, spec)
    values: list[Any] = [row.get(column) for column in columns]
    if not columns or all(value is None for value in values):
        return None
    if spec.kind in FLOAT_KINDS:
        return _fractions(task, spec, values, numbers, where)
    if spec.kind not in WORD_KINDS:
        return np.asarray(class_number(values[0], numbers, task, where, strict))
    values = [[] if value is None else value for value in values]
    if not words:
        if not strict and not any(len(value) for value in values):
            return None
        raise PluginError(
            f"{NAME}: {where} has no words, and task {task!r} is over words. Put them, a list of texts, in a column "
            "'tokens', and leave empty rows out.",
            code="data-rows",
        )
    for column, value in zip(columns, values, strict=True):
        if len(value) != words:
            raise PluginError(
                f"{NAME}: {where} has {words} words and {len(value)} labels in column {column!r} (task {task!r}). "
                "Give each word one.",
                code="data-rows",
            )
    if spec.kind != "dependency":
        return np.asarray([class_number(label, numbers, task, where, strict) for label in values[0]])
    heads = [_head(head, task, where) for head in values[0]]
    wrong = tree_error(heads)
    if wrong is not None:
        raise PluginError(
            f"{NAME}: the tree of {where} (task {task!r}) has {wrong}. Mend it, or leave the row out: words count "
            "from 1, and one has the head 0.",
            code="data-rows",
        )
    relations = [class_number(label, numbers, task, where, strict) for label in values[1]]
    return np.stack([np.asarray(heads), np.asarray(relations)], axis=1)


def _head(head: Any, task: str, where: str) -> int:
    try:
        return int(head)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{NAME}: {where} has the head {head!r} (task {task!r}). Give each word the number of one, from 1, or 0 "
            "for the root; leave words without a head out of the tree.",
            code="data-rows",
        ) from error


def _fractions(task: str, spec: TaskSpec, values: Sequence[Any], numbers: Mapping[str, int], where: str) -> np.ndarray:
    """Numbers in one column or in several, or names of classes as a vector of 0 and 1."""
    labels = flat(values)
    if spec.kind == "multi_label" and len(values) == 1 and _names_classes(values[0], labels):
        found = np.zeros(len(spec.labels), dtype=np.float32)
        found[[class_number(label, numbers, task, where) for label in labels]] = 1
        return found
    many = len(spec.labels)
    wanted = f"{many} finite number{'s'[: many != 1]}"
    if spec.kind == "multi_label":
        wanted = f"a list of names, or {many} numbers from 0 to 1"
    try:
        found = np.asarray(labels, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        found = np.zeros(0, dtype=np.float32)
    fits = len(found) == many and np.isfinite(found).all()
    if not fits or (spec.kind == "multi_label" and not ((found >= 0) & (found <= 1)).all()):
        shown = values[0] if len(values) == 1 else list(values)
        raise PluginError(
            f"{NAME}: {where} has {shown!r} for task {task!r}, which wants {wanted}. Mend the row, or give it None.",
            code="data-rows",
        )
    return found


def _names_classes(value: Any, labels: list[Any]) -> bool:
    """Whether a list holds names, or nothing: no class."""
    return not isinstance(value, str) and all(isinstance(label, str) for label in labels)


def numbers_of(spec: TaskSpec) -> dict[str, int]:
    """The number of each of a task's labels."""
    return {label: number for number, label in enumerate(spec.labels)}


def refuse_bad_rows(task: str, spec: TaskSpec, source: Any, called: str, strict: bool = True) -> bool:
    """Check one task's labels in a data set, its first 200,000 rows at most; whether it has any.

    Raises:
        PluginError: see `row_labels`; where `strict`, no label at all.
    """
    columns = columns_of(task, spec)
    if not columns:
        return True
    numbers = numbers_of(spec)
    rows = min(len(source), CHECKED_ROWS)
    spoken = next((column for column in WORD_COLUMNS if column in column_names(source)), None)
    read = [*columns, *([spoken] if spoken else [])]
    declared = declared_otherwise(source, {task: spec})
    labelled = 0
    given = zip(range(rows), column_values(source, read), strict=False)
    for index, values in progress(given, f"{NAME}: checking the labels of {task}", total=rows):
        row = named(dict(zip(read, values, strict=True)), declared)
        words = row[spoken] if spoken else row[columns[0]]
        length = len(words) if spec.kind in WORD_KINDS and words is not None else None
        labels = row_labels(task, spec, row, numbers, f"row {index} of the {called}", length, strict)
        labelled += labels is not None
    if not labelled and rows == len(source) and strict:
        raise PluginError(
            f"{NAME}: no row of the {called} has a label for task {task!r} in {' and '.join(columns)}. Leave the "
            "column out.",
            code="labels-unsuited",
        )
    return labelled > 0


def declared_otherwise(source: Any, tasks: Mapping[str, TaskSpec]) -> dict[str, tuple[str, ...]]:
    """The names of each `ClassLabel` column of labels that does not number them as its task does, or as a list of
    several classes: there, a number is not the task's.
    """
    found = {}
    for task, spec in tasks.items():
        columns = columns_of(task, spec)
        if not columns or spec.kind == "regression":
            continue
        names = class_names(source, columns[-1])
        if names is not None and (names != spec.labels or spec.kind == "multi_label"):
            found[columns[-1]] = names
    return found


def named(row: Mapping[str, Any], declared: Mapping[str, tuple[str, ...]]) -> Mapping[str, Any]:
    """A row with the names of these columns' numbers in their place."""
    if not declared:
        return row
    return {**row, **{column: _named(row.get(column), names) for column, names in declared.items()}}


def _named(value: Any, names: tuple[str, ...]) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_named(own, names) for own in value]
    known = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if known else value
