"""Rows that say the same nearly word for word, found by MinHash without comparing all with all.

A. Broder, "On the resemblance and containment of documents" (1997); one permutation, cut into bins, of which empty ones
borrow from another (P. Li et al., 2012; A. Shrivastava and P. Li, 2014): a row costs one pass over its bytes. Rows that
share a band of the signature are compared by the whole signature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Bytes, an English word and a half: what one number of 64 bits holds.
SHINGLE = 8
# Shingles begin at blanks and, for scripts without blanks between words, at every fourth of UTF-8's continuing bytes:
# at one byte in six.
BLANK, CONTINUING = 0x20, (0xC3, 0x80)
# Rows of fewer are compared as wholes: with one word changed they would not be alike.
FEWEST = 20
BINS = 64
BANDS = 8
# Share of equal bins from which rows are one; the resemblance's standard error is 0.04 at 0.9.
ALIKE = 0.9
EMPTY = np.uint32(0xFFFFFFFF)
# Odd, from SplitMix64 (Steele, Lea and Flood, 2014).
MIX, STEP = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x9E3779B97F4A7C15)
# Of the texts' bytes at once; a few arrays of eight bytes each come of it, which should stay in the cache.
AT_ONCE = 1 << 18


def signatures(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """MinHash signatures of rows, each of several texts; the same words in another of the texts are other words.

    Returns:
        uint16 [rows, 64].
    """
    made, start, size = [], 0, 0
    for end, row in enumerate(texts, 1):
        size += sum(map(len, row))
        if size > AT_ONCE or end == len(texts):
            made.append(_signatures(texts[start:end]))
            start, size = end, 0
    return np.concatenate(made) if made else np.zeros((0, BINS), np.uint16)


def _signatures(texts: Sequence[Sequence[str]]) -> np.ndarray:
    parts, gap = len(texts[0]), bytes(SHINGLE)
    pieces = [piece.encode("utf-8", "replace") for row in texts for piece in row]
    joined = gap.join(pieces) + gap
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + SHINGLE
    ends = np.cumsum(lengths)
    data = np.frombuffer(joined, np.uint8)
    places = np.flatnonzero((data == BLANK) | ((data & CONTINUING[0]) == CONTINUING[1]))
    # At each of these the eight bytes that begin there, as one number; zeros follow each text.
    shingle = np.ndarray(len(joined) - SHINGLE + 1, "<u8", joined, strides=(1,))[places]
    shingle *= MIX
    shingle ^= shingle >> np.uint64(29)
    counts = np.diff(np.searchsorted(places, ends), prepend=0)
    part = np.repeat((np.arange(len(pieces)) % parts + 1).astype(np.uint64) * STEP, counts)
    values = (shingle + part) * MIX
    values ^= values >> np.uint64(32)
    bins = np.repeat(np.arange(len(pieces)) // parts * BINS, counts) + (values & np.uint64(BINS - 1)).astype(np.int64)
    table: np.ndarray = np.full(len(texts) * BINS, EMPTY, np.uint32)
    np.minimum.at(table, bins, (values >> np.uint64(16)).astype(np.uint32))
    table = table.reshape(len(texts), BINS)
    few = np.flatnonzero(counts.reshape(-1, parts).sum(1) < FEWEST)
    wholes = np.array([hash(tuple(texts[row])) % 2**64 for row in few.tolist()], np.uint64)
    spread = wholes[:, None] + np.arange(BINS, dtype=np.uint64) * STEP
    # Twice, with shifts between: after products alone, two wholes that meet in one bin would meet in all.
    for shift in (30, 27):
        spread = (spread ^ (spread >> np.uint64(shift))) * MIX
    table[few] = (spread >> np.uint64(32)).astype(np.uint32)
    # An empty bin takes from the next that is full, moved by how far away it is.
    for step in (1, 2, 4, 8, 16, 32):
        table = np.where(table == EMPTY, np.roll(table, -step, axis=1) + np.uint32(step), table)
        table[table == np.uint32(step - 1)] = EMPTY
    return (table & np.uint32(0xFFFF)).astype(np.uint16)


def near_duplicates(signature: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Of each row the first row that says nearly the same; its own number where there is none.

    Args:
        signature: uint16 [rows, 64].
        kind: int [rows]; rows of different kinds (labels good and bad) are never one.

    Returns:
        int64 [rows].
    """
    first = np.arange(len(signature))
    if len(signature) < 2:
        return first
    width = BINS // BANDS
    for band in range(BANDS):
        columns = np.ascontiguousarray(signature[:, band * width : (band + 1) * width]).view(np.uint64)
        key = (columns[:, 0] * MIX ^ columns[:, 1]) * STEP + kind.astype(np.uint64)
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
        # Each is compared with the first of those that share the band.
        heads = order[np.repeat(starts, np.diff(np.append(starts, len(order))))]
        pairs = np.flatnonzero((heads != order) & (first[order] == order))
        rows, others = order[pairs], heads[pairs]
        alike = (signature[rows] == signature[others]).mean(axis=1) >= ALIKE
        same = kind[rows] == kind[others]
        first[rows[alike & same]] = others[alike & same]
    # A row that is like a row that is like another: the chain's first.
    while (first != first[first]).any():
        first = first[first]
    return first
