"""What `behavioral` promises, on real preferences (OpenAssistant, Anthropic) and a pretrained Llama of 5.7 M weights.

    python -m benchmarks.behavioral [--device cuda] [--quick] [--json] [--write]

Needs the folder FT_DATA (default ../shared/data).

- pairs a second, of CPU seconds (`--device cuda`: seconds): ours on batches of like lengths against stock on the same
  batches (Trainer's group_by_length), the strongest that stock has; and whole passes over the same pairs in all
  combinations. A/A: stock with group_by_length again.
- kept whole: share of the logs' pairs both of whose completions are to their end in the batches that the trainer makes
  at 1,024 tokens; `baseline` is a stock DPOTrainer on the same rows. `--quick`: 300 pairs of each log.
- KTO: share of batches from paired data with both labels, and of those whose KL term is estimated from the batch's own
  completions, each with another prompt; stock prepares its data in four processes.
- exactness: relative differences from stock's rows and from sums by hand; `baseline` a control that must be above.
- noisy log: share of clean held-out pairs that the trained model orders rightly; `noise` twice the deviation of a mean
  over seeds, by stock against itself on another order of the data (the A/A). The log: `behavioral_noise.py`.
- conversion: events of a synthetic log a second, and the memory that it takes.
"""

from __future__ import annotations

import logging
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks import report
from benchmarks.behavioral_conversion import conversion
from benchmarks.behavioral_exactness import exactness
from benchmarks.behavioral_logs import MODEL, available, hh_pairs, oasst_pairs
from benchmarks.behavioral_noise import noisy_logs
from benchmarks.behavioral_speed import speed
from benchmarks.data import DATA
from benchmarks.report import Gate, LeftOut, Result
from hf_ft_plugins import with_plugins
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

BENCHMARK = "behavioral"
MAX_LENGTH = 1024


def kept_whole(quick: bool, common: dict[str, Any]) -> Iterator[Result]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    logs = {"OpenAssistant": oasst_pairs(), "OpenAssistant, several turns": [], "Anthropic's": hh_pairs()}
    logs["OpenAssistant, several turns"] = [row for row in logs["OpenAssistant"] if len(row["prompt"]) > 1]
    for name, rows in logs.items():
        rows = rows[:300] if quick else rows
        ours, stock = (
            whole_pairs(trainer, rows, tokenizer) for trainer in (with_plugins(DPOTrainer, "behavioral"), DPOTrainer)
        )
        yield report.row(
            *(BENCHMARK, f"both completions kept whole, {name} pairs", ours / len(rows), stock / len(rows)),
            ratio=ours / stock,
            gate=Gate("ours", ">=", 0.9),
            conditions=common | {"pairs": len(rows), "whole": [ours, stock], "max_length": MAX_LENGTH},
        )


def whole_pairs(trainer_class: Any, rows: list[dict[str, Any]], tokenizer: Any) -> int:
    """In how many pairs of the trainer's batches every token of both completions is one that is learned."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(MODEL),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                max_length=MAX_LENGTH,
                train_sampling_strategy="sequential",
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
            ),
            processing_class=tokenizer,
        )
        kept: list[tuple[int, int]] = []
        for batch in trainer.get_train_dataloader():
            chosen, rejected = batch["completion_mask"].sum(1).chunk(2)
            kept += zip(chosen.tolist(), rejected.tolist(), strict=True)
        # TRL's collator cuts; its data set has completions to their end.
        written = trainer.train_dataset
        lengths = zip(map(len, written["chosen_ids"]), map(len, written["rejected_ids"]), strict=True)
    return sum(seen == length for seen, length in zip(kept, lengths, strict=True))


def kto_batches(common: dict[str, Any]) -> list[Result]:
    found = {}
    for name, technique, processes in (("ours", ["behavioral"], None), ("stock", [], 4)):
        with tempfile.TemporaryDirectory() as folder:
            setting = tiny_setting("kto", per_device_train_batch_size=4, dataset_num_proc=processes)
            setting |= {"train_dataset": tiny_preferences(201, turns=2), "eval_dataset": None, "eval_strategy": "no"}
            trainer = tiny_trainer(Path(folder), *technique, **setting)
            batches = list(trainer.get_train_dataloader())
        mixed = [len(set(batch["label"].tolist())) == 2 for batch in batches]
        own = [_from_the_batch(batch) for batch in batches]
        found[name] = [sum(mixed) / len(mixed), sum(own) / len(own)]
    return [
        report.row(
            BENCHMARK, what, ours, stock, gate=Gate("ours", "=", 1), conditions=common | {"pairs": 201, "batch": 4}
        )
        for what, ours, stock in zip(
            ("KTO batches with both labels", "KTO batches with their own completions for the KL term"),
            *(found["ours"], found["stock"]),
            strict=True,
        )
    ]


def _from_the_batch(batch: dict[str, torch.Tensor]) -> bool:
    def completions(prefix: str) -> list[tuple[int, ...]]:
        rows = zip(batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"], strict=True)
        return [tuple(ids[mask == 1].tolist()) for ids, mask in rows]

    own = completions("")
    return len(own) > 1 and completions("KL_") == [own[-1], *own[:-1]]


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not available():
        yield LeftOut(f"all: the logs or the model are not in {DATA}; set FT_DATA")
        return
    torch.set_num_threads(1)
    disable_progress_bars()
    # That a reference is not the model is meant here.
    logging.getLogger("hf_ft_plugins").setLevel(logging.ERROR)
    common = report.conditions(asked.device)
    yield from speed(asked.device, *((2, 1, 256) if asked.quick else (4, 5, None)), common)
    yield from exactness(common)
    yield from noisy_logs(5, common)
    yield from kept_whole(asked.quick, common)
    yield from kto_batches(common)
    yield from conversion(100_000 if asked.quick else 1_000_000)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured))
