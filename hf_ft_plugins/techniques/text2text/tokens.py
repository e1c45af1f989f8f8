"""Token ids of a data set of pairs, read from Arrow's buffers without making a Python object of a number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from ...progress import progress
from .arrays import Ragged, positions
from .reading import rows_of
from .rows import Rows, hiding, where

CHUNK = 1 << 14  # rows read at once
COUNTING = "text2text: counting tokens"


class Row(NamedTuple):
    """One example of a `TokenTable`, not yet read; `TextPairCollator` reads a batch of them at once."""

    table: TokenTable
    position: int


class TokenTable(torch.utils.data.Dataset[Row]):
    """The columns `input_ids` and `labels` of a `datasets.Dataset`, as one array of ids and offsets each.

    An `attention_mask` holds, too; further columns are not read.

    Args:
        dataset: a `datasets.Dataset` with both columns, lists of whole numbers. Its buffers are used, not copied,
            unless it was shuffled or selected from.
        texts: the data has `input_ids` alone, from which an objective makes both sides.
        missing: rows may have labels of None, which are none.
        ids: the column of ids.

    Raises:
        PluginError: a column is missing, or holds no lists of whole numbers, or a row is None.
    """

    def __init__(self, dataset: Any, *, texts: bool = False, missing: bool = False, ids: str = "input_ids") -> None:
        self.sources = _flat(dataset, ids)
        self.targets = self.sources if texts else _flat(dataset, "labels", missing=missing)
        self.masks = _mask(dataset) if ids == "input_ids" else None

    def __len__(self) -> int:
        return len(self.sources.lengths)

    def __getitem__(self, index: int) -> Row:
        return Row(self, index)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        # As `[Row(self, index) for index in indices]`, but faster: it is half of the time of a batch.
        return list(map(tuple.__new__, repeat(Row), zip(repeat(self), indices, strict=False)))

    def rows(self, examples: Sequence[Row]) -> Rows:
        """Some rows, as the collator reads them."""
        return self.at(np.fromiter((row.position for row in examples), dtype=np.int64, count=len(examples)))

    def at(self, indices: np.ndarray) -> Rows:
        """The rows at some positions, int64."""
        mask = None if self.masks is None else self.masks.rows(indices)
        return Rows(self.sources.rows(indices), self.targets.rows(indices), mask=mask)

    def texts(self, rows: Sequence[Row]) -> tuple[Ragged, np.ndarray]:
        """`input_ids` of some rows, those that count, and the rows' positions."""
        indices = np.fromiter((row.position for row in rows), dtype=np.int64, count=len(rows))
        texts = self.sources.rows(indices)
        return texts if self.masks is None else where(texts, self.masks.rows(indices).values != 0), indices


class _Flat(NamedTuple):
    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def rows(self, indices: np.ndarray) -> Ragged:
        lengths = self.lengths[indices]
        return Ragged(self.values[positions(self.starts[indices], lengths)].astype(np.int64, copy=False), lengths)


def is_arrow(dataset: Any) -> bool:
    """Whether the data set's buffers say what its rows hold: a transform of the script's makes other rows of them."""
    known = hasattr(dataset, "data") and hasattr(dataset, "column_names") and hasattr(dataset, "format")
    return known and dataset.format["type"] != "custom"


def columns_of(dataset: Any) -> list[str]:
    """Names of what a row of an indexable data set holds; [] where it is empty, or its rows are no mappings."""
    if is_arrow(dataset):
        # Columns may be left out by `set_format`.
        names: list[str] = dataset.format["columns"]
        return names
    known = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    first = dataset[0] if known and len(dataset) else None
    return list(first) if isinstance(first, Mapping) else []


def _flat(dataset: Any, column: str, *, missing: bool = False) -> _Flat:
    array = _column(dataset, column, missing=missing)
    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets)
    if array.null_count:
        lengths = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    return _Flat(array.values.to_numpy(zero_copy_only=False), offsets[:-1], lengths)


def _mask(dataset: Any) -> _Flat | None:
    """The attention mask, where it hides a token."""
    import pyarrow

    if "attention_mask" not in columns_of(dataset):
        return None
    kind = dataset.data.schema.field("attention_mask").type
    if not hasattr(kind, "value_type") or pyarrow.types.is_nested(kind.value_type):
        return None
    mask, sources = _flat(dataset, "attention_mask"), _flat(dataset, "input_ids")
    return hiding(mask, sources.lengths, "row {}")


def _column(dataset: Any, column: str, *, missing: bool = False) -> Any:
    import pyarrow

    if column not in dataset.column_names:
        raise PluginError(
            f"text2text: the data has no column {column!r}, only {', '.join(dataset.column_names)}. Tokenize it into "
            "input_ids and labels, or name the columns of text with source=... and target=...",
            code="data-columns",
        )
    if dataset._indices is not None:
        dataset = dataset.select_columns(column).flatten_indices()
    array = dataset.data.column(column).combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pyarrow.array([], type=array.type)
    kinds = [pyarrow.types.is_integer, pyarrow.types.is_boolean]
    if column == "attention_mask":
        kinds.append(pyarrow.types.is_floating)
    if not (hasattr(array, "offsets") and any(of(array.type.value_type) for of in kinds)):
        raise PluginError(
            f"text2text: the column {column!r} is of type {array.type}; it must hold lists of token ids. Tokenize its "
            "texts; where they are classes, leave out text2text.",
            code="data-columns",
            mend=[mends.remove_technique("text2text")],
        )
    if array.null_count and not missing:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise PluginError(
            f"text2text: row {row} has {column}=None. Drop such rows, or give them a text.",
            code="data-rows",
            mend=[mends.drop_rows("train", [row])],
        )
    return array


def _each(dataset: Any) -> Iterator[Any]:
    # Not `iter`: a map-style data set need not end it.
    return (dataset[row] for row in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)


def ends_of(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of ids that count, first and last of them (-1 where there is none) of every row of `input_ids`; int64
    [rows] each."""
    found = [where(rows.sources, rows.real()) for rows in chunks(dataset, texts=True)]
    ends = [(texts.lengths, *texts.ends()) for texts in found]
    if not ends:
        return (np.empty(0, np.int64),) * 3
    counts, begins, lasts = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    return counts, begins, lasts


def chunks(dataset: Any, *, texts: bool = False, missing: bool = False, labels_alone: bool = False) -> Iterator[Rows]:
    """The rows of a data set in order, some thousand at a time: ids, labels and mask.

    Args:
        texts: without labels.
        missing: labels may be None.
        labels_alone: the labels stand for the ids, too.

    Raises:
        PluginError: a row has no ids, or no labels.
    """
    ids = "labels" if labels_alone else "input_ids"
    if is_arrow(dataset):
        table = TokenTable(dataset, texts=texts, missing=missing, ids=ids)
        for start in progress(range(0, len(table), CHUNK), COUNTING, unit="chunks"):
            yield table.at(np.arange(start, min(start + CHUNK, len(table))))
        return
    rows = progress(_each(dataset), COUNTING, total=len(dataset) if hasattr(dataset, "__len__") else None)
    for start in itertools.count(step=CHUNK):
        examples = list(islice(rows, CHUNK))
        if not examples:
            return
        for row, example in enumerate(examples, start):
            _refuse_missing(example, row, ids, labels=not (texts or missing))
        wanted = {"input_ids": ids, "attention_mask": "" if labels_alone else "attention_mask"}
        wanted |= {} if texts else {"labels": "labels", "label": "label"}
        yield rows_of([{name: one.get(of) for name, of in wanted.items()} for one in examples], takes=None)


def _refuse_missing(example: Mapping[str, Any], row: int, ids: str, *, labels: bool) -> None:
    lacks = ids if example.get(ids) is None else None
    if labels and example.get("labels") is None and example.get("label") is None:
        lacks = lacks or "labels"
    if lacks:
        raise PluginError(
            f"text2text: row {row} has no {lacks}, only {', '.join(example)}. Drop such rows, or give them a text.",
            code="data-rows",
            mend=[mends.drop_rows("train", [row])],
        )
