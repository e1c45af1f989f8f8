"""A copy of the weights that gave the best metric, to return to: of what trains, and of buffers such as batch norm's.

It is kept on the CPU and costs as much memory as the trainable parameters (with PEFT, the adapter's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


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


def restore_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Write `copy_weights`' result back in place, so that the optimizer goes on with the same parameters."""
    with torch.no_grad():
        for name, tensor in _moving_tensors(model):
            # A buffer that is a constant may be expanded, and could not be written.
            if name in weights and not torch.equal(tensor.cpu(), weights[name]):
                tensor.copy_(weights[name])
