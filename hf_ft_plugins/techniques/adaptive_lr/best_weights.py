"""A copy of the weights that gave the best metric, to return to: of what trains, and of buffers such as batch norm's.

It is kept on the CPU and costs as much memory as the trainable parameters (with PEFT, the adapter's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import PluginError
from .settings import NAME

if TYPE_CHECKING:
    from transformers import TrainingArguments

WEIGHTS_FILE = "hf_ft_adaptive_lr_best.safetensors"


def _moving_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    yield from model.named_buffers()


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters and buffers by name, copied to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _moving_tensors(model)}


def add_new_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Add what trains by now and did not when `weights` were copied (unfrozen layers), with the value it has now."""
    for name, tensor in _moving_tensors(model):
        if name not in weights:
            weights[name] = tensor.detach().to("cpu", copy=True).contiguous()


def restore_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], latest: float = 0.0) -> float:
    """Write `copy_weights`' result back in place, so that the optimizer goes on with the same parameters.

    Args:
        latest: the share of what the model holds now in what it holds then, in [0, 1). What is no float of 16 bits and
            more (the batches that batch norm has counted) is written back as it was.

    Returns:
        The share that was taken: 0 where a number that would be mixed is not finite, since the mean would not be.
    """
    with torch.no_grad():
        # A buffer that is a constant may be expanded, and could not be written.
        changed = [
            (tensor, weights[name])
            for name, tensor in _moving_tensors(model)
            if name in weights and not torch.equal(tensor.cpu(), weights[name])
        ]
        mixed = [(tensor, best) for tensor, best in changed if _can_be_mixed(tensor)]
        if not all(bool(one.isfinite().all()) for pair in mixed for one in pair):
            latest = 0.0
        for tensor, best in changed:
            best = best.to(tensor.device)
            tensor.copy_(torch.lerp(best, tensor, latest) if latest and _can_be_mixed(tensor) else best)
    return latest


def _can_be_mixed(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def write_weights(best: dict[str, torch.Tensor], args: TrainingArguments, step: int) -> None:
    """Write the best weights beside the checkpoint of `step`, where there is one (in a Trainer that is no host)."""
    from safetensors.torch import save_file

    file = _file(args, step)
    if file.parent.is_dir():
        save_file(best, file)


def read_weights(args: TrainingArguments, step: int) -> dict[str, torch.Tensor]:
    """What `write_weights` wrote; a `PluginError` where it is not there."""
    from safetensors.torch import load_file

    file = _file(args, step)
    if not file.is_file():
        raise PluginError(
            f"{NAME}: the best weights of the interrupted run are not at {file}, so the controller cannot go on. Keep "
            "the checkpoint under output_dir, or use with_plugins(Trainer, ...), whose checkpoints hold them wherever "
            "they are.",
            code="checkpoint-damaged",
        )
    return load_file(file)


def _file(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}" / WEIGHTS_FILE
