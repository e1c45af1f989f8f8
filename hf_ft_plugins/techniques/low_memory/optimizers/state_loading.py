"""Loading an optimizer's state without rounding it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch


def restore_dtypes(
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    of_group: Callable[[dict[str, Any]], bool] = lambda group: True,
) -> None:
    """Give tensors of the state the dtype in which they were saved; `load_state_dict` makes it the parameters'.

    Args:
        optimizer: one that has just loaded `state_dict`.
        of_group: which of its groups are meant.
    """
    places = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(
        ((one, of_group(group)) for one in group["params"]) for group in optimizer.param_groups
    )
    for place, (parameter, is_meant) in zip(places, parameters, strict=True):
        for name, value in state_dict["state"].get(place, {}).items() if is_meant else ():
            if isinstance(value, torch.Tensor):
                optimizer.state[parameter][name] = value.to(parameter.device)
