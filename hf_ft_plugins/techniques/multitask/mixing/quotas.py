"""How many slots of a stream each source has: whole counts that keep to the shares, block by block.

`FixedQuotas` knows its shares beforehand, and any block's counts follow at once. `LearnedQuotas` has them from losses,
as they are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from ....errors import PluginError
from . import mixes

logger = logging.getLogger(__name__)

UNBOUNDED = np.iinfo(np.int64).max
# More blocks than any run has.
LONGEST_SPAN = 2**40


def apportioned(
    expected: np.ndarray, total: int, at_least: np.ndarray | None = None, at_most: np.ndarray | None = None
) -> np.ndarray:
    """Whole numbers that sum to `total`, as near to what is expected as the bounds allow; int64 [sources].

    The method of the largest remainder: all are rounded down, and the missing ones go to those who lost most.

    Args:
        expected: float64 [sources], with the sum `total`.
        at_least, at_most: int64 [sources], between whose sums `total` lies; None: 0, and unbounded.
    """
    low = np.zeros(len(expected), dtype=np.int64) if at_least is None else at_least
    high = np.full(len(expected), UNBOUNDED) if at_most is None else at_most
    counts = np.clip(np.floor(expected).astype(np.int64), low, high)
    while missing := total - int(counts.sum()):
        step = 1 if missing > 0 else -1
        possible = np.flatnonzero(counts < high if step > 0 else counts > low)
        lost = step * (expected - counts)[possible]
        counts[possible[np.argsort(-lost, kind="stable")[: abs(missing)]]] += step
    return counts


class FixedQuotas:
    """Counts of a stream whose shares are known for every epoch.

    At the end of a block, a source's count differs from its expectation by less than 1 if every source expects a slot
    in each block. Else rounding each block by itself could take a slot back that a rare source has had. So spans of
    blocks, in which all expect one, are rounded first, and the blocks within by halving, between the counts at both
    ends. No proof says that the bound holds there, too; of 600 random mixes of up to 60 sources, none exceeded 0.99.

    Args:
        shares: float64 [epochs, sources], of each epoch; the last holds for all that follow.
        steps: micro-steps in an epoch.
        slots_per_step: slots in a micro-step.
        block: about how many slots are in a block. Blocks are whole micro-steps, and an epoch whole blocks.
    """

    def __init__(self, shares: np.ndarray, steps: int, slots_per_step: int, block: int) -> None:
        self.shares, self.steps, self.slots_per_step = shares, steps, slots_per_step
        self.blocks = min(steps, -(-steps * slots_per_step // block))
        expected_by_rarest = float(shares[shares > 0].min()) * (steps // self.blocks * slots_per_step)
        # With a margin for rounding errors.
        needed = math.ceil(0.01 - math.log2(expected_by_rarest))
        self.span = min(LONGEST_SPAN, 2 ** max(0, needed))

    def block_of(self, step: int) -> int:
        """The block that a micro-step is in, both counted from 0 over all epochs."""
        return ((step + 1) * self.blocks - 1) // self.steps

    def first_step(self, block: int) -> int:
        """The first micro-step of a block."""
        return block * self.steps // self.blocks

    def probabilities(self, block: int) -> np.ndarray:
        """Share of each source in a block; float64 [sources]."""
        return self.shares[self._epoch(self.first_step(block))]

    def counts(self, block: int) -> np.ndarray:
        """Slots of each source in all blocks before this one; int64 [sources]."""
        start = block // self.span * self.span
        end = start + self.span
        low, high = self._rounded(start), self._rounded(end)
        while start < block:
            middle = (start + end) // 2
            between = self._rounded(middle, low, high)
            if middle <= block:
                start, low = middle, between
            else:
                end, high = middle, between
        return low

    def _epoch(self, step: int) -> int:
        return min(step // self.steps, len(self.shares) - 1)

    def _rounded(self, block: int, *bounds: np.ndarray) -> np.ndarray:
        step = self.first_step(block)
        epoch = self._epoch(step)
        steps = self.steps * self.shares[:epoch].sum(axis=0) + (step - epoch * self.steps) * self.shares[epoch]
        return apportioned(steps * self.slots_per_step, step * self.slots_per_step, *bounds)


class LearnedQuotas:
    """Counts of a stream whose shares follow from losses: blocks 0 and 1 are proportional to sizes, block b takes the
    losses told of the blocks up to b - 2, so that a data loader may read ahead by up to a block.

    At the end of a block, a count is the sum of the expectations so far, rounded so that the sum is exact and no source
    gives a slot back. It differs from that sum by less than 1 if every source expects a slot in each block; else
    without proof (0.97 at most in 100 random runs).

    Args:
        mix: one of `mixes.ADAPTIVE`.
        sizes: examples of each source.
        names: of the sources, for the log.
        update_every: micro-steps in a block.
        slots_per_step: slots in a micro-step.
    """

    def __init__(
        self, mix: str, sizes: Sequence[int], names: Sequence[str], update_every: int, slots_per_step: int
    ) -> None:
        self.mix, self.sizes, self.names = mix, sizes, names
        self.update_every, self.slots_per_step = update_every, slots_per_step
        self.load([])

    def block_of(self, step: int) -> int:
        """As of `FixedQuotas`."""
        return step // self.update_every

    def first_step(self, block: int) -> int:
        """As of `FixedQuotas`."""
        return block * self.update_every

    def probabilities(self, block: int) -> np.ndarray:
        """As of `FixedQuotas`; a PluginError where block - 2 was not told."""
        self._settle(block)
        return self._shares[block]

    def counts(self, block: int) -> np.ndarray:
        """As of `FixedQuotas`; a PluginError where block - 3 was not told."""
        self._settle(block - 1)
        return self._drawn[block]

    def tell(self, block: int, losses: Sequence[float | None]) -> None:
        """The mean loss of each source in a block; see `MultiTaskSampler.tell`."""
        if block != len(self.losses):
            raise PluginError(
                f"multitask: losses of block {block} are told, those of {len(self.losses)} come next.",
                code="part-misused",
            )
        self._check(losses)
        for name, loss in zip(self.names, losses, strict=True):
            if loss is not None and not math.isfinite(loss):
                logger.warning("multitask: the loss of %r in block %d is %s; the mix leaves it out.", name, block, loss)
        self.losses.append([float(x) if x is not None and math.isfinite(x) else None for x in losses])

    def load(self, losses_of_blocks: Sequence[Sequence[float | None]]) -> None:
        """Take up the losses of all blocks so far; all else follows from them."""
        for losses in losses_of_blocks:
            self._check(losses)
        nothing: list[float | None] = [None] * len(self.sizes)
        self.losses = [list(losses) for losses in losses_of_blocks]
        self._first, self._before, self._now = nothing, nothing, nothing
        # Of each block that is settled; `_drawn` has one more, the end of the last.
        self._shares: list[np.ndarray] = []
        self._expected = np.zeros(len(self.sizes))
        self._drawn = [np.zeros(len(self.sizes), dtype=np.int64)]

    def _check(self, losses: Sequence[float | None]) -> None:
        if len(losses) != len(self.sizes):
            raise PluginError(
                f"multitask: {len(losses)} losses for {len(self.sizes)} data sets. Give one for each.",
                code="part-misused",
            )

    def _settle(self, block: int) -> None:
        """Fix shares and counts of all blocks up to this one."""
        for number in range(len(self._shares), block + 1):
            shares = mixes.proportional(self.sizes) if number < 2 else self._learned(number)
            self._shares.append(shares)
            self._expected = self._expected + shares * (self.update_every * self.slots_per_step)
            total = self.first_step(number + 1) * self.slots_per_step
            self._drawn.append(apportioned(self._expected, total, at_least=self._drawn[-1]))

    def _learned(self, block: int) -> np.ndarray:
        if block - 2 >= len(self.losses):
            raise PluginError(
                f"multitask: block {block} is drawn, but the losses of block {block - 2} were not told. Call "
                "tell(block, losses) after each block, and let the data loader read ahead by less than "
                f"update_every={self.update_every} micro-steps.",
                code="part-misused",
            )
        new = self.losses[block - 2]
        measured = [loss is not None for loss in new]
        self._before = _where(measured, self._now, self._before)
        self._now = _where(measured, new, self._now)
        self._first = _where([first is None for first in self._first], new, self._first)
        if self.mix == "loss_ratio":
            return mixes.loss_ratio(self._now, self._first)
        return mixes.progress(self._now, self._before)


def _where(
    chosen: Sequence[bool], values: Sequence[float | None], others: Sequence[float | None]
) -> list[float | None]:
    return [value if so else other for so, value, other in zip(chosen, values, others, strict=True)]
