"""The one learning-rate arbiter: base schedule times a product of named factors.

Schedulers overwrite what a callback writes into `group["lr"]`, or compound it. So no technique writes `group["lr"]`.
It contributes a named factor to a parameter group's entry `KEY`; the product of all factors is applied while the
optimizer steps, by torch's own step hooks, and taken back right after, so that schedulers never see it.

The factors are saved and restored with the optimizer's state, since they are entries of its parameter groups.

Not covered: optimizers that step inside the backward pass with a rate of their own (LOMO takes the rate that the
Trainer logs, which under the host is the scaled one; layer-wise GaLore does not) and DeepSpeed's engine (untested).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

KEY = "hf_ft_lr_scale"  # not `lr_scale`, which is a number in the groups of timm and MAE
_INSTALLED = "_hf_ft_lr_scale_base"


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer under accelerate's and other wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def set_scale(optimizer: Any, name: str, factor: float, groups: list[dict[str, Any]] | None = None) -> None:
    """Set the factor `name` of parameter `groups` (all of the optimizer's when None) from the next step on.

    Args:
        optimizer: a torch optimizer, wrapped or not.
        name: who contributes: a technique's name, alone or followed by `/` and anything; a later call with the same
            name replaces the factor.
        factor: finite and not negative; 1.0 changes nothing.

    Raises:
        ValueError: the factor is negative or not finite.
    """
    if not math.isfinite(factor) or factor < 0:
        raise ValueError(f"lr_scale: the factor {name}={factor!r} must be finite and not negative.")
    inner = innermost(optimizer)
    for group in inner.param_groups if groups is None else groups:
        # A new mapping: groups that were split from one share theirs.
        group[KEY] = {**group.get(KEY, {}), name: float(factor)}
    if not hasattr(inner, _INSTALLED):
        setattr(inner, _INSTALLED, [])
        inner.register_step_pre_hook(_apply)
        inner.register_step_post_hook(_take_back)


def forget_others(optimizer: Any, kept: Iterable[str]) -> None:
    """Remove all factors but those named in `kept`, or `KEPT/...`: a checkpoint holds them of all who were there."""
    kept = tuple(kept)
    for group in innermost(optimizer).param_groups:
        for name in set(group.get(KEY, {})):
            if name.partition("/")[0] not in kept:
                del group[KEY][name]


def scale_of(group: dict[str, Any]) -> float:
    """The product of a parameter group's factors; 1.0 where it has none."""
    return math.prod(group.get(KEY, {}).values())


def effective_lrs(optimizer: Any) -> list[float]:
    """The rate that each parameter group is stepped with: base schedule times `scale_of`."""
    return [float(group["lr"]) * scale_of(group) for group in innermost(optimizer).param_groups]


def is_scaled(optimizer: Any) -> bool:
    """Whether anybody has contributed a factor to this optimizer."""
    return optimizer is not None and any(KEY in group for group in innermost(optimizer).param_groups)


def _apply(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # A step that raised left its scaled rates behind; they are taken back before the next one scales again.
    _take_back(optimizer)
    for group in optimizer.param_groups:
        scale = scale_of(group)
        if scale != 1.0:
            getattr(optimizer, _INSTALLED).append((group, group["lr"]))
            group["lr"] = group["lr"] * scale


def _take_back(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    bases = getattr(optimizer, _INSTALLED)
    for group, base in bases:
        group["lr"] = base
    bases.clear()
