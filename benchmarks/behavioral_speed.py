"""Pairs a second of a DPO trainer: stock, stock on batches of like lengths, and with shared prefixes."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.behavioral_logs import MODEL, hh_pairs, oasst_pairs, single_turn
from benchmarks.report import Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins

BATCH = 8
STOCK, AGAIN, BUCKETED, SHARED = "stock", "stock again", "stock, bucketed", "shared"
GATES = {"multi-turn": 2.0, "single-turn": 1.6}


class StepTimes(TrainerCallback):
    """Seconds of each step: of the processor's time on the CPU, of the clock on a GPU."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.times: list[float] = []

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = self.now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(self.now() - self.began)


def pairs_of(turns: str, count: int, seed: int, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """Pairs of both logs whose texts have at most `limit` tokens, drawn alike from each by `seed`."""
    chosen = []
    for rows in (oasst_pairs(), hh_pairs()):
        rows = [row for row in rows if single_turn(row) == (turns == "single-turn")]
        random.Random(seed).shuffle(rows)
        fitting = (
            row for row in rows if max(_tokens(row, side, tokenizer) for side in ("chosen", "rejected")) <= limit
        )
        chosen += [next(fitting) for _ in range(count // 2)]
    random.Random(seed).shuffle(chosen)
    return chosen


def _tokens(row: dict[str, Any], side: str, tokenizer: Any) -> int:
    return len(tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=True)["input_ids"])


def step_times(how: str, rows: list[dict[str, Any]], tokenizer: Any, device: str) -> tuple[list[float], list[float]]:
    """Seconds and losses of the steps of one pass over the pairs, in their order (bucketed: by length)."""
    if how == BUCKETED:
        rows = sorted(rows, key=lambda row: max(_tokens(row, side, tokenizer) for side in ("chosen", "rejected")))
    trainer_class = with_plugins(DPOTrainer, "behavioral:share_prefixes=on") if how == SHARED else DPOTrainer
    clock = StepTimes(device == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                learning_rate=1e-5,
                max_length=tokenizer.model_max_length,
                train_sampling_strategy="sequential",
                gradient_checkpointing=False,
                bf16=device == "cuda",
                use_cpu=device == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.times, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def speed(device: str, batches: int, rounds: int, longest: int | None, common: dict[str, Any]) -> list[Result]:
    """One row for each kind of conversation; `ratio` is the median over steps against stock on the same batch.

    Args:
        batches: in each round.
        longest: tokens of a prompt with its answer; None: what the model takes.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    limit = longest or tokenizer.model_max_length
    results = []
    for turns, gate in GATES.items():
        times: dict[str, list[float]] = {how: [] for how in (STOCK, AGAIN, BUCKETED, SHARED)}
        losses: dict[str, list[float]] = {how: [] for how in times}
        for number in range(rounds):
            rows = pairs_of(turns, batches * BATCH, number, tokenizer, limit)
            for how in times:
                seconds, loss = step_times(how, rows, tokenizer, device)
                times[how] += seconds
                losses[how] += loss
        ratios = [stock / ours for stock, ours in zip(times[STOCK], times[SHARED], strict=True)]
        again = [stock / other for stock, other in zip(times[STOCK], times[AGAIN], strict=True)]
        rates = {how: BATCH * len(seconds) / sum(seconds) for how, seconds in times.items()}
        ratio = statistics.median(ratios)
        apart = max(abs(one - other) for one, other in zip(losses[STOCK], losses[SHARED], strict=True))
        results.append(
            Result(
                "behavioral",
                f"pairs a second, {turns}",
                rates[SHARED],
                rates[STOCK],
                ratio,
                noise_floor(again),
                f">= {gate} x stock, never slower",
                ratio >= gate and min(ratios) >= 1 and rates[SHARED] >= rates[BUCKETED],
                common
                | {
                    "batch": BATCH,
                    "longest": limit,
                    "steps": len(ratios),
                    "quartiles": quartiles(ratios),
                    "slowest_step_ratio": round(min(ratios), 3),
                    "bucketed_pairs_a_second": round(rates[BUCKETED], 3),
                    "over_bucketed": round(rates[SHARED] / rates[BUCKETED], 3),
                    "largest_loss_difference": apart,
                },
            )
        )
    return results
