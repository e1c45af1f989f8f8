"""Held-out preference accuracy of small pretrained models after DPO on what people really said of answers.

    python -m benchmarks.behavioral_feedback [--device cuda] [--quick] [--json] [--write]

Needs the folder FT_DATA (default ../shared/data): OpenAssistant's ranked replies and Anthropic's harmlessness pairs. Of
400 and of 1,600 pairs, on a Llama of 260 k weights, and of 1,600 on one of 5.7 M (quick: 200 pairs on the smaller):
stock DPO, itself in another order (A/A), and `behavioral` with a doubt for each pair, from the ranks' distance or from
how often people agree. `conditions` hold what the seeds could show at all: `shows` is the smallest difference in points
that they find in 4 of 5 such experiments (5 %, two-sided), and `seeds_needed` how many seeds the difference seen would
take.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import random
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import report
from benchmarks.behavioral_logs import MODEL, SMALLER, available, hh_pairs, oasst_pairs
from benchmarks.report import Gate, LeftOut, Result, noise_of_mean, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.behavioral.fit_to_length import Fitter, fitted_dataset

BENCHMARK = "behavioral_feedback"
MAX_LENGTH, LEARNING_RATE = 128, 1e-4
# Assumed, not measured here: two people agree on about 63 % of such pairs (Bai et al. 2022, arXiv:2204.05862); each is
# wrong in p, and p^2 + (1 - p)^2 = .63.
DOUBT = 0.25
# By the distance of two ranks; assumed, too: neighbours are as doubtful as Anthropic's pairs, the others less.
DOUBT_OF_RANKS = {1: 0.25, 2: 0.17, 3: 0.11}
LEAST_DOUBT = 0.07
# Of a normal distribution: two-sided 5 %, and 80 % of the experiments.
QUANTILES = 1.96 + 0.8416
BEFORE, STOCK, AGAIN, OURS = "the model before", "stock", "stock, another order (A/A)", "behavioral"


def _split(seed: int, trained: int, held_out: int, tokenizer: Any) -> tuple[Any, Any]:
    """Pairs of both logs alike, whole conversations on one side; held-out ones fit `MAX_LENGTH` whole."""
    train, rest = [], []
    for rows in (_with_doubts(oasst_pairs()), _with_doubts(hh_pairs())):
        names = sorted({row["conversation"] for row in rows})
        random.Random(seed).shuffle(names)
        kept = set(names[: len(names) // 4])
        random.Random(seed).shuffle(rows)
        rest += [row for row in rows if row["conversation"] in kept][: 2 * held_out]
        # The first log is the smaller one; the second makes up the number.
        train += [row for row in rows if row["conversation"] not in kept][: max(trained // 2, trained - len(train))]
    columns = ("prompt", "chosen", "rejected", "behavior_eps")
    train, rest = (Dataset.from_list([{name: row[name] for name in columns} for row in rows]) for rows in (train, rest))
    fitting, _ = fitted_dataset(rest, Fitter(tokenizer, "dpo", MAX_LENGTH))
    return train.shuffle(seed).select(range(min(trained, len(train)))), fitting.shuffle(seed).select(range(held_out))


def _with_doubts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row | {"behavior_eps": DOUBT_OF_RANKS.get(row["distance"], LEAST_DOUBT) if "distance" in row else DOUBT}
        for row in rows
    ]


Job = tuple[Path, str, int, int, int, str]  # model, how, seed, pairs, held-out pairs, device


def _accuracies(job: Job) -> tuple[float, float]:
    """After training: by DPO's reward; before it: by the model's own log-probability of a token, the larger one."""
    model, how, seed, trained, held_out, device = job
    if device == "cpu":
        torch.set_num_threads(1)
    disable_progress_bars()
    logging.getLogger("hf_ft_plugins").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = AutoTokenizer.from_pretrained(MODEL).chat_template
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = _split(seed, trained, held_out, tokenizer)
    trainer_class = with_plugins(DPOTrainer, "behavioral") if how == OURS else DPOTrainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                per_device_eval_batch_size=8,
                num_train_epochs=1,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                max_length=MAX_LENGTH,
                gradient_checkpointing=False,
                bf16=device == "cuda",
                use_cpu=device == "cpu",
                seed=seed + 100 * (how == AGAIN),
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        before = _by_likelihood(trainer) if how == STOCK else 0.0
        trainer.train()
        return before, float(trainer.evaluate()["eval_rewards/accuracies"])


def _all_accuracies(jobs: list[Job], device: str) -> list[tuple[float, float]]:
    """`_accuracies` of each, several at a time on a CPU: no time is measured."""
    with multiprocessing.get_context("spawn").Pool((os.cpu_count() or 1) if device == "cpu" else 1) as pool:
        return pool.map(_accuracies, jobs, chunksize=1)


@torch.no_grad()
def _by_likelihood(trainer: Any) -> float:
    right = []
    for batch in trainer.get_eval_dataloader():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        tokens = logits.float().log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        scored = batch["completion_mask"][:, 1:]
        chosen, rejected = ((tokens * scored).sum(1) / scored.sum(1)).chunk(2)
        right += (chosen > rejected).tolist()
    return statistics.mean(right)


def feedback(
    model: Path, seeds: int, trained: int, held_out: int, device: str, common: dict[str, Any]
) -> Iterator[Result]:
    """Against the model before it was trained, and against stock DPO on the same pairs."""
    found: dict[str, list[float]] = {how: [] for how in (BEFORE, STOCK, AGAIN, OURS)}
    jobs: list[Job] = [
        (model, how, seed, trained, held_out, device) for seed in range(seeds) for how in (STOCK, AGAIN, OURS)
    ]
    for (_, how, *_), (before, after) in zip(jobs, _all_accuracies(jobs, device), strict=True):
        found[how].append(100 * after)
        if how == STOCK:
            found[BEFORE].append(100 * before)
    noise = noise_of_mean(found[STOCK], found[AGAIN])
    means = {how: statistics.mean(values) for how, values in found.items()}
    more = {"pairs": trained, "held_out": held_out, "max_length": MAX_LENGTH, "seeds": seeds}
    more["each_seed"] = {how: [round(one, 1) for one in values] for how, values in found.items()}
    where = f"{model.parent.name if model.name == 'hf' else model.name}, {trained} pairs"

    def row(how: str, other: str, gate: Gate | None) -> Result:
        ratios = [one / two for one, two in zip(found[how], found[other], strict=True)]
        return report.row(
            *(BENCHMARK, f"{where}: held-out accuracy (%): {how} against {other}", means[how], means[other]),
            ratio=means[how] / means[other],
            noise=noise / means[other],
            gate=gate,
            conditions=common | more | {"quartiles": quartiles(ratios)} | power(found[how], found[other]),
        )

    above = Gate("difference", ">", 0)
    yield from (row(AGAIN, STOCK, None), row(OURS, BEFORE, above), row(OURS, STOCK, above))


def power(ours: Sequence[float], stock: Sequence[float]) -> dict[str, Any]:
    """What so many paired values can show: `shows` in their unit, and `seeds_needed` for the mean difference seen."""
    apart = [one - two for one, two in zip(ours, stock, strict=True)]
    deviation, seen = statistics.stdev(apart), statistics.mean(apart)
    return {
        "difference": round(seen, 2),
        "deviation_of_differences": round(deviation, 2),
        "shows": round(QUANTILES * deviation / math.sqrt(len(apart)), 2),
        "seeds_needed": math.ceil((QUANTILES * deviation / seen) ** 2) if seen else None,
    }


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not available():
        yield LeftOut("FT_DATA names no folder with the logs and the models")
        return
    common = report.conditions(asked.device)
    if asked.quick:
        yield from feedback(SMALLER, 2, 200, 200, asked.device, common)
        return
    for model, seeds, trained in ((SMALLER, 5, 400), (SMALLER, 5, 1600), (MODEL, 3, 1600)):
        yield from feedback(model, seeds, trained, 500, asked.device, common)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
