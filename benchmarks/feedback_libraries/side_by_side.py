"""How two sides are timed and counted, and the replies of people that they work on."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.behavioral_logs import HH, OASST, hh_pairs, oasst_pairs
from benchmarks.report import Gate, Result, compared, conditions, row

BENCHMARK = "feedback_libraries"


ROUNDS, QUICK_ROUNDS = 9, 3


Row = tuple[str, str]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def timed(
    metric: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, most: float | None, **more: Any
) -> Iterator[Result]:
    """Seconds of the CPU; the gate is a ratio of at most `most`, after the noise has worsened it."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "again": []}
    for _ in range(rounds):
        for name, work in (("ours", ours), ("theirs", theirs), ("again", ours)):
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    gate = None if most is None else Gate("ratio", "<=", most)
    pairs = {("ours", "theirs"): gate}
    yield from compared(BENCHMARK, f"{metric} (s)", seconds, pairs, ("again", "ours"), conditions("cpu", **more))


def counted(metric: str, ours: float, theirs: float | None, gate: str | None, met: bool | None, **more: Any) -> Result:
    """A quality: a share or a number, the same in each round."""
    ratio = None if not theirs else ours / theirs
    also = None if gate is None else {gate: bool(met)}
    return row(BENCHMARK, metric, ours, theirs, ratio=ratio, also=also, conditions=conditions("cpu", **more))


def replies() -> list[Row]:
    """Questions and replies of people; made-up words where the data sets are not there."""
    if OASST.is_file() and HH.is_file():
        pairs = oasst_pairs() + hh_pairs()
        found = [(row["prompt"][-1]["content"], row[side][0]["content"]) for row in pairs for side in SIDES]
        return list(dict.fromkeys(found))
    print("left out: real replies; made-up words stand for them", file=sys.stderr)
    draw = random.Random(0)
    words = [f"word{number}" for number in range(4000)]
    return [
        (" ".join(draw.choices(words, k=20)), " ".join(draw.choices(words, k=draw.randrange(20, 120))))
        for _ in range(5000)
    ]


SIDES = ("chosen", "rejected")
