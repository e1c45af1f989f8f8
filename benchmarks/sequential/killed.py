"""Kill a sequence of stages at random moments, run it again, and compare what it has left with what one leaves that
nothing has ended.

A profiler counts the Python and C calls of a run, so that "the k-th call" is the same moment in every run. Each run is
a fork of this process, which itself must not have trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from transformers import Trainer

from benchmarks import report
from benchmarks.forks import in_a_fork
from benchmarks.report import Gate, Result
from benchmarks.sequential.runs import arguments, trainer_of
from benchmarks.sequential.tasks import ONE_EPOCH, permuted_digits
from hf_ft_plugins.techniques.sequential import Stage, run_stages
from hf_ft_plugins.techniques.sequential.stage_records import STAGES_FILE, StageRecords

BENCHMARK = "sequential"
ROWS = 600  # of a stage, seen once

# A stage is being kept between these two.
BEGUN, FINISHED = StageRecords.begin.__code__, StageRecords.finish.__code__


def begun(asked: Namespace, pool: Executor) -> Future[list[dict[str, Any]]]:
    """What `rows` is to be given, from a process of `pool` that has not trained."""
    return pool.submit(killed, 8 if asked.quick else 20, 0)


def rows(ended: Future[list[dict[str, Any]]]) -> Iterator[Result]:
    """How many of the killed sequences end as the one that was not."""
    found = ended.result()
    equal = sum(one["killed"] and one["equal"] for one in found)
    keeping = sum(one["keeping"] for one in found)
    yield report.row(
        *(BENCHMARK, "killed and run again: sequences of three stages that end bit-equal, of all", equal, len(found)),
        gate=Gate("difference", "=", 0),
        conditions={**report.conditions("cpu", rows_of_a_stage=ROWS), "while_keeping": keeping},
    )


def killed(moments: int = 20, seed: int = 0, run: Callable[[Path], Any] | None = None) -> list[dict[str, Any]]:
    """How sequences end that are killed (SIGKILL) once and run again, a row a moment.

    Args:
        moments: how many; every second one is while a stage is kept.
        seed: of the moments.
        run: trains all stages in a folder, or goes on with them; None: three stages of permuted digits.

    Returns:
        Rows of `at` (the call), `of` (how many there are), `keeping` (whether a stage was being kept), `finished`
        (stages that were listed then), `killed` (whether it was at all), `equal` (models, matrix and records), and
        `error` (of the second run; None).
    """
    run = run or digits
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        whole = in_a_fork(lambda: {**_counted(run, straight, None), "left": left_in(straight)})
        if "error" in whole:
            raise RuntimeError(whole["error"])
        whole = whole["value"]
        rows = []
        for number, at in enumerate(_moments(moments, seed, whole)):
            rows.append(_row(run, Path(folder) / str(number), at, whole))
        return rows


def _moments(count: int, seed: int, whole: dict[str, Any]) -> list[int]:
    chosen = random.Random(seed)
    anywhere = [chosen.randrange(1, whole["calls"]) for _ in range(count)]
    keeping = [chosen.randrange(*chosen.choice(whole["kept"])) for _ in range(count)]
    return [keeping[number] if number % 2 else anywhere[number] for number in range(count)]


def _row(run: Callable[[Path], Any], folder: Path, at: int, whole: dict[str, Any]) -> dict[str, Any]:
    first = in_a_fork(lambda: _counted(run, folder, at))
    finished = [stage.name for stage in StageRecords(folder).finished()]

    def again() -> dict[str, Any]:
        run(folder)
        return left_in(folder)

    second = in_a_fork(again)
    return {
        "at": at,
        "of": whole["calls"],
        "keeping": any(begun <= at < ended for begun, ended in whole["kept"]),
        "finished": finished,
        "killed": first.get("signal") == -signal.SIGKILL,
        "equal": second.get("value") == whole["left"],
        "error": second.get("error"),
    }


class _Calls:
    """Counts calls, notes those while a stage is kept, and kills the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count, self.kill_at, self.kept = 0, kill_at, []

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is BEGUN:
            self.kept.append([self.count + 1, self.count + 1])
        elif event == "return" and frame.f_code is FINISHED:
            self.kept[-1][1] = self.count + 1
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _counted(run: Callable[[Path], Any], folder: Path, kill_at: int | None) -> dict[str, Any]:
    calls = _Calls(kill_at)
    sys.setprofile(calls)
    run(folder)
    sys.setprofile(None)
    return {"calls": calls.count, "kept": calls.kept}


def left_in(folder: Path) -> dict[str, str]:
    """A digest of each file that two equal sequences have in common, by its name; without their own folder's name."""
    files = [file for file in folder.glob("*/*/*.safetensors") if file.parent.parent.name != "runs"]
    files += [folder / STAGES_FILE, *folder.glob("*.json"), *folder.glob("*/*/*.arrow"), *folder.glob("*/*/*/*.arrow")]
    return {
        str(file.relative_to(folder)): hashlib.sha256(
            file.read_bytes().replace(json.dumps(str(folder)).encode(), b"folder")
        ).hexdigest()
        for file in sorted(set(files))
    }


def digits(folder: Path) -> Any:
    """Three short stages of permuted digits, with checkpoints."""
    task = permuted_digits(0, ONE_EPOCH)

    def build(run: Any) -> Any:
        args = arguments(task, run.output_dir, 0, "cpu", save_strategy="steps", save_steps=12)
        data = run.stage.train_dataset, run.stage.eval_dataset
        return trainer_of(task, run.start, args, *data, run.hosted(Trainer))

    stages = [Stage(name=one.name, train_dataset=one.train[:ROWS], eval_dataset=one.test[:100]) for one in task.stages]
    return run_stages(build, stages, {"sequential": {"folder": str(folder), "metric": task.metric, "wise": 0.8}})
