"""Random numbers that follow from (seed, epoch, example) alone, for many examples at once.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): number j of an example is a
hash of its state and j, so nothing is drawn in an order, and a batch of examples needs no loop.
"""

from __future__ import annotations

import numpy as np

from .arrays import Ragged, positions

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def states(seed: int, epoch: int, examples: np.ndarray) -> np.ndarray:
    """The state of each example's numbers; uint64 [rows] from uint64 [rows]."""
    known = np.zeros(1, dtype=np.uint64)
    for value in (seed, epoch):
        known = _mixed((known ^ np.uint64(value % 2**64)) + GOLDEN)
    return _mixed((known ^ examples.astype(np.uint64)) + GOLDEN)


def numbers(of: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`counts[i]` numbers of the example with state `of[i]`, one example after the other; uint64 [sum of counts]."""
    index = positions(np.zeros_like(counts), counts).astype(np.uint64)
    return _mixed(np.repeat(of, counts) + (index + np.uint64(1)) * GOLDEN)


def fractions(of: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each state; float64 [rows]."""
    return (numbers(of, np.ones(len(of), dtype=np.int64)) >> np.uint64(11)) * 2.0**-53


def digests(rows: Ragged) -> np.ndarray:
    """A number for each row of ids that depends on every id and its place; uint64 [rows]."""
    index = positions(np.zeros_like(rows.lengths), rows.lengths).astype(np.uint64)
    hashed = _mixed(_mixed(rows.values.astype(np.uint64) + GOLDEN) + index * GOLDEN)
    # Differences of running sums, since `reduceat` is wrong for rows without ids. Both wrap, as hashes may.
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashed, dtype=np.uint64)])
    return _mixed(sums[rows.starts() + rows.lengths] - sums[rows.starts()] + rows.lengths.astype(np.uint64) * GOLDEN)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
