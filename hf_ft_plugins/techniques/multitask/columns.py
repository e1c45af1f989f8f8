"""The columns of a data set of any kind: their names, their values row by row, and the classes that they declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...models.label_columns import is_transformed


def plain(dataset: Any) -> Any:
    """A data set whose rows are Python values: a `datasets.Dataset` in another format than a transform of the script's
    own is set to none, of the columns that its format shows.
    """
    form = getattr(dataset, "format", None)
    if not isinstance(form, Mapping) or form["type"] in (None, "custom"):
        return dataset
    shown = None if form["output_all_columns"] else [name for name in dataset.column_names if name in form["columns"]]
    return dataset.with_format(None, columns=shown)


def column_names(dataset: Any) -> list[str]:
    """The columns of the rows that a data set gives; those of a transform, and of any data set of mappings but a
    `datasets.Dataset`, are in its first row.
    """
    names = getattr(dataset, "column_names", None)
    if names is not None and not is_transformed(dataset):
        form = getattr(dataset, "format", None)
        shown = form["columns"] if isinstance(form, Mapping) and not form["output_all_columns"] else names
        return [name for name in names if name in shown]
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        return []
    first = dataset[0]
    return list(first) if isinstance(first, Mapping) else []


def column_values(dataset: Any, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns, row by row, as the data set gives them: each row is read once where a transform makes it."""
    if hasattr(dataset, "with_format") and not is_transformed(dataset):
        read = dataset.with_format(None)
        yield from zip(*(read[column] for column in columns), strict=True)
        return
    for index in range(len(dataset)):
        row = dataset[index]
        yield tuple(row.get(column) for column in columns)


def class_names(dataset: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column of `ClassLabel`, or of lists of them; None for any other."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    while feature is not None and not hasattr(feature, "names"):
        feature = getattr(feature, "feature", None)
    return tuple(feature.names) if feature is not None else None
