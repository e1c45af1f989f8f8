"""Held-out accuracy of DPO on a noisy log: stock, the robust loss with one rate, `behavioral` with each pair's own.

The log is synthetic, because the truth must be known. An answer is eight words, each of a hidden worth; the better
answer is worth more. Users judge two answers by a vote (wrong one time in twenty), by ratings (one in four) or by
asking again and going on with the second (.42); one judgement in eight is followed by somebody else's vote. How often
each signal is wrong is told to nobody: `load_feedback` estimates it from those overlaps.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import report
from benchmarks.report import Gate, Result, noise_of_mean, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.behavioral import load_feedback

# How many pairs have each signal, and how often it is wrong.
SIGNALS = {"choice": (400, 0.05), "rating": (1200, 0.25), "regenerate-kept": (2400, 0.42)}
OVERLAP = 8
VOCABULARY, WORDS, HELD_OUT = 384, 8, 1000
STOCK, AGAIN, ONE_RATE, OURS = "stock", "stock, another order", "robust, one rate", "behavioral"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ ' ' + message['role'] + ' ' + message['content'] + ' end' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant' }}{% endif %}"
)


def _tokenizer() -> Any:
    words = ["pad", "user", "assistant", "end", "?", *(f"w{number}" for number in range(VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="pad", eos_token="end", unk_token="?")
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Truth:
    """What answers are really worth, by `seed`, and pairs of answers."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.worth = [self.draw.gauss(0, 1) for _ in range(VOCABULARY)]

    def pair(self) -> tuple[str, str]:
        """The better and the worse of two answers."""
        answers = sorted(
            ([self.draw.randrange(VOCABULARY) for _ in range(WORDS)] for _ in range(2)),
            key=lambda words: -sum(self.worth[word] for word in words),
        )
        better, worse = (" ".join(f"w{word}" for word in answer) for answer in answers)
        return better, worse


def write_log(path: Path, truth: Truth) -> None:
    """Messages and events in `behavioral`'s own format."""
    draw, lines, number = truth.draw, [], 0

    def act(about: str, kind: str, **more: Any) -> dict[str, Any]:
        user = f"user-{draw.randrange(2000)}"
        return {"id": f"e{len(lines)}", "table": "event", "user": user, "message_id": about, "type": kind} | more

    def vote(first: str, second: str, wrong: bool) -> dict[str, Any]:
        return act(first, "choice", value=second if wrong else first, candidates=[first, second])

    for signal, (pairs, rate) in SIGNALS.items():
        for _ in range(pairs):
            number += 1
            asked, good, bad = (f"{number}-{part}" for part in ("asked", "good", "bad"))
            for name, parent, role, text in zip(
                *((asked, good, bad), (None, asked, asked), ("user", "assistant", "assistant")),
                *((f"w{draw.randrange(VOCABULARY)}", *truth.pair()),),
                strict=True,
            ):
                message = {"table": "message", "id": name, "parent_id": parent, "role": role, "content": text}
                lines.append(message)
            kept, other = (bad, good) if draw.random() < rate else (good, bad)
            if signal == "choice":
                lines.append(vote(good, bad, kept == bad))
            elif signal == "rating":
                first = act(kept, "rating", value=5)
                lines += [first, first | {"id": f"{first['id']}-2", "message_id": other, "value": 1}]
            else:
                first = act(other, "regenerate", value=kept)
                lines += [first, first | {"id": f"{first['id']}-2", "message_id": kept, "type": "copy", "value": None}]
            if draw.randrange(OVERLAP) == 0:
                lines.append(vote(good, bad, draw.random() < SIGNALS["choice"][1]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _accuracy(how: str, train: Any, held_out: Any, seed: int) -> float:
    """Share of held-out pairs whose better answer DPO's reward prefers."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY + 5, pad_token_id=0, eos_token_id=3, **size))
    trainer_class = with_plugins(DPOTrainer, "behavioral") if how == OURS else DPOTrainer
    one_rate = {"loss_type": ["robust"], "label_smoothing": statistics.mean(train["behavior_eps"])}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=128,
                per_device_eval_batch_size=200,
                num_train_epochs=3,
                learning_rate=3e-3,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                seed=seed + 100 * (how == AGAIN),
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **(one_rate if how == ONE_RATE else {}),
            ),
            ref_model=LlamaForCausalLM(model.config),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=_tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.ref_model.load_state_dict(model.state_dict())
        trainer.train()
        return float(trainer.evaluate()["eval_rewards/accuracies"])


def noisy_logs(seeds: int, common: dict[str, Any]) -> list[Result]:
    """Ours against stock, and against the robust loss with one rate: the means of the pairs' estimated ones."""
    accuracy: dict[str, list[float]] = {how: [] for how in (STOCK, AGAIN, ONE_RATE, OURS)}
    for seed in range(seeds):
        truth = Truth(seed)
        with tempfile.TemporaryDirectory() as folder:
            write_log(Path(folder, "log.jsonl"), truth)
            train = load_feedback(Path(folder, "log.jsonl"), eval_share=0.0)
        rows = []
        for _ in range(HELD_OUT):
            better, worse = ([{"role": "assistant", "content": text}] for text in truth.pair())
            asked = [{"role": "user", "content": f"w{truth.draw.randrange(VOCABULARY)}"}]
            rows.append({"prompt": asked, "chosen": better, "rejected": worse})
        for how, found in accuracy.items():
            found.append(_accuracy(how, train, Dataset.from_list(rows), seed))
    means = {how: 100 * statistics.mean(values) for how, values in accuracy.items()}
    noise = 100 * noise_of_mean(accuracy[STOCK], accuracy[AGAIN])
    what = "held-out accuracy, noisy log (%)"
    more = common | {"seeds": seeds}
    results = [
        report.row(
            *("behavioral", f"{what}: {AGAIN}, against {STOCK} (A/A)", means[AGAIN], means[STOCK]),
            ratio=means[AGAIN] / means[STOCK],
            noise=noise / means[STOCK],
            conditions=more,
        )
    ]
    for other, points in ((STOCK, 3.0), (ONE_RATE, 1.5)):
        gains = [100 * (ours - theirs) for ours, theirs in zip(accuracy[OURS], accuracy[other], strict=True)]
        ratios = [ours / theirs for ours, theirs in zip(accuracy[OURS], accuracy[other], strict=True)]
        results.append(
            report.row(
                *("behavioral", f"{what}: {OURS} against {other}", means[OURS], means[other]),
                ratio=means[OURS] / means[other],
                noise=noise / means[other],
                gate=Gate("difference", ">=", points),
                conditions=more | {"each_seed": [round(one, 1) for one in gains], "quartiles": quartiles(ratios)},
            )
        )
    return results
