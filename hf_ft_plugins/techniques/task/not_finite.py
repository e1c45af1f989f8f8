"""Numbers that are none: a row of NaN or infinity in the training set would ruin the weights."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...models.label_columns import is_transformed, label_values
from ...models.labels import Labels
from ...progress import progress
from . import NAME

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import TrainingArguments


BATCH = 1000  # rows read at once


def refuse_nan_labels(dataset: Any, labels: Labels) -> None:
    """Raise `PluginError` where a label that is a number is NaN or infinite."""
    if not hasattr(dataset, "__len__"):
        return
    values = np.asarray(label_values(dataset, labels.column), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise PluginError(
            f"{NAME}: row {bad[0]} of the training set has the label {values[bad[0]]} in column "
            f"{labels.column!r} ({len(bad)} such rows). Drop or correct them.",
            code="not-finite",
            mend=[mends.drop_rows("train", bad)],
        )


def refuse_not_a_number(dataset: Any, model: Module, args: TrainingArguments) -> None:
    """Raise `PluginError` where a column that the model reads holds NaN or infinity: one row would ruin the weights."""
    if not getattr(dataset, "features", None) or not hasattr(dataset, "__len__") or is_transformed(dataset):
        return
    read = set(inspect.signature(bare(model).forward).parameters)
    seen = 0
    batches, number = dataset.with_format("arrow").iter(batch_size=BATCH), -(-len(dataset) // BATCH)
    for batch in progress(batches, f"{NAME}: looking for NaN and infinity", total=number, unit="batches"):
        for column in batch.column_names:
            if args.remove_unused_columns and column not in read:
                continue
            bad = [seen + row for row in _rows_not_finite(batch.column(column).combine_chunks())]
            if bad:
                raise PluginError(
                    f"{NAME}: row {bad[0]} of the training set holds NaN or infinity in column {column!r}. "
                    "One such row ruins the weights: drop or correct it.",
                    code="not-finite",
                    mend=[mends.drop_rows("train", bad)],
                )
        seen += batch.num_rows


def _rows_not_finite(array: Any) -> list[int]:
    import pyarrow.compute
    import pyarrow.types

    array = getattr(array, "storage", array)
    numbers = array
    while hasattr(numbers, "flatten") and hasattr(numbers.type, "value_field"):
        numbers = numbers.flatten()
    if not pyarrow.types.is_floating(numbers.type):
        return []
    if pyarrow.compute.all(pyarrow.compute.is_finite(numbers)).as_py() is not False:
        return []
    return [row for row, value in enumerate(array) if not _all_finite(value.as_py())]


def _all_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return value is None or bool(np.isfinite(value))
