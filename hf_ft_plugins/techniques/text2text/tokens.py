"""Token ids of a data set of pairs, read from Arrow's buffers without making a Python object of a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import PluginError
from .arrays import Ragged, positions
from .loss import IGNORED


class Row(NamedTuple):
    """One example of a `TokenTable`, not yet read; `TextPairCollator` reads a batch of them at once."""

    table: TokenTable
    position: int


class TokenTable(torch.utils.data.Dataset[Row]):
    """The columns `input_ids` and `labels` of a `datasets.Dataset`, as one array of ids and offsets each.

    Args:
        dataset: a `datasets.Dataset` with both columns, lists of whole numbers. Its buffers are used, not copied,
            unless it was shuffled or selected from.
        texts: the data has `input_ids` alone, from which an objective makes both sides.

    Raises:
        PluginError: a column is missing, or holds no lists of whole numbers, or a row is None.
    """

    def __init__(self, dataset: Any, *, texts: bool = False) -> None:
        self.sources = _flat(dataset, "input_ids")
        self.targets = self.sources if texts else _flat(dataset, "labels")

    def __len__(self) -> int:
        return len(self.sources.lengths)

    def __getitem__(self, index: int) -> Row:
        return Row(self, index)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        # As `[Row(self, index) for index in indices]`, but faster: it is half of the time of a batch.
        return list(map(tuple.__new__, repeat(Row), zip(repeat(self), indices, strict=False)))

    def gathered(self, rows: Sequence[Row]) -> tuple[Ragged, Ragged]:
        """Sources and targets of some rows."""
        indices = np.fromiter((row.position for row in rows), dtype=np.int64, count=len(rows))
        return self.sources.rows(indices), self.targets.rows(indices)

    def texts(self, rows: Sequence[Row]) -> tuple[Ragged, np.ndarray]:
        """`input_ids` of some rows, and the rows' positions."""
        indices = np.fromiter((row.position for row in rows), dtype=np.int64, count=len(rows))
        return self.sources.rows(indices), indices


class _Flat(NamedTuple):
    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def rows(self, indices: np.ndarray) -> Ragged:
        lengths = self.lengths[indices]
        return Ragged(self.values[positions(self.starts[indices], lengths)].astype(np.int64, copy=False), lengths)


def _flat(dataset: Any, column: str) -> _Flat:
    array = _column(dataset, column)
    offsets = array.offsets.to_numpy()
    return _Flat(array.values.to_numpy(zero_copy_only=False), offsets[:-1], np.diff(offsets))


def _column(dataset: Any, column: str) -> Any:
    import pyarrow

    if column not in dataset.column_names:
        raise PluginError(
            f"text2text: the data has no column {column!r}, only {', '.join(dataset.column_names)}. Tokenize it into "
            "input_ids and labels, or name the columns of text with source=... and target=..."
        )
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    array = dataset.data.column(column).combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pyarrow.array([], type=array.type)
    if not hasattr(array, "offsets") or not pyarrow.types.is_integer(array.type.value_type):
        raise PluginError(f"text2text: the column {column!r} is of type {array.type}; it must hold lists of token ids.")
    if array.null_count:
        missing = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise PluginError(f"text2text: row {missing} has {column}=None. Drop such rows, or give them a text.")
    return array


def lengths_of(dataset: Any, column: str) -> np.ndarray:
    """Tokens of every row of a column of token ids; int64 [rows].

    Read from the offsets of a `datasets.Dataset`; of any other data set, every example is looked at once.
    """
    if hasattr(dataset, "data") and hasattr(dataset, "column_names"):
        return np.diff(_column(dataset, column).offsets.to_numpy()).astype(np.int64)
    return np.fromiter((_length(example, column, row) for row, example in enumerate(dataset)), dtype=np.int64)


def _length(example: Any, column: str, row: int) -> int:
    value = example.get(column)
    if value is None:
        raise PluginError(f"text2text: row {row} has no {column}. Drop such rows, or give them a text.")
    return len(value)


def pair_lengths(options: Any, dataset: Any, *, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Source and target tokens of every pair, as the collator leaves them; int64 [rows] each.

    Where a causal script has put prompt and target into `input_ids` and masked the labels, the target is what is not
    masked.
    """
    sources, targets = lengths_of(dataset, "input_ids"), lengths_of(dataset, "labels")
    real = masked_copies(dataset) if causal and np.array_equal(sources, targets) else None
    if real is not None:
        return sources - real, real
    return np.minimum(sources, options.max_source_length or sources), np.minimum(
        targets, options.max_target_length or targets
    )


def is_masked_copy(ids: Any, labels: Any) -> bool:
    """Whether a causal row's labels are its own ids, the prompt's replaced by -100, and no target to be put behind.

    A pair whose target happens to be as long as its source is not.
    """
    if len(ids) != len(labels):
        return False
    marks = np.asarray(labels)
    return bool(((marks == IGNORED) | (marks == np.asarray(ids))).all())


def masked_copies(dataset: Any) -> np.ndarray | None:
    """Targets' tokens of every row, int64 [rows], where every row is an `is_masked_copy`; else None."""
    real = []
    for ids, labels in zip(_rows(dataset, "input_ids"), _rows(dataset, "labels"), strict=True):
        if not is_masked_copy(ids, labels):
            return None
        real.append(int((np.asarray(labels) != IGNORED).sum()))
    return np.array(real, dtype=np.int64)


def _rows(dataset: Any, column: str) -> Iterator[np.ndarray]:
    if hasattr(dataset, "data") and hasattr(dataset, "column_names"):
        values, starts, lengths = _flat(dataset, column)
        yield from (values[start : start + length] for start, length in zip(starts, lengths, strict=True))
    else:
        yield from (np.asarray(example[column]) for example in dataset)


def ends_of(dataset: Any, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of ids, first id and last id (-1 where there is none) of every row of a column; int64 [rows] each."""
    if hasattr(dataset, "data") and hasattr(dataset, "column_names"):
        values, starts, lengths = _flat(dataset, column)
        some = lengths > 0
        firsts, lasts = np.full(len(some), -1, dtype=np.int64), np.full(len(some), -1, dtype=np.int64)
        firsts[some], lasts[some] = values[starts[some]], values[(starts + lengths)[some] - 1]
        return lengths.astype(np.int64), firsts, lasts
    found = []
    for row, example in enumerate(dataset):
        length = _length(example, column, row)
        found.append((length, example[column][0], example[column][-1]) if length else (0, -1, -1))
    counts, begins, ends = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return counts, begins, ends
