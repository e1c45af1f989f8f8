"""The linear layers of a model's blocks: what adapters go to, and what is quantised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .inputs import bare
from .stacks import Stack, all_stacks, text_stacks
from .text_part import text_config

ROUTER = re.compile(r"(^|_)(router|gate|gating)$")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def is_linear(module: Any) -> bool:
    """`nn.Linear`, transformers' `Conv1D` and bitsandbytes' layers, which peft's methods know."""
    from transformers.pytorch_utils import Conv1D

    # That of nn.MultiheadAttention is called by its weight, past an adapter.
    direct = isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    return isinstance(module, torch.nn.Linear | Conv1D) and not direct


def linear_layers_of_blocks(model: Any) -> Iterator[tuple[str, Any]]:
    """Path and module of each linear layer in the blocks that the text goes through (of a model without text, in all
    blocks): no head, no embeddings, no projector or tower of another modality. What hangs in several places comes once.
    """
    yield from _linear_layers(model, text_stacks(model))


def _linear_layers(model: Any, stacks: Iterable[Stack]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for stack in stacks:
        for listed in stack.paths:
            for inside, module in model.get_submodule(listed).named_modules():
                if is_linear(module) and id(module) not in seen:
                    seen.add(id(module))
                    yield f"{listed}.{inside}", module


def is_router(model: Any, path: str, layer: Any) -> bool:
    """Whether a linear layer chooses among experts, by its name and the number of its outputs."""
    text = text_config(model)
    experts = {getattr(text, name, None) for name in EXPERTS} - {None} | {1}
    return any(map(ROUTER.search, path.split("."))) and getattr(layer, "out_features", None) in experts


def matrices_of_blocks(model: Any) -> dict[int, str]:
    """Names, by id, of the weights of all linear layers of the model's blocks, towers of other modalities included: no
    embeddings, head, router of experts, projector, nor what has been quantised.
    """
    base = bare(model)
    layers = _linear_layers(base, all_stacks(base))
    return {
        id(layer.weight): f"{path}.weight"
        for path, layer in layers
        if layer.weight.ndim == 2 and layer.weight.is_floating_point() and not is_router(base, path, layer)
    }
