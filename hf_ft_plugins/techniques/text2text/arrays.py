"""Ragged token ids as one flat array and lengths, and back to padded tensors: the collator's inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Ragged:
    """Rows of token ids: `values` int64 [sum of lengths], `lengths` int64 [rows]."""

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Any]) -> Ragged:
        """From lists, arrays or tensors of ids."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        if rows and isinstance(rows[0], list):
            values = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        else:
            values = (
                np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if rows else np.empty(0, np.int64)
            )
        return cls(values, lengths)

    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last id of each row, -1 where it has none; int64 [rows] each."""
        some = self.lengths > 0
        firsts, lasts = np.full(len(some), -1, dtype=np.int64), np.full(len(some), -1, dtype=np.int64)
        starts = self.starts()[some]
        firsts[some], lasts[some] = self.values[starts], self.values[starts + self.lengths[some] - 1]
        return firsts, lasts

    def as_lists(self) -> list[list[int]]:
        return [row.tolist() for row in self.as_arrays()]

    def as_arrays(self) -> list[np.ndarray]:
        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def padded(self, padding: int, *, multiple: int | None = None, left: bool = False) -> torch.Tensor:
        """int64 [rows, width], `padding` after the ids (before them if `left`); width rounded up to `multiple`."""
        width = int(self.lengths.max()) if len(self.lengths) else 0
        width = -(-width // multiple) * multiple if multiple else width
        result = np.full((len(self.lengths), width), padding, dtype=np.int64)
        result[self._places(width, left)] = self.values
        return torch.from_numpy(result)

    def mask(self, *, multiple: int | None = None, left: bool = False) -> torch.Tensor:
        """int64 [rows, width]: 1 where `padded` has an id."""
        width = int(self.lengths.max()) if len(self.lengths) else 0
        width = -(-width // multiple) * multiple if multiple else width
        return torch.from_numpy(self._places(width, left).astype(np.int64))

    def _places(self, width: int, left: bool) -> np.ndarray:
        columns = np.arange(width)
        return columns >= width - self.lengths[:, None] if left else columns < self.lengths[:, None]

    def cut(self, longest: int, last: int | None) -> Ragged:
        """Rows of at most `longest` ids. A row that ended in `last` (the end of sequence) and is cut still does."""
        if not len(self.lengths) or int(self.lengths.max()) <= longest:
            return self
        lengths = np.minimum(self.lengths, longest)
        starts = self.starts()
        values = self.values[positions(starts, lengths)]
        if last is not None:
            cut_rows = self.lengths > longest
            ended = cut_rows & (self.values[starts + self.lengths - 1] == last)
            values[(np.cumsum(lengths) - 1)[ended]] = last
        return Ragged(values, lengths)

    def kept(self, which: np.ndarray) -> Ragged:
        """The rows where `which`, bool [rows], holds, or those of these numbers, int64, in their order."""
        lengths = self.lengths[which]
        return Ragged(self.values[positions(self.starts()[which], lengths)], lengths)

    def beside(self, other: Ragged) -> Ragged:
        """Each row followed by the row of `other` with the same number."""
        lengths = self.lengths + other.lengths
        values = np.empty(int(lengths.sum()), dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        values[positions(starts, self.lengths)] = self.values
        values[positions(starts + self.lengths, other.lengths)] = other.values
        return Ragged(values, lengths)

    def filled(self, value: int) -> Ragged:
        """The same shape, every id replaced by `value`."""
        return Ragged(np.full_like(self.values, value), self.lengths)


def positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of the runs that begin at `starts` and have `lengths`, one after the other; int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
