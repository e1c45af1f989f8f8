"""What `low-memory` cannot do right, refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...errors import PluginError
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_unsupported(trainer: Trainer, *, fused: bool) -> None:
    """Raise `PluginError` where gradients must not be applied one by one, or are changed where nothing sees them."""
    args = trainer.args
    for module_name, module in trainer.model.named_modules():
        if isinstance(module, torch.nn.Embedding) and module.sparse:
            raise PluginError(
                f"{NAME}: {module_name} has sparse gradients, and its optimizers take dense ones. "
                "Make the layer with sparse=False."
            )
    if not fused:
        return
    if args.fp16:
        raise PluginError(
            f"{NAME}: fp16=True scales the loss, and what is too large shows only when all gradients are there. Use "
            "bf16=True, or fused=false."
        )
    if trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: DeepSpeed collects the gradients and steps by itself. Use ZeRO's own offloading, or FSDP2 with "
            "this technique."
        )
    if args.n_gpu > 1:
        raise PluginError(
            f"{NAME}: DataParallel keeps copies of the model whose gradients are added up late. Start one process a "
            "GPU with torchrun."
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim or "lomo" in optim:
        raise PluginError(
            f"{NAME}: optim={optim!r} steps within the backward pass by itself. Use another optim=, and this "
            "technique's algorithm=."
        )
