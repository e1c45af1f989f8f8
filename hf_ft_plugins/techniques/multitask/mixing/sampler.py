"""`MultiTaskSampler`: batches from several data sets in given shares, of which no list of positions is ever made.

    sampler = MultiTaskSampler([len(first), len(second)], batch_size=32, mix="temperature")
    DataLoader(ConcatDataset([first, second]), batch_sampler=sampler)

All batches of all epochs are one endless stream, any part of which is computed from (seed, place) alone. It is cut into
blocks. How many slots a source has had when a block begins is its expectation, rounded so that the sum is exact; within
a block, slots are shuffled. A source's n-th example is position n % size of its (n // size)-th shuffle, a
`KeyedPermutation`. So there is no tail: batches are full, every pass has each example once, and what an epoch's end
cuts off comes first in the next.

Related: Megatron-LM's blended data sets keep shares as exact, with an array of all samples; sentence-transformers'
batch samplers draw whole batches of one data set, with a list of all positions.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from .... import mends
from ....errors import PluginError
from ....keyed_permutation import KeyedPermutation, key_of, permuted
from ....near import nearest, nearest_value
from . import mixes
from .quotas import FixedQuotas, LearnedQuotas

Unit = Literal["batch", "example"]
# Slots that are shuffled together, and about how many positions are computed at once.
BLOCK: dict[str, int] = {"batch": 8192, "example": 65536}
CHUNK = 8192


class MultiTaskSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of positions in sources laid end to end: `batch_sampler` of a DataLoader of their concatenation.

    Micro-step m of the run is batches m * world_size to (m + 1) * world_size - 1, one for each rank, as accelerate's
    `BatchSamplerShard` deals them out. An epoch has the same number of micro-steps each time.

    A source's slots differ from the expected number by less than 1 at the end of each block and epoch, unless it is so
    rare that it expects less than one in a block; see `FixedQuotas`.

    With an adaptive mix, a block is `update_every` micro-steps. Blocks 0 and 1 are proportional, block b follows from
    the losses told of the blocks up to b - 2, so that a data loader may read ahead by up to a block.

    Args:
        sizes: examples of each source.
        batch_size: examples in a batch, on one rank.
        names: of the sources, for errors; None: their numbers.
        mix: one of `mixes.MIXES`; round_robin takes the sources in turn, without a shuffle of the slots.
        temperature: of mix=temperature.
        max_passes: of mix=unimax, over `epochs` epochs.
        weights: of mix=weights, one for each source.
        unit: what a slot is. "batch": a micro-step, whose batches on all ranks are of one source; "example": one
            example, drawn by itself.
        world_size: ranks.
        seed: of all shuffles.
        steps_per_epoch: micro-steps in an epoch; None: as many as all examples fill, rounded up.
        epochs: of the run; read by annealed and unimax alone.
        update_every: micro-steps in a block of an adaptive mix.

    Attributes:
        sizes, names, world_size, epoch: as given, or set.
        steps: micro-steps in an epoch.
        shift: micro-steps by which each epoch begins further on in the stream, where the number of ranks has changed.
        adaptive: whether `tell` must be called.

    Raises:
        PluginError: an empty source, a number out of range, an unknown mix, or weights that do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        *,
        names: Sequence[str] | None = None,
        mix: str = "proportional",
        temperature: float = 2.0,
        max_passes: float = 4.0,
        weights: Sequence[float] | None = None,
        unit: Unit = "batch",
        world_size: int = 1,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        epochs: int = 1,
        update_every: int = 256,
    ) -> None:
        mixes.check_sizes(sizes, names)
        numbers = {"batch_size": batch_size, "world_size": world_size, "epochs": epochs, "update_every": update_every}
        for option, value in {**numbers, "steps_per_epoch": steps_per_epoch}.items():
            if value is not None and value < 1:
                raise PluginError(f"multitask: {option}={value} must be 1 or more.", code="option-value")
        for option, text, known in (("mix", mix, mixes.MIXES), ("unit", unit, get_args(Unit))):
            if text not in known:
                hint = nearest(text, known) or f" Take one of {', '.join(known)}."
                raise PluginError(
                    f"multitask: {option}={text!r} is unknown.{hint}",
                    code="option-value",
                    mend=nearest_value("multitask", option, text, known),
                )
        if (mix == "weights") != (weights is not None):
            raise PluginError(
                f"multitask: mix={mix!r} with weights={weights}. Give weights with mix='weights' alone.",
                code="option-combination",
                mend=[mends.remove_option("multitask", "weights")]
                if weights
                else [mends.remove_option("multitask", "mix")],
            )
        self.sizes = [int(size) for size in sizes]
        self.names = list(names) if names is not None else [str(number) for number in range(len(sizes))]
        self.mix, self.unit, self.world_size, self.seed = mix, unit, world_size, seed
        self.adaptive = mix in mixes.ADAPTIVE
        self.epoch = 0
        self.shift = 0
        # What accelerate asks of a batch sampler. With a size, it would swallow the empty batches of `seek`.
        self.batch_size = None
        self.drop_last = False
        self._per_batch = batch_size
        self._per_step = batch_size * world_size
        self.steps = steps_per_epoch or -(-sum(self.sizes) // self._per_step)
        self._slots_per_step = 1 if unit == "batch" else self._per_step
        self._ends = np.cumsum(np.array(self.sizes, dtype=np.int64))
        self._quotas: FixedQuotas | LearnedQuotas
        if self.adaptive:
            self._quotas = LearnedQuotas(mix, self.sizes, self.names, update_every, self._slots_per_step)
        else:
            shares = self._shares(temperature, max_passes, weights, epochs)
            self._quotas = FixedQuotas(shares, self.steps, self._slots_per_step, BLOCK[unit])
        self._begin = (0, True)
        self._looked_up: tuple[int, np.ndarray] | None = None

    # ---- which part of the stream ----

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks."""
        return self.steps * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is: micro-steps epoch * steps to (epoch + 1) * steps - 1 of the stream."""
        self.epoch = epoch

    def seek(self, steps: int, *, placeholders: bool = True) -> None:
        """Let the next iteration, and only that, begin after so many micro-steps of the epoch, computing none of them.

        Args:
            steps: 0 to the epoch's.
            placeholders: yield an empty batch for each one skipped, for a wrapper that counts and discards them, as
                accelerate's `SkipBatchSampler`; else the first batch is a real one.

        Raises:
            PluginError: more steps than an epoch has.
        """
        if not 0 <= steps <= self.steps:
            raise PluginError(f"multitask: cannot seek step {steps} of an epoch of {self.steps}.", code="part-misused")
        self._begin = (steps, placeholders)

    def __iter__(self) -> Iterator[list[int]]:
        skipped, placeholders = self._begin
        self._begin = (0, True)
        return self._batches(self.epoch, skipped, placeholders)

    def _batches(self, epoch: int, skipped: int, placeholders: bool) -> Iterator[list[int]]:
        if placeholders:
            yield from itertools.repeat([], skipped * self.world_size)
        step, end = (self.shift + count for count in (epoch * self.steps + skipped, (epoch + 1) * self.steps))
        together = max(1, CHUNK // self._per_step)
        while step < end:
            block = self.block_of(step)
            first, stop = self._quotas.first_step(block), min(end, self._quotas.first_step(block + 1))
            sources, numbers = self._slots(block)
            for begin in range(step, stop, together):
                slots = slice(*((at - first) * self._slots_per_step for at in (begin, min(begin + together, stop))))
                yield from self._positions(sources[slots], numbers[slots]).reshape(-1, self._per_batch).tolist()
            step = stop

    def block_of(self, step: int) -> int:
        """The block that a micro-step of the run is in, both counted from 0 over all epochs."""
        return self._quotas.block_of(step)

    def source_of(self, position: int) -> int:
        """Number of the source that a position lies in."""
        return bisect.bisect_right(self._ends, position)

    def source_at(self, step: int) -> int:
        """Number of the source of a micro-step of the run, with unit="batch"."""
        if self.unit != "batch":
            raise PluginError(
                "multitask: with unit='example' a step is of no single source; ask source_of(position).",
                code="part-misused",
            )
        block = self.block_of(step)
        if self._looked_up is None or self._looked_up[0] != block:
            self._looked_up = (block, self._slots(block)[0])
        return int(self._looked_up[1][step - self._quotas.first_step(block)])

    # ---- what is drawn ----

    def _slots(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each slot of a block, and how many slots that source has had before it; [slots] each."""
        first, last = (self._quotas.first_step(at) * self._slots_per_step for at in (block, block + 1))
        if self.mix == "round_robin":
            slots = np.arange(first, last)
            return slots % len(self.sizes), slots // len(self.sizes)
        before, after = self._quotas.counts(block), self._quotas.counts(block + 1)
        # A narrow type, which numpy sorts in linear time.
        narrow = np.min_scalar_type(len(self.sizes))
        in_order = np.repeat(np.arange(len(self.sizes), dtype=narrow), after - before)
        sources = in_order[KeyedPermutation(last - first, (self.seed, block))(np.arange(last - first))]
        starts = np.cumsum(after - before) - (after - before)
        numbers = np.empty(last - first, dtype=np.int64)
        numbers[np.argsort(sources, kind="stable")] = np.arange(last - first) + (before - starts)[in_order]
        return sources, numbers

    def _positions(self, sources: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Positions of all examples of some slots; int64 [slots * examples in a slot]."""
        in_slot = self._per_step // self._slots_per_step
        source = np.repeat(sources, in_slot)
        number = (numbers[:, None] * in_slot + np.arange(in_slot)).ravel()
        sizes = np.array(self.sizes, dtype=np.int64)[source]
        passes = number // sizes
        within = permuted(number - passes * sizes, sizes, key_of(self.seed, source, passes))
        return self._ends[source] - sizes + within

    # ---- how often ----

    def probabilities(self, block: int) -> list[float]:
        """The share of each source in a block.

        Raises:
            PluginError: an adaptive mix that was not told enough.
        """
        return [float(share) for share in self._quotas.probabilities(block)]

    def _shares(
        self, temperature: float, max_passes: float, weights: Sequence[float] | None, epochs: int
    ) -> np.ndarray:
        """Shares in each epoch, those of the last for all that follow; float64 [epochs that differ, sources]."""
        if self.mix == "annealed":
            return np.stack([mixes.annealed(self.sizes, epoch, epochs) for epoch in range(epochs)])
        if weights is not None:
            shares = mixes.weighted(weights, len(self.sizes))
        elif self.mix == "temperature":
            shares = mixes.temperature(self.sizes, temperature)
        elif self.mix == "unimax":
            shares = mixes.unimax(self.sizes, epochs * self.steps * self._per_step, max_passes)
        else:
            shares = (mixes.proportional if self.mix == "proportional" else mixes.uniform)(self.sizes)
        return shares[None]

    # ---- adaptive mixes ----

    def tell(self, block: int, losses: Sequence[float | None]) -> None:
        """Tell an adaptive mix the mean loss of each source in a block; of one block after the other, from 0.

        Args:
            losses: over all ranks; None where the source was not drawn. One that is not finite counts as None.

        Raises:
            PluginError: a mix that does not learn, another block than the next, or not one loss for each source.
        """
        if not isinstance(self._quotas, LearnedQuotas):
            raise PluginError(
                f"multitask: mix={self.mix!r} does not learn from losses. Do not tell it any.", code="part-misused"
            )
        self._quotas.tell(block, losses)

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from the arguments, as JSON can hold it: the losses told. Empty if the mix is fixed.

        The place in the stream is not among it: who trains knows it, who reads ahead does not. Say it with `set_epoch`
        and `seek`.
        """
        if not isinstance(self._quotas, LearnedQuotas):
            return {}
        return {"update_every": self._quotas.update_every, "told": [list(losses) for losses in self._quotas.losses]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; shares and counts follow from it.

        Raises:
            PluginError: it is of another kind of mix, another number of sources, or blocks of another length.
        """
        if set(state) != set(self.state_dict()):
            raise PluginError(
                f"multitask: the checkpoint's mix {'learned from losses' if state else 'was fixed'}, and "
                f"mix={self.mix!r} {'is fixed' if state else 'learns from losses'}. Resume with the checkpoint's mix.",
                code="checkpoint-other-run",
            )
        if isinstance(self._quotas, LearnedQuotas):
            if state["update_every"] != self._quotas.update_every:
                raise PluginError(
                    f"multitask: update_every={self._quotas.update_every}, but the checkpoint's mix was learned with "
                    f"{state['update_every']}. Resume with that.",
                    code="checkpoint-other-run",
                    mend=[mends.set_option("multitask", "update_every", state["update_every"])],
                )
            self._quotas.load(state["told"])
        self._looked_up = None
