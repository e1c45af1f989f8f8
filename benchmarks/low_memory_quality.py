"""What the algorithms of `low-memory` learn in equal steps, each at its best of three rates.

    python -m benchmarks.low_memory_quality [--quick] [--json] [--write] [--device cuda]

`ours` and `baseline` are means over seeds of the last loss on held-out text, reviews or digits; the baseline is AdamW
in a stock Trainer, from the same seed, so with the same rows in the same order. Rates are chosen on another seed. The
first row of a task is AdamW against itself where a batch is added up from two halves: nothing but rounding, and what
dropout leaves out, differs. `noise` is twice the deviation of a mean of such differences, as a share.
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
from benchmarks.sequential.tasks import DigitsConfig, DigitsModel, permuted_digits
from hf_ft_plugins import with_plugins

BENCHMARK = "low_memory_quality"
CHOOSING = 100  # the seed on which rates are chosen
SEEDS = (0, 1, 2)
BOOKS = DATA / "ckpt_books_lm"


Rates = tuple[float, float, float]


@dataclass(frozen=True)
class Contender:
    """An algorithm with the three rates that it may choose from, by task; None: not in that one.

    Attributes:
        technique: the algorithm and its options; None: AdamW in a stock Trainer.
        gate: of the ratio to AdamW's loss.
        parts: from how many pieces a batch is added up.
    """

    technique: str | None
    text: Rates
    reviews: Rates | None = None
    digits: Rates | None = None
    gate: float | None = None
    parts: int = 1


ADAMW = ((5e-4, 1e-3, 2e-3), (3e-5, 1e-4, 3e-4), (3e-3, 1e-2, 3e-2))
BASELINE, AGAIN = "AdamW", "AdamW, a batch in two halves,"
# Reviews take most of the time, and only those with a gate learn them.
CONTENDERS = {
    BASELINE: Contender(None, *ADAMW),
    AGAIN: Contender(None, *ADAMW, parts=2),
    "compact-adamw": Contender("compact-adamw", *ADAMW, 1.005),
    "adalomo": Contender("adalomo", (1e-2, 3e-2, 6e-2), (5e-4, 2e-3, 6e-3), (3e-2, 1e-1, 3e-1), 1.02),
    "galore": Contender(*("galore:rank=48,update_gap=50", (1e-3, 2e-3, 4e-3), (1e-4, 3e-4, 1e-3), None, 1.02)),
    "apollo": Contender(*("apollo:rank=48,update_gap=50", (3e-3, 6e-3, 1.2e-2), (1e-4, 3e-4, 1e-3), None, 1.02)),
    "apollo-mini": Contender("apollo-mini", (3e-3, 6e-3, 1.2e-2)),
    "sinkgd": Contender("sinkgd", (3e-3, 6e-3, 1.2e-2), (1e-4, 3e-4, 1e-3), None, 1.02),
    "muon": Contender("muon", (1e-3, 2e-3, 4e-3)),
    "lisa": Contender("lisa:switch_every=20", (1e-3, 2e-3, 4e-3)),
    "badam": Contender("badam:switch_every=20", (1e-3, 2e-3, 4e-3)),
    "lomo": Contender("lomo", (1.0, 3.0, 10.0)),
    "mezo": Contender("mezo", (1e-4, 3e-4, 1e-3)),
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
    batch: int
    train_rows: list[dict[str, Any]]
    dev_rows: list[dict[str, Any]]

    def model(self) -> tuple[Any, Any]:
        """A new model, and its tokenizer, or None."""
        raise NotImplementedError

    def loss(self, contender: Contender, rate: float, seed: int, device: str) -> float:
        torch.set_num_threads(1)
        technique = technique_of(contender)
        host = Trainer if technique is None else with_plugins(Trainer, technique)
        with tempfile.TemporaryDirectory() as folder:
            set_seed(seed)
            model, tokenizer = self.model()
            args = TrainingArguments(
                folder,
                max_steps=self.steps,
                per_device_train_batch_size=self.batch // contender.parts,
                gradient_accumulation_steps=contender.parts,
                learning_rate=rate,
                lr_scheduler_type="cosine",
                warmup_steps=self.steps // 10,
                seed=seed,
                use_cpu=device == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            data = {"train_dataset": self.train_rows, "eval_dataset": self.dev_rows}
            trainer = host(model, args, processing_class=tokenizer, **data)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return float(trainer.evaluate()["eval_loss"])


class MedicalText(Task):
    """A small language model of books goes on with medical answers."""

    name = "loss on held-out medical text"
    batch = 8
    LENGTH = 64

    def __init__(self, quick: bool) -> None:
        self.steps = 60 if quick else 90
        tokenizer = AutoTokenizer.from_pretrained(BOOKS)
        self.train_rows = self._rows(tokenizer, "train", self.batch * self.steps)
        self.dev_rows = self._rows(tokenizer, "dev", 100)

    def _rows(self, tokenizer: Any, part: str, count: int) -> list[dict[str, Any]]:
        tokens: list[int] = []
        for line in lines_of(DATA / "medquad" / f"{part}.jsonl.gz"):
            tokens += tokenizer(line["answer"])["input_ids"]
            if len(tokens) >= count * self.LENGTH:
                break
        pieces = [tokens[start : start + self.LENGTH] for start in range(0, count * self.LENGTH, self.LENGTH)]
        return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) == self.LENGTH]

    def model(self) -> tuple[Any, Any]:
        return AutoModelForCausalLM.from_pretrained(BOOKS), None


class Reviews(Task):
    """A pretrained encoder learns whether a film review is good."""

    name = "loss on held-out film reviews"
    batch = 16
    steps = 144

    def __init__(self, quick: bool) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MINILM)
        order = np.random.default_rng(0).permutation(len(reviews("train")))[: self.batch * self.steps]
        train = reviews("train")
        self.train_rows = [self._row(train[index]) for index in order]
        self.dev_rows = [self._row(one) for one in reviews("dev")[:400]]

    def _row(self, review: dict[str, Any]) -> dict[str, Any]:
        return {**self.tokenizer(review["text"], truncation=True, max_length=32), "labels": review["label"]}

    def model(self) -> tuple[Any, Any]:
        return AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2), self.tokenizer


class Digits(Task):
    """A perceptron learns to read digits, from nothing."""

    name = "loss on held-out digits"
    batch = 32
    steps = 150

    def __init__(self, quick: bool) -> None:
        rows = permuted_digits(0, self.steps).stages[0]
        self.train_rows, self.dev_rows = rows.train, rows.test

    def model(self) -> tuple[Any, Any]:
        return DigitsModel(DigitsConfig()), None


TASKS: dict[str, type[Task]] = {"text": MedicalText, "reviews": Reviews, "digits": Digits}


@functools.cache
def _task(name: str, quick: bool) -> Task:
    return TASKS[name](quick)


def loss_of(name: str, quick: bool, contender: Contender, rate: float, seed: int, device: str) -> float:
    """The last loss of one run; to be called in any process."""
    return _task(name, quick).loss(contender, rate, seed, device)


def rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not BOOKS.is_dir() or not has_reviews():
        yield LeftOut("quality: the data or the checkpoints are not there (FT_DATA)")
        return
    # One run a core; a GPU takes one after the other.
    workers = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name in ("text", "digits") if asked.quick else tuple(TASKS):
            yield from _rows_of(name, asked, pool)


def _rows_of(name: str, asked: Namespace, pool: Executor) -> Iterator[Result]:
    # Those with a gate, and what they are measured by.
    contenders = {
        one: contender
        for one, contender in CONTENDERS.items()
        if getattr(contender, name) and (contender.gate or contender.technique is None or not asked.quick)
    }
    # Of text, one seed takes a minute and a half.
    seeds = SEEDS[:1] if asked.quick and name == "text" else SEEDS

    def loss(contender: Contender, rate: float, seed: int) -> Future[float]:
        return pool.submit(loss_of, name, asked.quick, contender, rate, seed, asked.device)

    choices: dict[str, Rates] = {one: getattr(contender, name) for one, contender in contenders.items()}
    rates = {one: three[1] for one, three in choices.items()}
    if not asked.quick:
        own = {one: three for one, three in choices.items() if one != AGAIN}
        tried = {(one, rate): loss(contenders[one], rate, CHOOSING) for one, three in own.items() for rate in three}
        rates = {one: min(three, key=lambda rate: tried[one, rate].result()) for one, three in own.items()}
    rates[AGAIN] = rates[BASELINE]
    running = {one: [loss(contender, rates[one], seed) for seed in seeds] for one, contender in contenders.items()}
    found = {one: [each.result() for each in losses] for one, losses in running.items()}
    baseline = found.pop(BASELINE)
    noise = report.noise_of_mean(baseline, found[AGAIN]) / mean(baseline)
    common = report.conditions(asked.device, steps=_task(name, asked.quick).steps, seeds=seeds, threads_a_run=1)
    for one, losses in found.items():
        gate = contenders[one].gate
        yield report.row(
            *(BENCHMARK, f"{TASKS[name].name}: {one} against {BASELINE}"),
            *(mean(losses), mean(baseline)),
            ratio=mean(losses) / mean(baseline),
            noise=noise,
            gate=Gate("ratio", "<=", gate) if gate is not None else None,
            conditions={
                **common,
                "rate": rates[one],
                "baseline_rate": rates[BASELINE],
                "losses": losses,
                "baseline_losses": baseline,
            },
        )


if __name__ == "__main__":
    sys.exit(report.run(BENCHMARK, __doc__, rows))
