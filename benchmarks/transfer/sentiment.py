"""A few film-review sentences a class, and MiniLM-L6."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from benchmarks.data import MINILM, reviews
from benchmarks.transfer.images import Examples


def minilm(seed: int, scratch: bool) -> Any:
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2)


@cache
def encoded_reviews(part: str) -> Examples:
    tokenizer, rows = AutoTokenizer.from_pretrained(MINILM), reviews(part)
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=32, padding="max_length", return_tensors="pt"
    )
    return dict(encoded), torch.tensor([row["label"] for row in rows])


def few_reviews(seed: int, each: int, quick: bool) -> dict[str, Examples]:
    random = np.random.default_rng(seed)
    labels = encoded_reviews("train")[1].numpy()
    few = np.concatenate([random.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)])
    some = np.random.default_rng(0).permutation(1000)
    return {
        "train": chosen(encoded_reviews("train"), few),
        "dev": chosen(encoded_reviews("dev"), some[: 80 if quick else 200]),
        "test": chosen(encoded_reviews("test"), some[: 160 if quick else 400]),
    }


def chosen(examples: Examples, rows: np.ndarray) -> Examples:
    inputs, labels = examples
    return {name: values[rows] for name, values in inputs.items()}, labels[rows]
