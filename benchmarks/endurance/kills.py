"""Runs that are killed at random moments, and how they end once resumed.

A profiler counts the Python and C calls of a run, so that "the k-th call" is the same moment in every run.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.endurance.runs import build, digest
from benchmarks.endurance.worlds import World, on_ranks

INSIDE, BETWEEN = "inside a save", "between saves"
SAVE_KILLED = 4  # so that whole checkpoints lie before it
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Kill:
    """One kill, and whether the run that was resumed after it ended bit-equal to one that nothing stopped."""

    technique: str
    world: str
    signal: str
    where: str
    came: bool
    equal: bool
    why: str


class _Calls:
    """Counts calls while switched on; sends the process a signal at one of them."""

    def __init__(self, at: int, sent: signal.Signals) -> None:
        self.count, self.at, self.sent = 0, at, sent

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        self.count += 1
        if self.count == self.at:
            # What follows is the run's own end, at whose pace nothing is counted.
            sys.setprofile(None)
            os.kill(os.getpid(), self.sent)


def kills(name: str, world: World, number: int, seed: int) -> Iterator[Kill]:
    """`number` kills of runs of a technique, none where it is refused; on several ranks of one or of both, in turns."""
    drawn = random.Random(f"{name} {world.name} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = {}
        for where in (INSIDE, BETWEEN):
            ends = on_ranks(world, lambda rank, where=where: _straight(root / where, name, world, where))
            if all(end.get("error", "").startswith("PluginError") for end in ends):
                # Refused in this world, as `together` counts.
                return
            if any("value" not in end for end in ends):
                raise RuntimeError(f"{name}, {world.name}: the run that nothing stops fails: {ends}")
            whole[where] = ends
        for turn in range(number):
            where, sent = (INSIDE, BETWEEN)[turn % 2], SIGNALS[turn % 3]
            calls = min(end["value"]["calls"] for end in whole[where])
            at = drawn.randint(1, calls)
            killed = list(range(world.ranks)) if turn % 4 < 2 else [world.ranks - 1]
            run = root / f"run-{turn}"
            fates = on_ranks(
                world,
                lambda rank, run=run, where=where, at=at, sent=sent, killed=killed: _counted(
                    run, name, world, where, at if rank in killed else -1, sent
                ),
            )
            ends = on_ranks(world, lambda rank, run=run: _resumed(run, name, world))
            expected = [end["value"]["digest"] for end in whole[where]]
            found = [end.get("value") for end in ends]
            why = "" if found == expected else str([end.get("error") or end for end in ends])[:300]
            came = any("signal" in fate or "error" in fate for fate in fates)
            yield Kill(name, world.name, sent.name, where, came, found == expected, why)


def _straight(run: Path, name: str, world: World, where: str) -> dict[str, Any]:
    trainer, calls = _trained(run, name, world, where, -1, signal.SIGKILL)
    return {"calls": calls, "digest": digest(trainer)}


def _counted(run: Path, name: str, world: World, where: str, at: int, sent: signal.Signals) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _trained(run, name, world, where, at, sent)[1]


def _trained(run: Path, name: str, world: World, where: str, at: int, sent: signal.Signals) -> tuple[Any, int]:
    trainer = build(run, [name], world, save_total_limit=2)
    calls, saves, save = _Calls(at, sent), [0], trainer._save_checkpoint

    def counted_save(*args: Any, **kwargs: Any) -> None:
        saves[0] += 1
        sys.setprofile(calls if where == INSIDE and saves[0] == SAVE_KILLED else None)
        save(*args, **kwargs)
        sys.setprofile(calls if where == BETWEEN and SAVE_KILLED - 1 <= saves[0] <= SAVE_KILLED else None)

    trainer._save_checkpoint = counted_save
    trainer.train()
    sys.setprofile(None)
    return trainer, calls.count


def _resumed(run: Path, name: str, world: World) -> str:
    trainer = build(run, [name], world, save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    return digest(trainer)


def summary(found: Sequence[Kill]) -> dict[str, Any]:
    """Of each signal and place how many survived of how many, and the failures."""
    keys = sorted({(one.signal, one.where) for one in found})
    counts = {
        f"{sent}, {where}": [
            sum(one.equal for one in found if (one.signal, one.where) == (sent, where)),
            sum((one.signal, one.where) == (sent, where) for one in found),
        ]
        for sent, where in keys
    }
    failures = [f"{one.technique}, {one.signal}, {one.where}: {one.why}" for one in found if not one.equal]
    return {"survived_of": counts, "ended_before_the_kill": sum(not one.came for one in found), "failures": failures}
