"""What a parameter takes while it is trained: its weight, its optimizer's state and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...shards import own_part
from .fused_backward import FusedBackward

BYTES_LEARNT = 12  # of a weight: its gradient and AdamW's two moments, in float32
LITTLE = 0.1  # of the model's bytes


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """Allocated bytes of weights, state and gradients over the number of weights, after at least one step.

    A gradient counts as large as its weight, unless the optimizer is a `FusedBackward` that frees each in the backward
    pass. Nothing else is in it: no activations, and no temporary memory of a step.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    frees = isinstance(optimizer, FusedBackward) and optimizer.in_backward
    given = {id(one): one for group in optimizer.param_groups for one in group["params"]}.values()
    weights = [own_part(weight) for weight in given]
    count = sum(weight.numel() for weight in weights)
    gradients = (
        0 if frees else sum(weight.numel() * weight.element_size() for weight in weights if weight.requires_grad)
    )
    # By storage, so that a view of a larger tensor counts in full, and two of one only once.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in weights}
    for tensor in map(own_part, _tensors(inner.state)):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return (sum(storage.nbytes() for storage in storages.values()) + gradients) / max(count, 1)


def little_to_save(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Why gradients and an optimizer's state are not what takes the memory; None where they may be.

    A layer that thaws later counts, since the optimizer holds it.
    """
    learns = sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    share = BYTES_LEARNT * learns / max(weights, 1)
    if share >= LITTLE:
        return None
    return f"{learns:,} weights learn, whose gradients and two moments in AdamW take {share:.1%} of the model's bytes"


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
