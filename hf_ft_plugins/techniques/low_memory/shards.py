"""Optimizers that keep no state of some parameters, in checkpoints of FSDP2."""

from __future__ import annotations

from typing import Any

import torch

NO_STATE = "hf_ft_no_state"


def mark_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` be resumed from a checkpoint of FSDP2, whatever it keeps no state of.

    `torch.distributed.checkpoint` refuses to load an optimizer where a parameter has no state, and one that has none at
    all. So a parameter without gets a tensor [1] in what is saved, and what is loaded for it is dropped.
    """
    optimizer.register_state_dict_post_hook(_marked)
    optimizer.register_load_state_dict_pre_hook(_unmarked)


def _marked(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    state = dict(saved["state"])
    for group, numbered in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if not state.get(number):
                state[number] = {NO_STATE: torch.zeros(1, device=parameter.device)}
    return {**saved, "state": state}


def _unmarked(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "state": {number: one for number, one in saved["state"].items() if NO_STATE not in one}}
