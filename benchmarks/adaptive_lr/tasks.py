"""Data with wrong labels, and the networks that learn them: scikit-learn's digits, and film reviews."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    default_data_collator,
)

from benchmarks.data import MINILM, reviews


@dataclass(frozen=True)
class Task:
    """One seed's data and network; `test` is already collated."""

    new_model: Callable[[], torch.nn.Module]
    collate: Callable[[list[Any]], dict[str, Any]]
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, torch.Tensor]]


def with_wrong_labels(labels: np.ndarray, share: float, classes: int, random: np.random.Generator) -> np.ndarray:
    wrong = random.random(len(labels)) < share
    return np.where(wrong, (labels + random.integers(1, classes, len(labels))) % classes, labels)


class Perceptron(torch.nn.Module):
    """Two hidden layers, large enough to learn 300 wrong labels by heart."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        )

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def digits(seed: int, *, noisy_dev: bool) -> Task:
    random = np.random.default_rng(seed)
    scans, labels = load_digits(return_X_y=True)
    order = random.permutation(len(labels))
    scans, labels = scans[order] / 16, labels[order]
    train, dev, test = slice(0, 300), slice(300, 600), slice(600, None)
    noisy = with_wrong_labels(labels, 0.4, 10, random)

    def rows(part: slice, part_labels: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"pixels": torch.tensor(scan, dtype=torch.float32), "labels": int(label)}
            for scan, label in zip(scans[part], part_labels[part], strict=True)
        ]

    return Task(
        new_model=Perceptron,
        collate=default_data_collator,
        train=rows(train, noisy),
        dev=rows(dev, noisy if noisy_dev else labels),
        test=[default_data_collator(rows(test, labels))],
    )


def sentiment(seed: int, *, train: int, dev: int, test: int, max_length: int, wrong: float) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    collate = DataCollatorWithPadding(tokenizer)

    def rows(part: str, count: int, wrong: float) -> list[dict[str, Any]]:
        examples, random = reviews(part), np.random.default_rng(seed)
        chosen = random.permutation(len(examples))[:count]
        texts = [examples[index]["text"] for index in chosen]
        labels = np.array([examples[index]["label"] for index in chosen])
        encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        noisy = with_wrong_labels(labels, wrong, 2, random)
        return [{"input_ids": ids, "labels": int(label)} for ids, label in zip(encoded, noisy, strict=True)]

    def by_length(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(examples, key=lambda example: len(example["input_ids"]))

    both = rows("train", train + dev, wrong)
    tested = by_length(rows("test", test, 0))
    return Task(
        new_model=lambda: AutoModelForSequenceClassification.from_pretrained(MINILM, dtype=torch.float32),
        collate=collate,
        train=both[:train],
        dev=by_length(both[train:]),
        test=[collate(tested[start : start + 50]) for start in range(0, len(tested), 50)],
    )
