"""Batches by a budget of tokens of streaming data, whose lengths are known only once it is read.

    batches = PooledBudgetBatches(stream, TextPairCollator(tokenizer, model), pairs=32)
    DataLoader(batches, batch_size=None, collate_fn=batches.collator)

A pool of the stream is read, tokenized and cut as `batches.py` does it. Sorting a pool pads more than sorting a whole
data set.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from .batches import in_a_row, in_so_many, joined, least_padded, mixed, mixed_pools, padded_tokens
from .collator import TextPairCollator
from .lengths import Lengths, no_lengths, of_copies, of_pairs
from .reading import LABELS

logger = logging.getLogger(__name__)
NAME = "text2text"
POOL = 8192


class Pairs(NamedTuple):
    """Examples as a collator takes them, and the lengths that it makes of them."""

    examples: list[dict[str, Any]]
    lengths: Lengths

    def taken(self, which: np.ndarray) -> Pairs:
        return Pairs([self.examples[row] for row in which], self.lengths.at(which))

    def joined(self, other: Pairs) -> Pairs:
        return Pairs(self.examples + other.examples, self.lengths.joined(other.lengths))


def read(collator: TextPairCollator, examples: list[Any]) -> Pairs:
    """Examples of a stream as token ids, tokenized at once where they are text, and their lengths when collated."""
    objective = collator.text_objective
    if objective is not None:
        texts, _ = collator.texts(examples)
        inner, begun = objective.inner_lengths(texts.lengths, *texts.ends())
        # No pair can be made of a text of one token. Its target is empty, and dropped as such.
        sources, targets = objective.lengths(np.maximum(inner, 2), begun)
        targets = np.where(inner < 2, 0, targets)
        return Pairs([{"input_ids": row} for row in texts.as_arrays()], Lengths(sources, targets, sources, targets))
    rows, packed = collator.read(examples), collator.packer is not None
    assert rows.targets is not None
    if collator.arch == "causal" and rows.are_masked_copies():
        return Pairs(examples, of_copies(rows, packed=packed))
    limits = collator.max_source, collator.max_target
    causal = collator.arch == "causal"
    lengths = of_pairs(rows, *limits, causal=causal, packed=packed)
    if not causal and rows.say_more():
        return Pairs(examples, lengths)
    left, right = rows.stripped()[:2] if causal else (rows.sources, rows.targets)
    # Under the names of the columns of text: a causal prompt and a target of as many ids are no masked row.
    names = collator.source, collator.target
    return Pairs(
        [dict(zip(names, pair, strict=True)) for pair in zip(left.as_arrays(), right.as_arrays(), strict=True)], lengths
    )


@dataclass
class Tally:
    """What one pass of a stream came to."""

    rows: int = 0
    empty: list[int] = field(default_factory=list)
    pairs: int = 0
    alone: int = 0
    repeated: int = 0
    batches: int = 0
    real: int = 0
    padded: int = 0

    def padding(self) -> float:
        """Share of all slots that hold no token, without rounding up of widths."""
        return 1 - self.real / max(self.padded, 1)


class PooledBudgetBatches(torch.utils.data.IterableDataset[list[dict[str, Any]]]):
    """Whole batches, lists of examples for `collator`, of a stream of pairs or texts.

    Every rank reads the whole stream, plans the same batches, and takes every `world_size`-th. Batches go out in groups
    of `per_step`, so that every rank has as many; batches that fill no group are taken apart into the next pool. At the
    end of the stream the largest batches are halved until the last group is full; pairs are repeated only where there
    are fewer of them than batches.

    The plan is a function of the stream, (seed, epoch) and nothing else. `set_epoch(epoch)` is passed on to the stream;
    it also reaches the worker of a DataLoader, of which there may be one: several would each read the whole stream, or,
    where the stream divides itself among workers, each another part.

    Args:
        stream: an iterable data set (`datasets.IterableDataset`, torch's, or any iterable of dicts), with `input_ids`
            and `labels`, or with the collator's columns of text, or of ids. It must give the same rows on every rank.
        collator: reads and tokenizes the examples.
        max_tokens: budget of a batch: pairs times (longest source + longest target).
        target_tokens: a batch ends once it holds this many real target tokens.
        pairs: where one of both is not given: what so many pairs of the first pool have on average, `max_tokens`
            twice that.
        pool: how many examples are read at once.
        alike: how many of them are sorted together; None: all. Fewer pad more, and mix lengths within a batch.
        per_step: batches in one optimizer step, on all ranks together; a multiple of `world_size`.
        parts: of how many runs of unlike length each batch is made, as `TokenBudgetBatchSampler` says it.
        rank, world_size: this process, and how many there are.
        seed: of the shuffling.
        max_empty_share: an error past this share of rows without a target, once a pool is read; fewer are dropped.

    Attributes:
        tally: of the pass that was begun last in this process.

    Raises:
        PluginError: options out of range; a row without source or target; too many empty targets; no pair at all;
            a stream that gives each rank another part; several workers.
    """

    def __init__(
        self,
        stream: Any,
        collator: TextPairCollator,
        *,
        max_tokens: int | None = None,
        target_tokens: int | None = None,
        pairs: int | None = None,
        pool: int = POOL,
        alike: int | None = None,
        per_step: int = 1,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        max_empty_share: float = 0.01,
    ) -> None:
        if min(pool, per_step, parts, alike or 1) < 1 or per_step % world_size or not 0 <= rank < world_size:
            raise PluginError(
                f"{NAME}: pool={pool}, alike={alike}, parts={parts}, per_step={per_step} must be 1 or more, per_step a "
                f"multiple of world_size={world_size}, and rank={rank} below it.",
                code="option-value",
            )
        if pairs is None and max_tokens is None:
            raise PluginError(
                f"{NAME}: streaming data needs max_tokens, or pairs to derive it from.", code="part-misused"
            )
        if getattr(getattr(stream, "_distributed", None), "world_size", 1) > 1:
            raise PluginError(
                f"{NAME}: the stream was split by node (split_dataset_by_node), and the batches of all ranks are cut "
                "from the whole of it. Pass it unsplit.",
                code="data-unsuited",
            )
        self.stream = stream
        self.collator = collator
        self.max_tokens, self.target_tokens, self.pairs = max_tokens, target_tokens, pairs
        self.pool, self.alike = pool, alike
        self.per_step, self.parts = per_step, parts
        self.rank, self.world_size = rank, world_size
        self.seed = seed
        self.max_empty_share = max_empty_share
        self.tally = Tally()
        # Shared, so that a worker process that lives for several epochs sees the present one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise PluginError(
                f"{NAME}: {worker.num_workers} workers would each read the whole stream, or each another part of it. "
                "Set dataloader_num_workers to 1: it reads and tokenizes ahead of the training.",
                code="training-arguments",
                mend=[mends.set_argument("dataloader_num_workers", 1)],
            )
        for waiting, batches in self._planned(int(self._epoch)):
            for batch in batches[self.rank :: self.world_size]:
                yield [waiting.examples[row] for row in batch]

    def _planned(self, epoch: int) -> Iterator[tuple[Pairs, list[np.ndarray]]]:
        """Pool after pool: its pairs, and the batches of all ranks as positions among them."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)
        tally = self.tally = Tally()
        rows = iter(self.stream)
        waiting = Pairs([], no_lengths())
        limits: dict[str, int] | None = None
        ended = False
        for number in itertools.count():
            # Pairs that filled no group are held over; where they are many, the pool must grow to fill one.
            wanted = max(self.pool, 2 * len(waiting.examples)) - len(waiting.examples)
            fresh = list(itertools.islice(rows, wanted))
            ended = len(fresh) < wanted
            waiting = waiting.joined(self._kept(fresh, tally))
            if len(waiting.examples):
                limits = limits or self._limits(waiting)
                random = np.random.default_rng((self.seed, epoch, number))
                batches, rest = self._cut(waiting, limits, random, ended=ended)
                self._count(waiting, batches, limits, tally)
                yield waiting, batches
                waiting = waiting.taken(rest)
            if number == 0:
                self._report(epoch, tally, "so far")
            if ended:
                break
        if not tally.rows and epoch == 0:
            raise PluginError(f"{NAME}: the stream of training data has no row. Look at the data.", code="data-missing")
        self._report(epoch, tally, "in all")

    def _kept(self, fresh: list[Any], tally: Tally) -> Pairs:
        if not fresh:
            return Pairs([], no_lengths())
        self._refuse_missing(fresh, tally.rows)
        pairs = read(self.collator, fresh)
        empty = pairs.lengths.targets == 0
        tally.empty += (np.flatnonzero(empty) + tally.rows).tolist()
        tally.rows += len(fresh)
        if len(tally.empty) > self.max_empty_share * tally.rows:
            first = ", ".join(map(str, tally.empty[:5]))
            raise PluginError(
                f"{NAME}: {len(tally.empty)} of the first {tally.rows} rows of the stream have no target (rows "
                f"{first}, ...), more than max_empty_share={self.max_empty_share}. Look at the data, or raise the "
                "option to drop them.",
                code="data-rows",
                mend=[mends.drop_rows("train", tally.empty)],
            )
        if empty.any() and self.rank == 0:
            logger.warning(
                "%s: dropped %d rows of the stream without a target, rows %s.",
                NAME,
                int(empty.sum()),
                ", ".join(map(str, tally.empty[-int(empty.sum()) :][:5])),
            )
        return pairs.taken(np.flatnonzero(~empty))

    def _refuse_missing(self, examples: list[Any], first: int) -> None:
        ids = "input_ids" in examples[0]
        columns = ("input_ids", "labels") if ids else (self.collator.source, self.collator.target)
        for column in columns[: 1 if self.collator.text_objective is not None else 2]:
            for row, example in enumerate(examples, first):
                names = LABELS if column in LABELS else (column,)
                if all(example.get(name) is None for name in names):
                    raise PluginError(
                        f"{NAME}: row {row} of the stream has no {column!r}, only {', '.join(example)}. Name the "
                        "columns with source=... and target=..., and drop rows without a value.",
                        code="data-columns",
                    )

    def _limits(self, first: Pairs) -> dict[str, int]:
        tokens, targets = first.lengths.source_slots + first.lengths.target_slots, first.lengths.targets
        limits = {"max_tokens": self.max_tokens, "target_tokens": self.target_tokens}
        if self.pairs is not None:
            limits["max_tokens"] = self.max_tokens or max(1, round(2 * self.pairs * float(tokens.mean())))
            limits["target_tokens"] = self.target_tokens or max(1, round(self.pairs * float(targets.mean())))
        return {name: max(1, limit // self.parts) for name, limit in limits.items() if limit is not None}

    def _cut(
        self, waiting: Pairs, limits: dict[str, int], random: np.random.Generator, *, ended: bool
    ) -> tuple[list[np.ndarray], np.ndarray]:
        order = random.permutation(len(waiting.examples))
        step = self.per_step * self.parts
        together = in_a_row(step)
        widths = waiting.lengths.source_slots + waiting.lengths.target_slots
        alike = self.alike or len(order)
        pools = []
        for start in range(0, len(order), alike):
            near = order[start : start + alike]
            lengths = waiting.lengths.at(near)
            cut = least_padded(lengths.source_slots, lengths.target_slots, real_targets=lengths.targets, **limits)
            pools.append([near[batch] for batch in cut])
        ordered, rest = mixed_pools(pools, widths, together, random)
        if ended:
            rest = in_so_many(rest, math.ceil(len(rest) / step) * step)
        whole, rest = mixed(rest, widths, together, random)
        ordered += whole
        if ended:
            ordered, rest = ordered + rest, []
        return joined(ordered, self.parts), np.concatenate([order[:0], *rest])

    def _count(self, waiting: Pairs, batches: list[np.ndarray], limits: dict[str, int], tally: Tally) -> None:
        went_out = np.concatenate([np.empty(0, np.int64), *batches])
        sources, targets, source_slots, target_slots = waiting.lengths
        tokens = (sources + targets)[went_out]
        alone = int(((source_slots + target_slots)[went_out] > limits["max_tokens"]).sum())
        tally.pairs += len(np.unique(went_out))
        tally.repeated += len(went_out) - len(np.unique(went_out))
        tally.batches += len(batches)
        tally.real += int(tokens.sum())
        tally.padded += padded_tokens(batches, source_slots, target_slots)
        if alone and not tally.alone and self.rank == 0:
            logger.warning(
                "%s: pairs of the stream exceed max_tokens=%d; each is a batch of its own.", NAME, limits["max_tokens"]
            )
        tally.alone += alone

    def _report(self, epoch: int, tally: Tally, when: str) -> None:
        if self.rank:
            return
        logger.info(
            "%s: pass %d of the stream, %s: %d rows read; %d pairs in %d batches, %.1f %% of their slots are padding; "
            "%d without a target dropped, %d over the budget, %d repeated to fill the last step.",
            NAME,
            epoch,
            when,
            tally.rows,
            tally.pairs,
            tally.batches,
            100 * tally.padding(),
            len(tally.empty),
            tally.alone,
            tally.repeated,
        )
