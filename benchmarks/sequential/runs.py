"""Sequences of stages, trained by stock Trainers, by `run_stages`, or all at once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks.sequential.tasks import TASKS, Task
from hf_ft_plugins.techniques.sequential import Stage, run_stages

NAIVE, JOINT, DEFAULT = "stock, stage after stage", "stock, all stages at once", "replay"


def scores(name: str, steps: int, seed: int, methods: Sequence[str], device: str = "cpu") -> dict[str, np.ndarray]:
    """What is measured on each stage after each, by method; float64 [stages, stages].

    The first stage, of which nothing can be forgotten yet, is trained once.

    Args:
        name, steps: of a task.
        methods: `NAIVE`; `JOINT`, whose rows are all the same; `DEFAULT`, or other options of `sequential`.
    """
    torch.set_num_threads(1)
    task = TASKS[name](seed, steps)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        _stages(task, "", first, seed, device, count=1)
        return {method: _scores(task, method, first, Path(folder), seed, device) for method in methods}


def _scores(task: Task, method: str, first: Path, folder: Path, seed: int, device: str) -> np.ndarray:
    if method == NAIVE:
        return _naive(task, first, folder, seed, device)
    if method == JOINT:
        return _joint(task, folder, seed, device)
    copied = Path(tempfile.mkdtemp(dir=folder)) / "stages"
    # What the first stage keeps is another then.
    if "own_answers" not in method:
        shutil.copytree(first, copied)
    options = "" if method == DEFAULT else method
    found = np.array(_stages(task, options, copied, seed, device).matrix.values[1:])
    shutil.rmtree(copied)
    return found


def arguments(task: Task, folder: str, seed: int, device: str, **more: Any) -> TrainingArguments:
    settings = {
        **task.arguments,
        "output_dir": folder,
        "seed": seed,
        "use_cpu": device == "cpu",
        "per_device_eval_batch_size": 50,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }
    return TrainingArguments(**settings)


def trainer_of(task: Task, start: str | None, args: TrainingArguments, train: Any, test: Any, host: Any) -> Any:
    set_seed(args.seed)
    trainer = host(task.model(start), args, train_dataset=train, eval_dataset=test, **task.more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measured(task: Task, trainer: Any) -> list[float]:
    return [trainer.evaluate(stage.test)[f"eval_{task.metric}"] for stage in task.stages]


def _naive(task: Task, first: Path, folder: Path, seed: int, device: str) -> np.ndarray:
    start, found = str(first / task.stages[0].name / "model"), []
    for number, stage in enumerate(task.stages):
        args = arguments(task, str(folder / "naive"), seed, device)
        trainer = trainer_of(task, start, args, stage.train, stage.test, Trainer)
        if number:
            trainer.train()
        found.append(measured(task, trainer))
        start = str(folder / "naive" / stage.name)
        trainer.save_model(start)
    return np.array(found)


def _joint(task: Task, folder: Path, seed: int, device: str) -> np.ndarray:
    together = [row for stage in task.stages for row in stage.train]
    args = arguments(task, str(folder / "joint"), seed, device)
    trainer = trainer_of(task, None, args, together, None, Trainer)
    trainer.train()
    return np.array([measured(task, trainer)] * len(task.stages))


def _stages(task: Task, options: str, folder: Path, seed: int, device: str, count: int | None = None) -> Any:
    def build(run: Any) -> Any:
        args = arguments(task, run.output_dir, seed, device)
        data = run.stage.train_dataset, run.stage.eval_dataset
        return trainer_of(task, run.start, args, *data, run.hosted(Trainer))

    stages = [Stage(name=one.name, train_dataset=one.train, eval_dataset=one.test) for one in task.stages]
    given = f"sequential:folder={folder},metric={task.metric}" + (f",{options}" if options else "")
    return run_stages(build, stages[:count], given)
