"""The algorithms of `low-memory`, by name: what each is made by, and how it is clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from .optimizers.lomo import LOMO


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        make: `make(model, optimizer, technique)`: the optimizer, with the groups of the script's; None: the script's.
        clip: what clip=auto means while gradients are freed.
        sharded: why it cannot step the shards of a tensor that FSDP has cut up, such as "normalises whole rows"; None:
            it can, as `test_shards.py` shows.
    """

    make: Callable[[Any, Optimizer, Any], Optimizer] | None
    clip: str
    sharded: str | None = None


def script_groups(optimizer: Optimizer, *names: str) -> list[dict[str, Any]]:
    """The groups of the script's optimizer, with their `lr`, `weight_decay` and those of `names` that they have."""
    kept = ("params", "lr", "weight_decay", *names)
    return [{name: group[name] for name in kept if name in group} for group in optimizer.param_groups]


def _lomo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return LOMO(script_groups(optimizer))


ALGORITHMS = {
    "script": Algorithm(None, clip="lagged"),
    "lomo": Algorithm(_lomo, clip="two_pass"),
}
