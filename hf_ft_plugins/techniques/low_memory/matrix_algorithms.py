"""Algorithms with one rule for the matrices of a model's blocks, and AdamW for all else.

    optimizer = for_matrices(model, torch.optim.AdamW(model.parameters(), lr=1e-4), "galore", rank=64)
    Trainer(..., optimizers=(optimizer, None))

Embeddings, heads, norms and biases are left to AdamW by all of these algorithms' authors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from ... import mends
from ...errors import PluginError
from ...models.linear_layers import matrices_of_blocks
from .optimizers.apollo import APOLLO
from .optimizers.combined import CombinedOptimizer
from .optimizers.galore import GaLore
from .optimizers.sinkgd import SinkGD
from .settings import NAME

logger = logging.getLogger(__name__)

KINDS: dict[str, Any] = {
    "galore": GaLore,
    "apollo": APOLLO,
    "apollo-mini": APOLLO,
    "sinkgd": SinkGD,
    "muon": torch.optim.Muon,
}
# Settings that stand beside the script's.
SETTINGS: dict[str, dict[str, Any]] = {
    # The paper's 0.25 goes with a rate of 1e-2; so AdamW's suits.
    "galore": {"rank": 128, "scale": 1.0},
    "apollo": {"rank": 128},
    "apollo-mini": {"rank": 1, "scaling": "tensor", "scale": math.sqrt(128)},
    # So that a rate that suits AdamW suits Muon, too.
    "muon": {"adjust_lr_fn": "match_rms_adamw"},
}
FROM_SCRIPT = {"galore": ("betas", "eps"), "apollo": ("betas", "eps"), "apollo-mini": ("betas", "eps")}
OTHERS = "adamw"


def for_matrices(model: Any, optimizer: Optimizer, algorithm: str, **settings: Any) -> CombinedOptimizer:
    """An optimizer with the groups of `optimizer`, each split in matrices of the blocks and all else.

    Both parts have the group's `lr` and `weight_decay`, and its `betas` and `eps` where it has some and they use them.
    Matrices whose smaller side is no larger than `rank` are left to AdamW, which needs no more memory for them.

    Args:
        model: any model with a stack of blocks.
        optimizer: over its parameters; its state is not taken over.
        algorithm: a key of `KINDS`.
        settings: arguments of the algorithm's class; None: its default.

    Raises:
        PluginError: the blocks have no matrices, they belong to adapters, or none is larger than the rank; a group has
            no rate.
    """
    chosen = SETTINGS.get(algorithm, {}) | {name: value for name, value in settings.items() if value is not None}
    found = matrices_of_blocks(model)
    rank = chosen.get("rank", 0)
    meant = [one for group in optimizer.param_groups for one in group["params"] if id(one) in found]
    matrices = {id(one) for one in meant if min(one.shape) > rank}
    _refuse_without_matrices(model, algorithm, meant, matrices, rank)
    inside, outside = (list(_part(optimizer, matrices, algorithm, is_in)) for is_in in (True, False))
    members = {algorithm: KINDS[algorithm](inside, **chosen)}
    if outside:
        members[OTHERS] = torch.optim.AdamW(outside)
    combined = CombinedOptimizer(members)
    _log(optimizer, algorithm, matrices, len(meant) - len(matrices), rank)
    return combined


def _part(optimizer: Optimizer, matrices: set[int], algorithm: str, is_in: bool) -> Iterator[dict[str, Any]]:
    kept = FROM_SCRIPT.get(algorithm, ()) if is_in else ("betas", "eps", "fused")
    for group in optimizer.param_groups:
        parameters = [one for one in group["params"] if (id(one) in matrices) == is_in]
        if group.get("lr") is None:
            raise PluginError(
                f"{NAME}: algorithm={algorithm} takes the learning rate of the script's optimizer, and the "
                f"{type(optimizer).__name__} has none. Use optim=adamw_torch with a learning_rate.",
                code="optimizer-unsuited",
                mend=[mends.set_argument("optim", "adamw_torch")],
            )
        if parameters:
            yield {
                "params": parameters,
                "lr": group["lr"],
                "weight_decay": group.get("weight_decay", 0.0),
                **{name: group[name] for name in kept if _is_adams(name, group.get(name))},
            }


def _is_adams(name: str, value: Any) -> bool:
    """Whether it is a setting as Adam has it; Adafactor has two eps, and other optimizers three betas."""
    if name == "betas":
        return isinstance(value, tuple | list) and len(value) == 2
    return isinstance(value, bool if name == "fused" else float)


def _refuse_without_matrices(model: Any, algorithm: str, meant: list[Any], matrices: set[int], rank: int) -> None:
    kind = type(model).__name__
    if hasattr(model, "peft_config"):
        raise PluginError(
            f"{NAME}: algorithm={algorithm} is for whole matrices, and this {kind} trains an adapter, whose matrices "
            "and optimizer state are small already. Use algorithm=script, or train without the adapter.",
            code="option-combination",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if not meant:
        raise PluginError(
            f"{NAME}: algorithm={algorithm} is for the matrices of repeated blocks, and the optimizer of this {kind} "
            "has none. Use algorithm=adalomo or another one that takes tensors of any shape.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "algorithm", "adalomo")],
        )
    if not matrices:
        largest = max(min(one.shape) for one in meant)
        raise PluginError(
            f"{NAME}: rank={rank} is not below the smaller side of any matrix of this {kind}, the largest of which is "
            f"{largest}, so that nothing would be saved. Set rank to a fourth of that: rank={max(1, largest // 4)}.",
            code="option-value",
            mend=[mends.set_option(NAME, "rank", max(1, largest // 4))],
        )


def _log(optimizer: Optimizer, algorithm: str, matrices: set[int], small: int, rank: int) -> None:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    share = sum(one.numel() for one in parameters if id(one) in matrices) / sum(one.numel() for one in parameters)
    left = f", among them {small} matrices whose smaller side is not above rank={rank}" if small else ""
    # Most of the memory stays where it was, as in a model whose experts are tensors of three dimensions.
    level = logging.WARNING if share < 0.5 else logging.INFO
    logger.log(
        level,
        "%s: %s trains %d matrices, %.0f %% of the parameters; AdamW the other %d tensors%s.",
        *(NAME, algorithm, len(matrices), 100 * share, len(parameters) - len(matrices), left),
    )
