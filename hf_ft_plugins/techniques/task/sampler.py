"""`BalancedSampler`: an order of training examples in which every class comes equally often.

sampler = BalancedSampler(labels, seed)
sampler.set_epoch(epoch)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """As many positions an epoch as there are examples, as many of each class, up to one.

    Rows of a rare class come several times, all equally often up to one; of a frequent class each epoch takes others,
    none twice. The order depends on (seed, epoch) alone.

    Args:
        labels: int64 [examples], the class of each; a class that does not occur is left out.
        seed: of the order.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0) -> None:
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.size, self.seed, self.epoch = len(labels), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        wanted = np.full(len(self.members), self.size // len(self.members))
        # Those classes get one more that the division leaves over, others in each epoch.
        wanted[random.permutation(len(wanted))[: self.size % len(wanted)]] += 1
        chosen = [self._draw(rows, count, random) for rows, count in zip(self.members, wanted, strict=True)]
        yield from random.permutation(np.concatenate(chosen)).tolist()

    def _draw(self, rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        rounds = -(-int(count) // len(rows))
        return np.concatenate([random.permutation(rows) for _ in range(rounds)])[:count]
