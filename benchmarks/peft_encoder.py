"""What `peft` gains on a pretrained encoder in a script whose learning rate was chosen for full tuning.

    python -m benchmarks.peft_encoder [--device cuda] [--quick] [--json] [--write]

Film reviews (MR), a pretrained MiniLM, 8, 32 and 128 reviews a class and all of them, learning rate 5e-5 (Trainer's
default). `ours` is `--with peft` and nothing else. Baselines: peft's defaults (q and v, r = 8, alpha = 8) at the
script's rate, and the same at ten times it, which somebody writes who knows that an adapter wants more. Accuracy on
every second review of the test set in per cent, means over seeds (each seed draws its reviews); `noise` is twice the
deviation of a mean's difference, from the second baseline against itself with other initial weights (A/A). Gates: not
below either.
"""

from __future__ import annotations

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks import report
from benchmarks.data import MINILM, has_reviews, reviews
from benchmarks.report import Gate, LeftOut, Result, noise_of_mean
from hf_ft_plugins import with_plugins

BENCHMARK = "peft_encoder"
OURS, AT_RATE, KNOWING = "ours", "peft's defaults", "peft's defaults, ten times the rate"
AGAIN = f"{KNOWING}, other weights (A/A)"
RATE = 5e-5
STEPS = {8: 40, 32: 60, 128: 80, None: 100}
OTHER_SEED = 1000


def read(part: str) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    return [{**tokenizer(one["text"], truncation=True, max_length=32), "labels": one["label"]} for one in reviews(part)]


def drawn(rows: list[Any], each: int | None, seed: int) -> list[Any]:
    """So many rows of each class; None: all."""
    if each is None:
        return rows
    labels = np.array([row["labels"] for row in rows])
    random = np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)]
    return [rows[index] for index in random.permutation(np.concatenate(chosen))]


def accuracy(arm: str, train: list[Any], test: list[Any], seed: int, steps: int, device: str) -> float:
    set_seed(seed + OTHER_SEED * (arm == AGAIN))
    model = AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2, dtype=torch.float32)
    trainer_class: Any = with_plugins(Trainer, "peft") if arm == OURS else Trainer
    if arm != OURS:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                seed=seed,
                learning_rate=RATE * (10 if arm in (KNOWING, AGAIN) else 1),
                max_steps=steps,
                warmup_steps=steps // 10,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device == "cpu",
            ),
            train_dataset=train,
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(MINILM)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        output = trainer.predict(test)
    return float(100 * (output.predictions.argmax(-1) == output.label_ids).mean())


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    torch.set_num_threads(1)
    if not has_reviews():
        yield LeftOut("there are no reviews; set FT_DATA to their folder")
        return
    train, test = read("train"), read("test")[:: 8 if asked.quick else 2]
    seeds = 2 if asked.quick else 5
    about = report.conditions(asked.device, seeds=seeds, learning_rate=RATE)
    for each, steps in STEPS.items():
        if asked.quick and each != 32:
            continue
        name = "all reviews" if each is None else f"{each} a class"
        found: dict[str, list[float]] = {arm: [] for arm in (OURS, AT_RATE, KNOWING, AGAIN)}
        for seed in track(range(seeds), name, console=Console(stderr=True), transient=True):
            rows = drawn(train, each, seed)
            for arm, values in found.items():
                values.append(accuracy(arm, rows, test, seed, steps, asked.device))
        noise = noise_of_mean(found[KNOWING], found[AGAIN])
        for ours, baseline in ((AGAIN, KNOWING), (OURS, AT_RATE), (OURS, KNOWING)):
            yield report.row(
                *(BENCHMARK, f"accuracy, {name}: {ours} against {baseline}"),
                *(statistics.mean(found[ours]), statistics.mean(found[baseline])),
                noise=noise,
                gate=Gate("difference", ">=", 0) if ours == OURS else None,
                conditions=about | {"steps": steps, "over_seeds": found},
            )


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
