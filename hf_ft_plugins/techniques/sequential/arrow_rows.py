"""Rows of any mappings as a `datasets.Dataset`, and back as they were.

Numbers keep their type, arrays their shape, pictures every pixel (PNG, or TIFF for modes that PNG lacks). Nothing is
pickled: a row that Arrow or JSON cannot hold exactly is refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from .settings import NAME

# Modes of a picture that PNG holds exactly; the others go to TIFF.
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
MEND = "Set replay=0, or train on a map-style data set of mappings of numbers, texts, arrays and pictures."


def stored(rows: list[Any]) -> Any:
    """Rows as a `datasets.Dataset` in memory.

    Raises:
        PluginError: rows that are no mappings or have different columns, or a value that Arrow cannot hold exactly.
    """
    import pyarrow
    from datasets import Dataset, DatasetInfo, Features

    names = list(rows[0]) if isinstance(rows[0], Mapping) else []
    for row in rows:
        if not isinstance(row, Mapping):
            raise PluginError(
                f"{NAME}: replay keeps rows by column, and a training row is a {type(row).__name__}. {MEND}",
                code="data-unsuited",
                mend=[mends.set_option(NAME, "replay", 0)],
            )
        if set(row) != set(names):
            differing = ", ".join(sorted(map(str, set(row) ^ set(names))))
            raise PluginError(
                f"{NAME}: replay keeps rows of the same columns, and some have {differing}, others not. Give every row "
                "all columns (None where it has nothing), or set replay=0.",
                code="data-columns",
                mend=[mends.set_option(NAME, "replay", 0)],
            )
    columns = {name: _column(name, [row[name] for row in rows]) for name in names}
    features = Features({name: column.features[name] for name, column in columns.items()})
    table = pyarrow.table({name: column.data.column(name) for name, column in columns.items()})
    return Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))


def _column(name: str, values: list[Any]) -> Any:
    """One column as a `datasets.Dataset`."""
    import pyarrow
    from datasets import Dataset, Features, Image, List

    known = next((value for value in values if value is not None), None)
    refusal = f"{NAME}: replay cannot keep the column {name!r} of a {type(known).__name__}"
    try:
        if _is_array(known):
            return _of_arrays(name, [_array(value) for value in values])
        plain = _plain(values)
        if _is_picture(known) or (isinstance(known, (list, tuple)) and known and _is_picture(known[0])):
            feature = Image() if _is_picture(known) else List(Image())
            return Dataset.from_dict({name: plain}, features=Features({name: feature}))
        column = Dataset.from_dict({name: plain}, on_mixed_types="use_json")
        # Arrow gives every mapping the keys of all, and JSON reads a text that is JSON as what it says.
        changed = not _same(list(column[name]), plain)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise PluginError(
            f"{refusal} ({type(error).__name__}: {error}). {MEND}",
            code="data-unsuited",
            mend=[mends.set_option(NAME, "replay", 0)],
        ) from error
    if changed:
        raise PluginError(
            f"{refusal}: it would come back as another value. {MEND}",
            code="data-unsuited",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    return column


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray, np.generic))


def _is_picture(value: Any) -> bool:
    # Not imported: data without pictures need no Pillow.
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no such type, and 32 bits hold its every value.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _of_arrays(name: str, arrays: list[np.ndarray]) -> Any:
    import pyarrow
    from datasets import Dataset, DatasetInfo, Features, List, Value

    kind, depth = arrays[0].dtype, arrays[0].ndim
    for array in arrays:
        if array.dtype != kind or array.ndim != depth or 0 in array.shape[1:]:
            raise TypeError(f"arrays of {kind} and {array.dtype}, of shapes {arrays[0].shape} and {array.shape}")
    column = pyarrow.array(np.concatenate([array.reshape(-1) for array in arrays]))
    feature: Any = Value("string" if kind.kind == "U" else kind.name)
    for level in reversed(range(depth)):
        counts = [int(np.prod(array.shape[:level], dtype=np.int64)) for array in arrays]
        lengths = np.repeat([array.shape[level] for array in arrays], counts)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if offsets[-1] >= 2**31:
            raise OverflowError(
                f"{offsets[-1]} numbers in {len(arrays)} rows, and Arrow counts to 2**31: keep_rows fewer"
            )
        column = pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), column)
        feature = List(feature)
    features = Features({name: feature})
    return Dataset(pyarrow.table({name: column}).cast(features.arrow_schema), info=DatasetInfo(features=features))


def _plain(value: Any) -> Any:
    """The value with lists for tuples and arrays, dicts for mappings, and pictures encoded."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if _is_picture(value):
        written = io.BytesIO()
        value.save(written, format="PNG" if value.mode in PNG_MODES else "TIFF")
        return {"bytes": written.getvalue(), "path": None}
    return value.tolist() if _is_array(value) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other or (one != one and other != other))


class RowsLike(torch.utils.data.Dataset[dict[str, Any]]):
    """Kept rows with values of the types that an example has. See `like`."""

    def __init__(self, rows: Any, example: Mapping[str, Any]) -> None:
        self.example = dict(example)
        # A table of no columns has no rows.
        self._size = len(rows)
        arrays = [name for name, value in self.example.items() if _is_array(value)]
        self._arrays = rows.select_columns(arrays).with_format("arrow")
        self._others = rows.with_format(None).select_columns([name for name in self.example if name not in arrays])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, position: int) -> dict[str, Any]:
        given: dict[str, Any] = dict(self._others[position]) if self._others.column_names else {}
        if self._arrays.column_names:
            table = self._arrays[position]
            given |= {name: _numbers(table.column(name)[0], name) for name in self._arrays.column_names}
        return {name: _as(value, given[name]) for name, value in self.example.items()}


def like(rows: Any, example_row: Mapping[str, Any]) -> RowsLike:
    """Kept rows, map-style, with the example's columns in its order and values of its types: tensors and arrays of its
    dtype, tuples, and lists, numbers, texts and pictures as they were.

    Args:
        rows: a `datasets.Dataset` with all the example's columns.
        example_row: a row of the new data.
    """
    return RowsLike(rows, example_row)


def _numbers(scalar: Any, name: str) -> np.ndarray:
    """The array of one value, without a detour through lists."""
    shape: list[int] = []
    values = scalar
    if hasattr(scalar.type, "value_type") and scalar.is_valid:
        values = scalar.values
        shape.append(len(values))
        while hasattr(values.type, "value_type"):
            outer, values = len(values), values.flatten()
            shape.append(len(values) // max(outer, 1))
    if values.null_count if shape else not scalar.is_valid:
        raise PluginError(
            f"{NAME}: a kept row has None in the column {name!r}, where the new data have arrays. Set replay=0, or "
            "train each stage on rows without None.",
            code="data-rows",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    return values.to_numpy(zero_copy_only=False).reshape(shape) if shape else np.asarray(values.as_py())


def _as(example: Any, value: Any) -> Any:
    """The value with the types of the example."""
    if isinstance(example, torch.Tensor):
        return torch.tensor(value, dtype=example.dtype)
    if isinstance(example, np.ndarray):
        return np.array(value, dtype=example.dtype)
    if isinstance(example, np.generic):
        return example.dtype.type(value)
    if isinstance(example, (list, tuple)) and isinstance(value, list):
        inner = [_as(example[0], one) for one in value] if example else value
        return tuple(inner) if isinstance(example, tuple) else inner
    if isinstance(example, Mapping) and isinstance(value, Mapping):
        return {key: _as(example[key], one) if key in example else one for key, one in value.items()}
    return value
