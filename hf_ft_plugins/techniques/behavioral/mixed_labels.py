"""An order of examples in which every batch has desirable and undesirable ones, for KTO.

TRL 1.16 trains KTO in the order of the data, and puts all chosen completions of paired data before all rejected ones:
no batch has both. Each batch then trains on one of the loss's two opposing terms alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)


class MixedLabelSampler(Sampler[int]):
    """Positions such that each `batch_size` of them in a row hold both labels, as near their overall share as can be.

    The order depends on `seed` and the epoch alone. Where there are fewer of a label than batches, some batches have
    none (logged once). A last batch of one example, which has no other completion to estimate the KL term
    from, is left out: another example in each epoch.

    Args:
        labels: of each example.
        batch_size: examples in a batch, at least 2.
    """

    def __init__(self, labels: Sequence[bool], batch_size: int, seed: int = 0) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size={batch_size}: a batch of fewer than 2 cannot hold both labels.")
        self._desirable = torch.tensor(labels, dtype=torch.bool)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        rest = len(labels) % batch_size
        self._length = len(labels) - (rest == 1)
        self._sizes = [batch_size] * (self._length // batch_size) + [rest] * (rest > 1)
        fewer = int(min(self._desirable.sum(), (~self._desirable).sum()))
        self.one_label_batches = max(0, len(self._sizes) - fewer)
        if self.one_label_batches:
            logger.warning(
                "behavioral: %d of %d batches of %d have one label only: there are %d examples of the rarer one. "
                "Raise per_device_train_batch_size.",
                *(self.one_label_batches, len(self._sizes), batch_size, fewer),
            )

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._desirable), generator=generator)[: self._length]
        desirable = self._desirable[order]
        groups = sorted((order[desirable], order[~desirable]), key=len)
        rarer, other = (iter(group.tolist()) for group in groups)
        for size, share in zip(self._sizes, spread(len(groups[0]), self._sizes), strict=True):
            batch = [next(rarer) for _ in range(share)] + [next(other) for _ in range(size - share)]
            yield from (batch[position] for position in torch.randperm(size, generator=generator).tolist())


def spread(items: int, sizes: Sequence[int]) -> list[int]:
    """How many of `items` go to each batch: in proportion to its size, fewer than its size, and at least 1 if there are
    as many items as batches.

    Args:
        items: at most half of the sum of `sizes`.
        sizes: of the batches, each 2 or more.
    """
    total = sum(sizes)
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    shares = [round(end * items / total) - round(start * items / total) for start, end in itertools.pairwise(ends)]
    for wanting in range(len(shares)):
        least, most = int(items >= len(sizes)), sizes[wanting] - 1
        while shares[wanting] < least:
            shares[max(range(len(shares)), key=shares.__getitem__)] -= 1
            shares[wanting] += 1
        while shares[wanting] > most:
            room = min(range(len(shares)), key=lambda batch: (shares[batch] >= sizes[batch] - 1, shares[batch]))
            shares[room] += 1
            shares[wanting] -= 1
    return shares
