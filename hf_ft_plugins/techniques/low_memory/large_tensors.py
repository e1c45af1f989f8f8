"""Stepping large tensors by rows, so that what an optimizer computes on the way is never as large as they are.

AdamW holds two more tensors of the parameter's size while it steps; of an embedding, that is more than all else of a
step within the backward pass. The rows of an elementwise optimizer can be stepped one after the other, bit for bit.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from ...lr_probe import Unprobed
from .tensor_step import is_bitsandbytes, small_twin, step_tensor, stepped

LARGE = 2**22  # numbers that are stepped at once: 16 MiB in float32
# Rows are cut in these multiples, so that a part ends where a vector register does, and sums keep their last bits.
ROWS = 64


def step_by_rows(optimizer: torch.optim.Optimizer, index: int, position: int) -> None:
    """`step_tensor`, part by part where the tensor is large; of an optimizer of which `rows_are_exact`."""
    parameter = optimizer.param_groups[index]["params"][position]
    if parameter.ndim == 0 or parameter.numel() <= LARGE or hasattr(parameter, "placements"):
        step_tensor(optimizer, index, position)
        return
    rows = max(ROWS, LARGE * parameter.shape[0] // parameter.numel() // ROWS * ROWS)
    _step_parts(optimizer, index, position, rows)


def _step_halves(optimizer: torch.optim.Optimizer, index: int, position: int) -> None:
    rows = optimizer.param_groups[index]["params"][position].shape[0]
    _step_parts(optimizer, index, position, (rows + 1) // 2)


def _step_parts(optimizer: torch.optim.Optimizer, index: int, position: int, rows: int) -> None:
    groups = optimizer.param_groups
    group = groups[index]
    parameter = group["params"][position]
    state = dict(optimizer.state.get(parameter, {}))
    is_new = not state
    after: dict[str, Any] = {}
    try:
        for start in range(0, parameter.shape[0], rows):
            part = torch.nn.Parameter(parameter.detach()[start : start + rows])
            part.grad = parameter.grad[start : start + rows]
            if not is_new:
                # Counts are copied: each part needs them as they were before the step.
                optimizer.state[part] = {
                    name: value[start : start + rows] if _has_shape(value, parameter) else deepcopy(value)
                    for name, value in state.items()
                }
            optimizer.param_groups = [{**group, "params": [part]}]
            type(optimizer).step(optimizer)
            after = optimizer.state.pop(part, {})
            for name, value in after.items():
                if not _has_shape(value, part):
                    continue
                if is_new and start == 0:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                if is_new:
                    state[name][start : start + rows] = value
                after[name] = state[name]
    finally:
        optimizer.param_groups = groups
    optimizer.state[parameter] = after


def _has_shape(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == parameter.shape


def rows_are_exact(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_by_rows` gives the same bits: state is of the parameter's shape or a count, and so it is tried.

    Small twins are stepped, the real one is not.
    """
    if is_bitsandbytes(optimizer):
        return False
    try:
        whole, by_rows = small_twin(optimizer), small_twin(optimizer)
        expected, actual = stepped(whole, step_tensor), stepped(by_rows, _step_halves)
    except Unprobed:
        return False
    values = [(value, weight) for weight, state in whole.state.items() for value in state.values()]
    if any(isinstance(one, torch.Tensor) and one.ndim > 0 and not _has_shape(one, weight) for one, weight in values):
        return False
    return all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))
