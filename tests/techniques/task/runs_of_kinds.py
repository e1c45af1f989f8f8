"""Small data sets, models and trainers of every kind of labels."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from hf_ft_plugins.testing import LENGTH, VOCABULARY
from hf_ft_plugins.testing import tiny_trainer as plain_trainer

KINDS = ("single_label", "multi_label", "regression", "token")


def rows_of(kind, size, seed=0):
    """`size` rows whose labels of this kind follow from their tokens, mostly."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, (size, LENGTH))
    # One in eight is wrong, so that nothing can be sure.
    high = (tokens >= VOCABULARY // 2) ^ (random.random(tokens.shape) < 1 / 8)
    labels, feature = {
        "single_label": (high[:, :2].sum(axis=1), ClassLabel(names=["none", "one", "both"])),
        "multi_label": (high[:, :3].astype(float), List(Value("float32"), length=3)),
        "regression": (tokens[:, 0] / VOCABULARY, Value("float32")),
        "token": (np.where(np.arange(LENGTH) % 4 == 3, -100, high), List(Value("int64"))),
    }[kind]
    features = {"input_ids": List(Value("int64")), "labels": feature}
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()}, Features(features))


def model_of(kind, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes, **changes)
    return (BertForTokenClassification if kind == "token" else BertForSequenceClassification)(config)


def tiny_trainer(folder, *techniques, kind="single_label", **changes):
    setting = {
        "model": model_of(kind),
        "train_dataset": rows_of(kind, 48),
        "eval_dataset": rows_of(kind, 48, seed=1),
        "save_strategy": "no",
    }
    return plain_trainer(folder, *techniques, **(setting | changes))
