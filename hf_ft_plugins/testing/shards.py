"""FSDP2 without a GPU: accelerate shards only where an accelerator is, and is told here that gloo on CPUs is one."""

from __future__ import annotations

import os
from typing import Any

BLOCKS = ("BertLayer", "LlamaDecoderLayer", "T5Block")


def shard_on_cpus() -> None:
    """Let accelerate shard on gloo ranks; before the first `TrainingArguments` of the process."""
    import accelerate.state

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    prepared = ("gloo", accelerate.state.DistributedType.MULTI_XPU)
    accelerate.state.PartialState._prepare_backend = lambda self, *args, **kwargs: prepared


def sharded_by(layer: str) -> dict[str, Any]:
    """`TrainingArguments` of FSDP2 with shards of this class of layers."""
    wrapping = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": [layer]}
    return {"use_cpu": False, "fsdp": True, "fsdp_config": {"version": 2, **wrapping}}


def sharded_as(model: Any) -> dict[str, Any]:
    """`sharded_by` the blocks of one of the kit's models."""
    classes = {type(module).__name__ for module in model.modules()}
    return sharded_by(next(block for block in BLOCKS if block in classes))
