"""The sequences of stages that are measured: permuted digits, text of a language model, one encoder's sentences."""

from __future__ import annotations

import functools
import gzip
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.data import DATA, MINILM, lines_of

BOOKS = DATA / "ckpt_books_lm"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class StageRows:
    """One stage's data: what it trains on, and what it is measured on."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Task:
    """A sequence of stages.

    Attributes:
        name: in the rows' metrics.
        stages: in order.
        model: makes the model that the first stage starts from, or, of a folder, the one that a later one does.
        metric, greater: what is measured, and whether more is better.
        arguments: of `TrainingArguments`, the same for every stage.
        more: further arguments of Trainer.
    """

    name: str
    stages: tuple[StageRows, ...]
    model: Callable[[str | None], Any]
    metric: str
    greater: bool
    arguments: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


# ---- digits ----


class DigitsConfig(PretrainedConfig):
    """Of a perceptron of two hidden layers for 64 pixels."""

    model_type = "ft-digits"
    width: int = 256
    num_labels: int = 10


class DigitsModel(PreTrainedModel):
    """It knows a digit from its 64 pixels."""

    config_class = DigitsConfig

    def __init__(self, config: DigitsConfig) -> None:
        super().__init__(config)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, config.width),
            torch.nn.ReLU(),
            torch.nn.Linear(config.width, config.width),
            torch.nn.ReLU(),
            torch.nn.Linear(config.width, 10),
        )
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        # torch's own, made by the layers themselves.
        pass

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(pixels.to(self.layers[0].weight.dtype)).float()
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


ONE_EPOCH = 38  # steps, of 1,197 digits in batches of 32


def permuted_digits(seed: int, steps: int) -> Task:
    """Three stages, in each the pixels in another order; the labels stay."""
    from sklearn.datasets import load_digits

    random = np.random.default_rng(seed)
    scans, labels = load_digits(return_X_y=True)
    order = random.permutation(len(labels))
    scans, labels = (scans[order] / 16).astype(np.float32), labels[order]

    def stage(number: int) -> StageRows:
        pixels = scans[:, random.permutation(64)]
        rows = [
            {"pixels": torch.tensor(scan), "labels": int(label)} for scan, label in zip(pixels, labels, strict=True)
        ]
        return StageRows(f"order{number + 1}", rows[:1197], rows[1197:])

    return Task(
        "permuted digits",
        tuple(stage(number) for number in range(3)),
        lambda start: DigitsModel(DigitsConfig()) if start is None else DigitsModel.from_pretrained(start),
        *("accuracy", True),
        {"per_device_train_batch_size": 32, "num_train_epochs": steps / ONE_EPOCH, "learning_rate": 1e-3},
        {"compute_metrics": accuracy},
    )


# ---- text ----

LENGTH = 64


def text_to_answers(seed: int, steps: int) -> Task:
    """A small language model of books: general text, medical text, medical questions and answers."""
    tokenizer = _tokenizer(str(BOOKS))
    batch, tests = 8, 100
    stages = []
    for name, made in (("general", general_text), ("medical", medical_text), ("answers", medical_answers)):
        train = made("train", batch * steps)
        order = np.random.default_rng(seed).permutation(len(train))
        stages.append(StageRows(name, [train[index] for index in order], made("dev", tests)))
    return Task(
        "text to answers",
        tuple(stages),
        lambda start: AutoModelForCausalLM.from_pretrained(start or BOOKS),
        *("loss", False),
        {
            "per_device_train_batch_size": batch,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": steps // 10,
        },
        {"data_collator": _Padded(tokenizer.pad_token_id or 0)},
    )


@functools.cache
def _tokenizer(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def general_text(part: str, count: int) -> Rows:
    """Wikipedia articles, which the model has been trained on before: pieces of LENGTH tokens."""
    name = {"train": "train", "dev": "validation"}[part]
    with gzip.open(DATA / "wikitext2" / f"wiki.{name}.tokens.txt.gz", "rt", encoding="utf-8") as lines:
        return _pieces((line for line in lines if line.strip()), count)


def medical_text(part: str, count: int) -> Rows:
    """Medical answers as running text; of the diseases that `medical_answers` leaves."""
    return _pieces((line["answer"] for line in _medical(part, True)), count)


def medical_answers(part: str, count: int) -> Rows:
    """Medical questions, not learned, and the beginning of the answers."""
    tokenizer = _tokenizer(str(BOOKS))
    rows: Rows = []
    for line in _medical(part, False):
        prompt = tokenizer(f"Question: {line['question']}\nAnswer:")["input_ids"]
        ids = (prompt + tokenizer(" " + line["answer"], add_special_tokens=False)["input_ids"])[:LENGTH]
        if len(prompt) < LENGTH // 2:
            rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
        if len(rows) == count:
            break
    return rows


def _medical(part: str, first: bool) -> list[Any]:
    lines = list(lines_of(DATA / "medquad" / f"{part}.jsonl.gz"))
    diseases = sorted({line["focus"] for line in lines})
    half = set(diseases[::2] if first else diseases[1::2])
    chosen = [line for line in lines if line["focus"] in half]
    return [chosen[index] for index in np.random.default_rng(0).permutation(len(chosen))]


def _pieces(texts: Any, count: int) -> Rows:
    tokenizer, tokens = _tokenizer(str(BOOKS)), []
    for text in texts:
        tokens += tokenizer(text)["input_ids"]
        if len(tokens) >= count * LENGTH:
            break
    pieces = [tokens[start : start + LENGTH] for start in range(0, count * LENGTH, LENGTH)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) == LENGTH]


@dataclass(frozen=True)
class _Padded:
    """Rows of token ids and labels, padded to the longest."""

    pad: int

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([list(row[name]) + [value] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        return {"input_ids": filled("input_ids", self.pad), "labels": filled("labels", -100), "attention_mask": mask}


# ---- sentences ----

QUESTION_TYPES = 8


def sentences(seed: int, steps: int) -> Task:
    """A pretrained encoder with one head of all labels: sentiment, subjectivity, the type of a medical question."""
    tokenizer = _tokenizer(str(MINILM))
    batch, tests = 16, 200
    types = [name for name, _ in Counter(line["qtype"] for line in _questions("train")).most_common(QUESTION_TYPES)]
    names = ["negative", "positive", "objective", "subjective", *types]

    def rows(name: str, texts: list[tuple[str, int]], count: int, seed: int) -> Rows:
        order = np.random.default_rng(seed).permutation(len(texts))[:count]
        # Reviews are in two of the stages: which question is asked has to be told.
        chosen = [texts[index] for index in order]
        return [{**tokenizer(name, text, truncation=True, max_length=32), "labels": label} for text, label in chosen]

    def labelled(part: str) -> dict[str, list[tuple[str, int]]]:
        return {
            "sentiment": [(row["text"], row["label"]) for row in lines_of(DATA / "sentiment_mr" / f"{part}.jsonl.gz")],
            "subjectivity": [
                (row["text"], 2 + row["label"]) for row in lines_of(DATA / "subjectivity" / f"{part}.jsonl.gz")
            ],
            "questions": [
                (row["question"], 4 + types.index(row["qtype"])) for row in _questions(part) if row["qtype"] in types
            ],
        }

    train, dev = labelled("train"), labelled("dev")

    def stage(name: str) -> StageRows:
        return StageRows(name, rows(name, train[name], batch * steps, seed), rows(name, dev[name], tests, 0))

    return Task(
        "sentences",
        tuple(
            StageRows(name, rows(name, train[name], batch * steps, seed), rows(name, dev[name], tests, 0))
            for name in train
        ),
        lambda start: _encoder(start, names),
        *("accuracy", True),
        {
            "per_device_train_batch_size": batch,
            "num_train_epochs": 1,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": steps // 10,
        },
        {"compute_metrics": accuracy, "data_collator": DataCollatorWithPadding(tokenizer)},
    )


def _encoder(start: str | None, names: list[str]) -> Any:
    """MiniLM, of which the upper third learns: one sentiment stage takes all that learns, and nothing else is left."""
    numbers = {name: number for number, name in enumerate(names)}
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    model = AutoModelForSequenceClassification.from_pretrained(start or MINILM, **labels)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:4]):
        part.requires_grad_(False)
    return model


def _questions(part: str) -> list[Any]:
    return list(lines_of(DATA / "medquad" / f"{part}.jsonl.gz"))


# Each makes the task of a seed, of about so many steps a stage.
TASKS: dict[str, Callable[[int, int], Task]] = {
    "digits": permuted_digits,
    "text": text_to_answers,
    "sentences": sentences,
}


def has_data() -> bool:
    """Whether the texts and checkpoints are there."""
    return all((DATA / name).is_dir() for name in ("medquad", "wikitext2", "sentiment_mr", "subjectivity")) and (
        BOOKS.is_dir() and MINILM.is_dir()
    )
