"""How few layers of a model suffice for an estimate of all of them: read from its blocks."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

from ..errors import PluginError
from ..models.classes import model_on_meta
from ..models.stacks import Stack, block_stacks


def stack_of(cls: Any, config: Any) -> Stack | None:
    """The stack of a model of this class and configuration, if there is one and a number in `config` sets its depth.

    None if there are two (encoder and decoder), or if a part of the configuration sets the depth: such a model is run
    with all layers.
    """
    model = model_on_meta(config, cls)
    try:
        stacks = block_stacks(model, "memory")
    except PluginError:
        # Not an error here: the configuration has no number of layers that could be lowered.
        return None
    stack = stacks.get("")
    return stack if stack is not None and stack.config is model.config else None


def kinds_of(stack: Stack) -> list[Hashable]:
    """The composition of each block: classes of its modules, shapes and types of their parameters."""
    return [
        tuple(
            (name, type(module), *((key, one.shape, one.dtype) for key, one in module.named_parameters(recurse=False)))
            for key in stack.keys
            for name, module in getattr(stack.parent, key)[number].named_modules()
        )
        for number in range(stack.depth)
    ]


def trial_depths(kinds: Sequence[Hashable], least: int) -> tuple[int, int] | None:
    """Two depths from which that of all `kinds` is extrapolated; None if the kinds of blocks are not periodic.

    The second is one period larger than the first, the first includes every kind of block, and the rest of the depth is
    a number of whole periods. For equal blocks they are `least` and `least` + 1; for Jamba, where every eighth block is
    attention, 8 and 16.
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
    """A copy of the configuration with this number of layers; None leaves the number."""
    config = copy.deepcopy(config)
    if layers is None or stack is None:
        return config
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == stack.depth and name != "architectures":
            # Presumably a list with one entry a layer; another list of this length has no effect on the estimate.
            setattr(config, name, value[:layers])
    for name in stack.counts:
        setattr(config, name, layers)
    return config
