"""Stepping one tensor of any optimizer, as its own `step()` would among all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import lr_scale, mends
from ...errors import PluginError
from ...lr_probe import Twins, Unprobed, set_gradients, set_rate
from .settings import NAME

STEPS = 3
RATE = 1e-2
# Steps parameter `position` of group `index`: `step_one(optimizer, index, position)`.
StepOne = Callable[[torch.optim.Optimizer, int, int], None]


def step_tensor(optimizer: torch.optim.Optimizer, index: int, position: int) -> None:
    """Step parameter `position` of group `index` with its gradient; all other tensors stay as they are.

    The optimizer's own `step` runs with one group of one tensor. Its hooks run, too, and so do the factors on the
    learning rate. What schedulers put in place of the instance's `step`, to count, does not.
    """
    groups = optimizer.param_groups
    group = groups[index]
    if is_bitsandbytes(optimizer):
        _step_of_bitsandbytes(optimizer, group, index, position)
        return
    optimizer.param_groups = [{**group, "params": [group["params"][position]]}]
    try:
        type(optimizer).step(optimizer)
    finally:
        optimizer.param_groups = groups


def is_bitsandbytes(optimizer: Any) -> bool:
    return hasattr(optimizer, "init_state") and hasattr(optimizer, "update_step") and hasattr(optimizer, "mng")


def _step_of_bitsandbytes(optimizer: Any, group: dict[str, Any], index: int, position: int) -> None:
    """What its `step` does for each tensor: settings of single tensors are found by their place among all."""
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True
    parameter = group["params"][position]
    with torch.no_grad():
        if len(optimizer.state[parameter]) == 0:
            optimizer.init_state(group, parameter, index, position)
        optimizer.prefetch_state(parameter)
        scaled = {**group, "lr": group["lr"] * lr_scale.scale_of(group)}
        optimizer.update_step(scaled, parameter, index, position)
    if optimizer.is_paged:
        torch.cuda.synchronize()


def refuse_inseparable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose step of one tensor depends on others. Small twins are tried, the real one is not.

    Raises:
        PluginError: it names the optimizer and the reason.
    """
    if is_bitsandbytes(optimizer):
        return
    kind = type(optimizer).__name__
    try:
        together, alone = stepped(small_twin(optimizer), None), stepped(small_twin(optimizer), step_tensor)
    except Unprobed as reason:
        raise _refusal(kind, f"could not be tried tensor by tensor: {reason}") from reason
    if not all(torch.equal(one, other) for one, other in zip(together, alone, strict=True)):
        raise _refusal(kind, "steps tensors otherwise one by one than all at once")


def _refusal(kind: str, reason: str) -> PluginError:
    return PluginError(
        f"{NAME}: the optimizer {kind} {reason}, so it cannot step within the backward pass. Use another one, such as "
        "optim=adamw_torch, or fused=false.",
        code="optimizer-unsuited",
        mend=[mends.set_argument("optim", "adamw_torch"), mends.set_option(NAME, "fused", False)],
    )


def small_twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy of an optimizer over small tensors, two of each group where it has two; may raise `Unprobed`."""
    return Twins(optimizer, weights_of_a_group=2).optimizer


def stepped(twin: torch.optim.Optimizer, step_one: StepOne | None) -> list[torch.Tensor]:
    """The weights of a `small_twin` after a few steps, tensor by tensor with `step_one`, or all at once.

    Raises:
        Unprobed: a step fails.
    """
    weights = [weight for group in twin.param_groups for weight in group["params"]]
    with torch.random.fork_rng([]), torch.enable_grad():
        try:
            for step in range(STEPS):
                for group in twin.param_groups:
                    set_rate(group, RATE)
                    set_gradients(group, step)
                if step_one is None:
                    twin.step()
                    continue
                gradients = [(weight, weight.grad) for weight in weights]
                for weight, _ in gradients:
                    weight.grad = None
                for index, group in reversed(list(enumerate(twin.param_groups))):
                    for position, weight in enumerate(group["params"]):
                        weight.grad = next(gradient for one, gradient in gradients if one is weight)
                        step_one(twin, index, position)
                        weight.grad = None
        except Exception as error:
            raise Unprobed(f"its step fails on a small copy: {type(error).__name__}: {error}") from error
    return [weight.detach() for weight in weights]
