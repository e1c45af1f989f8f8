"""Runs with penalties alone in a Trainer, and under the host: set-ups of their tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ft_plugins.technique import Technique, option
from hf_ft_plugins.techniques.sequential.penalty_callback import PenaltyCallback
from hf_ft_plugins.testing import tiny_dataset, tiny_trainer

RUN: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no"}


def language_model(seed=0):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **size))


def texts():
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_dataset()]


def earlier_batches(seed=5):
    rows = tiny_dataset(8, seed=seed)
    ids = torch.stack([row["input_ids"] for row in rows])
    return [{"input_ids": ids[start : start + 4], "labels": ids[start : start + 4].clone()} for start in range(0, 8, 4)]


def alone(folder: Path, *, callbacks=(), model=None, penalties=None, **changes):
    """A trainer of the small language model, with a `PenaltyCallback` of these options, without the host."""
    callback = PenaltyCallback(earlier_batches=earlier_batches, **(penalties or {}))
    trainer = tiny_trainer(
        folder,
        model=language_model() if model is None else model,
        train_dataset=texts(),
        eval_dataset=texts()[:4],
        callbacks=[callback, *callbacks],
        **changes,
    )
    callback.set_trainer(trainer)
    return trainer


@dataclass(frozen=True, kw_only=True)
class Penalised(Technique):
    """What `sequential` does with the callback, and nothing else."""

    name: ClassVar[str] = "penalised"
    summary: ClassVar[str] = "penalties alone"
    l2sp: float = option(0.0, help="a weight")
    ewc: float = option(0.0, help="a weight")

    def ft_callbacks(self) -> list[Any]:
        return [PenaltyCallback(l2sp=self.l2sp, ewc=self.ewc, fisher_rows=6, earlier_batches=earlier_batches)]


def hosted(folder: Path, *, callbacks=(), model=None, l2sp=0.0, ewc=0.0, **changes):
    return tiny_trainer(
        folder,
        Penalised(l2sp=l2sp, ewc=ewc),
        model=language_model() if model is None else model,
        train_dataset=texts(),
        eval_dataset=texts()[:4],
        callbacks=list(callbacks),
        **changes,
    )


def weights(trainer):
    named = {name: one.detach() for name, one in trainer.model.named_parameters()}
    return {name: (one.full_tensor() if hasattr(one, "full_tensor") else one).clone() for name, one in named.items()}


def largest(first, second):
    return max(float((one.double() - second[name].double()).abs().max()) for name, one in first.items())
