"""One run of a setting, its accuracies, and all runs in processes."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

from benchmarks.transfer.images import OTHER_SEED, Examples
from benchmarks.transfer.settings import AGAIN, SCRATCH, STOCK, settings
from hf_ft_plugins import with_plugins


def as_rows(examples: Examples) -> list[dict[str, torch.Tensor]]:
    inputs, labels = examples
    return [
        {"labels": label, **{name: values[row] for name, values in inputs.items()}} for row, label in enumerate(labels)
    ]


def accuracy(model: Any, examples: Examples, device: str) -> float:
    """In points."""
    inputs, labels = examples
    model.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(labels), 100):
            batch = {name: values[start : start + 100].to(device) for name, values in inputs.items()}
            hits += int((model(**batch).logits.argmax(-1).cpu() == labels[start : start + 100]).sum())
    return 100 * hits / len(labels)


def trainer_of(model: Any, rows: list[Any], folder: str, device: str, *techniques: str, **changes: Any) -> Trainer:
    host = with_plugins(Trainer, *techniques) if techniques else Trainer
    settings: dict[str, Any] = {
        "output_dir": folder,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
    }
    trainer = host(
        model=model,
        args=TrainingArguments(**(settings | changes)),
        train_dataset=rows,
        data_collator=default_data_collator,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def one_run(setting: str, row: str, rate: float, seed: int, device: str, threads: int, quick: bool) -> dict[str, float]:
    """Accuracies in points on every part but the training set."""
    torch.set_num_threads(threads)
    task = settings(quick)[setting]
    data = task.data(seed)
    own_seed = seed + (OTHER_SEED if row == AGAIN else 0)
    model = task.model(own_seed, row == SCRATCH)
    techniques = [row] if row.startswith("transfer") else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            model,
            as_rows(data["train"]),
            folder,
            device,
            *techniques,
            learning_rate=rate,
            max_steps=task.steps,
            per_device_train_batch_size=task.batch,
            seed=own_seed,
        )
        trainer.train()
    return {name: accuracy(model, examples, device) for name, examples in data.items() if name != "train"}


def _in_a_process(job: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, float]]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return job, one_run(*job)


Measured = dict[str, dict[str, np.ndarray]]  # row -> part -> accuracies [rates, seeds]


def run_all(jobs: list[tuple[Any, ...]], device: str) -> dict[tuple[Any, ...], dict[str, float]]:
    """`one_run` of each, two processes at a time on a CPU: what is measured does not depend on time."""
    processes = (os.cpu_count() or 1) if device == "cpu" else 1
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        console = Console(stderr=True)
        return dict(track(pool.imap(_in_a_process, jobs), "runs", total=len(jobs), console=console))


def threads_of(device: str) -> int:
    return 1 if device == "cpu" else torch.get_num_threads()


def measure(names: list[str], seeds: dict[str, int], device: str, quick: bool) -> dict[str, Measured]:
    """All runs, every row at every rate."""
    threads = threads_of(device)
    jobs = [
        (name, row, rate, seed, device, threads, quick)
        for name in names
        for seed in range(seeds[name])
        for rate in settings(quick)[name].rates
        for row in settings(quick)[name].rows
    ]
    found = run_all(jobs, device)
    measured: dict[str, Measured] = {}
    for name in names:
        setting, over_seeds = settings(quick)[name], range(seeds[name])
        parts = found[name, STOCK, setting.rates[0], 0, device, threads, quick]
        measured[name] = {
            row: {
                part: np.array(
                    [
                        [found[name, row, rate, seed, device, threads, quick][part] for seed in over_seeds]
                        for rate in setting.rates
                    ]
                )
                for part in parts
            }
            for row in setting.rows
        }
    return measured
