"""Pairs a second of a DPO trainer, with shared prefixes and without, on batches of like lengths and in data's order.

Batches of like lengths are Trainer's own, by `train_sampling_strategy="group_by_length"`, which TRL's DPOTrainer 1.16
takes where the data set has a column `length` and no column is removed. Ours with it and stock with it train on the
same batches.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import report
from benchmarks.behavioral_logs import MODEL, hh_pairs, oasst_pairs, single_turn
from benchmarks.report import Gate, Result
from hf_ft_plugins import with_plugins

BENCHMARK = "behavioral"
BATCH = 8
BUCKETED, AGAIN = "stock, group_by_length", "stock, group_by_length, again (A/A)"
SHARED_BUCKETED, SHARED, STOCK = "shared, group_by_length", "shared", "stock"
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
    """Seconds and losses of the steps of one pass over the pairs."""
    grouped = "group_by_length" in how
    trainer_class = DPOTrainer
    if how.startswith(SHARED):
        trainer_class = with_plugins(DPOTrainer, "behavioral:share_prefixes=on")
    columns = ("prompt", "chosen", "rejected")
    lengths = [{"length": max(_tokens(row, side, tokenizer) for side in columns[1:])} for row in rows]
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
                train_sampling_strategy="group_by_length" if grouped else "sequential",
                remove_unused_columns=not grouped,
                gradient_checkpointing=False,
                bf16=device == "cuda",
                use_cpu=device == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [{key: row[key] for key in columns} | length for row, length in zip(rows, lengths, strict=True)]
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.times, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def speed(device: str, batches: int, rounds: int, longest: int | None, common: dict[str, Any]) -> Iterator[Result]:
    """Rows for each kind of conversation: batch by batch on the same batches, and whole passes over the pairs.

    Args:
        batches: in each round.
        longest: tokens of a prompt with its answer; None: what the model takes.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    limit = longest or tokenizer.model_max_length
    kinds = (BUCKETED, AGAIN, SHARED_BUCKETED, SHARED, STOCK)
    for turns, gate in GATES.items():
        steps: dict[str, list[float]] = {how: [] for how in kinds}
        passes: dict[str, list[float]] = {how: [] for how in kinds}
        losses: dict[str, list[float]] = {how: [] for how in kinds}
        for number in range(rounds):
            rows = pairs_of(turns, batches * BATCH, number, tokenizer, limit)
            for how in random.Random(number).sample(kinds, len(kinds)):
                seconds, loss = step_times(how, rows, tokenizer, device)
                steps[how] += [BATCH / one for one in seconds]
                passes[how].append(BATCH * len(seconds) / sum(seconds))
                losses[how] += loss
        apart = max(abs(one - other) for one, other in zip(losses[BUCKETED], losses[SHARED_BUCKETED], strict=True))
        about = common | {"batch": BATCH, "longest": limit, "largest_loss_difference": apart}
        unit = f"pairs a second, {turns}, by batch"
        gates = {(SHARED_BUCKETED, BUCKETED): Gate("ratio", ">=", gate)}
        yield from report.compared(BENCHMARK, unit, steps, gates, (AGAIN, BUCKETED), about)
        ratios = [ours / stock for ours, stock in zip(steps[SHARED_BUCKETED], steps[BUCKETED], strict=True)]
        yield report.row(
            *(BENCHMARK, f"pairs a second, {turns}, of all batches the one with the least gain", None, None),
            ratio=min(ratios),
            gate=Gate("ratio", ">=", 1),
            conditions=about,
        )
        yield from report.compared(
            *(BENCHMARK, f"pairs a second, {turns}, by pass", passes),
            {(SHARED, BUCKETED): Gate("ratio", ">=", 1), (SHARED, STOCK): None, (BUCKETED, STOCK): None},
            *((AGAIN, BUCKETED), about),
        )
