"""With how few layers a model is tried, so that what the others add follows: read from its blocks."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

from ..errors import PluginError
from ..models.classes import model_on_meta
from ..models.stacks import Stack, block_stacks


def stack_of(cls: Any, config: Any) -> Stack | None:
    """The one stack of a model of this class and configuration, whose depth a number in `config` tells.

    None where there are two, as of an encoder and a decoder, or where a part of the configuration tells it: such a
    model is run whole.
    """
    model = model_on_meta(config, cls)
    try:
        stacks = block_stacks(model, "memory")
    except PluginError:
        # Nothing is wrong: there is no number that could be lowered.
        return None
    stack = stacks.get("")
    return stack if stack is not None and stack.config is model.config else None


def kinds_of(stack: Stack) -> list[Hashable]:
    """Of each block what it consists of: classes of its modules, sizes and types of its parameters."""
    return [
        tuple(
            (name, type(module), *((key, one.shape, one.dtype) for key, one in module.named_parameters(recurse=False)))
            for key in stack.keys
            for name, module in getattr(stack.parent, key)[number].named_modules()
        )
        for number in range(stack.depth)
    ]


def trial_depths(kinds: Sequence[Hashable], least: int) -> tuple[int, int] | None:
    """Two numbers of layers, the second a period of the blocks' kinds larger, so that whole periods are left to the
    depth, and the first has every kind; None where the blocks do not repeat so.

    Of equal blocks these are `least` and one more; of Jamba, whose eighth blocks are attention, 8 and 16.
    """
    depth, found = len(kinds), None
    for period in range(1, depth):
        start = max((at + 1 for at in range(depth - period) if kinds[at] != kinds[at + period]), default=0)
        few = max(start + period, least)
        few += (depth - few) % period
        if few + period < depth and (found is None or few + period < found[1]):
            found = few, few + period
    return found


def with_layers(config: Any, stack: Stack | None, layers: int | None) -> Any:
    """A copy that tells of so many layers; None: as many as there are."""
    config = copy.deepcopy(config)
    if layers is None or stack is None:
        return config
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == stack.depth and name != "architectures":
            # Lists with one entry a layer; others of that length only change what is printed.
            setattr(config, name, value[:layers])
    for name in stack.counts:
        setattr(config, name, layers)
    return config
