"""MultiTaskSampler against samplers that make a list of positions: memory, first batch, resume, speed, what is lost.

    python -m benchmarks.multitask_sampler [--quick] [--json] [--write]     (on Linux, with 6 GB of free memory)

At 1e8 examples in 20 sources (sizes as 1/1, 1/2, ... 1/20), batches of 32, one epoch, each sampler in a fresh process:

- Memory: peak of resident memory (VmHWM) over what the process held before it made the sampler. `ru_maxrss` would not
  do: a child begins with its parent's.
- First batch: from `iter` on. Resume: until the first batch after 10 % of the epoch comes out of accelerate's
  `SkipBatchSampler`, which iterates a stock sampler; ours has been told to `seek`, and yields that many empty batches.
- Indices a second: until the last batch; and without the time of the first. What RandomSampler does after its last
  batch, a second permutation of which it takes nothing, is not counted.

Baselines: torch's RandomSampler and BatchSampler, and the rule of sentence-transformers' ProportionalBatchSampler,
written anew (data sets' numbers, each as often as it has batches, shuffled; each data set with a BatchSampler of a
RandomSampler). Times are CPU seconds of the process, one thread. `ours`, `baseline` and `ratio` = ours / baseline are
medians over rounds, whose order is shuffled; A/A is RandomSampler against itself, `noise` of it. With --quick, one
round: `noise` is then no more than that one difference. Ours
against itself on more examples has no noise of its own.

- Scale: ours at 1e11 examples against ours at 1e8. First batch there: median of 30 new samplers in one process.
- `datasets.interleave_datasets` (probabilities as size ** (1 / 2), stopping_strategy="all_exhausted") against ours with
  mix=temperature, both at 1e6 examples only, since it takes minutes at 1e8: until the first batch of rows' indices.
- Lost: of homogeneous batches of 32 with tails (1000, 333, 77 and 50 examples) that accelerate's
  BatchSamplerShard(even_batches=False) deals out to 2 ranks, the share of examples that no rank gets, mean over 50
  seeds; and in how many of them the ranks get unequal numbers of batches, as in a last row with 61 sources and 8 ranks.
  `spread`: over 10 epochs and 5 seeds, by how much an example of ours is drawn more often than another of its source,
  at most.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from rich.console import Console
from rich.progress import track
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks import report
from benchmarks.report import Gate, Result
from hf_ft_plugins.techniques.multitask.mixing.sampler import MultiTaskSampler

BENCHMARK = "multitask_sampler"
EXAMPLES, HUGE, SMALL = 10**8, 10**11, 10**6
SOURCES, BATCH = 20, 32
SEEDS, SPREAD_SEEDS, EPOCHS = 50, 5, 10
TAILS = (1000, 333, 77, 50)
STOCK, AGAIN, PROPORTIONAL = "RandomSampler", "RandomSampler again (A/A)", "ProportionalBatchSampler"
OURS, OURS_HUGE, OURS_SMALL, INTERLEAVE = "ours", "ours, 1e11 examples", "ours, 1e6 examples", "interleave_datasets"
MEMORY, FIRST, FIRST_AGAIN = "peak extra memory, MiB", "first batch, s", "first batch in a warm process, s"
RESUME, RATE, RATE_AFTER = "resume at 10 %, s", "indices/s", "indices/s after the first batch"
Measured = dict[str, float]


class ProportionalBatches(BatchSampler):
    """Batches of one source each, sources in a random order, until all are used up; the last of each may be short."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.batch_size, self.drop_last = BATCH, False

    def __len__(self) -> int:
        return sum(-(-size // BATCH) for size in self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        starts = [0, *itertools.accumulate(self.sizes)]
        turns = [source for source, size in enumerate(self.sizes) for _ in range(-(-size // BATCH))]
        order = torch.randperm(len(turns), generator=generator).tolist()
        samplers = [RandomSampler(range(size), generator=generator) for size in self.sizes]
        batches = [iter(BatchSampler(sampler, BATCH, drop_last=False)) for sampler in samplers]
        for turn in order:
            source = turns[turn]
            yield [position + starts[source] for position in next(batches[source])]


def sizes_of(total: int) -> list[int]:
    shares = 1 / np.arange(1, SOURCES + 1)
    sizes = (shares / shares.sum() * total).astype(np.int64)
    sizes[0] += total - sizes.sum()
    return sizes.tolist()


# ---- in a process of its own ----


def memory(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measured(kind: str, seed: int) -> Measured:
    """All that is measured of one kind of sampler in a round."""
    torch.set_num_threads(1)
    if kind == INTERLEAVE:
        return interleaved(seed)
    held = reset_peak()
    if kind in (OURS_HUGE, OURS_SMALL):
        total = HUGE if kind == OURS_HUGE else SMALL
        mix = "proportional" if kind == OURS_HUGE else "temperature"
        sampler = MultiTaskSampler(sizes_of(total), BATCH, seed=seed, mix=mix)
        values = {FIRST: first_batch(sampler)}
        sampler.seek(sampler.steps // 10, placeholders=False)
        values[RESUME] = first_batch(sampler)
        take(iter(sampler), EXAMPLES // BATCH // 10)
    elif kind == OURS:
        sampler = MultiTaskSampler(sizes_of(EXAMPLES), BATCH, seed=seed)
        values = whole_epoch(sampler)
        skipped = len(sampler) // 10
        sampler.seek(skipped)
        values[RESUME] = first_batch(SkipBatchSampler(sampler, skipped))
    elif kind == PROPORTIONAL:
        values = whole_epoch(ProportionalBatches(sizes_of(EXAMPLES), seed))
    else:
        generator = torch.Generator().manual_seed(seed)
        order = RandomSampler(range(EXAMPLES), generator=generator)
        values = whole_epoch(BatchSampler(order, BATCH, drop_last=False))
    values[MEMORY] = memory("VmHWM") - held
    if kind in (OURS, OURS_HUGE):
        total = EXAMPLES if kind == OURS else HUGE
        values[FIRST_AGAIN] = float(
            np.median([first_batch(MultiTaskSampler(sizes_of(total), BATCH, seed=seed)) for seed in range(30)])
        )
    return values


def reset_peak() -> float:
    """Let VmHWM begin anew; what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def first_batch(sampler: Any) -> float:
    start = time.process_time()
    next(iter(sampler))
    return time.process_time() - start


def take(batches: Iterator[list[int]], number: int) -> None:
    """Iterate without a Python loop of our own."""
    collections.deque(itertools.islice(batches, number), maxlen=0)


def whole_epoch(sampler: Any) -> Measured:
    """Times of an epoch; resuming is iterating to 10 % of it, as it is for samplers that cannot seek."""
    start = time.process_time()
    batches, number = iter(sampler), len(sampler)
    next(batches)
    first = time.process_time() - start
    take(batches, number // 10 - 1)
    next(batches)
    resumed = time.process_time() - start
    take(batches, number - number // 10 - 1)
    whole = time.process_time() - start
    return {FIRST: first, RESUME: resumed, RATE: EXAMPLES / whole, RATE_AFTER: EXAMPLES / (whole - first)}


def interleaved(seed: int) -> Measured:
    from datasets import Dataset, interleave_datasets

    sizes = sizes_of(SMALL)
    starts = [0, *itertools.accumulate(sizes)]
    parts = [Dataset.from_dict({"at": range(at, at + size)}) for at, size in zip(starts, sizes, strict=False)]
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    held = reset_peak()
    start = time.process_time()
    mixed = interleave_datasets(parts, probabilities=shares.tolist(), seed=seed, stopping_strategy="all_exhausted")
    list(mixed[:BATCH]["at"])
    return {FIRST: time.process_time() - start, MEMORY: memory("VmHWM") - held}


def in_fresh_process(kind: str, seed: int) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, kind, seed).result()


# ---- what is compared ----


def timed_results(number: int, about: dict[str, Any]) -> Iterator[Result]:
    kinds = (STOCK, AGAIN, PROPORTIONAL, OURS, OURS_HUGE, OURS_SMALL, INTERLEAVE)
    rounds: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    turns = [(turn, kind) for turn in range(number) for kind in random.Random(turn).sample(kinds, len(kinds))]
    for turn, kind in track(turns, "samplers", console=Console(stderr=True), transient=True):
        rounds[kind].append(in_fresh_process(kind, turn))
    about = {**about, "load_average": [round(value, 1) for value in os.getloadavg()]}

    def rows(metric: str, gates: dict[tuple[str, str], Gate | None], again: bool, examples: int) -> list[Result]:
        names = {name for pair in gates for name in pair} | ({STOCK, AGAIN} if again else set())
        values = {name: [entry[metric] for entry in rounds[name]] for name in names}
        more = {**about, "examples": examples}
        return report.compared(BENCHMARK, metric, values, gates, (AGAIN, STOCK) if again else None, more)

    for metric, limit in ((MEMORY, 1 / 150), (FIRST, 1 / 50), (RESUME, 1 / 200)):
        gate = Gate("ratio", "<=", limit)
        both = {(OURS, STOCK): gate, (OURS, PROPORTIONAL): gate if metric == FIRST else None}
        yield from rows(metric, both, True, EXAMPLES)
    for metric, gate_or_none in ((RATE, Gate("ratio", ">=", 1.0)), (RATE_AFTER, None)):
        yield from rows(metric, {(OURS, STOCK): gate_or_none, (OURS, PROPORTIONAL): None}, True, EXAMPLES)
    for metric in (MEMORY, FIRST_AGAIN):
        yield from rows(metric, {(OURS_HUGE, OURS): Gate("ratio", "<=", 1.2)}, False, HUGE)
    # Without placeholders, against ours at 1e8 with them.
    yield from rows(RESUME, {(OURS_HUGE, OURS): None}, False, HUGE)
    for metric in (MEMORY, FIRST):
        yield from rows(metric, {(OURS_SMALL, INTERLEAVE): None}, False, SMALL)


# ---- what is lost ----


def dealt(sampler: Any, world_size: int) -> list[list[list[int]]]:
    return [list(BatchSamplerShard(sampler, world_size, rank, even_batches=False)) for rank in range(world_size)]


def lost_and_uneven(sizes: Sequence[int], world_size: int, ours: bool) -> tuple[list[float], int]:
    """Of each seed, the share of the examples drawn in an epoch that no rank gets; in how many ranks are not alike."""
    lost, uneven = [], 0
    for seed in range(SEEDS):
        sampler: Any = ProportionalBatches(sizes, seed)
        if ours:
            sampler = MultiTaskSampler(sizes, BATCH, seed=seed, world_size=world_size)
        ranks = dealt(sampler, world_size)
        drawn = sum(len(batch) for batch in sampler)
        lost.append(1 - sum(len(batch) for rank in ranks for batch in rank) / drawn)
        uneven += len({len(rank) for rank in ranks}) > 1
    return lost, uneven


def spread(sizes: Sequence[int], world_size: int) -> int:
    """By how much visits of examples of one source differ, at most."""
    widest = 0
    for seed in range(SPREAD_SEEDS):
        sampler = MultiTaskSampler(sizes, BATCH, seed=seed, world_size=world_size)
        visits = np.zeros(sum(sizes), dtype=np.int64)
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            for rank in dealt(sampler, world_size):
                np.add.at(visits, np.concatenate(rank), 1)
        widest = max(widest, *(int(np.ptp(part)) for part in np.split(visits, np.cumsum(sizes)[:-1])))
    return widest


def lost_results(about: dict[str, Any]) -> Iterator[Result]:
    many = np.random.default_rng(0).integers(50, 2000, 61).tolist()
    for name, sizes, world_size in (("4 sources, 2 ranks", TAILS, 2), ("61 sources, 8 ranks", many, 8)):
        ours, ours_uneven = lost_and_uneven(sizes, world_size, True)
        theirs, uneven = lost_and_uneven(sizes, world_size, False)
        widest = spread(sizes, world_size)
        more = {**about, "sizes": sizes, "seeds": SEEDS, "spread": widest, "epochs": EPOCHS, "most_lost": max(theirs)}
        yield report.row(
            *(BENCHMARK, f"examples lost in an epoch, {name}", float(np.mean(ours)), float(np.mean(theirs))),
            gate=Gate("ours", "=", 0),
            also={"spread <= 1": widest <= 1},
            conditions=more,
        )
        yield report.row(
            *(BENCHMARK, f"seeds of {SEEDS} with unequal ranks, {name}", float(ours_uneven), float(uneven)),
            gate=Gate("ours", "=", 0),
            conditions=more,
        )


def measured_rows(asked: Namespace) -> Iterator[Result]:
    torch.set_num_threads(1)
    about = report.conditions("cpu", sources=SOURCES, batch=BATCH)
    yield from lost_results(about)
    yield from timed_results(1 if asked.quick else 5, about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
