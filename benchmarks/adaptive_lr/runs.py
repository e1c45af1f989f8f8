"""Runs of one row at one rate and seed, and all of a setting in as many processes as there are cores."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.adaptive_lr.settings import EARLY_STOPPING, METRICS, OTHER, OTHER_SEED, OURS, PLATEAU, Setting, settings
from benchmarks.adaptive_lr.tasks import Task
from hf_ft_plugins import with_plugins

Measured = dict[str, dict[str, np.ndarray]]  # row -> metric -> values, (rates, seeds)


@torch.no_grad()
def test_quality(model: torch.nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Mean negative log likelihood and accuracy."""
    model.eval()
    device = next(model.parameters()).device
    nll, right, count = 0.0, 0, 0
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        logits, labels = model(**batch)["logits"].float(), batch["labels"]
        nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return nll / count, right / count


class BestByDevLoss(TrainerCallback):
    """Takes the test metrics whenever the dev loss is the lowest so far: what the best checkpoint would give."""

    def __init__(self, test: Sequence[dict[str, torch.Tensor]]) -> None:
        self.test = test
        self.loss = math.inf
        self.quality = (math.nan, math.nan)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, model: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        if metrics["eval_loss"] < self.loss:
            self.loss = metrics["eval_loss"]
            self.quality = test_quality(model, self.test)


def trainer_class(row: str) -> type[Trainer]:
    return with_plugins(Trainer, OURS[row]) if row in OURS else Trainer


def schedule(row: str, rate: float) -> dict[str, Any]:
    """A row's scheduler, as TrainingArguments name it."""
    if row.startswith(PLATEAU):
        # torch forgives `patience` bad values and cuts at the next; ours cuts at the second.
        return {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.3, "patience": 1}}
    if row == "stock greedy":
        return {
            "lr_scheduler_type": "greedy",
            "lr_scheduler_kwargs": {"factor": 0.9, "patience": 0, "min_lr": 0.1 * rate},
        }
    return {"lr_scheduler_type": "cosine" if row == "stock cosine" else "linear"}


def early_stopping(row: str) -> list[TrainerCallback]:
    patience = EARLY_STOPPING.get(row.removesuffix(OTHER))
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


def train_once(setting: Setting, task: Task, row: str, rate: float, seed: int, device: str) -> dict[str, float]:
    """Train one row; its METRICS, and the best dev loss (where nothing is evaluated: the NLL at the end)."""
    seed += OTHER_SEED * (row == setting.again)
    set_seed(seed)
    best = BestByDevLoss(task.test)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(row)(
            model=task.new_model(),
            args=TrainingArguments(
                output_dir=folder,
                seed=seed,
                learning_rate=rate,
                max_steps=setting.steps,
                warmup_steps=setting.warmup,
                per_device_train_batch_size=setting.batch,
                per_device_eval_batch_size=setting.eval_batch,
                eval_strategy="steps" if setting.eval_steps else "no",
                eval_steps=setting.eval_steps,
                logging_steps=setting.eval_steps or 20,
                metric_for_best_model="eval_loss" if setting.eval_steps else None,
                prediction_loss_only=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                **schedule(row, rate),
            ),
            data_collator=task.collate,
            train_dataset=task.train,
            eval_dataset=task.dev if setting.eval_steps else None,
            callbacks=[best, *early_stopping(row)] if setting.eval_steps else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    end = test_quality(trainer.model, task.test)
    kept, dev_loss = (best.quality, best.loss) if setting.eval_steps else (end, end[0])
    values = (kept[0], end[0], kept[1], end[1], float(trainer.state.global_step))
    return dict(zip(METRICS, values, strict=True)) | {"dev loss": dev_loss}


def one_of_each(quick: bool, name: str, index: int, seed: int, device: str) -> dict[str, dict[str, float]]:
    """All rows of a setting, at one of its rates and one seed; to be called in any process."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    setting = next(one for one in settings(quick) if one.name == name)
    task = setting.task(seed)
    return {row: train_once(setting, task, row, setting.rates[index], seed, device) for row in setting.rows}


def measured_by(setting: Setting, quick: bool, device: str, pool: Executor) -> Measured:
    """Every row at every rate and seed."""
    shape = (len(setting.rates), setting.seeds)
    measured: Measured = {
        row: {name: np.full(shape, np.nan) for name in (*METRICS, "dev loss")} for row in setting.rows
    }
    running = {
        (index, seed): pool.submit(one_of_each, quick, setting.name, index, seed, device)
        for seed in range(setting.seeds)
        for index in range(len(setting.rates))
    }
    for place, job in track(running.items(), setting.name, console=Console(stderr=True), transient=True):
        for row, values in job.result().items():
            for name, value in values.items():
                measured[row][name][place] = value
    return measured
