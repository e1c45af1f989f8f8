"""How long the pairs of a data set are: the tokens that count, and the slots that they take in a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .loss import IGNORED
from .rows import Rows, counts, row_ends
from .tokens import chunks


class Lengths(NamedTuple):
    """Of every pair, int64 [rows] each.

    Attributes:
        sources, targets: tokens that count: those that the mask does not hide, and those whose label is not -100.
        source_slots, target_slots: how wide a row is for them, with the padding that it brings.
    """

    sources: np.ndarray
    targets: np.ndarray
    source_slots: np.ndarray
    target_slots: np.ndarray

    def at(self, which: np.ndarray) -> Lengths:
        return Lengths(*(part[which] for part in self))

    def joined(self, other: Lengths) -> Lengths:
        return Lengths(*(np.concatenate(parts) for parts in zip(self, other, strict=True)))


def random_padding(lengths: Lengths, pairs: int, *, causal: bool) -> float:
    """The expected share of padding that batches of `pairs` rows drawn at random add to what the rows bring.

    Drawn with replacement, as if of many rows.
    """
    width = lengths.source_slots + lengths.target_slots
    sides = (width,) if causal else (lengths.source_slots, lengths.target_slots)
    slots = sum(_expected_most(side, pairs) for side in sides)
    return max(0.0, float(1 - width.mean() / slots)) if slots else 0.0


def _expected_most(values: np.ndarray, drawn: int) -> float:
    below = (np.arange(len(values) + 1) / max(len(values), 1)) ** drawn
    return float(np.sort(values) @ np.diff(below))


def no_lengths() -> Lengths:
    return Lengths(*(np.empty(0, np.int64) for _ in Lengths._fields))


def measured(
    dataset: Any,
    most_source: int | None = None,
    most_target: int | None = None,
    *,
    causal: bool,
    packed: bool = False,
    missing: bool = False,
) -> tuple[Lengths, bool]:
    """Lengths of every pair as the collator leaves it, and whether all of them are one sequence each already.

    Args:
        dataset: with ids and labels.
        most_source, most_target: the collator's limits.
        packed: it packs, so that padding behind a pair takes no slot.
        missing: labels may be None, and then count as none.

    Raises:
        PluginError: a row has no ids, or no labels.
    """
    pairs, copies, all_copies = [no_lengths()], [no_lengths()], causal
    for rows in chunks(dataset, missing=missing):
        if rows.targets is None:
            rows = rows.without_targets()
        pairs.append(of_pairs(rows, most_source, most_target, causal=causal, packed=packed))
        all_copies = all_copies and rows.are_masked_copies()
        if all_copies:
            copies.append(of_copies(rows, packed=packed))
    found = copies if all_copies else pairs
    joined = found[0]
    for part in found[1:]:
        joined = joined.joined(part)
    return joined, all_copies


def of_copies(rows: Rows, *, packed: bool = False) -> Lengths:
    """Of rows that hold prompt and target in one."""
    assert rows.targets is not None
    wanted, seen = _wanted(rows), counts(rows.sources, rows.real())
    width = seen if packed else rows.sources.lengths
    return Lengths(np.maximum(seen - wanted, 0), wanted, np.maximum(width - wanted, 0), wanted)


def of_pairs(
    rows: Rows, most_source: int | None, most_target: int | None, *, causal: bool, packed: bool = False
) -> Lengths:
    """Of sources and targets apart; for a causal model they are put into one sequence, without their padding."""
    assert rows.targets is not None
    seen, wanted = counts(rows.sources, rows.real()), _wanted(rows)
    slots = rows.sources.lengths, rows.targets.lengths
    if causal:
        slots = seen, wanted
    elif packed:
        slots = row_ends(rows.sources, rows.real()), row_ends(rows.targets, rows.targets.values != IGNORED)
    limits = (most_source, most_target) * 2
    return Lengths(
        *(
            side if most is None else np.minimum(side, most)
            for side, most in zip((seen, wanted, *slots), limits, strict=True)
        )
    )


def _wanted(rows: Rows) -> np.ndarray:
    assert rows.targets is not None
    return counts(rows.targets, rows.targets.values != IGNORED)


def targets_alone(dataset: Any) -> Lengths:
    """Of a data set whose inputs are no ids (sounds, pictures): by what its labels hold."""
    targets = [_wanted(rows) for rows in chunks(dataset, labels_alone=True)]
    wanted = np.concatenate([np.empty(0, np.int64), *targets])
    return Lengths(np.zeros_like(wanted), wanted, np.zeros_like(wanted), wanted)
