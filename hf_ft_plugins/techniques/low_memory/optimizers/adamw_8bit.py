"""bitsandbytes' AdamW8bit with the groups of another optimizer, and embeddings in 32 bits."""

from __future__ import annotations

from typing import Any

import torch

KEPT = ("params", "lr", "weight_decay", "betas", "eps")


def adamw_8bit(model: torch.nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """`bitsandbytes.optim.AdamW8bit`: moments in 8 bits, those of embeddings and of tensors below 4,096 values in 32.

    Embeddings as Trainer's `optim="adamw_bnb_8bit"` keeps them. Their settings are this optimizer's own: the manager
    that bitsandbytes shares among all optimizers of a process knows tensors by their place in the groups, and would
    apply them to whatever lies at that place in the next one.

    Args:
        groups: `params` and, where given, `lr`, `weight_decay`, `betas` and `eps`; other entries are left out.
    """
    import bitsandbytes

    optimizer = bitsandbytes.optim.AdamW8bit(
        [{name: group[name] for name in KEPT if name in group} for group in groups]
    )
    manager = object.__new__(bitsandbytes.optim.GlobalOptimManager)
    manager.initialize()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    optimizer.mng = manager
    made: torch.optim.Optimizer = optimizer
    return made
