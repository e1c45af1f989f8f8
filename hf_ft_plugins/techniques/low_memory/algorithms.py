"""The algorithms of `low-memory`, by name: what each is made by, how it is clipped, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from .half_weights import halve_weights
from .matrix_algorithms import for_matrices
from .optimizers.adalomo import AdaLOMO
from .optimizers.adamw_8bit import adamw_8bit
from .optimizers.compact_adamw import CompactAdamW
from .optimizers.lomo import LOMO
from .optimizers.mezo import MeZO
from .settings import OWN_OPTIONS


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        make: `make(model, optimizer, technique)`: the optimizer, with the groups of the script's; None: the script's.
        clip: what clip=auto means while gradients are freed.
        sharded: why it cannot step the shards of a tensor that FSDP has cut up, such as "normalises whole rows"; None:
            it can, as `test_shards.py` shows.
        rate: which learning rate suits it, for the log; None: the script's.
        ready: `ready(trainer, model, optimizer)`: changes the model for the optimizer, when nothing else can fail.
    """

    make: Callable[[Any, Optimizer, Any], Optimizer] | None
    clip: str
    sharded: str | None = None
    rate: str | None = None
    ready: Callable[[Any, Any, Any], None] | None = None


def script_groups(optimizer: Optimizer, *names: str) -> list[dict[str, Any]]:
    """The groups of the script's optimizer, with their `lr`, `weight_decay` and those of `names` that they have."""
    kept = ("params", "lr", "weight_decay", *names)
    return [{name: group[name] for name in kept if name in group} for group in optimizer.param_groups]


def _adamw_8bit(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return adamw_8bit(model, script_groups(optimizer, "betas", "eps"))


def _compact_adamw(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return CompactAdamW(script_groups(optimizer, "betas", "eps"))


def _lomo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return LOMO(script_groups(optimizer))


def _adalomo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return AdaLOMO(script_groups(optimizer))


def _matrices(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    names = [name for name, algorithms in OWN_OPTIONS.items() if technique.algorithm in algorithms]
    settings = {name: getattr(technique, name) for name in names}
    return for_matrices(model, optimizer, technique.algorithm, **settings)


def _mezo(model: Any, optimizer: Optimizer, technique: Any) -> Optimizer:
    return MeZO(script_groups(optimizer), perturbation=technique.perturbation)


FASTER = "one to three times AdamW's"
WHOLE_MATRICES = "needs whole matrices"
HALVES = "reads the low bits of the weights before FSDP cuts them up"
BLOCKS = "changes which layers learn"

ALGORITHMS = {
    "script": Algorithm(None, clip="lagged"),
    "adamw-8bit": Algorithm(_adamw_8bit, clip="lagged", sharded="keeps its state in blocks of whole tensors"),
    "compact-adamw": Algorithm(_compact_adamw, clip="lagged", sharded=HALVES, ready=halve_weights),
    "lomo": Algorithm(_lomo, clip="two_pass", rate="tens to thousands of times AdamW's"),
    "adalomo": Algorithm(_adalomo, clip="none", rate="ten to thirty times AdamW's"),
    "galore": Algorithm(_matrices, clip="lagged", sharded=WHOLE_MATRICES),
    "apollo": Algorithm(_matrices, clip="lagged", sharded=WHOLE_MATRICES, rate=FASTER),
    "apollo-mini": Algorithm(_matrices, clip="lagged", sharded=WHOLE_MATRICES, rate=FASTER),
    "sinkgd": Algorithm(_matrices, clip="lagged", sharded=WHOLE_MATRICES, rate=FASTER),
    "muon": Algorithm(_matrices, clip="lagged", sharded=WHOLE_MATRICES),
    "lisa": Algorithm(None, clip="lagged", sharded=BLOCKS),
    "badam": Algorithm(None, clip="lagged", sharded=BLOCKS),
    "mezo": Algorithm(_mezo, clip="none", sharded="perturbs whole tensors", rate="a sixth of AdamW's or less"),
}
