"""Several pairs in one row, kept apart by segment ids (encoder-decoders) or restarting positions (causal models).

    collator = TextPairCollator(tokenizer, pack_aware(model), packing="pairs")

Related: Krell et al. 2021 (arXiv:2107.02027) pack one sequence; seqio and tensor2tensor pack pairs by segment ids, as
here. Deviation: the pairs of one batch are packed, not a stream, so that each optimizer step keeps its pairs, and both
widths of a row are limited, in the ratio of the batch's mean lengths: a fixed equal limit wastes the shorter side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from ...models.limits import longest_input
from .arrays import Ragged
from .lengths import measured
from .loss import IGNORED
from .segments import is_pack_aware, refuse_leaks

if TYPE_CHECKING:
    from transformers import Trainer

PAIRS_PER_ROW = 4  # longer rows waste less, but attention pays for every slot that a segment may not see


def row_caps(
    source_lengths: np.ndarray, target_lengths: np.ndarray, pairs_per_row: int = PAIRS_PER_ROW
) -> tuple[int, int]:
    """Widths, in tokens, of a row that holds so many pairs of mean length; both lengths int [N], N > 0."""
    source, target = (math.ceil(pairs_per_row * float(side.mean())) for side in (source_lengths, target_lengths))
    return max(source, 1), max(target, 1)


def packed_rows(
    source_lengths: np.ndarray, target_lengths: np.ndarray, max_source: int, max_target: int
) -> list[np.ndarray]:
    """Which pairs go into which row: best fit by decreasing size, in two resources.

    Args:
        source_lengths, target_lengths: int [N], in tokens.
        max_source, max_target: caps of a row, in tokens. A pair that exceeds one widens both by the same factor.

    Returns:
        Rows of pair numbers, int64 each; every pair once, ascending within its row. A function of the arguments alone.
    """
    if len(source_lengths) == 0:
        return []
    sides = np.stack([np.asarray(source_lengths, np.int64), np.asarray(target_lengths, np.int64)])
    caps = np.array([max_source, max_target])
    caps = np.ceil(caps * max(1.0, float((sides.max(axis=1) / caps).max()))).astype(np.int64)
    shares = sides / caps[:, None]
    room = np.repeat(caps[:, None], sides.shape[1], axis=1)
    rows: list[list[int]] = []
    for pair in np.argsort(-shares.max(axis=0), kind="stable").tolist():
        opened = room[:, : len(rows)]
        fits = (opened >= sides[:, pair, None]).all(axis=0)
        if fits.any():
            left = (opened / caps[:, None]).sum(axis=0)
            row = int(np.where(fits, left, np.inf).argmin())
            rows[row].append(pair)
        else:
            row = len(rows)
            rows.append([pair])
        room[:, row] -= sides[:, pair]
    return [np.array(sorted(row), dtype=np.int64) for row in rows]


@dataclass(frozen=True)
class PairPacker:
    """Pairs of a batch to a few rows, for an encoder-decoder that `pack_aware` has prepared.

    Attributes:
        max_positions: rows of the model's table of positions; None: it has none. Positions restart in every segment,
            so this limits a pair, not a row.
    """

    max_positions: int | None = None

    def __call__(
        self,
        sources: Ragged,
        targets: Ragged,
        *,
        padding: int,
        start: int,
        multiple: int | None = None,
        counted: np.ndarray | None = None,
    ) -> dict[str, torch.Tensor]:
        """`input_ids` [R, S], `labels`, `decoder_input_ids` [R, T], and for either side `..._segment_ids` (1, 2, ... in
        every row; 0: padding) and `..._position_ids`; all int64. `start` begins every segment's decoder input. Of the
        sources' ids those are seen that `counted`, bool [sum of lengths], says; None: all.

        Raises:
            PluginError: a source is empty, or longer than the table of positions.
        """
        self.refuse(sources.lengths, targets.lengths)
        rows = packed_rows(sources.lengths, targets.lengths, *row_caps(sources.lengths, targets.lengths))
        order, sizes = np.concatenate(rows), np.array([len(row) for row in rows])
        first = np.cumsum(sizes) - sizes
        number = np.arange(1, len(order) + 1) - np.repeat(first, sizes)
        batch = {}
        seen = None if counted is None else Ragged(counted.astype(np.int64), sources.lengths).kept(order).values
        for side, pairs in (("encoder", sources.kept(order)), ("decoder", targets.kept(order))):
            lengths = np.add.reduceat(pairs.lengths, first)
            segments = np.repeat(number, pairs.lengths)
            flat = {
                "input_ids" if side == "encoder" else "labels": (
                    pairs.values,
                    padding if side == "encoder" else IGNORED,
                ),
                f"{side}_segment_ids": (segments if seen is None or side == "decoder" else segments * seen, 0),
                f"{side}_position_ids": (restarting(pairs.lengths), 0),
            }
            if side == "decoder":
                flat["decoder_input_ids"] = (shifted(pairs, start, padding), padding)
            for name, (values, fill) in flat.items():
                batch[name] = Ragged(values, lengths).padded(fill, multiple=multiple)
        return batch

    def refuse(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> None:
        """Raise the errors that pairs of these lengths, int [N], would."""
        if not source_lengths.all():
            raise PluginError(
                f"text2text: the source of pair {int(source_lengths.argmin())} (from 0) has no token, so in a packed "
                "row its target has nothing to attend to. Drop such pairs, or use packing='none'.",
                code="data-rows",
                mend=[mends.set_option("text2text", "packing", "none")],
            )
        longest = max(int(side.max(initial=0)) for side in (source_lengths, target_lengths))
        if self.max_positions is not None and longest > self.max_positions:
            raise PluginError(
                f"text2text: a pair has a side of {longest} tokens, and the model has {self.max_positions} positions. "
                f"Cut it: max_source_length={self.max_positions}, max_target_length={self.max_positions}.",
                code="data-rows",
                mend=[
                    mends.all_of(
                        mends.set_option("text2text", "max_source_length", self.max_positions),
                        mends.set_option("text2text", "max_target_length", self.max_positions),
                    )
                ],
            )


@dataclass(frozen=True)
class Flattener:
    """Causal sequences one after the other in one row, as `DataCollatorWithFlattening`, and from the same arrays.

    With attention "sdpa" or "eager" transformers masks by the restarting positions, but only where the model gets
    neither an attention mask nor a cache: a loop of one's own must call it with `use_cache=False`, as Trainer does.

    Attributes:
        flash: add what flash attention reads: `cu_seq_lens_q`, `cu_seq_lens_k` (int32 [N + 1]), `max_length_q`,
            `max_length_k` (int).
    """

    flash: bool = False

    def __call__(self, tokens: Ragged, labels: Ragged, *, padding: int, multiple: int | None = None) -> dict[str, Any]:
        """`input_ids`, `position_ids`, `labels`, int64 [1, sum of lengths]; the first label of every sequence is -100,
        since nothing predicts it. Padding up to `multiple` is a sequence of its own.
        """
        lengths, ids, wanted = tokens.lengths[tokens.lengths > 0], tokens.values, labels.values.copy()
        wanted[np.cumsum(lengths) - lengths] = IGNORED
        extra = -len(ids) % multiple if multiple else 0
        if extra:
            lengths = np.append(lengths, extra)
            ids, wanted = (np.append(flat, np.full(extra, fill)) for flat, fill in ((ids, padding), (wanted, IGNORED)))
        flat = {"input_ids": ids, "position_ids": restarting(lengths), "labels": wanted}
        batch: dict[str, Any] = {name: torch.from_numpy(values)[None] for name, values in flat.items()}
        if self.flash:
            ends = torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32))
            batch |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends)
            batch |= dict.fromkeys(("max_length_q", "max_length_k"), int(lengths.max()))
        return batch


def restarting(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... anew for each of `lengths`; int64 [sum of lengths]."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def shifted(targets: Ragged, start: int, padding: int) -> np.ndarray:
    """The decoder's input, flat: every target moved one to the right behind `start`; -100 becomes `padding`."""
    ids = np.roll(targets.values, 1)
    ids[targets.starts()] = start
    return np.where(ids == IGNORED, padding, ids)


def new_packer(packing: str, arch: str, model: Any) -> PairPacker | Flattener | None:
    """What packs for a collator's options; None where nothing is packed.

    Raises:
        PluginError: the packing is for the other architecture, or the model is missing or not `pack_aware`.
    """
    if packing == "none":
        return None
    fitting, kind = ("pairs", "an encoder-decoder") if arch == "encoder-decoder" else ("flatten", "a causal model")
    if packing != fitting:
        raise PluginError(
            f"text2text: option packing={packing!r} is not for {kind}: use packing={fitting!r}, or 'none'.",
            code="option-combination",
            mend=[mends.set_option("text2text", "packing", fitting), mends.set_option("text2text", "packing", "none")],
        )
    if model is None:
        raise PluginError(
            f"text2text: option packing={packing!r} needs the model, to know how it attends.", code="part-misused"
        )
    if packing == "flatten":
        return Flattener(flash="flash" in (model.config._attn_implementation or ""))
    if not is_pack_aware(model):
        raise PluginError(
            "text2text: with packing='pairs' the model must keep the pairs of a row apart. Pass pack_aware(model).",
            code="part-misused",
        )
    return PairPacker(max_positions=longest_input(model))


def refuse_unpacked(
    trainer: Trainer, packing: str, *, max_source: int | None = None, max_target: int | None = None
) -> None:
    """The checks of a trainer that is to train on packed rows, before it does.

    Args:
        packing: "pairs" or "flatten".
        max_source, max_target: the collator's limits, in tokens.

    Raises:
        PluginError: its collator does not pack, it makes its model anew, some training pair cannot be packed, or its
            causal model leaks (`refuse_leaks`).
    """
    dataset = trainer.train_dataset
    if getattr(trainer.data_collator, "packing", "none") != packing:
        raise PluginError(
            f"text2text: option packing={packing!r} has no effect on the script's own collator, "
            f"{type(trainer.data_collator).__name__}. Remove the collator, or the option.",
            code="technique-conflict",
            mend=[mends.remove_option("text2text", "packing")],
        )
    if trainer.model_init is not None and packing == "pairs":
        raise PluginError(
            "text2text: packing='pairs' prepares the model, and model_init makes another when training starts. Pass "
            "model=..., not model_init=..., or use packing='none'.",
            code="technique-conflict",
            mend=[mends.set_option("text2text", "packing", "none")],
        )
    if packing == "pairs" and hasattr(dataset, "__len__"):
        lengths, _ = measured(dataset, max_source, max_target, causal=False, packed=True)
        trainer.data_collator.packer.refuse(lengths.source_slots, lengths.target_slots)
    if packing == "flatten":
        refuse_leaks(trainer.model, trainer.data_collator.packer)
