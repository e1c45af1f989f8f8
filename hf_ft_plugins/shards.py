"""Weights that FSDP2 has cut up over ranks (`DTensor`), and optimizers that keep no state of some of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from torch.distributed.fsdp import FSDPModule

NO_STATE = "hf_ft_no_state"


def are_cut_up(model: torch.nn.Module) -> bool:
    """Whether a rank holds pieces of the model's parameters."""
    return any(hasattr(one, "placements") for one in model.parameters())


def holds_pieces(trainer: Any) -> bool:
    """Whether a rank of this trainer holds, or will hold, pieces of the model: FSDP, DeepSpeed, or as it was loaded."""
    return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or are_cut_up(trainer.model))


def put_in_pieces(model: torch.nn.Module) -> None:
    """Let FSDP2 forget what it has gathered: after a forward pass the outermost module's parameters may be whole, and
    what is written into those is lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def fsdp_version() -> int | None:
    """Which FSDP the accelerator of this process wraps models into, 1 or 2; None: into none."""
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None) if is_initialized() else None
    return None if plugin is None else int(getattr(plugin, "fsdp_version", 1))


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Of a sharded tensor the whole, which all ranks have to ask for; of any other the tensor itself."""
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def is_zero3(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 holds it, of which it is empty but while it is used."""
    return hasattr(parameter, "ds_shape")


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter, however it is cut up."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, in the same memory; of any other the tensor itself."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def placed_like(whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of `other`, cut up over ranks as that is; its dtype stays."""
    if not hasattr(other, "full_tensor"):
        return whole.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    # Each rank has the whole: none has to be sent.
    return distribute_tensor(whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def mark_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` be loaded from a checkpoint of FSDP2, whatever it keeps no state of.

    `torch.distributed.checkpoint` refuses to load an optimizer where a parameter has no state, and one that has none at
    all. So a sharded parameter without any gets a tensor [1] in what is saved. Load within `without_state`, and call
    `drop_marks` before the first step.
    """
    optimizer.register_state_dict_post_hook(_marked)
    # Adam takes a parameter's state for its own as soon as there is any.
    optimizer.register_load_state_dict_pre_hook(_unmarked)


def names_without_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The sharded parameters that `optimizer` has and keeps no state of, such as those that have not learned yet."""
    put_in_pieces(model)
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    return [
        name
        for name, one in model.named_parameters()
        if id(one) in held and hasattr(one, "placements") and not optimizer.state.get(one)
    ]


@contextlib.contextmanager
def without_state(model: torch.nn.Module, names: Collection[str]) -> Iterator[None]:
    """While it lasts, these parameters need no gradient.

    Before it loads, `torch.distributed.checkpoint` lets the optimizer make a state for each parameter that needs one,
    and what a checkpoint lacks of that would stay, on some of the ranks.
    """
    frozen = [one for name, one in model.named_parameters() if name in names and one.requires_grad]
    for one in frozen:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in frozen:
            one.requires_grad_(True)


def _marked(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    state = dict(saved["state"])
    for group, numbered in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if hasattr(parameter, "full_tensor") and not state.get(number):
                state[number] = {NO_STATE: torch.zeros(1, device=parameter.device)}
    return {**saved, "state": state}


def _unmarked(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "state": {number: one for number, one in saved["state"].items() if NO_STATE not in one}}


def drop_marks(optimizer: torch.optim.Optimizer) -> None:
    """Take away what marks parameters that had no state when it was saved, before the first step.

    For optimizers that put a state in place themselves, after torch's hooks have acted; accelerate, too, has them load
    their own.
    """
    for parameter in [parameter for parameter, state in optimizer.state.items() if NO_STATE in state]:
        del optimizer.state[parameter][NO_STATE]
        if not optimizer.state[parameter]:
            del optimizer.state[parameter]
