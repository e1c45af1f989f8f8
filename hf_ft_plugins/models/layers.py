"""A model's layers in order, from the input to the head: what freezing and rates by depth go by.

    for group in layer_groups(model, "transfer"):
        print(group)

The order is that of the stacks of blocks (`stacks.py`), which are read from the structure, not from a list of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import mends
from ..errors import PluginError
from .heads import backbone_of, head_names
from .inputs import bare
from .stacks import Stack, all_stacks

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


def layer_groups(model: Any, asker: str, *, at_most: int = 12) -> list[LayerGroup]:
    """The model's layers, bottom to top: the stem (embeddings and all before the first block), blocks, the head.

    Of several stacks the towers' blocks come first, and an encoder's before its decoder's.

    A norm or pooler after a stack belongs to the stack's last block. The head is what lies outside the backbone; there
    is none where the model has no layers of its own there, or where they are tied to the embeddings.

    Args:
        model: a transformers model, under a PEFT wrapper or not; on any device, `meta` too.
        asker: the technique, for the error.
        at_most: groups of blocks; more blocks are joined into so many groups of about as many each.

    Raises:
        PluginError: no stack of blocks is found.
    """
    base, backbone = bare(model), backbone_of(model)
    head = set(head_names(model))
    prefix = next((name for name, module in base.named_modules() if module is backbone), "")
    stem: list[str] = []
    blocks: list[list[str]] = []
    for paths, is_block in _units(backbone, prefix, _stacks_below(base, prefix)):
        if is_block:
            blocks.append(list(paths))
        elif blocks and not _embeds(paths[0], base.get_submodule(paths[0])):
            blocks[-1] += paths
        else:
            stem += paths
    if len(blocks) < 2:
        raise PluginError(
            f"{asker}: no stack of layers is found in a {type(base).__name__}, so they have no order. Use "
            "layer_decay=1 and a strategy other than gradual.",
            code="model-unsuited",
            mend=[mends.set_option(asker, "layer_decay", 1)],
        )
    size = -(-len(blocks) // at_most)
    runs = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    owners = dict.fromkeys(stem, STEM)
    for run in runs:
        name = _run_name(run[0][0], run[-1][0])
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


def _stacks_below(base: Any, prefix: str) -> list[Stack]:
    """Those of the module of that path; its configuration, and what tells of its parts, are the whole model's."""
    return [stack for stack in all_stacks(base) if not prefix or stack.name.startswith(f"{prefix}.")]


def _run_name(first: str, last: str) -> str:
    above, _, number = last.rpartition(".")
    return first if first == last else f"{first} to {number if first.rpartition('.')[0] == above else last}"


def _owner(parameter: str, owners: dict[str, str]) -> str:
    path = parameter
    while path:
        if path in owners:
            return owners[path]
        path = path.rpartition(".")[0]
    return STEM  # A parameter of the backbone itself: a class token, positions.


def _embeds(path: str, module: Any) -> bool:
    """Whether it makes what goes into the blocks: embeddings, or their norm, which BART has after its blocks."""
    norm = "norm" in type(module).__name__.lower() and "emb" in path.rpartition(".")[2]
    return norm or any(isinstance(part, torch.nn.Embedding) for part in module.modules())


def _units(module: Any, path: str, stacks: Sequence[Stack]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Paths of what holds all parameters between them, in order, and whether each is a block of a stack."""
    first = {stack.paths[0]: stack for stack in stacks}
    lists = {listed for stack in stacks for listed in stack.paths}
    for name, child in _in_order(module, path, stacks):
        inside = f"{path}.{name}" if path else name
        if inside in first:
            yield from ((block, True) for block in first[inside].blocks)
        elif inside in lists or not any(True for _ in child.parameters()):
            continue
        elif any(listed.startswith(f"{inside}.") for listed in lists):
            yield from _units(child, inside, stacks)
        else:
            yield (inside,), False


def _in_order(module: Any, path: str, stacks: Sequence[Stack]) -> list[tuple[str, Any]]:
    """Its children as an input goes through them; one without a stack stays behind the one that it is defined after."""
    ranked, rank = [], (False, False)
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        ranks = [stack.rank for stack in stacks if f"{stack.name}.".startswith(f"{inside}.")]
        rank = min(ranks, default=rank)
        ranked.append((rank, name, child))
    return [(name, child) for _, name, child in sorted(ranked, key=lambda one: one[0])]
