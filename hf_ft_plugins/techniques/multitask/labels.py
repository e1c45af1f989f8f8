"""Reading the labels of a row, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import PluginError
from ...technique import nearest
from .tasks import (
    ABSENT,
    FLOAT_KINDS,
    NAME,
    WORD_KINDS,
    TaskSpec,
    class_names,
    column_names,
    column_values,
    columns_of,
)
from .trees import tree_error

# Where a row's words stand.
WORD_COLUMNS = ("tokens", "words")
# Rows checked before training begins; the collator checks each row that it sees.
CHECKED_ROWS = 200_000


def class_number(label: Any, numbers: Mapping[str, int], task: str, where: str) -> int:
    """The number of a class: of a text its place in the task's labels, a whole number as it is, None absent (-100)."""
    if label is None:
        return ABSENT
    if isinstance(label, str):
        if label in numbers:
            return numbers[label]
        raise PluginError(
            f"{NAME}: {where} has the label {label!r} for task {task!r}, which the task does not know."
            f"{nearest(label, numbers)} Read the labels from all splits: "
            "MultiTaskModel.from_encoder(checkpoint, tasks, train_dataset, eval_dataset)."
        )
    number = int(label)
    if number != ABSENT and not 0 <= number < len(numbers):
        raise PluginError(
            f"{NAME}: {where} has the label {number} for task {task!r}, which has {len(numbers)} labels. Use 0 to "
            f"{len(numbers) - 1}, or {ABSENT} for none."
        )
    return number


def row_labels(
    task: str, spec: TaskSpec, row: Mapping[str, Any], numbers: Mapping[str, int], where: str, words: int | None
) -> np.ndarray | None:
    """One row's labels for one task; None where it has none.

    Args:
        numbers: of the task's labels.
        where: the row, in errors.
        words: how many it has; None where it has no words.

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
        return _fractions(task, spec, values[0], where)
    if spec.kind not in WORD_KINDS:
        return np.asarray(class_number(values[0], numbers, task, where))
    if not words:
        raise PluginError(
            f"{NAME}: {where} has no words, and task {task!r} is over words. Put them, a list of texts, in a column "
            "'tokens', and leave empty rows out."
        )
    values = [[] if value is None else value for value in values]
    for column, value in zip(columns, values, strict=True):
        if len(value) != words:
            raise PluginError(
                f"{NAME}: {where} has {words} words and {len(value)} labels in column {column!r} (task {task!r}). "
                "Give each word one."
            )
    if spec.kind != "dependency":
        return np.asarray([class_number(label, numbers, task, where) for label in values[0]])
    heads = [int(head) for head in values[0]]
    wrong = tree_error(heads)
    if wrong is not None:
        raise PluginError(
            f"{NAME}: the tree of {where} (task {task!r}) has {wrong}. Mend it, or leave the row out: words count "
            "from 1, and one has the head 0."
        )
    relations = [class_number(label, numbers, task, where) for label in values[1]]
    return np.stack([np.asarray(heads), np.asarray(relations)], axis=1)


def _fractions(task: str, spec: TaskSpec, value: Any, where: str) -> np.ndarray:
    found = np.asarray(value, dtype=np.float32).reshape(-1)
    if len(found) != len(spec.labels) or not all(math.isfinite(number) for number in found):
        raise PluginError(
            f"{NAME}: {where} has {found.tolist()} for task {task!r}, which wants {len(spec.labels)} finite numbers."
        )
    return found


def numbers_of(spec: TaskSpec) -> dict[str, int]:
    """The number of each of a task's labels."""
    return {label: number for number, label in enumerate(spec.labels)}


def refuse_bad_rows(task: str, spec: TaskSpec, source: Any, called: str) -> None:
    """Check one task's labels in a data set, its first 200,000 rows at most.

    Raises:
        PluginError: see `row_labels`; names of a `ClassLabel` that are not the task's; no label at all.
    """
    columns = columns_of(task, spec)
    if not columns:
        return
    declared = class_names(source, columns[-1])
    if declared is not None and declared != spec.labels:
        raise PluginError(
            f"{NAME}: the {called} number the labels of task {task!r} as {', '.join(declared[:6])}, ... and the model "
            f"as {', '.join(spec.labels[:6])}, .... Cast the column to one ClassLabel in every split."
        )
    numbers = numbers_of(spec)
    rows = min(len(source), CHECKED_ROWS)
    spoken = next((column for column in WORD_COLUMNS if column in column_names(source)), None)
    read = [*columns, *([spoken] if spoken else [])]
    labelled = 0
    by_column = [column_values(source, column) for column in read]
    for index, values in zip(range(rows), zip(*by_column, strict=True), strict=False):
        row = dict(zip(read, values, strict=True))
        words = row[spoken] if spoken else row[columns[0]]
        length = len(words) if spec.kind in WORD_KINDS and words is not None else None
        labels = row_labels(task, spec, row, numbers, f"row {index} of the {called}", length)
        labelled += labels is not None
    if not labelled and rows == len(source):
        raise PluginError(
            f"{NAME}: no row of the {called} has a label for task {task!r} in {' and '.join(columns)}. Leave the "
            "column out."
        )
