"""What a run survives: other techniques beside it, other ranks, kills, faults, and a long haul.

    python -m benchmarks.endurance [--quick] [--json] [--write] [--only together|kills|faults|haul]

Tiny models on CPUs, each run in processes of its own: one, two gloo ranks (DDP), or two that hold pieces of the model
(FSDP2). A count is `ours`, what it is counted of is `baseline`.

- together: each built-in technique alone, each pair, each triple (in pieces and by DDP a ninth of them): the
  run trains, the effects of all show, and one that was cut off in the middle of an accumulation and resumed ends
  bit-equal; or it is refused by a message that names them. The gate: none fails. Beside it, how far weights of a run
  in pieces are from those of DDP, at most, by plain SGD.
- kills: SIGKILL, SIGTERM and SIGINT at random moments, half of them while a checkpoint is written, on two ranks of one
  or of both; `resume_from_checkpoint=True` then ends bit-equal. The gate: all do.
- faults: a full disk, an output_dir that became read-only, what raises in the middle, a loss that is not finite, too
  little memory, damaged checkpoints: the message says what was wrong, and the last good checkpoint resumes bit-equal.
- haul: 20,000 steps with four techniques: MiB that memory grows by in 1,000 steps, the time of a step at the end by
  that at the beginning (of the steps in which as many parameters learn), entries of the log.
"""

from __future__ import annotations

import gc
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers.trainer  # noqa: F401

from benchmarks import report
from benchmarks.endurance import together
from benchmarks.endurance.faults import faults
from benchmarks.endurance.haul import haul
from benchmarks.endurance.kills import kills, summary
from benchmarks.endurance.runs import NAMES
from benchmarks.endurance.worlds import DDP, FSDP2, ONE, WORLDS
from benchmarks.report import Gate, LeftOut, Result

BENCHMARK = "endurance"
KILLS = {ONE.name: 12, DDP.name: 5, FSDP2.name: 4}
GROWTH, SLOWER = 0.5, 1.1


def measured_together(quick: bool, common: dict[str, Any]) -> Iterator[Result]:
    for world in WORLDS:
        every = [(of, together.groups(of)) for of in (1, 2, 3)]
        for of, groups in every:
            chosen = groups[:: len(groups) // 2] if quick else groups[::9] if of == 3 and world is not ONE else groups
            counts = together.counted(together.tried(world, chosen))
            good = len(chosen) - counts[together.FAILED]
            yield report.row(
                *(BENCHMARK, f"{world.name}: groups of {of} proven or refused", good, len(chosen)),
                gate=Gate("difference", ">=", 0),
                conditions=common | counts,
            )
    with tempfile.TemporaryDirectory() as folder:
        names = [one for one in NAMES if one not in together.NOT_COMPARED][: 1 if quick else None]
        apart = {name: together.apart(Path(folder) / name, [name], DDP) for name in names}
    yield report.row(
        *(BENCHMARK, "weights in pieces apart from those of DDP, at most", max(apart.values()), together.APART),
        gate=Gate("difference", "<=", 0),
        conditions=common | {"by_technique": apart},
    )


def measured_kills(quick: bool, common: dict[str, Any]) -> Iterator[Result]:
    for world in WORLDS:
        number = 2 if quick else KILLS[world.name]
        names = NAMES[:1] if quick else NAMES
        found = [kill for name in names for kill in kills(name, world, number, seed=0)]
        yield report.row(
            *(BENCHMARK, f"{world.name}: kills survived", sum(kill.equal for kill in found), len(found)),
            gate=Gate("difference", ">=", 0),
            conditions=common | summary(found),
        )


def measured_faults(common: dict[str, Any]) -> Result:
    found = list(faults())
    failures = {fault.name: [fault.said[:300], fault.told, fault.equal] for fault in found if not fault.survived}
    return report.row(
        *(BENCHMARK, "faults survived", sum(fault.survived for fault in found), len(found)),
        gate=Gate("difference", ">=", 0),
        conditions=common | {"faults": [fault.name for fault in found], "failures": failures},
    )


def measured_haul(quick: bool, common: dict[str, Any]) -> Iterator[Result]:
    steps = 1000 if quick else 20_000
    found = haul(steps)
    about = common | {"steps": found["steps"], "entries_of_the_log": found["entries"]}
    yield report.row(
        *(BENCHMARK, "long haul: MiB that memory grows by in 1,000 steps", found["slope"]),
        gate=None if quick else Gate("ours", "<=", GROWTH),
        conditions=about | {"memory": found["memory"]},
    )
    yield report.row(
        *(BENCHMARK, "long haul: time of a step at the end by that at the beginning", found["slower"]),
        gate=None if quick else Gate("ours", "<=", SLOWER),
        conditions=about,
    )


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    # Each run is a fork of this process.
    gc.collect()
    gc.freeze()
    common = report.conditions("cpu")
    parts = {
        "together": lambda: measured_together(asked.quick, common),
        "kills": lambda: measured_kills(asked.quick, common),
        "faults": lambda: iter([measured_faults(common)]),
        "haul": lambda: measured_haul(asked.quick, common),
    }
    for name, part in parts.items():
        if asked.only in (None, name):
            yield from part()


if __name__ == "__main__":
    more = {"--only": {"choices": ("together", "kills", "faults", "haul"), "help": "one part"}}
    raise SystemExit(report.run(BENCHMARK, __doc__, measured, more))
