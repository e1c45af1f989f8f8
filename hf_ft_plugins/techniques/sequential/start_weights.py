"""The weights that a stage starts from, on disk: what penalties pull towards, what a teacher or an average is made of.

    write_start(trainer.model, start_folder(args), optimizer=trainer.optimizer, saves=args.should_save)
    read_start(start_folder(args))          # {name: tensor on the CPU}

What moves is kept, and nothing else: with an adapter, the adapter. Tied weights are kept once, under the first of their
names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import TrainingArguments

START_FILE = "start.safetensors"
# What torch's wrappers for checkpointing and compiling put into a parameter's name.
WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def start_folder(args: TrainingArguments) -> Path:
    """Where a run keeps what it began with."""
    return Path(args.output_dir) / "sequential_start"


def moving_parameters(model: torch.nn.Module, optimizer: Any = None) -> dict[str, torch.nn.Parameter]:
    """Parameters by name that learn now or, since `optimizer` holds them, may later (gradual unfreezing).

    Args:
        model: not in `DistributedDataParallel`; sharded by FSDP2 or not.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and (parameter.requires_grad or id(parameter) in held)
    }


def moving_tensors(model: torch.nn.Module, optimizer: Any = None) -> dict[str, torch.Tensor]:
    """`moving_parameters`, and the floating buffers that a checkpoint holds, such as batch norm's means."""
    saved = {plain_name(name) for name in model.state_dict()}
    buffers = {plain_name(name): buffer for name, buffer in model.named_buffers()}
    kept = {name: one for name, one in buffers.items() if name in saved and one.is_floating_point()}
    return {**moving_parameters(model, optimizer), **kept}


def write_start(model: torch.nn.Module, folder: Path, *, optimizer: Any = None, saves: bool = True) -> str | None:
    """Write `moving_tensors` into `folder`; every rank has to call it. See `write_tensors`.

    Returns:
        The file's digest, for `read_start`; None where this rank does not write.
    """
    return write_tensors(moving_tensors(model, optimizer), folder / START_FILE, saves=saves)


def read_start(folder: Path, digest: str | None = None) -> dict[str, torch.Tensor]:
    """What `write_start` wrote: whole tensors by name, on the CPU, in the dtypes that the model had.

    Raises:
        CheckpointError: no such file, or another's: its digest is not `digest`.
    """
    return read_tensors(folder / START_FILE, digest)


def plain_name(name: str) -> str:
    """A parameter's name as it is without torch's wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
