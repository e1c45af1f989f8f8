"""What `behavioral` promises, on real preferences (OpenAssistant, Anthropic) and a pretrained Llama of 5.7 M weights.

    python -m benchmarks.behavioral [--device cuda] [--quick] [--json]

Needs the folder FT_DATA (default ../shared/data).

- pairs a second: one pass over the same batches, `baseline` stock; CPU seconds (`--device cuda`: seconds). `ratio` is
  the median over batches, `noise` that of stock against itself; stock on batches of like lengths is in the conditions.
- kept whole: share of the logs' pairs both of whose completions the trainer sees to their end at 1,024 tokens.
- KTO: share of batches from paired data with both labels, and of those whose KL term is estimated from the batch's own
  completions, each with another prompt; stock prepares its data in four processes.
- exactness: relative differences from stock's rows and from sums by hand; `baseline` a control that must be above.
- noisy log: share of clean held-out pairs that the trained model orders rightly; `noise` the deviation, over seeds, of
  stock against itself on another order of the data. `behavioral_noise.py` says what the log is.
- real feedback: the same, of what people really said, after one pass; quick: on a Llama of 260 k weights.
- conversion: events of a synthetic log a second, and the memory that it takes.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer

from benchmarks.behavioral_conversion import conversion
from benchmarks.behavioral_exactness import exactness
from benchmarks.behavioral_feedback import feedback
from benchmarks.behavioral_logs import MODEL, available, hh_pairs, oasst_pairs
from benchmarks.behavioral_noise import noisy_logs
from benchmarks.behavioral_speed import speed
from benchmarks.data import DATA
from benchmarks.report import Result, arguments, conditions, show
from hf_ft_plugins.techniques.behavioral.fit_to_length import TRIMMED, WHOLE, Fitter, fitted_dataset
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

BENCHMARK = "behavioral"
MAX_LENGTH = 1024


def kept_whole(common: dict[str, Any]) -> list[Result]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    logs = {"OpenAssistant": oasst_pairs(), "OpenAssistant, several turns": [], "Anthropic's": hh_pairs()}
    logs["OpenAssistant, several turns"] = [row for row in logs["OpenAssistant"] if len(row["prompt"]) > 1]
    results = []
    for name, rows in logs.items():
        counts = fitted_dataset(Dataset.from_list(rows), Fitter(tokenizer, "dpo", MAX_LENGTH))[1]
        stock, ours = counts[WHOLE] / len(rows), (counts[WHOLE] + counts[TRIMMED]) / len(rows)
        what = f"both completions kept whole, {name} pairs"
        more = {"pairs": len(rows), "counts": dict(counts)}
        results.append(Result(BENCHMARK, what, ours, stock, ours / stock, None, ">= 0.9", ours >= 0.9, common | more))
    return results


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
        Result(BENCHMARK, what, ours, stock, None, None, "1.0", ours == 1.0, common | {"pairs": 201, "batch": 4})
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


def main() -> None:
    args = arguments(__doc__ or "")
    if not available():
        print(f"skipped: the logs or the model are not in {DATA}; set FT_DATA.")
        return
    torch.set_num_threads(1)
    disable_progress_bars()
    # That a reference is not the model is meant here.
    logging.getLogger("hf_ft_plugins").setLevel(logging.ERROR)
    common = conditions(args.device)
    results = speed(args.device, *((2, 1, 256) if args.quick else (4, 3, None)), common)
    results += exactness(common)
    results += noisy_logs(5, common)
    results += feedback(args.device, args.quick, common)
    results += kept_whole(common)
    results += kto_batches(common)
    results.append(conversion(100_000 if args.quick else 1_000_000))
    show(results, as_json=args.json)


if __name__ == "__main__":
    main()
