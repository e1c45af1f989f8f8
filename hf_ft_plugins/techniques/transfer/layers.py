"""The layers of any transformers model in order, and what is done by that order: freezing, rates by depth.

    for group in layer_groups(model):
        print(group)
    layerwise_lr(optimizer, model, decay=0.8)

The order is that of the one reader of models (`models/layers.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from ... import lr_scale
from ...errors import PluginError
from ...models.inputs import bare
from ...models.layers import HEAD, LayerGroup, backbone_and_head
from ...models.layers import layer_groups as ordered_groups

__all__ = [
    "HEAD",
    "LayerGroup",
    "depth_factors",
    "freeze",
    "groups_of",
    "layer_groups",
    "layerwise_lr",
    "split_by_layer",
]

NAME = "transfer"
DEPTH = f"{NAME}/depth"
MARK = "hf_ft_layer_group"


def layer_groups(model: Any, *, at_most: int = 12) -> list[LayerGroup]:
    """The model's layers, bottom to top: the stem, blocks, the head (`models.layers.layer_groups`).

    Args:
        model: a transformers model, under a PEFT wrapper or not; on any device, `meta` too.
        at_most: groups of blocks; more blocks are joined into so many groups of about as many each.

    Raises:
        PluginError: no stack of blocks is found.
    """
    return ordered_groups(model, NAME, at_most=at_most)


def groups_of(model: Any, *, by_layer: bool) -> list[LayerGroup]:
    """`layer_groups` where the layers need an order, else `backbone_and_head`, which every model allows."""
    return layer_groups(model) if by_layer else backbone_and_head(model)


def depth_factors(groups: Sequence[LayerGroup], decay: float) -> dict[str, float]:
    """By group, its share of the rate: 1 for the topmost, `decay` ** n for the n-th below it."""
    return {group.name: decay**depth for depth, group in enumerate(reversed(groups))}


def freeze(model: Any, *patterns: str) -> list[str]:
    """Freeze the parameters whose name fits a pattern (`*` and `?`), or lies below one; returns their names.

    Raises:
        PluginError: a pattern fits no parameter.
    """
    names = dict(bare(model).named_parameters())
    frozen = []
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not fitting:
            layers = {name.rpartition(".")[0] for name in names} | set(names)
            near = difflib.get_close_matches(pattern, sorted(layers), n=3, cutoff=0.3)
            raise PluginError(
                f"{NAME}: freeze={pattern} fits no parameter. Near it: {', '.join(near) or 'none'}.",
                code="option-value",
            )
        frozen += fitting
    for name in frozen:
        names[name].requires_grad_(False)
    return frozen


def split_by_layer(param_groups: list[dict[str, Any]], model: Any, groups: Sequence[LayerGroup]) -> None:
    """Split an optimizer's parameter groups, in place, so that each holds parameters of one `LayerGroup`, whose name
    stands in the group's entry `MARK`; top to bottom, so that the first rate, which is logged, is the head's.
    """
    parameters = dict(bare(model).named_parameters())
    owner = {id(parameters[name]): group.name for group in groups for name in group.parameters}
    order = [group.name for group in reversed(groups)]
    split = []
    for whole in param_groups:
        for name in order:
            members = [parameter for parameter in whole["params"] if owner.get(id(parameter)) == name]
            if members:
                split.append({**whole, "params": members, MARK: name})
        rest = [parameter for parameter in whole["params"] if id(parameter) not in owner]
        if rest:
            split.append({**whole, "params": rest})
    split.sort(key=lambda group: order.index(group[MARK]) if MARK in group else len(order))
    param_groups[:] = split


def layerwise_lr(optimizer: Any, model: Any, decay: float, *, groups: Sequence[LayerGroup] | None = None) -> None:
    """Slow the layers down by depth: the head steps at the full rate, the n-th group below it at `decay` ** n of it.

    As in BEiT's and ELECTRA's fine-tuning; 1 / 2.6 is ULMFiT's (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
    Call it before a scheduler is made; the schedule is multiplied.

    Args:
        optimizer: any torch optimizer that has not stepped yet; its parameter groups are split.
        decay: in (0, 1].
    """
    groups = layer_groups(model) if groups is None else groups
    inner = lr_scale.innermost(optimizer)
    split_by_layer(inner.param_groups, model, groups)
    factors = depth_factors(groups, decay)
    for group in inner.param_groups:
        if MARK in group:
            lr_scale.set_scale(inner, DEPTH, factors[group[MARK]], [group])
