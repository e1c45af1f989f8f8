"""Trainers in which the gradients of a step cannot be added to, refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import PluginError
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_unsupported(trainer: Trainer) -> None:
    """Raise `PluginError` where penalties would never reach the optimizer, or not the right parameters."""
    if trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: l2sp, ewc and olora add to gradients before the optimizer steps, and DeepSpeed steps within the "
            "backward pass. Use FSDP2, or protect earlier stages by replay.",
            code="distributed-unsupported",
        )
    if trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise PluginError(
            f"{NAME}: l2sp, ewc and olora know parameters by name, and FSDP1 joins them into flat ones. Use FSDP2: "
            "fsdp_config={'version': 2}.",
            code="distributed-unsupported",
            mend=[mends.set_argument("fsdp_config", {"version": 2})],
        )
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "layerwise" in optim or "lomo" in optim:
        raise PluginError(
            f"{NAME}: l2sp, ewc and olora add to gradients before the optimizer steps, and optim={optim!r} steps "
            "within the backward pass. Use another optim=, or protect earlier stages by replay.",
            code="training-arguments",
            mend=[mends.set_argument("optim", "adamw_torch")],
        )
    if trainer.args.fp16 and getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise PluginError(
            f"{NAME}: l2sp, ewc and olora add to gradients, which fp16=True leaves scaled where a model was "
            "sharded when it was loaded. Use bf16=True.",
            code="training-arguments",
            mend=[mends.all_of(mends.set_argument("fp16", False), mends.set_argument("bf16", True))],
        )
    for name, module in trainer.model.named_modules():
        if isinstance(module, torch.nn.Embedding) and module.sparse:
            raise PluginError(
                f"{NAME}: l2sp, ewc and olora are for dense gradients, and those of {name} are sparse. Make the layer "
                "with sparse=False.",
                code="model-unsuited",
            )
    refuse_steps_in_backward(trainer.optimizer)


def refuse_steps_in_backward(optimizer: Any) -> None:
    """Raise `PluginError` for an optimizer, wrapped or not, that leaves no gradients to add to."""
    while optimizer is not None:
        if hasattr(optimizer, "norm_of_step"):
            raise PluginError(
                f"{NAME}: l2sp, ewc and olora add to gradients before the optimizer steps, and "
                f"{type(optimizer).__name__} steps within the backward pass, or without one. Set "
                "low-memory:fused=false and another algorithm than mezo, or protect earlier stages by replay.",
                code="optimizer-unsuited",
                mend=[mends.set_option("low-memory", "fused", False)],
            )
        optimizer = getattr(optimizer, "optimizer", None)
