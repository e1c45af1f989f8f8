"""One sequence of stages, trained by stock Trainers, by `run_stages`, or all at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks.sequential.tasks import Task
from hf_ft_plugins.techniques.sequential import Stage, run_stages

NAIVE, JOINT = "stock, stage after stage", "stock, all stages at once"


def scores(task: Task, method: str, seed: int, device: str = "cpu") -> np.ndarray:
    """What is measured on each stage after each; float64 [stages, stages].

    Args:
        method: `NAIVE`, `JOINT`, whose rows are all the same, or options of `sequential`.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if method == NAIVE:
            return _naive(task, Path(folder), seed, device)
        if method == JOINT:
            return _joint(task, Path(folder), seed, device)
        return _protected(task, method, Path(folder), seed, device)


def arguments(task: Task, folder: str, seed: int, device: str, **more: Any) -> TrainingArguments:
    settings = {
        **task.arguments,
        "output_dir": folder,
        "seed": seed,
        "use_cpu": device == "cpu",
        "per_device_eval_batch_size": 100,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }
    return TrainingArguments(**settings)


def stock(task: Task, model: Any, args: TrainingArguments, train: Any, trainer_class: Any = Trainer) -> Any:
    trainer = trainer_class(model, args, train_dataset=train, eval_dataset=task.stages[0].test, **task.more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measured(task: Task, trainer: Any) -> list[float]:
    return [trainer.evaluate(stage.test)[f"eval_{task.metric}"] for stage in task.stages]


def _naive(task: Task, folder: Path, seed: int, device: str) -> np.ndarray:
    found, start = [], None
    for stage in task.stages:
        set_seed(seed)
        trainer = stock(task, task.model(start), arguments(task, str(folder), seed, device), stage.train)
        trainer.train()
        found.append(measured(task, trainer))
        start = str(folder / stage.name)
        trainer.save_model(start)
    return np.array(found)


def _joint(task: Task, folder: Path, seed: int, device: str) -> np.ndarray:
    set_seed(seed)
    together = [row for stage in task.stages for row in stage.train]
    trainer = stock(task, task.model(None), arguments(task, str(folder), seed, device), together)
    trainer.train()
    return np.array([measured(task, trainer)] * len(task.stages))


def _protected(task: Task, options: str, folder: Path, seed: int, device: str) -> np.ndarray:
    def build(run: Any) -> Any:
        set_seed(seed)
        args = arguments(task, run.output_dir, seed, device)
        host = run.hosted(Trainer)
        data = {"train_dataset": run.stage.train_dataset, "eval_dataset": run.stage.eval_dataset}
        trainer = host(task.model(run.start), args, **data, **task.more)
        trainer.remove_callback(PrinterCallback)
        return trainer

    stages = [Stage(name=stage.name, train_dataset=stage.train, eval_dataset=stage.test) for stage in task.stages]
    technique = f"sequential:folder={folder},metric={task.metric}" + (f",{options}" if options else "")
    ended = run_stages(build, stages, technique)
    assert ended.matrix is not None
    return np.array(ended.matrix.values[1:])
