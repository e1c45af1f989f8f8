"""Batches of pairs by a budget of tokens, cut from a two-dimensional order of lengths.

Sorting by one length pads the other. Here pairs are sorted into strips of similar source length, and within a strip by
target length, up in one strip and down in the next, so that neighbours are alike in both. A batch is then a run of
neighbours that ends when it holds enough real target tokens, or when padding it would exceed the budget. Of several
numbers of strips, the one that pads least is taken.

Batches alike in length teach less per step than random ones: each speaks of one kind of example. So a step, or, where
it has one batch, four steps in a row, hold batches of every length (`mixed`), and with `parts` a batch itself is made
of several runs of unlike length, which `parts.py` pads one by one.

Related: fairseq's `--max-tokens` (Ott et al. 2019, arXiv:1904.01038) and tensor2tensor's boundaries bucket by one
length. Deviation: both lengths, and a second limit, on real target tokens, which keeps the weight of every step alike.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ...progress import progress

logger = logging.getLogger(__name__)

SLACK = 0.005  # share of batches beyond those that the first epoch needs
MIXED = 4  # batches, or parts of batches, in a row that are of every length
POOL_STEPS = 16  # steps whose pairs are sorted together
STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def in_strips(source_lengths: np.ndarray, target_lengths: np.ndarray, strips: int) -> np.ndarray:
    """The order of pairs: strips by source length, each sorted by target length, alternately up and down.

    Args:
        source_lengths, target_lengths: int [N], in tokens.
        strips: into how many strips of about as many source tokens the pairs are cut.

    Returns:
        int64 [N], a permutation; equal pairs keep their order, so a shuffled input gives other neighbours.
    """
    by_source = np.argsort(source_lengths, kind="stable")
    tokens = np.cumsum(source_lengths[by_source] + target_lengths[by_source])
    strip = np.minimum(tokens * strips // max(int(tokens[-1]) + 1, 1), strips - 1)
    direction = np.where(strip % 2 == 0, 1, -1)
    targets = target_lengths[by_source].astype(np.int64) * direction
    return by_source[np.lexsort((targets, strip))]


def cut(
    order: np.ndarray,
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    max_tokens: int,
    target_tokens: int | None = None,
    max_examples: int | None = None,
    real_targets: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Cut an order of pairs into batches.

    A batch ends before the pair whose padding would take it over `max_tokens` (number of pairs times longest source
    plus longest target), and as soon as it holds `target_tokens` real target tokens or `max_examples` pairs. A pair
    that exceeds `max_tokens` alone is a batch of its own. `real_targets` says the tokens of the targets where pairs
    bring padding of their own, which `target_lengths` counts; int [N].
    """
    sources, targets = source_lengths[order].tolist(), target_lengths[order].tolist()
    weights = targets if real_targets is None else real_targets[order].tolist()
    most_examples = max_examples or len(sources) + 1
    enough = target_tokens or sum(weights) + 1
    ends: list[int] = []
    start = longest_source = longest_target = filled = 0
    for position, (source, target, weight) in enumerate(zip(sources, targets, weights, strict=True)):
        wider, taller = max(longest_source, source), max(longest_target, target)
        if position > start and (
            (position + 1 - start) * (wider + taller) > max_tokens
            or position - start >= most_examples
            or filled + weight / 2 > enough
        ):
            ends.append(position)
            start, wider, taller, filled = position, source, target, 0
        longest_source, longest_target, filled = wider, taller, filled + weight
    return np.split(order, ends)


def padded_tokens(batches: Iterable[np.ndarray], source_lengths: np.ndarray, target_lengths: np.ndarray) -> int:
    """Slots that the batches have when padded: pairs times longest source plus longest target, summed."""
    return sum(
        len(batch) * int(source_lengths[batch].max() + target_lengths[batch].max()) for batch in batches if len(batch)
    )


def least_padded(source_lengths: np.ndarray, target_lengths: np.ndarray, **limits: Any) -> list[np.ndarray]:
    """Batches of the number of strips that pads least; `limits` as in `cut`."""
    if len(source_lengths) == 0:
        return []
    layouts = (
        cut(in_strips(source_lengths, target_lengths, strips), source_lengths, target_lengths, **limits)
        for strips in STRIPS
        if strips == 1 or strips * strips <= len(source_lengths)
    )
    return min(layouts, key=lambda batches: padded_tokens(batches, source_lengths, target_lengths))


def in_so_many(batches: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
    """The same pairs in `number` batches, of which there must not be fewer than given.

    The batches with the most pairs are halved; where none holds two pairs, the first are repeated.
    """
    result = list(batches)
    heap = [(-len(batch), index) for index, batch in enumerate(result)]
    heapq.heapify(heap)
    while len(result) < number:
        size, index = heap[0]
        if size >= -1:
            return result + [result[extra % len(result)] for extra in range(number - len(result))]
        whole = result[index]
        half = len(whole) // 2
        result[index] = whole[:half]
        result.append(whole[half:])
        heapq.heapreplace(heap, (-half, index))
        heapq.heappush(heap, (half - len(whole), len(result) - 1))
    return result


def mixed(
    batches: Sequence[np.ndarray], widths: np.ndarray, together: int, random: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Order batches so that `together` of them in a row, counted from the first, are of every length.

    They are sorted by the mean width of their pairs and cut into `together` strata of as many batches; each row has one
    of each stratum, and rows, and batches within a row, are shuffled.

    Args:
        batches: positions of pairs, each batch alike in length.
        widths: int [N], tokens of every pair's source and target.

    Returns:
        The ordered batches, and those that fill no row, drawn by chance.
    """
    rows = len(batches) // together
    drawn = random.permutation(len(batches))
    taken, rest = drawn[: rows * together], drawn[rows * together :]
    mean_widths = np.array([widths[batches[index]].mean() for index in taken])
    strata = taken[np.argsort(mean_widths, kind="stable")].reshape(together, rows)
    table = np.stack([random.permutation(stratum) for stratum in strata], axis=1) if rows else strata.T
    ordered = [batches[index] for row in table for index in random.permutation(row)]
    return ordered, [batches[index] for index in rest]


def mixed_pools(
    pools: Iterable[Sequence[np.ndarray]], widths: np.ndarray, together: int, random: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`mixed`, pool after pool."""
    ordered: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for batches in pools:
        whole, left = mixed(batches, widths, together, random)
        ordered += whole
        rest += left
    return ordered, rest


def in_a_row(in_step: int) -> int:
    """How many batches, or parts of them, are to be of every length: those of a step, of so many steps as it takes."""
    return in_step * math.ceil(MIXED / in_step)


def joined(batches: Sequence[np.ndarray], parts: int) -> list[np.ndarray]:
    """Every `parts` batches in a row as one; their number must be a multiple of `parts`."""
    return [np.concatenate(batches[start : start + parts]) for start in range(0, len(batches), parts)]


class TokenBudgetBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of a data set of pairs with a budget of tokens; give it to a DataLoader as `batch_sampler`.

    The plan of an epoch is a function of (seed, epoch) alone, the same on every rank: nothing is replayed on resume.
    It holds the batches of all ranks; accelerate deals them out, each rank taking every `world_size`-th.

    Args:
        source_lengths, target_lengths: tokens of each example's source and target, [N] each.
        source_slots, target_slots: how wide each is with the padding that the data itself brings; None: no wider.
        max_tokens: budget of a batch: pairs times (longest source + longest target).
        target_tokens: a batch ends once it holds this many real target tokens; None: only the budget ends it.
        max_examples: the most pairs in a batch; None: any number.
        sampler: the order of examples, asked anew each epoch; None: shuffled by (seed, epoch). With it, pairs are
            compared only with the `pool` pairs around them, and an example may come more than once, or never.
        pool: how many examples are sorted together; None: all. Fewer pad more, and mix lengths within a batch.
        per_step: batches in one optimizer step, on all ranks together (accumulation times world size). Their number
            is a multiple of it, and each step has batches of every length.
        parts: of how many runs of unlike length each batch is made; the limits hold for their sum. For who pads each
            part alone (`parts.in_parts`): in one piece such a batch pads like a random one.
        seed: of the shuffling.

    Raises:
        ValueError: lengths of different number, or a budget below 1.
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        *,
        max_tokens: int,
        source_slots: Sequence[int] | np.ndarray | None = None,
        target_slots: Sequence[int] | np.ndarray | None = None,
        target_tokens: int | None = None,
        max_examples: int | None = None,
        sampler: Iterable[int] | None = None,
        pool: int | None = None,
        per_step: int = 1,
        parts: int = 1,
        seed: int = 0,
    ) -> None:
        if len(source_lengths) != len(target_lengths):
            raise ValueError(f"text2text: {len(source_lengths)} source and {len(target_lengths)} target lengths.")
        if min(max_tokens, per_step, parts) < 1:
            raise ValueError(
                f"text2text: max_tokens={max_tokens}, per_step={per_step} and parts={parts} must be 1 or more."
            )
        self.source_lengths = np.asarray(source_lengths, dtype=np.int64)
        self.target_lengths = np.asarray(target_lengths, dtype=np.int64)
        self._slots = tuple(
            lengths if slots is None else np.asarray(slots, dtype=np.int64)
            for lengths, slots in ((self.source_lengths, source_slots), (self.target_lengths, target_slots))
        )
        self.limits: dict[str, Any] = {
            "max_tokens": max(1, max_tokens // parts),
            "target_tokens": None if target_tokens is None else max(1, round(target_tokens / parts)),
            "max_examples": None if max_examples is None else max(1, max_examples // parts),
        }
        self.sampler = sampler
        self.pool = pool
        self.per_step = per_step
        self.parts = parts
        self.seed = seed
        self.epoch = 0
        # What accelerate asks of a batch sampler: no size of its own, and nothing is dropped.
        self.batch_size = None
        self.drop_last = False
        self._planned: tuple[int, list[np.ndarray]] | None = None
        # Trainer counts the batches once, and leaves out what a later epoch has more: every epoch has as many, a few
        # more than the first needs.
        in_step = per_step * parts
        self._number = in_step * math.ceil(sum(map(len, self._cut(0))) * (1 + SLACK) / in_step)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _cut(self, epoch: int) -> list[list[np.ndarray]]:
        """Pool after pool: its parts of batches."""
        if self.sampler is None:
            order = self._random(epoch).permutation(len(self.source_lengths))
        else:
            order = np.fromiter(self.sampler, dtype=np.int64)
        pool = self.pool or max(len(order), 1)
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        return [
            [
                near[batch]
                for batch in least_padded(
                    self._slots[0][near], self._slots[1][near], real_targets=self.target_lengths[near], **self.limits
                )
            ]
            for near in progress(pools, "text2text: cutting batches", unit="pools")
        ]

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, of all ranks, in order; as many in every epoch."""
        pools = self._cut(epoch)
        if sum(map(len, pools)) > self._number and self.sampler is None:
            # Rare: this shuffle needs more. The first epoch's batches in another order are a fair epoch, too.
            pools = self._cut(0)
        pools, rest = self._counted(pools, epoch)
        random, widths = self._random(epoch), self._slots[0] + self._slots[1]
        together = in_a_row(self.per_step * self.parts)
        ordered, left_over = mixed_pools(pools, widths, together, random)
        whole, left = mixed(rest + left_over, widths, together, random)
        return joined(ordered + whole + left, self.parts)

    def _counted(self, pools: list[list[np.ndarray]], epoch: int) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        """The pools with no more parts than Trainer counted, and beside them what makes up that number."""
        flat = [batch for batches in pools for batch in batches]
        if len(flat) > self._number:
            logger.warning(
                "text2text: epoch %d needs %d batches, %d are left out: Trainer counted %d.",
                *(epoch, len(flat) // self.parts, (len(flat) - self._number) // self.parts, len(self)),
            )
        if not flat:
            return [], []
        halved = in_so_many(flat[: self._number], self._number)
        ends = np.minimum(np.cumsum([0, *map(len, pools)]), self._number)
        inside = [halved[start:end] for start, end in itertools.pairwise(ends.tolist())]
        return inside, halved[ends[-1] :]

    def _batches(self) -> list[np.ndarray]:
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = (self.epoch, self.plan(self.epoch))
        return self._planned[1]

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks."""
        return self._number // self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches():
            yield batch.tolist()
