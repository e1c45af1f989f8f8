"""`Rows`: the token ids of one batch's rows, which of them count, and whatever else the model takes.

A script may have padded its rows itself, left or right: the attention mask says so, not the ids. Labels of -100 are
no target, wherever they stand.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from .arrays import Ragged, positions
from .loss import IGNORED

# Columns that say nothing that the ids do not.
REDUNDANT = {"token_type_ids", "special_tokens_mask", "length", "decoder_input_ids"}
MASK = "attention_mask"


@dataclass(frozen=True)
class Rows:
    """Rows of one batch.

    Attributes:
        sources: ids of the inputs.
        targets: labels; None: the rows have none.
        mask: 1 where an id of `sources` counts, of the same lengths; None: everywhere.
        beside_source, beside_target: further columns, an array each row, as long as its source or target.
        stacked: further tensors, [rows, ...].
        texts: the ids were made of texts here.
    """

    sources: Ragged
    targets: Ragged | None
    mask: Ragged | None = None
    beside_source: dict[str, list[np.ndarray]] = field(default_factory=dict)
    beside_target: dict[str, list[np.ndarray]] = field(default_factory=dict)
    stacked: dict[str, torch.Tensor] = field(default_factory=dict)
    texts: bool = False

    def real(self) -> np.ndarray:
        """Which ids of the sources count; bool [sum of lengths]."""
        return np.ones(len(self.sources.values), dtype=bool) if self.mask is None else self.mask.values != 0

    def say_more(self) -> bool:
        """Whether there is more to the rows than ids and labels."""
        return self.mask is not None or bool(self.beside_source or self.beside_target or self.stacked)

    def are_masked_copies(self) -> bool:
        """Whether the labels are the rows' own ids, some replaced by -100: prompt and target in one."""
        if self.texts or self.targets is None or not np.array_equal(self.sources.lengths, self.targets.lengths):
            return False
        labels = self.targets.values
        return bool(((labels == IGNORED) | (labels == self.sources.values)).all())

    def are_moved_copies(self) -> bool:
        """Whether the labels are the rows' own ids moved by one already, some replaced by -100."""
        if self.targets is None or not np.array_equal(self.sources.lengths, self.targets.lengths):
            return False
        labels, nexts = self.targets.values, np.roll(self.sources.values, -1)
        lasts = np.zeros(len(labels), dtype=bool)
        lasts[(np.cumsum(self.sources.lengths) - 1)[self.sources.lengths > 0]] = True
        compared = (labels != IGNORED) & ~lasts
        return bool(compared.sum() > 1 and (labels == nexts)[compared].all())

    def without_targets(self) -> Rows:
        """The same with labels of no token."""
        none = Ragged(np.empty(0, np.int64), np.zeros_like(self.sources.lengths))
        return dataclasses.replace(self, targets=none)

    def kept(self, which: np.ndarray) -> Rows:
        """The rows where `which`, bool [rows], holds."""
        chosen = np.flatnonzero(which)
        return dataclasses.replace(
            self,
            sources=self.sources.kept(which),
            targets=None if self.targets is None else self.targets.kept(which),
            mask=None if self.mask is None else self.mask.kept(which),
            beside_source={name: [rows[row] for row in chosen] for name, rows in self.beside_source.items()},
            beside_target={name: [rows[row] for row in chosen] for name, rows in self.beside_target.items()},
            stacked={name: value[torch.from_numpy(chosen)] for name, value in self.stacked.items()},
        )

    def cut(self, most_source: int | None, most_target: int | None, last: int | None) -> tuple[Rows, np.ndarray]:
        """Sources and targets of at most so many ids, and how many ids that count each lost, int64 [2, rows].

        Padding goes first, at either end. A side that ended in `last` and is cut still does.
        """
        lost = np.zeros((2, len(self.sources.lengths)), dtype=np.int64)
        changed: dict[str, Any] = {}
        if most_source is not None and self.sources.lengths.max(initial=0) > most_source:
            window = _windows(self.sources, self.real(), most_source)
            lost[0] = window.lost
            changed["sources"] = window.of(self.sources, last)
            changed["mask"] = None if self.mask is None else window.of(self.mask)
            changed["beside_source"] = window.of_columns(self.beside_source)
        if most_target is not None and self.targets is not None and self.targets.lengths.max(initial=0) > most_target:
            window = _windows(self.targets, self.targets.values != IGNORED, most_target)
            lost[1] = window.lost
            changed["targets"] = window.of(self.targets, last)
            changed["beside_target"] = window.of_columns(self.beside_target)
        return dataclasses.replace(self, **changed), lost

    def packable(self) -> tuple[Ragged, Ragged, np.ndarray]:
        """Sources and targets without what follows their last id that counts, and which of the sources' ids count.

        What comes before stays, since it moves positions and the decoder's input.
        """
        assert self.targets is not None
        real = self.real()
        ends = row_ends(self.sources, real)
        sources, counted = (
            Ragged(values[positions(self.sources.starts(), ends)], ends) for values in (self.sources.values, real)
        )
        lengths = row_ends(self.targets, self.targets.values != IGNORED)
        targets = Ragged(self.targets.values[positions(self.targets.starts(), lengths)], lengths)
        return sources, targets, counted.values

    def stripped(self) -> tuple[Ragged, Ragged, np.ndarray | None]:
        """Sources without the padding at their ends, targets without -100, and which of the sources' ids count: what
        is put into one sequence. None: all."""
        assert self.targets is not None
        targets = where(self.targets, self.targets.values != IGNORED)
        if self.mask is None:
            return self.sources, targets, None
        real = self.real()
        ends, begins = row_ends(self.sources, real), _begins(self.sources, real)
        inside = positions(self.sources.starts() + begins, ends - begins)
        return Ragged(self.sources.values[inside], ends - begins), targets, real[inside]


def where(rows: Ragged, counted: np.ndarray) -> Ragged:
    """The ids where `counted`, bool [sum of lengths], holds."""
    return rows if counted.all() else Ragged(rows.values[counted], counts(rows, counted))


def counts(rows: Ragged, counted: np.ndarray) -> np.ndarray:
    """How many ids of each row count; int64 [rows]."""
    sums = np.concatenate([[0], np.cumsum(counted)])
    return sums[rows.starts() + rows.lengths] - sums[rows.starts()]


def row_ends(rows: Ragged, counted: np.ndarray) -> np.ndarray:
    """One behind the last id that counts, in each row; 0 where none does."""
    place = np.arange(len(rows.values)) - np.repeat(rows.starts(), rows.lengths) + 1
    ends = np.zeros(len(rows.lengths), dtype=np.int64)
    np.maximum.at(ends, np.repeat(np.arange(len(ends)), rows.lengths), np.where(counted, place, 0))
    return ends


def _begins(rows: Ragged, counted: np.ndarray) -> np.ndarray:
    """The first id that counts, in each row; 0 where none does."""
    back = Ragged(rows.values[::-1], rows.lengths[::-1])
    begins = rows.lengths - row_ends(back, counted[::-1])[::-1]
    return np.where(counts(rows, counted) > 0, begins, 0)


@dataclass(frozen=True)
class _Window:
    """Which ids of each row stay, and how many that count are lost; int64 [rows] each."""

    starts: np.ndarray
    lengths: np.ndarray
    lost: np.ndarray
    lasts: np.ndarray

    def of(self, rows: Ragged, last: int | None = None) -> Ragged:
        values = rows.values[positions(rows.starts() + self.starts, self.lengths)]
        if last is not None:
            ended = (self.lost > 0) & (rows.values[rows.starts() + self.lasts] == last)
            values[(np.cumsum(self.lengths) - 1)[ended]] = last
        return Ragged(values, self.lengths)

    def of_columns(self, columns: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
        places = list(zip(self.starts, self.starts + self.lengths, strict=True))
        return {
            name: [row[start:end] for row, (start, end) in zip(rows, places, strict=True)]
            for name, rows in columns.items()
        }


def _windows(rows: Ragged, counted: np.ndarray, longest: int) -> _Window:
    begins, ends = _begins(rows, counted), row_ends(rows, counted)
    lengths = np.minimum(rows.lengths, longest)
    over = np.maximum(ends - begins - longest, 0)
    # A row whose ids that count fit keeps as much of the padding around them as there is room for.
    starts = np.where(over > 0, begins, np.minimum(begins, rows.lengths - lengths))
    starts = np.where(rows.lengths <= longest, 0, starts)
    return _Window(starts, lengths, np.where(rows.lengths <= longest, 0, over), np.maximum(ends - 1, 0))


class Masks(Protocol):
    """Attention masks of rows: `values`, 1 where an id counts, and each row's number of them."""

    @property
    def values(self) -> np.ndarray: ...

    @property
    def lengths(self) -> np.ndarray: ...


M = TypeVar("M", bound=Masks)


def hiding(masks: M, sources: np.ndarray, row_name: str) -> M | None:
    """The masks; None where they hide no id.

    Args:
        sources: int64 [rows], the number of each row's `input_ids`.
        row_name: of a row in errors, with `{}` for its number.

    Raises:
        PluginError: a mask is not as long as its row.
    """
    if not np.array_equal(masks.lengths, sources):
        row = int(np.flatnonzero(masks.lengths != sources)[0])
        raise PluginError(
            f"text2text: {row_name.format(row)} has an attention_mask of {masks.lengths[row]} and input_ids of "
            f"{sources[row]} tokens. Make them of one length, or remove the mask.",
            code="data-rows",
        )
    return None if masks.values.all() else masks


# ---- what does not go into a shared row ----


def refuse_packed(rows: Rows, *, holes: bool = False) -> None:
    """Raise where packing would lose a column, or, but for `holes`, ids within a row that are not to be seen."""
    names = [name for name in (*rows.beside_source, *rows.beside_target, *rows.stacked) if name != "token_type_ids"]
    if names:
        raise PluginError(
            f"text2text: packing puts several pairs into one row, and the rows' {', '.join(names)} would be lost. "
            "Remove the column, or use packing='none'.",
            code="data-columns",
            mend=[mends.set_option("text2text", "packing", "none")],
        )
    if not holes and rows.mask is not None:
        counted = rows.real()
        inside = row_ends(rows.sources, counted) - _begins(rows.sources, counted) > counts(rows.sources, counted)
        if inside.any():
            raise PluginError(
                f"text2text: the attention_mask of example {int(inside.argmax())} of the batch hides tokens between "
                "others, and packing='flatten' gives its rows no mask. Remove these tokens, or use packing='none'.",
                code="data-rows",
                mend=[mends.set_option("text2text", "packing", "none")],
            )


def refuse_joined(rows: Rows) -> None:
    """Raise where a column speaks of a source alone that is to become one sequence with its target."""
    names = [name for name in (*rows.beside_source, *rows.beside_target, *rows.stacked) if name not in REDUNDANT]
    if names:
        raise PluginError(
            f"text2text: a causal model reads source and target as one sequence, and the rows' {', '.join(names)} "
            "speak of one of them. Remove the column, or put both into input_ids, with labels of -100 on the prompt.",
            code="data-columns",
        )
