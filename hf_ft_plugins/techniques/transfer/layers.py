"""The layers of any transformers model in order, and what is done by that order: freezing, rates by depth.

    for group in layer_groups(model):
        print(group)
    layerwise_lr(optimizer, model, decay=0.8)

The order is read from the structure, not from a list of models: a stack is a `ModuleList` or `Sequential` that holds a
good part of the backbone's parameters; its children are the blocks, bottom to top.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ... import lr_scale
from ...errors import PluginError
from ...models.heads import backbone_of, head_names
from ...models.inputs import bare

NAME = "transfer"
DEPTH = f"{NAME}/depth"
MARK = "hf_ft_layer_group"
# Of the backbone's parameters, embeddings apart: a smaller list of modules is no stack of layers.
STACK_SHARE = 0.1
STEM, HEAD = "stem", "head"


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are frozen, unfrozen and slowed down together.

    Attributes:
        name: `stem`, `head`, or the first and last block.
        parameters: their names in the model (under a PEFT wrapper: in its base model).
        modules: the modules that hold them; a frozen group's run in evaluation mode.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({len(self.parameters)} tensors)"


def layer_groups(model: Any, *, at_most: int = 12) -> list[LayerGroup]:
    """The model's layers, bottom to top: the stem (embeddings and all before the first block), blocks, the head.

    A norm or pooler after a stack belongs to the stack's last block. The head is what lies outside the backbone; there
    is none where the model has no layers of its own there, or where they are tied to the embeddings.

    Args:
        model: a transformers model, under a PEFT wrapper or not; on any device, `meta` too.
        at_most: groups of blocks; more blocks are joined into so many groups of about as many each.

    Raises:
        PluginError: no stack of blocks is found.
    """
    base, backbone = bare(model), backbone_of(model)
    head = set(head_names(model))
    prefix = next((name for name, module in base.named_modules() if module is backbone), "")
    stem: list[str] = []
    blocks: list[list[str]] = []
    for path, is_block in _units(backbone, prefix, _stacks(backbone)):
        if is_block:
            blocks.append([path])
        elif blocks and not _embeds(path, base.get_submodule(path)):
            blocks[-1].append(path)
        else:
            stem.append(path)
    if len(blocks) < 2:
        raise PluginError(
            f"{NAME}: no stack of layers is found in a {type(base).__name__}, so they have no order. Use layer_decay=1 "
            "and a strategy other than gradual."
        )
    size = -(-len(blocks) // at_most)
    runs = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    owners = dict.fromkeys(stem, STEM)
    for run in runs:
        name = run[0][0] if len(run) == 1 else f"{run[0][0]} to {run[-1][0].rpartition('.')[2]}"
        owners |= {path: name for block in run for path in block}
    members: dict[str, list[str]] = {name: [] for name in (STEM, *owners.values(), HEAD)}
    for name, _ in base.named_parameters():
        members[HEAD if name in head else _owner(name, owners)].append(name)
    modules = {group: tuple(path for path, owner in owners.items() if owner == group) for group in members}
    modules[HEAD] = ()
    return [LayerGroup(group, tuple(names), modules[group]) for group, names in members.items() if names]


def backbone_and_head(model: Any) -> list[LayerGroup]:
    """Two groups, for models whose layers have no order, or where it does not matter."""
    base, head = bare(model), set(head_names(model))
    below = tuple(name for name, _ in base.named_parameters() if name not in head)
    holders = {id(base.get_submodule(name.rpartition(".")[0])) for name in head}
    modules = tuple(
        name for name, child in base.named_children() if not any(id(module) in holders for module in child.modules())
    )
    groups = [LayerGroup("backbone", below, modules), LayerGroup(HEAD, tuple(sorted(head)), ())]
    return [group for group in groups if group.parameters]


def groups_of(model: Any, *, by_layer: bool) -> list[LayerGroup]:
    """`layer_groups` where the layers need an order, else `backbone_and_head`, which every model allows."""
    return layer_groups(model) if by_layer else backbone_and_head(model)


def depth_factors(groups: Sequence[LayerGroup], decay: float) -> dict[str, float]:
    """By group, its share of the rate: 1 for the topmost, `decay` ** n for the n-th below it."""
    return {group.name: decay**depth for depth, group in enumerate(reversed(groups))}


def _owner(parameter: str, owners: dict[str, str]) -> str:
    path = parameter
    while path:
        if path in owners:
            return owners[path]
        path = path.rpartition(".")[0]
    return STEM  # A parameter of the backbone itself: a class token, positions.


def _stacks(backbone: Any) -> set[int]:
    """Ids of the outermost lists of modules that hold a good part of the parameters."""
    whole = _weight(backbone)
    found: set[int] = set()

    def search(module: Any) -> None:
        for child in module.children():
            is_list = isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
            if is_list and len(_blocks(child)) >= 2 and _weight(child) >= STACK_SHARE * whole:
                found.add(id(child))
            else:
                search(child)

    search(backbone)
    return found


def _blocks(stack: Any) -> list[str]:
    return [name for name, child in stack.named_children() if any(True for _ in child.parameters())]


def _weight(module: Any) -> int:
    """Parameters, those of embeddings apart."""
    inside = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, torch.nn.Embedding)
        for parameter in part.parameters()
    }
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in inside)


def _embeds(path: str, module: Any) -> bool:
    """Whether it makes what goes into the blocks: embeddings, or their norm, which BART has after its blocks."""
    norm = "norm" in type(module).__name__.lower() and "emb" in path.rpartition(".")[2]
    return norm or any(isinstance(part, torch.nn.Embedding) for part in module.modules())


def _units(module: Any, path: str, stacks: set[int]) -> Iterator[tuple[str, bool]]:
    """Paths that hold all parameters between them, in order, and whether each is a block of a stack."""
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if id(child) in stacks:
            yield from ((f"{inside}.{block}", True) for block in _blocks(child))
        elif any(id(part) in stacks for part in child.modules()):
            yield from _units(child, inside, stacks)
        elif any(True for _ in child.parameters()):
            yield inside, False


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
            raise PluginError(f"{NAME}: freeze={pattern} fits no parameter. Near it: {', '.join(near) or 'none'}.")
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
    for held in inner.param_groups:
        if MARK in held:
            lr_scale.set_scale(inner, DEPTH, factors[held[MARK]], [held])
