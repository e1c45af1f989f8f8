"""Shuffles without a table: where a position goes is computed, for any size, in constant memory.

A Feistel network on pairs (row, column) of a grid that just holds the positions, as in Black and Rogaway 2002 ("Ciphers
with arbitrary finite domains"): each round adds a hash of the one to the other. What leaves [0, size) is sent through
again until it is back (cycle-walking); the grid is so tight that this is rare. Not for secrets: the hash is fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 8
LARGEST = 2**62


def key_of(*numbers: int | np.ndarray) -> np.ndarray:
    """A key that depends on all the numbers and their order; uint64 [n] of integers and integer arrays [n].

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") over one after the other.
    """
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        value = number.astype(np.uint64) if isinstance(number, np.ndarray) else np.uint64(number % 2**64)
        key = (key ^ value) + GOLDEN
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key = key ^ (key >> np.uint64(31))
    return key


def permuted(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each position goes, each in a permutation of its own; int64 [n].

    Args:
        positions: int64 [n], each in [0, its size).
        sizes: int64 [n], 1 to 2**62.
        keys: uint64 [n]; those of one permutation are equal.
    """
    sizes = sizes.astype(np.uint64)
    # Any grid does that has enough fields; this one has about as many rows as columns, and at least two of each. The
    # rows are even in number: shifts by an odd number are even permutations, and make only half of all shuffles.
    rows = (np.sqrt(sizes).astype(np.uint64) | np.uint64(1)) + np.uint64(1)
    columns = (sizes - np.uint64(1)) // rows + np.uint64(2)
    result = _network(positions.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(result >= sizes)
    while len(outside):
        again = _network(result[outside], rows[outside], columns[outside], keys[outside])
        result[outside] = again
        outside = outside[again >= sizes[outside]]
    return result.astype(np.int64)


def _network(positions: np.ndarray, rows: np.ndarray, columns: np.ndarray, keys: np.ndarray) -> np.ndarray:
    row = positions // columns
    column = positions - row * columns
    for _ in range(ROUNDS // 2):
        keys = keys + GOLDEN
        row = _moved(row, column, rows, keys)
        keys = keys + GOLDEN
        column = _moved(column, row, columns, keys)
    return row * columns + column


def _moved(value: np.ndarray, other: np.ndarray, modulus: np.ndarray, keys: np.ndarray) -> np.ndarray:
    half = np.uint64(32)
    hashed = (other ^ keys) * np.uint64(0xFF51AFD7ED558CCD)
    hashed ^= hashed >> half
    hashed *= np.uint64(0xC4CEB9FE1A85EC53)
    hashed >>= half
    # The upper half of a product is a number below the modulus, without a division.
    hashed *= modulus
    hashed >>= half
    hashed += value
    # Where nothing is to be taken off, the difference wraps to a huge number.
    return np.minimum(hashed, hashed - modulus)


class KeyedPermutation:
    """A shuffle of [0, size) that follows from its key; any part of it can be asked for, in any order.

    Args:
        size: 1 to 2**62.
        key: integers, such as (seed, source, pass); other keys, even of neighbours, give unrelated shuffles.

    Raises:
        ValueError: a size outside that range.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        if not 1 <= size <= LARGEST:
            raise ValueError(f"A permutation of {size} positions was asked for; 1 to 2**62 are possible.")
        self.size = size
        self.key = tuple(key)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The example at each position; int64 [n] from int64 [n], each in [0, size)."""
        sizes = np.full(len(positions), self.size, dtype=np.int64)
        return permuted(positions, sizes, np.broadcast_to(key_of(*self.key), len(positions)))
