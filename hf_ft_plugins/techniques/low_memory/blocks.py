"""Which blocks of a model learn at which step: a pure function of (seed, step), so no resumed run needs state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...models.layers import HEAD, STEM, layer_groups
from ...models.stacks import all_stacks
from .keyed_random import generator
from .settings import NAME

Way = Literal["lisa", "badam"]


@dataclass(frozen=True)
class Block:
    """Parameters that learn and rest together.

    Attributes:
        name: `stem`, `head`, or the path of a layer.
        parameters: their names in the model, of those that learn in the script.
    """

    name: str
    parameters: tuple[str, ...]


def blocks_of(model: Any, way: Way) -> list[Block]:
    """What learns in turn, bottom to top; parameters that are in none of them always learn, or are frozen.

    lisa: the layers of all stacks. badam: these, with a norm or pooler after them in the last one, and before and after
    them the embeddings (`stem`) and the head, where it is not tied to them. Without what the script has frozen.

    Args:
        model: a transformers model, on any device.

    Raises:
        PluginError: it has no stack of layers.
    """
    base = bare(model)
    learning = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    paths = [path for stack in all_stacks(base) for block in stack.blocks for path in block]
    if not paths:
        raise PluginError(
            f"{NAME}: algorithm={way} lets one layer learn after the other, and no stack of layers is found in a "
            f"{type(base).__name__}. Use algorithm=script or adalomo.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if sum(len(stack.blocks) for stack in all_stacks(base)) == 1:
        # There is no order of layers to ask for.
        groups = [("the layer", tuple(name for name in learning if _is_below(name, paths)))]
    else:
        groups = [(group.name, group.parameters) for group in layer_groups(base, NAME, at_most=len(paths))]
    if way == "lisa":
        groups = [
            (name, tuple(one for one in parameters if _is_below(one, paths)))
            for name, parameters in groups
            if name not in (STEM, HEAD)
        ]
    found = [Block(name, tuple(one for one in parameters if one in learning)) for name, parameters in groups]
    return [block for block in found if block.parameters]


def _is_below(name: str, paths: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def lisa_draw(seed: int, step: int, blocks: int, *, active: int, every: int) -> list[int]:
    """`active` of so many blocks, drawn anew every `every` steps, all with the same probability.

    LISA: Pan et al. 2024, arXiv:2403.17919, algorithm 1.

    Args:
        seed: of the run.
        step: optimizer steps that are done.

    Returns:
        Numbers of blocks, in order; all of them where there are no more than `active`.
    """
    order = torch.randperm(blocks, generator=generator("cpu", "lisa", seed, step // every))
    return sorted(order[:active].tolist())


def badam_draw(seed: int, step: int, blocks: int, *, every: int) -> list[int]:
    """One of so many blocks for `every` steps; all have their turn, in a new random order, before one comes again.

    BAdam: Luo et al. 2024, arXiv:2404.02827, algorithm 1, with blocks in random order, reshuffled in each turn.

    Args:
        seed: of the run.
        step: optimizer steps that are done.

    Returns:
        The number of the block, alone in a list.
    """
    turn, place = divmod(step // every, blocks)
    order = torch.randperm(blocks, generator=generator("cpu", "badam", seed, turn))
    return [int(order[place])]
