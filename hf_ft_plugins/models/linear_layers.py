"""The linear layers of a model's blocks: what adapters go to, and what is quantised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .stacks import text_stacks


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
    seen: set[int] = set()
    for stack in text_stacks(model):
        for listed in stack.paths:
            for inside, module in model.get_submodule(listed).named_modules():
                if is_linear(module) and id(module) not in seen:
                    seen.add(id(module))
                    yield f"{listed}.{inside}", module
