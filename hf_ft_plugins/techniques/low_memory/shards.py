"""Optimizers that keep no state of some parameters, in checkpoints of FSDP2."""

from __future__ import annotations

from typing import Any

import torch

NO_STATE = "hf_ft_no_state"


def mark_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` be loaded from a checkpoint of FSDP2, whatever it keeps no state of.

    `torch.distributed.checkpoint` refuses to load an optimizer where a parameter has no state, and one that has none at
    all. So a sharded parameter without any gets a tensor [1] in what is saved. Call `drop_marks` when it is loaded.
    """
    optimizer.register_state_dict_post_hook(_marked)
    # Adam takes a parameter's state for its own as soon as there is any.
    optimizer.register_load_state_dict_pre_hook(_unmarked)


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
    """Take away the state of parameters that had none when it was saved.

    For optimizers that keep the dtypes of their state: they put it in place after torch's hooks have acted.
    """
    for parameter in [parameter for parameter, state in optimizer.state.items() if NO_STATE in state]:
        del optimizer.state[parameter]
