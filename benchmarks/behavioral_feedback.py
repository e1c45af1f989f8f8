"""Held-out preference accuracy of a small pretrained model after DPO on what people really said of answers."""

from __future__ import annotations

import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import report
from benchmarks.behavioral_logs import MODEL, SMALLER, hh_pairs, oasst_pairs
from benchmarks.report import Gate, Result, noise_of_mean, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.behavioral.fit_to_length import Fitter, fitted_dataset

MAX_LENGTH, LEARNING_RATE = 256, 1e-4
BEFORE, STOCK, AGAIN, OURS = "the model before", "stock", "stock, another order (A/A)", "behavioral"


def _split(seed: int, trained: int, held_out: int, tokenizer: Any) -> tuple[Any, Any]:
    """Pairs of both logs alike, whole conversations on one side; held-out ones fit `MAX_LENGTH` whole."""
    train, rest = [], []
    for rows in (oasst_pairs(), hh_pairs()):
        names = sorted({row["conversation"] for row in rows})
        random.Random(seed).shuffle(names)
        kept = set(names[: len(names) // 4])
        random.Random(seed).shuffle(rows)
        rest += [row for row in rows if row["conversation"] in kept][: 2 * held_out]
        train += [row for row in rows if row["conversation"] not in kept][: trained // 2]
    columns = ("prompt", "chosen", "rejected")
    train, rest = (Dataset.from_list([{name: row[name] for name in columns} for row in rows]) for rows in (train, rest))
    return train, fitted_dataset(rest, Fitter(tokenizer, "dpo", MAX_LENGTH))[0].shuffle(seed).select(range(held_out))


def _accuracies(
    how: str, model: Path, data: tuple[Any, Any], tokenizer: Any, seed: int, device: str
) -> tuple[float, float]:
    """After training: by DPO's reward; before it: by the model's own log-probability of a token, the larger one."""
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


def feedback(device: str, quick: bool, common: dict[str, Any]) -> list[Result]:
    """Against the model before it was trained, and against stock DPO on the same pairs; quick: a smaller model."""
    model, seeds, trained, held_out = (SMALLER, 2, 200, 200) if quick else (MODEL, 4, 400, 400)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = AutoTokenizer.from_pretrained(MODEL).chat_template
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found: dict[str, list[float]] = {how: [] for how in (BEFORE, STOCK, AGAIN, OURS)}
    for seed in range(seeds):
        data = _split(seed, trained, held_out, tokenizer)
        for how in (STOCK, AGAIN, OURS):
            before, after = _accuracies(how, model, data, tokenizer, seed, device)
            found[how].append(100 * after)
            if how == STOCK:
                found[BEFORE].append(100 * before)
    noise = noise_of_mean(found[STOCK], found[AGAIN])
    means = {how: statistics.mean(values) for how, values in found.items()}
    more = {"model": model.name, "pairs": trained, "held_out": held_out, "max_length": MAX_LENGTH, "seeds": seeds}
    more["each_seed"] = {how: [round(one, 1) for one in values] for how, values in found.items()}

    def row(how: str, other: str, gate: Gate | None) -> Result:
        ratios = [one / two for one, two in zip(found[how], found[other], strict=True)]
        return report.row(
            *("behavioral", f"held-out accuracy, real feedback (%): {how} against {other}", means[how], means[other]),
            ratio=means[how] / means[other],
            noise=noise / means[other],
            gate=gate,
            conditions=common | more | {"quartiles": quartiles(ratios)},
        )

    above = Gate("difference", ">", 0)
    return [row(AGAIN, STOCK, None), row(OURS, BEFORE, above), row(OURS, STOCK, above)]
