"""A trainer's batches by a budget of tokens, as its arguments and its collator ask `batches.py` or `streaming.py`."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import PluginError
from ...host.stash import StashKey, stash_of
from ...report_sections import Facts
from ...technique import data_seed
from .architecture import NAME, is_causal
from .batches import POOL_STEPS, TokenBudgetBatchSampler
from .collator import TextPairCollator
from .lengths import Lengths, measured, random_padding, targets_alone
from .pair_format import no_column
from .parts import PARTS, parts_of_batches
from .streaming import POOL, PooledBudgetBatches
from .texts import text_lengths
from .tokens import columns_of

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

# Of batches drawn at random: with less padding than this there is little time to save.
LITTLE_PADDING = 0.1
BATCHES = StashKey[TokenBudgetBatchSampler]("text2text: the batches of a budget of tokens")


@dataclass(frozen=True)
class TokenBudget:
    """What one batch may hold, for a rank.

    Attributes:
        target_tokens: real target tokens at which a batch ends; None: as many as the trainer's number of pairs has on
            average.
        max_tokens: most padded slots, of source and target; None: twice those of that many pairs.
        parts: of how many runs of unlike length a batch is made, each padded alone; None: as
            `parts_of_batches` finds; of a stream with `max_tokens` 1.
        pool: pairs that are sorted together; None: those of `POOL_STEPS` steps. Of a stream, also how many are read at
            once; None: `streaming.POOL`.
        max_empty_share: of a stream, an error past this share of rows without a target.
    """

    target_tokens: int | None = None
    max_tokens: int | None = None
    parts: int | None = None
    pool: int | None = None
    max_empty_share: float = 0.01


def pairs_in_batch(trainer: Trainer) -> tuple[int, float]:
    """How many pairs a batch is to hold on average, and what share that is of what the script asked for.

    `auto_find_batch_size` asks for fewer after a batch that did not fit.
    """
    args = trainer.args
    asked: int = args.train_batch_size
    if not args.auto_find_batch_size:
        return asked, 1.0
    # The one place where Trainer says the batch size of the present try.
    tried: int = trainer._train_batch_size
    return tried, tried / asked


def _scaled(limit: int | None, share: float) -> int | None:
    return None if limit is None else max(1, int(limit * share))


def lengths_of(dataset: Any, collator: Any, *, causal: bool) -> Lengths | None:
    """Of what a collator makes of a data set with token ids; None where only the script's own collator can tell.

    Raises:
        PluginError: a `TextPairCollator` is to collate rows without ids.
    """
    ours, names = isinstance(collator, TextPairCollator), columns_of(dataset)
    if ours and collator.text_objective is not None:
        sources, targets = text_lengths(collator.text_objective, dataset)
        return Lengths(sources, targets, sources, targets)
    if "input_ids" not in names:
        if ours:
            raise no_column("source", collator.source, names)
        return targets_alone(dataset) if "labels" in names else None
    limits = (collator.max_source, collator.max_target) if ours else (None, None)
    packed = ours and collator.packing != "none"
    return measured(dataset, *limits, causal=causal, packed=packed)[0]


def budgeted(
    trainer: Trainer, dataset: Any, sampler: Any, budget: TokenBudget
) -> TokenBudgetBatchSampler | PooledBudgetBatches | None:
    """The training batches of a trainer; None, with a warning, for a stream that the script's own collator reads.

    Args:
        trainer: its collator tells the lengths, its arguments the number of pairs and the seed.
        dataset: the training set, with token ids; a stream may have texts.
        sampler: whose order to keep; None: pairs are shuffled here.
        budget: of each batch.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return pooled(trainer, dataset, budget)
    args = trainer.args
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy != "random":
        logger.warning("%s: train_sampling_strategy=%r has no effect: the budget cuts the batches.", NAME, strategy)
    lengths = lengths_of(dataset, trainer.data_collator, causal=is_causal(trainer.model))
    if lengths is None:
        logger.warning(
            "%s: its rows hold neither input_ids nor labels, so the script's own collator reads them, in batches of a "
            "fixed number of pairs.",
            NAME,
        )
        return None
    sources, targets, *slots = lengths
    pairs, share = pairs_in_batch(trainer)
    width = lengths.source_slots + lengths.target_slots
    enough = _scaled(budget.target_tokens, share) or max(1, round(pairs * float(targets.mean())))
    most = _scaled(budget.max_tokens, share) or max(1, round(2 * pairs * float(width.mean())))
    alone = int((width > most).sum())
    if alone:
        logger.warning("%s: %d pairs exceed max_tokens=%d; each is a batch of its own.", NAME, alone, most)
    in_step = args.gradient_accumulation_steps * max(1, args.world_size)
    # A pair that fits the script's own limit must not take more than its part's share of it.
    fitting = width[width <= most] if budget.max_tokens else width[:0]
    parts = parts_of_batches(trainer, budget.parts, pairs, int(most // fitting.max()) if len(fitting) else None)
    stash_of(trainer)[PARTS] = parts
    batches = TokenBudgetBatchSampler(
        sources,
        targets,
        source_slots=slots[0],
        target_slots=slots[1],
        sampler=sampler,
        # Another technique's order is kept but for what comes within one pool.
        pool=budget.pool or POOL_STEPS * pairs * in_step,
        target_tokens=enough,
        max_tokens=most,
        per_step=in_step,
        parts=parts,
        seed=data_seed(args),
    )
    stash_of(trainer)[BATCHES] = batches
    logger.info(
        "%s: %d pairs in %d batches of about %d real target tokens and at most %d padded slots, each in %d parts of "
        "unlike length.",
        *(NAME, len(sources), len(batches), enough, most, parts),
    )
    padding = random_padding(lengths, pairs, causal=is_causal(trainer.model))
    if padding < LITTLE_PADDING and pairs > 1:
        logger.warning(
            "%s: batches of %d pairs drawn at random would be %.1f %% padding, so that its own save little time here.",
            *(NAME, pairs, 100 * padding),
        )
    return batches


def pooled(trainer: Trainer, stream: Any, budget: TokenBudget) -> PooledBudgetBatches | None:
    """The training batches of a trainer whose data is a stream; None, with a warning, where it has its own collator.

    Raises:
        PluginError: no `max_steps`, or several workers.
    """
    args = trainer.args
    if not isinstance(trainer.data_collator, TextPairCollator):
        logger.warning("%s: the script's own collator reads the stream, in batches of a fixed number of pairs.", NAME)
        return None
    if args.max_steps <= 0:
        raise PluginError(
            f"{NAME}: a stream cut by a budget has no known number of steps. Set max_steps.", code="training-arguments"
        )
    if args.dataloader_num_workers > 1:
        raise PluginError(
            f"{NAME}: dataloader_num_workers={args.dataloader_num_workers} with streaming data: workers would each "
            "read the whole stream, or each another part of it. Set it to 1: it reads and tokenizes ahead.",
            code="training-arguments",
            mend=[mends.set_argument("dataloader_num_workers", 1)],
        )
    world_size = max(1, args.world_size)
    pairs, share = pairs_in_batch(trainer)
    asked = budget.parts
    if asked is None and budget.max_tokens is not None:
        # How long the stream's pairs are is not known yet, and none may take more than its part's share of the limit.
        logger.warning("%s: max_tokens of a stream keeps its batches alike in length. To mix them, set parts=4.", NAME)
        asked = 1
    parts = parts_of_batches(trainer, asked, pairs)
    stash_of(trainer)[PARTS] = parts
    return PooledBudgetBatches(
        stream,
        trainer.data_collator,
        max_tokens=_scaled(budget.max_tokens, share),
        target_tokens=_scaled(budget.target_tokens, share),
        pairs=pairs,
        pool=budget.pool or POOL,
        alike=budget.pool or POOL_STEPS * pairs * args.gradient_accumulation_steps * world_size,
        per_step=args.gradient_accumulation_steps * world_size,
        parts=parts,
        rank=args.process_index,
        world_size=world_size,
        seed=data_seed(args),
        max_empty_share=budget.max_empty_share,
    )


def facts_of(batches: TokenBudgetBatchSampler) -> Facts:
    """The batches of the present epoch, for the run's report."""
    targets = [int(batches.target_lengths[batch].sum()) for batch in batches]
    facts = {
        "pairs": len(batches.source_lengths),
        "batches in an epoch": len(targets),
        "parts of a batch, each padded alone": batches.parts,
        "real target tokens in a batch, median": statistics.median(targets),
        "fewest": min(targets),
        "most": max(targets),
    }
    return Facts("Batches of equal work", facts)
