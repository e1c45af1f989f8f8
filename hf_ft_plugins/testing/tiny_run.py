"""A tiny classifier, its data, and a trainer of it: no network, no GPU, half a second a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from ..host.trainer import with_plugins
from ..technique import Technique
from .example import NOT_ARGUMENTS

VOCABULARY = 32
LENGTH = 8


def tiny_dataset(size: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of eight random tokens, labelled 1 when the first token is from the upper half: learnable, not trivial.

    Returns:
        `size` dicts of `input_ids` (int64 [8]), `attention_mask` (int64 [8]) and `labels` (int 0 or 1).
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(size):
        tokens = [generator.randrange(VOCABULARY) for _ in range(LENGTH)]
        rows.append(
            {
                "input_ids": torch.tensor(tokens),
                "attention_mask": torch.ones(LENGTH, dtype=torch.long),
                "labels": int(tokens[0] >= VOCABULARY // 2),
            }
        )
    return rows


def tiny_model(seed: int = 0) -> BertForSequenceClassification:
    """A BERT classifier of three layers, hidden size 16, with dropout, about 8,000 parameters, freshly initialised."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def tiny_trainer(
    output_dir: Path,
    *techniques: Technique | str,
    trainer_class: type = Trainer,
    args_class: type = TrainingArguments,
    **changes: Any,
) -> Trainer:
    """A trainer of the tiny model: 14 steps of 2 x 2 examples (6 steps an epoch), evaluated every 3, saved every 2.

    Args:
        output_dir: where its checkpoints go.
        techniques: what it is made a host of; none leaves the class as it is.
        trainer_class, args_class: the trainer's class to start from, and the class of its arguments.
        changes: overrides of the arguments, or of the trainer's own arguments `model`, `callbacks`, `train_dataset`,
            `eval_dataset`, `data_collator`, `processing_class`, `compute_metrics`, `ref_model` and `model_init`.
    """
    # A different number of threads changes the last bits of a sum.
    torch.set_num_threads(1)
    own = {"model": None, "train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(12, seed=1)}
    for name in NOT_ARGUMENTS:
        if name in changes:
            own[name] = changes.pop(name)
    if own["model"] is None and "model_init" not in own:
        own["model"] = tiny_model()
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 14,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    host = with_plugins(trainer_class, *techniques) if techniques else trainer_class
    return host(args=args_class(**(settings | changes)), **own)
