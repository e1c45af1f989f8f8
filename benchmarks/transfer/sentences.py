"""A few sentences a class, of film reviews or objective and subjective ones, and MiniLM-L6."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from benchmarks.data import DATA, MINILM, lines_of
from benchmarks.transfer.images import Examples


def minilm(seed: int, scratch: bool) -> Any:
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2)


FOLDERS = {"sentiment": "sentiment_mr", "subjectivity": "subjectivity"}


@cache
def encoded(name: str, part: str, length: int = 32) -> Examples:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    rows = list(lines_of(DATA / FOLDERS[name] / f"{part}.jsonl.gz"))
    texts = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=length, padding="max_length", return_tensors="pt"
    )
    return dict(texts), torch.tensor([row["label"] for row in rows])


def few_sentences(seed: int, name: str, each: int, quick: bool) -> dict[str, Examples]:
    random = np.random.default_rng(seed)
    labels = encoded(name, "train")[1].numpy()
    few = np.concatenate([random.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)])
    some = np.random.default_rng(0).permutation(1000)
    return {
        "train": chosen(encoded(name, "train"), few),
        "dev": chosen(encoded(name, "dev"), some[: 80 if quick else 200]),
        "test": chosen(encoded(name, "test"), some[: 160 if quick else 400]),
    }


def long_texts(seed: int) -> dict[str, Examples]:
    """48 film reviews, every one as long as 128 tokens with its padding, and some to test on."""
    order = np.random.default_rng(seed).permutation(1000)
    return {
        part: chosen(encoded("sentiment", part, 128), order[:count]) for part, count in (("train", 48), ("test", 100))
    }


def chosen(examples: Examples, rows: np.ndarray) -> Examples:
    inputs, labels = examples
    return {name: values[rows] for name, values in inputs.items()}, labels[rows]
