"""What the algorithms of `low-memory` learn in equal steps, each at its best of three rates.

    python -m benchmarks.low_memory_quality [--quick] [--json] [--write] [--device cuda]

`ours` and `baseline` are means over seeds of the last loss on held-out text or reviews, without and with AdamW in a
stock Trainer; rates are chosen on another seed. `noise` is AdamW's standard error over the seeds, as a share.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks import report
from benchmarks.data import DATA, MINILM, has_reviews, lines_of, reviews
from benchmarks.report import Gate, LeftOut, Result
from hf_ft_plugins import with_plugins

BENCHMARK = "low_memory_quality"
CHOOSING = 100  # the seed on which rates are chosen
SEEDS = (0, 1, 2)
BOOKS = DATA / "ckpt_books_lm"


@dataclass(frozen=True)
class Contender:
    """An algorithm with the three rates that it may choose from, for text and for reviews."""

    technique: str | None
    text: tuple[float, float, float]
    reviews: tuple[float, float, float]
    gate: float | None = None


ADAMW_TEXT, ADAMW_REVIEWS = (5e-4, 1e-3, 2e-3), (3e-5, 1e-4, 3e-4)
CONTENDERS = {
    "AdamW": Contender(None, ADAMW_TEXT, ADAMW_REVIEWS),
    "compact-adamw": Contender("compact-adamw", ADAMW_TEXT, ADAMW_REVIEWS, 1.005),
    "adalomo": Contender("adalomo", (1e-2, 3e-2, 6e-2), (5e-4, 2e-3, 6e-3), 1.02),
    "galore": Contender("galore:rank=48,update_gap=50", (1e-3, 2e-3, 4e-3), (1e-4, 3e-4, 1e-3), 1.02),
    "apollo": Contender("apollo:rank=48,update_gap=50", (3e-3, 6e-3, 1.2e-2), (1e-4, 3e-4, 1e-3), 1.02),
    "apollo-mini": Contender("apollo-mini", (3e-3, 6e-3, 1.2e-2), (1e-4, 3e-4, 1e-3)),
    "sinkgd": Contender("sinkgd", (3e-3, 6e-3, 1.2e-2), (1e-4, 3e-4, 1e-3), 1.02),
    "muon": Contender("muon", (1e-3, 2e-3, 4e-3), ADAMW_REVIEWS),
    "lisa": Contender("lisa:switch_every=20", (1e-3, 2e-3, 4e-3), (1e-4, 3e-4, 1e-3)),
    "badam": Contender("badam:switch_every=20", (1e-3, 2e-3, 4e-3), (1e-4, 3e-4, 1e-3)),
    "lomo": Contender("lomo", (1.0, 3.0, 10.0), (1e-2, 3e-2, 1e-1)),
    "mezo": Contender("mezo", (1e-4, 3e-4, 1e-3), (1e-6, 1e-5, 1e-4)),
}


def technique_of(contender: Contender) -> str | None:
    if contender.technique is None:
        return None
    name, _, options = contender.technique.partition(":")
    return f"low-memory:algorithm={name}" + (f",{options}" if options else "")


class Task:
    """Training and held-out rows, and a model to train on them."""

    name: str
    steps: int

    def trainer(self, technique: str | None, rate: float, seed: int, device: str, folder: str) -> Trainer:
        raise NotImplementedError

    def loss(self, technique: str | None, rate: float, seed: int, device: str) -> float:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            set_seed(seed)
            trainer = self.trainer(technique, rate, seed, device, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return float(trainer.evaluate()["eval_loss"])

    def arguments(self, rate: float, seed: int, device: str, folder: str, **more: Any) -> TrainingArguments:
        return TrainingArguments(
            folder,
            max_steps=self.steps,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=self.steps // 10,
            seed=seed,
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more,
        )


class MedicalText(Task):
    """A small language model of books goes on with medical answers."""

    name = "loss on held-out medical text"
    LENGTH = 64

    def __init__(self, quick: bool) -> None:
        self.steps = 60 if quick else 90
        tokenizer = AutoTokenizer.from_pretrained(BOOKS)
        self.train_rows = self._rows(tokenizer, "train", 8 * self.steps)
        self.dev_rows = self._rows(tokenizer, "dev", 100)

    def _rows(self, tokenizer: Any, part: str, count: int) -> list[dict[str, Any]]:
        tokens: list[int] = []
        for line in lines_of(DATA / "medquad" / f"{part}.jsonl.gz"):
            tokens += tokenizer(line["answer"])["input_ids"]
            if len(tokens) >= count * self.LENGTH:
                break
        pieces = [tokens[start : start + self.LENGTH] for start in range(0, count * self.LENGTH, self.LENGTH)]
        return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) == self.LENGTH]

    def trainer(self, technique: str | None, rate: float, seed: int, device: str, folder: str) -> Trainer:
        host = Trainer if technique is None else with_plugins(Trainer, technique)
        args = self.arguments(rate, seed, device, folder, per_device_train_batch_size=8)
        model = AutoModelForCausalLM.from_pretrained(BOOKS)
        return host(model, args, train_dataset=self.train_rows, eval_dataset=self.dev_rows)


class Reviews(Task):
    """A pretrained encoder learns whether a film review is good."""

    name = "loss on held-out film reviews"

    def __init__(self, quick: bool) -> None:
        self.steps = 40 if quick else 48
        self.tokenizer = AutoTokenizer.from_pretrained(MINILM)
        order = np.random.default_rng(0).permutation(len(reviews("train")))[: 16 * self.steps]
        train = reviews("train")
        self.train_rows = [self._row(train[index]) for index in order]
        self.dev_rows = [self._row(one) for one in reviews("dev")[:400]]

    def _row(self, review: dict[str, Any]) -> dict[str, Any]:
        return {**self.tokenizer(review["text"], truncation=True, max_length=32), "labels": review["label"]}

    def trainer(self, technique: str | None, rate: float, seed: int, device: str, folder: str) -> Trainer:
        host = Trainer if technique is None else with_plugins(Trainer, technique)
        args = self.arguments(rate, seed, device, folder, per_device_train_batch_size=16)
        model = AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2)
        data = {"train_dataset": self.train_rows, "eval_dataset": self.dev_rows}
        return host(model, args, processing_class=self.tokenizer, **data)


TASKS: dict[str, type[Task]] = {"text": MedicalText, "reviews": Reviews}
QUICK = ("AdamW", "compact-adamw", "adalomo", "galore", "apollo", "sinkgd")


@functools.cache
def _task(name: str, quick: bool) -> Task:
    return TASKS[name](quick)


def loss_of(name: str, quick: bool, technique: str | None, rate: float, seed: int, device: str) -> float:
    """The last loss of one run; to be called in any process."""
    return _task(name, quick).loss(technique, rate, seed, device)


def rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not BOOKS.is_dir() or not has_reviews():
        yield LeftOut("quality: the data or the checkpoints are not there (FT_DATA)")
        return
    # One run a core; a GPU takes one after the other.
    workers = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name in ("text",) if asked.quick else tuple(TASKS):
            yield from _rows_of(name, asked, pool)


def _rows_of(name: str, asked: Namespace, pool: Executor) -> Iterator[Result]:
    quick, seeds = asked.quick, SEEDS[:1] if asked.quick else SEEDS
    contenders = {one: CONTENDERS[one] for one in (QUICK if quick else CONTENDERS)}

    def loss(contender: Contender, rate: float, seed: int) -> Future[float]:
        return pool.submit(loss_of, name, quick, technique_of(contender), rate, seed, asked.device)

    choices = {one: getattr(contender, name) for one, contender in contenders.items()}
    rates = {one: three[1] for one, three in choices.items()}
    if not quick:
        tried = {(one, rate): loss(contenders[one], rate, CHOOSING) for one, three in choices.items() for rate in three}
        rates = {one: min(three, key=lambda rate: tried[one, rate].result()) for one, three in choices.items()}
    running = {one: [loss(contender, rates[one], seed) for seed in seeds] for one, contender in contenders.items()}
    found = {one: [each.result() for each in losses] for one, losses in running.items()}
    baseline = found["AdamW"]
    # Other order of the data and dropout, the same algorithm: how far chance moves a mean.
    noise = float(np.std(baseline, ddof=1) / np.sqrt(len(baseline)) / mean(baseline)) if baseline[1:] else 0.0
    common = report.conditions(asked.device, steps=_task(name, quick).steps, seeds=seeds, threads_a_run=1)
    for one, losses in list(found.items())[1:]:
        gate = contenders[one].gate
        yield report.row(
            *(BENCHMARK, f"{TASKS[name].name}: {one} against AdamW"),
            *(mean(losses), mean(baseline)),
            ratio=mean(losses) / mean(baseline),
            noise=noise,
            gate=Gate("ratio", "<=", gate) if gate is not None else None,
            conditions={**common, "rate": rates[one], "baseline_rate": rates["AdamW"], "losses": losses},
        )


if __name__ == "__main__":
    sys.exit(report.run(BENCHMARK, __doc__, rows))
