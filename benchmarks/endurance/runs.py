"""The runs that are tried: the kit's examples of the built-in techniques, alone and together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import GradientState
from transformers import T5ForConditionalGeneration, Trainer

from benchmarks.endurance.worlds import World
from hf_ft_plugins.registry import DISTRIBUTION, offers
from hf_ft_plugins.shards import put_in_pieces, whole_tensor
from hf_ft_plugins.testing import example_of, outcome, setting_of, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_llama

NAMES = tuple(offer.name for offer in offers() if offer.distribution == DISTRIBUTION)


def build(folder: Path, names: Sequence[str], world: World, **changes: Any) -> Any:
    """A new trainer with these techniques at their examples' settings."""
    # What was cut off in the middle of an accumulation is known to accelerate's state of the whole process.
    GradientState()._set_sync_gradients(True)
    examples = [example_of(name) for name in names]
    setting = setting_of(*examples)
    if world.in_pieces and isinstance(setting.get("model"), T5ForConditionalGeneration):
        setting |= causal(setting)
    model = setting.get("model")
    arguments = world.arguments(tiny_model() if model is None else model)
    trainer_class = setting.pop("trainer_class", Trainer)
    techniques = [example.technique for example in examples]
    return tiny_trainer(folder, *techniques, trainer_class=trainer_class, **(arguments | setting | changes))


def causal(setting: dict[str, Any]) -> dict[str, Any]:
    """The pairs of a T5 for a Llama: FSDP2 refuses an embedding that encoder and decoder share, in stock runs, too."""
    joined = {
        part: [
            {"input_ids": given + target, "labels": [-100] * len(given) + target}
            for row in setting[part]
            for given, target in [(row["input_ids"], row["labels"])]
        ]
        for part in ("train_dataset", "eval_dataset")
    }
    return {**joined, "model": tiny_llama(), "data_collator": None}


def acted(trainer: Any, names: Sequence[str]) -> bool:
    """Whether the effect of each technique shows."""
    return all(example_of(name).acted(example_of(name).technique, trainer) for name in names)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights, whole; every rank has to ask."""
    put_in_pieces(trainer.model)
    return {name: whole_tensor(tensor.detach()).clone() for name, tensor in trainer.model.state_dict().items()}


def digest(trainer: Any) -> str:
    """Of all that two equal runs have in common (`outcome`); every rank has to ask."""
    found = outcome(trainer) | {"weights": weights(trainer)}
    total = hashlib.sha256()
    _add(total, found)
    return total.hexdigest()


def _add(total: Any, value: Any) -> None:
    if isinstance(value, dict):
        # A run that was resumed has read some of them in another order.
        for key, one in sorted(value.items(), key=lambda item: repr(item[0])):
            total.update(repr(key).encode())
            _add(total, one)
    elif isinstance(value, list | tuple):
        for one in value:
            _add(total, one)
    elif isinstance(value, torch.Tensor):
        whole = whole_tensor(value.detach()).contiguous()
        total.update(str(whole.dtype).encode() + whole.view(-1).view(torch.uint8).numpy().tobytes())
    else:
        total.update(repr(value).encode())
