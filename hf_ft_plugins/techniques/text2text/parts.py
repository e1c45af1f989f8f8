"""A padded batch as several, each of rows alike in length and no wider than they are.

A batch of rows of every length teaches more than one of rows alike, and pads more. In parts, the same rows have the
same loss and gradients: the parts' shares of the loss are summed, and go backward together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from ...host.stash import StashKey
from ...shards import holds_pieces
from .architecture import NAME
from .batches import MIXED
from .collator import TextPairCollator
from .loss import IGNORED, TokenMeanLoss

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

NEVER = 1 << 50  # more slots than there are
MOST_ROWS = 512  # that are told apart; of a larger batch, so many runs of rows
# What one more call of a model takes, in padded slots: measured on a CPU (30 to 70, d_model 128); assumed elsewhere,
# where a call waits for its kernels' launch.
SLOTS_OF_A_CALL = {"cpu": 64, "other": 2048}
PARTS: StashKey[int] = StashKey("text2text: of how many parts a batch is made")


class Extents(NamedTuple):
    """Of every row of a batch, the columns in use: int64 [N] each, first and one past the last."""

    source_start: np.ndarray
    source_end: np.ndarray
    target_start: np.ndarray
    target_end: np.ndarray


def parts_of_batches(trainer: Trainer, asked: int | None, pairs: int, most: int | None = None) -> int:
    """Of how many runs of unlike length each of a trainer's batches is to be made, so that a step has `MIXED` of them.

    Args:
        asked: by the option; None: as many as it takes.
        pairs: in a batch, on average.
        most: that the budget allows; None: any number.

    Raises:
        PluginError: parts were asked for, and the batch must stay whole.
    """
    whole = why_whole(trainer)
    if asked is not None:
        if asked > 1 and whole:
            raise PluginError(
                f"{NAME}: option parts={asked} pads parts of a batch alone, and {whole}. Leave it out.",
                code="option-combination",
                mend=[mends.remove_option(NAME, "parts")],
            )
        return asked
    args = trainer.args
    needed = min(pairs, math.ceil(MIXED / (args.gradient_accumulation_steps * max(1, args.world_size))))
    parts = 1 if whole else max(1, min(needed, most or needed))
    if parts < needed:
        reason = whole or f"the longest pair takes 1/{parts} of max_tokens, or more"
        logger.warning(
            "%s: a batch is of %d runs of pairs alike in length, not of %d, since %s. Steps can teach less than "
            "stock's: compare the final loss.",
            *(NAME, parts, needed, reason),
        )
    return parts


def why_whole(trainer: Trainer) -> str | None:
    """Why a batch must go through the model in one piece; None where it need not."""
    if not isinstance(trainer.compute_loss_func, TokenMeanLoss):
        return "the loss is the script's own"
    for cls in type(trainer).__mro__:
        if "compute_loss" in vars(cls) and cls.__module__.partition(".")[0] not in ("transformers", "hf_ft_plugins"):
            return f"{cls.__name__} computes the loss itself"
    if holds_pieces(trainer):
        return "the weights lie in pieces on several ranks, which are gathered for each call"
    if trainer.args.n_gpu > 1:
        return "DataParallel deals out the rows of one batch"
    if trainer.args.gradient_checkpointing and (trainer.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        return "with use_reentrant=True each part has a backward pass of its own"
    # DDP asks only the last call which weights it left out.
    if trainer.args.world_size > 1 and any("experts" in name for name, _ in trainer.model.named_modules()):
        return "experts of one part may have no token of another"
    return None


def parts_of(trainer: Trainer, inputs: Mapping[str, Any], parts: int, *, causal: bool) -> list[dict[str, Any]]:
    """A trainer's batch, as `in_parts` cuts it for the device it is on."""
    collator = trainer.data_collator
    if isinstance(collator, TextPairCollator) and collator.packing != "none":
        return [dict(inputs)]
    return in_parts(
        inputs,
        parts,
        causal=causal,
        multiple=getattr(collator, "pad_to_multiple_of", None) or 1,
        slots_of_a_call=SLOTS_OF_A_CALL["cpu" if trainer.args.device.type == "cpu" else "other"],
    )


def in_parts(
    batch: Mapping[str, Any], parts: int, *, causal: bool, multiple: int = 1, slots_of_a_call: int = 0
) -> list[dict[str, Any]]:
    """Cut a batch into at most `parts` of the fewest padded slots.

    Args:
        batch: `input_ids` or `inputs_embeds`, `attention_mask` [N, S] and `labels` [N, T] (causal: [N, S]); every
            tensor with these first two sizes is cut in both, one with N rows alone in its rows, anything else stays.
        parts: the most parts.
        causal: whether source and target lie on one axis.
        multiple: widths are rounded up to it, as the collator did.
        slots_of_a_call: what each part costs beside its slots; a part that saves less is not cut off.

    Returns:
        The parts; the batch alone where it has no two-dimensional `attention_mask` and `labels`, or cutting saves
        nothing.
    """
    extents = extents_of(batch, causal=causal)
    if extents is None or parts < 2:
        return [dict(batch)]
    _, groups = cheapest_groups(extents, parts, slots_of_a_call)
    if len(groups) == 1:
        return [dict(batch)]
    return [_cut(batch, rows, extents, causal=causal, multiple=multiple) for rows in groups]


def cheapest_groups(extents: Extents, parts: int, slots_of_a_call: int = 0) -> tuple[int, list[np.ndarray]]:
    """Rows in at most `parts` groups of neighbours, as given or sorted by width, whichever costs less; and the cost."""
    width = extents.source_end - extents.source_start + extents.target_end - extents.target_start
    found = []
    for order in (np.arange(len(width)), np.argsort(width, kind="stable")):
        cost, runs = fewest_slots(Extents(*(side[order] for side in extents)), parts, slots_of_a_call)
        found.append((cost, [order[start:end] for start, end in runs]))
    return min(found, key=lambda one: one[0])


def extents_of(batch: Mapping[str, Any], *, causal: bool) -> Extents | None:
    """The columns in use; None where the batch does not say it in two dimensions. Waits for the batch's device once."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if not (isinstance(mask, torch.Tensor) and isinstance(labels, torch.Tensor) and mask.ndim == 2 == labels.ndim):
        return None
    if len(mask) != len(labels) or 0 in (*mask.shape, *labels.shape) or (causal and mask.shape != labels.shape):
        return None
    target = labels.ne(IGNORED)
    given = batch.get("decoder_attention_mask")
    if isinstance(given, torch.Tensor) and given.shape == target.shape:
        target = target | given.ne(0)
    elif not causal:
        # A decoder sees what stands before its target, padding or not, where no mask hides it.
        target = target.flip(1).cumsum(1).flip(1).ne(0)
    source = mask.ne(0) | target if causal else mask.ne(0)
    sides = [source] if causal else [source, target]
    ends = torch.stack([end for side in sides for end in _ends(side)]).cpu().numpy()
    return Extents(*ends, *np.zeros_like(ends)) if causal else Extents(*ends)


def _ends(used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = used.shape[1]
    number = used.long()
    start, end = number.argmax(1), width - number.flip(1).argmax(1)
    empty = ~used.any(1)
    # A model needs a column; which one, does not matter.
    return start.masked_fill(empty, 0), end.masked_fill(empty, 1)


def fewest_slots(extents: Extents, parts: int, slots_of_a_call: int = 0) -> tuple[int, list[tuple[int, int]]]:
    """The way to cut rows, in their order, into at most `parts` runs that costs least.

    Returns:
        Padded slots, source and target, with `slots_of_a_call` for each run; and the runs: first row, one past the
        last.
    """
    bounds = np.unique(np.linspace(0, len(extents.source_end), min(len(extents.source_end), MOST_ROWS) + 1).astype(int))
    number = len(bounds) - 1
    most = [np.maximum.reduceat(side, bounds[:-1]) for side in (extents.source_end, extents.target_end)]
    least = [np.minimum.reduceat(side, bounds[:-1]) for side in (extents.source_start, extents.target_start)]
    # [i, j]: of the rows i to j; nothing where i comes after j.
    nothing = np.tri(number, k=-1, dtype=bool)
    width = np.zeros((number, number), np.int64)
    for high, low in zip(most, least, strict=True):
        ends = np.maximum.accumulate(np.where(nothing, 0, high), axis=1)
        starts = np.minimum.accumulate(np.where(nothing, NEVER, low), axis=1)
        width += ends - starts
    rows = bounds[None, 1:] - bounds[:-1, None]
    cost = np.where(nothing, NEVER, width * rows + slots_of_a_call)
    # best[j]: of the rows before bound j + 1.
    best, cuts = cost[0], []
    for _ in range(parts - 1):
        through = np.concatenate([[0], best[:-1]])[:, None] + cost
        cuts.append(through.argmin(0))
        best = through.min(0)
    runs, end = [], number
    for starts in [*reversed(cuts), np.zeros(number, int)]:
        if end:
            start = int(starts[end - 1])
            runs.append((int(bounds[start]), int(bounds[end])))
            end = start
    return int(best[-1]), runs[::-1]


def _cut(
    batch: Mapping[str, Any], rows: np.ndarray, extents: Extents, *, causal: bool, multiple: int
) -> dict[str, Any]:
    mask, labels = batch["attention_mask"], batch["labels"]
    source = _columns(extents.source_start[rows], extents.source_end[rows], mask.shape[1], multiple)
    target = (
        source if causal else _columns(extents.target_start[rows], extents.target_end[rows], labels.shape[1], multiple)
    )
    which = torch.as_tensor(rows, device=labels.device)
    part = dict(batch)
    for name, value in batch.items():
        if not torch.is_tensor(value) or value.ndim == 0 or len(value) != len(labels):
            continue
        columns = target if name == "labels" or name.startswith("decoder_") else source
        whole = (labels if columns is target else mask).shape[1]
        value = value.index_select(0, which)
        part[name] = value[:, columns].contiguous() if value.ndim > 1 and value.shape[1] == whole else value
    return part


def _columns(starts: np.ndarray, ends: np.ndarray, width: int, multiple: int) -> slice:
    start, end = int(starts.min()), int(ends.max())
    missing = -(end - start) % multiple
    right = min(missing, width - end)
    return slice(max(0, start - (missing - right)), end + right)
