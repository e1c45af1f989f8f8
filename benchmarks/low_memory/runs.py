"""The model that memory and time are measured on, and a run of it, stock or ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_ft_plugins import with_plugins

LENGTH = 64
# 98 million parameters.
SIZES = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 256,
    "hidden_size": 160,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def language_model(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).to(dtype)


def texts(rows: int, vocabulary: int = 16384) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, vocabulary, (rows, LENGTH), generator=generator)
    return [{"input_ids": tokens, "labels": tokens} for tokens in drawn]


def trainer_of(
    model: Any, technique: str | None, device: str, *, steps: int, rows: Any, folder: str, **arguments: Any
) -> Trainer:
    """A stock trainer, or one with `low-memory`, that neither evaluates nor saves."""
    host = Trainer if technique is None else with_plugins(Trainer, technique)
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": 1,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return host(model, TrainingArguments(**settings | arguments), train_dataset=rows)


def train(
    technique: str | None, device: str, *, steps: int, around: Callable[[Any], Any] | None = None, **arguments: Any
) -> None:
    """A short run of the large model, after one of a small model in which code is loaded."""
    for changes in (SMALL, {}):
        model = language_model(**changes)
        rows = texts(steps, model.config.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(model, technique, device, steps=steps, rows=rows, folder=folder, **arguments)
            if around is None or changes:
                trainer.train()
            else:
                around(trainer)
