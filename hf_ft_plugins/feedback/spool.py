"""Texts of a log on disk, one after the other in one file, read again by their number.

Measured against sqlite3, pyarrow and duckdb in `benchmarks/feedback_libraries/store.py`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Blobs that are written at once.
BATCH = 2_000
# Neighbours are read as one block, unless the block is more than so many times as large as they are.
MOST_UNWANTED = 4


class Spool:
    """Blobs in a file, in the order in which they came; in memory are eight bytes of each."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w+b", buffering=0)
        self._waiting: list[bytes] = []
        self._ends = array("q", [0])

    def append(self, blob: bytes) -> None:
        self._waiting.append(blob)
        if len(self._waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what waits; only what has been written can be read."""
        if self._waiting:
            self._file.write(b"".join(self._waiting))
            lengths = np.fromiter(map(len, self._waiting), np.int64, len(self._waiting))
            self._ends.frombytes((lengths.cumsum() + self._ends[-1]).tobytes())
            self._waiting.clear()

    def read(self, numbers: Iterable[int]) -> list[bytes]:
        """The blobs of these numbers, counted from 0."""
        ends, file = self._ends, self._file.fileno()
        spans = [(ends[number], ends[number + 1]) for number in numbers]
        if not spans:
            return []
        first, last = min(spans)[0], max(spans)[1]
        if last - first > MOST_UNWANTED * sum([end - start for start, end in spans]):
            return [os.pread(file, end - start, start) for start, end in spans]
        block = os.pread(file, last - first, first)
        return [block[start - first : end - first] for start, end in spans]

    def close(self) -> None:
        self._file.close()
