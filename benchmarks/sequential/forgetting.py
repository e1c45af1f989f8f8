"""What is left of earlier stages after the last: of stock, of the default, and of what there is without old data."""

from __future__ import annotations

import multiprocessing
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Gate, LeftOut, Result
from benchmarks.sequential.runs import DEFAULT, JOINT, NAIVE, scores
from benchmarks.sequential.tasks import TASKS, has_data

BENCHMARK = "sequential"


@dataclass(frozen=True)
class Measuring:
    """How a task is measured.

    Attributes:
        steps: of a stage.
        quick_steps: the same with --quick; None: three stages take longer than that may.
        seeds: how many.
        reported: options beside the default.
        left: gate of the share of stock's forgetting that the default leaves.
        average: gate of the average accuracy's ratio; None: no row.
        newest: gate of the newest stage: of the difference in points, or of the ratio of perplexities.
    """

    steps: int
    quick_steps: int | None
    seeds: int
    reported: tuple[str, ...]
    left: float
    average: float | None
    newest: Gate


WITHOUT_DATA = ("replay=0,l2sp=0.01", "replay=0,l2sp=0.1", "replay=0,lwf=1", "replay=0,wise=0.5")
MEASURED = {
    # The longest first, so that no core waits at the end.
    "text": Measuring(400, None, 2, ("replay=0,token_weights=entropy",), 0.2, None, Gate("ratio", "<=", 1.02)),
    "sentences": Measuring(200, None, 3, (), 0.2, 1.25, Gate("difference", ">=", -1)),
    "digits": Measuring(
        *(760, 300, 5, (*WITHOUT_DATA, "replay=0,ewc=100", "replay=0.01", "replay=0.05")),
        *(0.25, 1.25, Gate("difference", ">=", -2)),
    ),
}


def rows(names: Sequence[str], asked: Namespace) -> Iterator[Result | LeftOut]:
    """The rows of some tasks, all of whose runs wait in one queue for a core."""
    here = []
    for name in names:
        if name != "digits" and not has_data():
            yield LeftOut(f"{name}: the data or the checkpoints are not there (FT_DATA)")
        elif asked.quick and MEASURED[name].quick_steps is None:
            yield LeftOut(f"{name}: three stages take longer than --quick may")
        else:
            here.append(name)
    # One run a core; a GPU takes one after the other.
    workers = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {name: _submitted(name, asked, pool) for name in here}
        for name, (steps, methods, running) in jobs.items():
            by_seed = [job.result() for job in running]
            found = {method: np.array([one[method] for one in by_seed]) for method in methods}
            yield from _results(name, MEASURED[name], found, asked.device, steps)


def _submitted(name: str, asked: Namespace, pool: Executor) -> tuple[int, tuple[str, ...], list[Future[Any]]]:
    measuring = MEASURED[name]
    seeds = range(3 if asked.quick else measuring.seeds)
    steps = measuring.quick_steps if asked.quick else measuring.steps
    methods = (NAIVE, DEFAULT, *(() if asked.quick else measuring.reported), *((JOINT,) if measuring.average else ()))
    return steps, methods, [pool.submit(scores, name, steps, seed, methods, asked.device) for seed in seeds]


def _results(
    name: str, measuring: Measuring, found: Mapping[str, np.ndarray], device: str, steps: int
) -> Iterator[Result]:
    task = TASKS[name](0, steps)
    sign = 1 if task.greater else -1
    # Of accuracies in points; of losses in nats.
    unit = 100 if task.greater else 1
    lost = {method: unit * sign * _forgotten(each) for method, each in found.items()}
    newest = {method: unit * each[:, -1, -1] for method, each in found.items()}
    averages = {method: unit * each[:, -1].mean(-1) for method, each in found.items()}
    common = report.conditions(device, steps=steps, seeds=len(lost[NAIVE]), stages=[one.name for one in task.stages])
    for method in found:
        if method in (NAIVE, JOINT):
            continue
        gated = method == DEFAULT
        about = {
            **common,
            "options": "the default" if gated else method,
            "forgotten": lost[method].tolist(),
            "stock_forgotten": lost[NAIVE].tolist(),
            "after_last": (unit * found[method][:, -1].mean(0)).tolist(),
            "stock_after_last": (unit * found[NAIVE][:, -1].mean(0)).tolist(),
        }
        ours, baseline = float(lost[method].mean()), float(lost[NAIVE].mean())
        yield report.row(
            *(BENCHMARK, f"{name}: forgotten of earlier stages, {method} against stock", ours, baseline),
            ratio=ours / baseline,
            noise=_noise(lost[NAIVE]),
            gate=Gate("ratio", "<=", measuring.left) if gated else None,
            conditions=about,
        )
        yield _newest(name, method, newest, measuring.newest, task.greater, about)
        if measuring.average is not None:
            for other in (NAIVE, JOINT) if gated else (NAIVE,):
                yield report.row(
                    *(BENCHMARK, f"{name}: average over all stages, {method} against {other}"),
                    *(float(averages[method].mean()), float(averages[other].mean())),
                    ratio=float(averages[method].mean() / averages[other].mean()),
                    noise=_noise(averages[NAIVE]),
                    gate=Gate("ratio", ">=", measuring.average) if gated and other == NAIVE else None,
                    conditions=about,
                )


def _newest(
    name: str, method: str, newest: Mapping[str, np.ndarray], gate: Gate, greater: bool, about: Mapping[str, object]
) -> Result:
    ours, stock = newest[method], newest[NAIVE]
    metric = f"{name}: newest stage, {method} against stock"
    given = gate if method == DEFAULT else None
    if greater:
        apart = report.noise_of_mean(stock, np.roll(stock, 1))
        means = float(ours.mean()), float(stock.mean())
        return report.row(*(BENCHMARK, metric, *means), noise=apart, gate=given, conditions=about)
    ratio = float(np.exp((ours - stock).mean()))
    means = float(np.exp(ours.mean())), float(np.exp(stock.mean()))
    noise = float(np.exp(report.noise_of_mean(stock, np.roll(stock, 1))) - 1)
    return report.row(*(BENCHMARK, metric, *means), ratio=ratio, noise=noise, gate=given, conditions=about)


def _forgotten(found: np.ndarray) -> np.ndarray:
    """Mean over earlier stages of what was lost since each ended; [seeds] from [seeds, stages, stages]."""
    own = np.diagonal(found, axis1=1, axis2=2)[:, :-1]
    return (own - found[:, -1, :-1]).mean(-1)


def _noise(stock: np.ndarray) -> float:
    """Of the mean over seeds, of stock against itself with the next seed; as a share."""
    return report.noise_of_mean(stock, np.roll(stock, 1)) / float(stock.mean())
