"""What `peft` gains over the peft library as it is: right answers, an exact merge, and quality for the same steps.

    python -m benchmarks.peft [--device cuda] [--quick] [--json] [--write]

- methods: `peft_methods.py`, every method on float32, int8 and NF4 weights; counts, ours over peft as is.
- merge: an NF4 language model (books, MedQuAD) with a trained LoRA; relative error of the merged model's logits, ours
  and that of peft's own `merge_and_unload`; 1/10 is the gate.
- quality: a pretrained MiniLM on film reviews (accuracy of the test set, in per cent) and a language model on medical
  answers (MedQuAD; loss of held-out answers, in nats a token), trained for the same steps on the same batches at each
  of the same learning rates, the best of which counts, for either by itself on the dev set. Baseline: peft's defaults
  (q and v, r = 8, alpha = 8). Without gates: our rank and scale on q and v (what the targets alone do), and on all
  linear layers, which is what somebody who knows peft writes by hand. Means over seeds; `noise` is twice the deviation
  of a mean's difference, from peft's defaults against themselves with other seeds (A/A). Gate: better after the noise.
- QLoRA, on a GPU: a Llama of 0.5B with random weights, `peft:quant=nf4` in bfloat16 against full AdamW in bfloat16:
  peak memory and tokens a second, stock against itself for the noise.

Real data and models are read from FT_DATA (default ../shared/data); without them these rows are left out. How near
memory is estimated: `python -m benchmarks.memory`.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks import report
from benchmarks.data import DATA, MINILM, has_reviews, lines_of, reviews
from benchmarks.peft_methods import methods
from benchmarks.report import Gate, LeftOut, Result, noise_of_mean, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.peft import Peft, logits_error, merge_exactly

BENCHMARK = "peft"
OURS, STOCK, SAME_SIZE = "auto", "q and v, peft's defaults", "q and v, our rank and scale"
AGAIN, ALL_LINEAR = f"{STOCK}, other seeds (A/A)", "all linear layers, our rank and scale"
OTHER_SEED = 1000  # added for the A/A
# At 3e-4 all arms learn less in so few steps.
RATES = (1e-3, 3e-3, 1e-2)
QUICK_RATES = (3e-3,)
BATCH = 16
BOOKS = DATA / "ckpt_books_lm"
MEDQUAD = DATA / "medquad"


@dataclass(frozen=True)
class Task:
    """What is learned; `higher`: whether a larger score is better."""

    name: str
    model: Callable[[], Any]
    train: list[Any]
    dev: list[Any]
    test: list[Any]
    collator: Any
    task_type: str
    higher: bool


def sentiment(rows: int) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)

    def read(part: str) -> list[Any]:
        return [
            {**tokenizer(one["text"], truncation=True, max_length=64), "labels": one["label"]} for one in reviews(part)
        ]

    return Task(
        "accuracy on film reviews, MiniLM",
        lambda: AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2),
        *(read("train"), read("dev")[:rows], read("test")[:rows]),
        DataCollatorWithPadding(tokenizer),
        *("SEQ_CLS", True),
    )


def answers(rows: int, length: int) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(BOOKS)

    def read(part: str, most: int) -> list[Any]:
        read = []
        for one, _ in zip(lines_of(MEDQUAD / f"{part}.jsonl.gz"), range(most), strict=False):
            prompt = tokenizer(one["question"] + "\n", add_special_tokens=False)["input_ids"][-length // 2 :]
            answer = tokenizer(one["answer"][: 6 * length], add_special_tokens=False)["input_ids"]
            ids = (prompt + answer)[:length]
            read.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": [-100] * len(prompt) + ids[len(prompt) :],
                }
            )
        return read

    return Task(
        "loss on medical answers, 12-layer LM",
        lambda: AutoModelForCausalLM.from_pretrained(BOOKS),
        *(read("train", 6000), read("dev", rows), read("test", rows)),
        DataCollatorForSeq2Seq(tokenizer),
        *("CAUSAL_LM", False),
    )


def args_of(folder: str, device: str, **changes: Any) -> TrainingArguments:
    settings = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 64, "lr_scheduler_type": "linear"}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    settings |= {"warmup_steps": 5, "use_cpu": device == "cpu", "dataloader_pin_memory": False}
    return TrainingArguments(output_dir=folder, **(settings | quiet | changes))


def run(task: Task, arm: str, rate: float, seed: int, steps: int, device: str) -> tuple[float, float]:
    """Scores on dev and test after training."""
    set_seed(seed)
    model = task.model()
    trainer_class: Any = Trainer
    if arm == OURS:
        trainer_class = with_plugins(Trainer, Peft())
    else:
        size: dict[str, Any] = {} if arm == STOCK else {"r": 16, "lora_alpha": 32}
        size |= {"target_modules": "all-linear"} if arm == ALL_LINEAR else {}
        model = get_peft_model(model, LoraConfig(task_type=task.task_type, **size))
    with tempfile.TemporaryDirectory() as folder:
        args = args_of(folder, device, learning_rate=rate, max_steps=steps, seed=seed)
        trainer = trainer_class(model, args, train_dataset=task.train, data_collator=task.collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return score(trainer, task, task.dev), score(trainer, task, task.test)


@torch.no_grad()
def score(trainer: Any, task: Task, rows: list[Any]) -> float:
    trainer.model.train(False)
    total, count = 0.0, 0
    for batch in trainer.get_eval_dataloader(rows):
        batch = trainer._prepare_inputs(batch)
        outputs = trainer.model(**batch)
        scored = (batch["labels"][..., 1:] != -100).sum() if not task.higher else torch.tensor(len(batch["labels"]))
        found = (outputs.logits.argmax(-1) == batch["labels"]).sum() if task.higher else outputs.loss * scored
        total, count = total + float(found), count + int(scored)
    return (100 if task.higher else 1) * total / count


def quality(
    task: Task, seeds: int, steps: int, rates: tuple[float, ...], device: str, common: dict[str, Any]
) -> Iterator[Result]:
    sign = 1 if task.higher else -1
    arms = {OURS: OURS, STOCK: STOCK, AGAIN: STOCK, SAME_SIZE: SAME_SIZE, ALL_LINEAR: ALL_LINEAR}
    scores: dict[str, dict[float, list[tuple[float, float]]]] = {arm: {rate: [] for rate in rates} for arm in arms}
    for seed in range(seeds):
        for rate in rates:
            for arm, kind in arms.items():
                own_seed = seed + OTHER_SEED * (arm == AGAIN)
                scores[arm][rate].append(run(task, kind, rate, own_seed, steps, device))
    tests, best = {}, {}
    for arm, by_rate in scores.items():
        best[arm] = max(rates, key=lambda rate: sign * statistics.mean(dev for dev, _ in by_rate[rate]))
        tests[arm] = [test for _, test in by_rate[best[arm]]]
    means = {arm: statistics.mean(found) for arm, found in tests.items()}
    noise = noise_of_mean(tests[STOCK], tests[AGAIN])
    more = {"seeds": seeds, "steps": steps, "rates": best, "test": tests}
    better = Gate("difference", ">" if task.higher else "<", 0)
    gates = {(AGAIN, STOCK): None, (OURS, STOCK): better, (OURS, SAME_SIZE): None, (OURS, ALL_LINEAR): None}
    for (arm, baseline), gate in gates.items():
        ratios = [one / other for one, other in zip(tests[arm], tests[baseline], strict=True)]
        yield report.row(
            *(BENCHMARK, f"{task.name}: {arm} against {baseline}", means[arm], means[baseline]),
            ratio=means[arm] / means[baseline],
            noise=noise / means[baseline],
            gate=gate,
            conditions=common | more | {"quartiles": quartiles(ratios)},
        )


def merge(steps: int, device: str, common: Any) -> Result:
    task = answers(64, 64)
    with tempfile.TemporaryDirectory() as folder:
        args = args_of(folder, device, learning_rate=1e-3, max_steps=steps)
        hosted = with_plugins(Trainer, Peft(quant="nf4"))
        trainer = hosted(task.model(), args, train_dataset=task.train, data_collator=task.collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = trainer.model.train(False)
        batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader(task.test))))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours = logits_error(model, merge_exactly(model), inputs)
        theirs = logits_error(model, copy.deepcopy(model).merge_and_unload(), inputs)
    return report.row(
        *(BENCHMARK, "relative error of merged NF4 logits, against merge_and_unload", ours, theirs),
        ratio=ours / theirs,
        gate=Gate("ratio", "<=", 0.1),
        conditions=common | {"steps": steps},
    )


def qlora(common: dict[str, Any]) -> Iterator[Result]:
    """Peak bytes and tokens a second of QLoRA and of full AdamW, both in bfloat16, on a Llama of 0.5B."""
    length, batch, steps = 1024, 8, 20
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, **heads, "vocab_size": 32000}
    rows = [{"input_ids": (ids := torch.randint(5, 32000, (length,))), "labels": ids} for _ in range(batch)]

    def measure(technique: list[Any]) -> tuple[float, float]:
        model = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=length)).to(torch.bfloat16)
        with tempfile.TemporaryDirectory() as folder:
            args = args_of(folder, "cuda", per_device_train_batch_size=batch, bf16=True, max_steps=steps)
            trainer = with_plugins(Trainer, *technique)(model, args, train_dataset=rows * steps)
            trainer.remove_callback(PrinterCallback)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            trainer.train()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated(), length * batch * steps / (time.perf_counter() - began)

    measure([])
    found = {name: measure(technique) for name, technique in (("a", []), ("ours", [Peft(quant="nf4")]), ("b", []))}
    for part, metric in enumerate(("peak bytes", "tokens a second")):
        first, again, ours = (found[name][part] for name in ("a", "b", "ours"))
        for what, value in (("full bf16 AdamW again (A/A)", again), ("QLoRA", ours)):
            yield report.row(
                *(BENCHMARK, f"{metric}, {what} against full bf16 AdamW, 0.5B", value, first),
                ratio=value / first,
                noise=abs(again / first - 1),
                conditions=common | {"length": length},
            )


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    warnings.simplefilter("ignore")
    # It tells of every product that int8's inputs are rounded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    common = report.conditions(asked.device)
    yield from methods(common)
    seeds, rates, steps = (2, QUICK_RATES, 20) if asked.quick else (3, RATES, 60)
    if BOOKS.is_dir() and MEDQUAD.is_dir():
        yield merge(steps, asked.device, common)
        task = answers(128, 64) if asked.quick else answers(512, 96)
        yield from quality(task, seeds, steps, rates, asked.device, common)
    else:
        yield LeftOut(f"merge and answers: they are not in {DATA}")
    if has_reviews():
        yield from quality(sentiment(200 if asked.quick else 1066), seeds, steps, rates, asked.device, common)
    else:
        yield LeftOut(f"film reviews: they are not in {DATA}")
    if asked.device == "cuda":
        yield from qlora(common)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured))
