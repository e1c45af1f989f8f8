"""What `text2text` learns in equal steps, and how long it takes to learn what stock does.

    python -m benchmarks.text2text_quality [--device cuda] [--quick] [--json] [--write]

Three data sets: Tatoeba's English-French in bytes, by a new T5 (4 + 4 layers, d_model 128; folder FT_DATA, default
../shared/data); the questions of `examples/instruct_causal.py`, by its new Llama; and questions whose length tells
their kind, by the same Llama. One thread, dropout 0 in the T5, AdamW, linear decay.

Each seed trains, in turns: stock; stock with group_by_length; ours with the same steps, so with as many real target
tokens; and ours with 1.2 times the steps ("longer"), since what is as good in the mean ends above stock on every second
seed.

- Dev loss at the end: means over seeds; the gate is stock's mean and one standard deviation of its seeds. The A/A row
  is stock with each seed against stock with the next.
- Time: CPU seconds of training until the dev loss is what stock's was in the end, of the longer run; `ratio` is the
  median over seeds of its share of stock's, with a gate where padding is what costs (Tatoeba; the Llama is so small
  that each call of it counts). The A/A row is stock's seconds, each seed against the next.
- chrF of greedy translations of unseen sentences (Tatoeba).

Order, pool and parts were chosen on other seeds (11 to 24).
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from sacrebleu.metrics import CHRF
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from benchmarks import report
from benchmarks.data import DATA
from benchmarks.report import LeftOut, Result, noise_floor, quartiles
from benchmarks.text2text import PAIRS, TOKENIZER, new_t5, tatoeba
from examples.instruct_causal import questions
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.text2text import TextPairCollator, TokenTable

BENCHMARK = "text2text_quality"
STOCK, GROUPED, OURS, LONGER = "stock", "stock, group_by_length", "ours", "ours, longer"
LONGER_BY = 1.2
EVALUATIONS = 16
DEV = 300


@dataclass(frozen=True)
class Task:
    """A data set and the model that learns it.

    Attributes:
        test: sentences to translate; None: none.
    """

    name: str
    train: Dataset
    dev: Dataset
    new_model: Callable[[], Any]
    learning_rate: float
    steps: int
    test: Dataset | None = None


@dataclass(frozen=True)
class Run:
    """CPU seconds of training and the dev loss then, at each evaluation; chrF where sentences are translated."""

    curve: list[tuple[float, float]]
    chrf: float | None

    @property
    def loss(self) -> float:
        return self.curve[-1][1]

    @property
    def seconds(self) -> float:
        return self.curve[-1][0]


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.spent, self._since = 0.0, 0.0
        self.curve: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._since = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent += time.process_time() - self._since

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        self.curve.append((self.spent, metrics["eval_loss"]))


# ---- data ----


def asked_and_answered(pairs: Dataset) -> Dataset:
    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = TOKENIZER([f"{text}\n" for text in rows["instruction"]], add_special_tokens=False)["input_ids"]
        answers = [[*ids, 1] for ids in TOKENIZER(list(rows["answer"]), add_special_tokens=False)["input_ids"]]
        both = list(zip(prompts, answers, strict=True))
        return {
            "input_ids": [prompt + answer for prompt, answer in both],
            "attention_mask": [[1] * len(prompt + answer) for prompt, answer in both],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in both],
        }

    return pairs.map(tokenize, batched=True, remove_columns=pairs.column_names)


def told_by_length(number: int) -> Dataset:
    """Random letters; which two of them are asked for, and how they are written, their number alone tells."""
    random = np.random.default_rng(7)
    rows = []
    for kind in random.integers(4, size=number):
        text = "".join(random.choice(list("abcdefghij"), int((2, 6, 16, 40)[kind] + random.integers(2 + kind))))
        answer = (text[:2], text[-2:].upper(), (text[0] + text[-1]).upper(), text[1:3])[kind]
        rows.append({"instruction": text, "answer": answer})
    return Dataset.from_list(rows)


def new_llama() -> LlamaForCausalLM:
    size = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 384, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**size, **tokens, max_position_embeddings=1024))


def tasks(*, quick: bool, device: str) -> Iterator[Task | LeftOut]:
    for name, pairs, steps in (
        ("instruct_causal", questions().shuffle(seed=7), 60 if quick else 300),
        ("length tells the kind", told_by_length(4300), 60 if quick else 600),
    ):
        rows = asked_and_answered(pairs)
        train = rows.select(range(DEV, len(rows)))
        yield Task(name, train, rows.select(range(DEV)), lambda: new_llama().to(device), 5e-3, steps)
    train, dev, test = tatoeba("train", 2_000 if quick else 20_000), tatoeba("dev", DEV), tatoeba("test", 100)
    if train is None or dev is None:
        yield LeftOut(f"Tatoeba: it is not in {DATA}")
        return
    yield Task("Tatoeba", train, dev, lambda: new_t5(device), 2e-3, 24 if quick else 240, test)


# ---- runs ----


def run(task: Task, kind: str, seed: int, device: str) -> Run:
    set_seed(seed)
    model, watch = task.new_model(), Watch()
    steps = round(task.steps * LONGER_BY) if kind == LONGER else task.steps
    ours = kind in (OURS, LONGER)
    with tempfile.TemporaryDirectory() as folder:
        trainer = (with_plugins(Seq2SeqTrainer, "text2text") if ours else Seq2SeqTrainer)(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                seed=seed,
                max_steps=steps,
                per_device_train_batch_size=PAIRS,
                per_device_eval_batch_size=100,
                learning_rate=task.learning_rate,
                warmup_steps=steps // 10,
                train_sampling_strategy="group_by_length" if kind == GROUPED else "random",
                eval_strategy="steps",
                eval_steps=max(1, steps // EVALUATIONS),
                logging_steps=steps,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                prediction_loss_only=True,
                use_cpu=device == "cpu",
            ),
            data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
            train_dataset=task.train,
            eval_dataset=task.dev,
            processing_class=TOKENIZER,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Run(watch.curve, None if task.test is None else chrf(model.eval(), task.test, device))


@torch.no_grad()
def chrf(model: Any, test: Dataset, device: str) -> float:
    collate = TextPairCollator(TOKENIZER, model)
    batch = collate(TokenTable(test).__getitems__(range(len(test))))
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    texts = TOKENIZER.batch_decode(model.generate(**inputs, max_new_tokens=60), skip_special_tokens=True)
    references = batch["labels"].masked_fill(batch["labels"] < 0, 0)
    return CHRF().corpus_score(texts, [TOKENIZER.batch_decode(references, skip_special_tokens=True)]).score


# ---- rows ----


def rows_of(task: Task, runs: dict[str, list[Run]], about: dict[str, Any]) -> Iterator[Result]:
    about = about | {"steps": task.steps, "seeds": len(runs[STOCK])}
    losses = {kind: np.array([one.loss for one in found]) for kind, found in runs.items()}
    stock, spread = losses[STOCK], float(losses[STOCK].std(ddof=1))
    seen = about | {"dev_loss": {kind: found.tolist() for kind, found in losses.items()}, "stock_deviation": spread}
    again = np.roll(stock, -1) / stock
    for kind in (STOCK, GROUPED, OURS, LONGER):
        ours = losses[kind]
        within = {"no more than a deviation above stock's mean": float(ours.mean()) <= float(stock.mean()) + spread}
        yield report.row(
            *(BENCHMARK, f"{task.name}: dev loss, {'stock, the next seed (A/A)' if kind == STOCK else kind}"),
            *(float(ours.mean()), float(stock.mean())),
            ratio=float(np.median(again) if kind == STOCK else ours.mean() / stock.mean()),
            noise=noise_floor(again),
            also=within if kind == OURS else None,
            conditions=seen | {"quartiles": quartiles(again if kind == STOCK else ours / stock)},
        )
    if task.test is not None:
        scores = {kind: np.array([one.chrf for one in found]) for kind, found in runs.items()}
        again = np.roll(scores[STOCK], -1) / scores[STOCK]
        for kind in (GROUPED, OURS, LONGER):
            yield report.row(
                *(BENCHMARK, f"{task.name}: chrF, {kind}"),
                *(float(scores[kind].mean()), float(scores[STOCK].mean())),
                ratio=float(scores[kind].mean() / scores[STOCK].mean()),
                noise=noise_floor(again),
                conditions=about | {"chrf": {name: found.tolist() for name, found in scores.items()}},
            )
    yield from time_rows(task, runs, about)


def time_rows(task: Task, runs: dict[str, list[Run]], about: dict[str, Any]) -> Iterator[Result]:
    whole = np.array([one.seconds for one in runs[STOCK]])
    again = np.roll(whole, -1) / whole
    for kind in (STOCK, GROUPED, LONGER):
        needed = [
            next((spent for spent, loss in one.curve if loss <= stock.loss), None)
            for one, stock in zip(runs[kind], runs[STOCK], strict=True)
        ]
        shares = [spent / all_of_it for spent, all_of_it in zip(needed, whole, strict=True) if spent is not None]
        reached = len(shares) == len(needed)
        if kind == STOCK:
            shares, reached = again.tolist(), True
        yield report.row(
            *(BENCHMARK, f"{task.name}: CPU s to stock's dev loss, {'the next seed (A/A)' if kind == STOCK else kind}"),
            float(np.median([spent for spent in needed if spent is not None])) if shares else None,
            float(np.median(whole)),
            ratio=float(np.median(shares)) if reached else None,
            noise=noise_floor(again),
            gate=report.Gate("ratio", "<=", 0.7) if kind == LONGER and task.test is not None else None,
            conditions=about | {"ratios": shares, "reached": len(shares)},
        )


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    torch.set_num_threads(1)
    about = report.conditions(asked.device, pairs_per_batch=PAIRS, longer_by=LONGER_BY)
    seeds = 2 if asked.quick else 5
    for task in tasks(quick=asked.quick, device=asked.device):
        if isinstance(task, LeftOut):
            yield task
            continue
        runs: dict[str, list[Run]] = {kind: [] for kind in (STOCK, GROUPED, OURS, LONGER)}
        for seed in track(range(seeds), task.name, console=Console(stderr=True), transient=True):
            for kind, found in runs.items():
                found.append(run(task, kind, seed, asked.device))
        yield from rows_of(task, runs, about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
