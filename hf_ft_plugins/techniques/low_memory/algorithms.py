"""The algorithms of `low-memory`, by name: what each is made by, and how it is clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from .half_weights import halve_weights
from .optimizers.adamw_8bit import adamw_8bit
from .optimizers.compact_adamw import CompactAdamW
from .optimizers.adalomo import AdaLOMO
from .optimizers.lomo import LOMO


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        make: `make(model, optimizer, technique)`: the optimizer, with the groups of the script's; None: the script's.
        clip: what clip=auto means while gradients are freed.
        state: `state(model, technique)`: bytes that the optimizer keeps for what learns; None: as the script's.
        ready: `ready(trainer, model, optimizer)`: changes the model for the optimizer, when nothing else can fail.
    """

    make: Callable[[Any, Optimizer, Any], Optimizer] | None
    clip: str
    state: Callable[[Any, Any], float] | None = None
    ready: Callable[[Any, Any, Any], None] | None = None


def script_groups(optimizer: Optimizer, *names: str) -> list[dict[str, Any]]:
    """The groups of the script's optimizer, with their `lr`, `weight_decay` and those of `names` that they have."""
    kept = ("params", "lr", "weight_decay", *names)
    return [{name: group[name] for name in kept if name in group} for group in optimizer.param_groups]


def _lomo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return LOMO(script_groups(optimizer))


def _adamw_8bit(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return adamw_8bit(model, script_groups(optimizer, "betas", "eps"))


def _compact_adamw(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return CompactAdamW(script_groups(optimizer, "betas", "eps"))
def _adalomo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return AdaLOMO(script_groups(optimizer))


ALGORITHMS = {
    "script": Algorithm(None, clip="lagged"),
    "adamw-8bit": Algorithm(_adamw_8bit, clip="lagged"),
    "compact-adamw": Algorithm(_compact_adamw, clip="lagged", ready=halve_weights),
    "lomo": Algorithm(_lomo, clip="two_pass", state=lambda model, technique: 0.0),
    "adalomo": Algorithm(_adalomo, clip="none"),
}
