"""The stacks that layers can be removed from: those whose depth the configuration tells (`models/stacks.py`)."""

from __future__ import annotations

from torch import nn

from ...models import stacks
from ...models.stacks import Stack

__all__ = ["NAME", "Stack", "block_stacks", "find_stack", "usual_side"]

NAME = "layer-removal"


def block_stacks(model: nn.Module) -> dict[str, Stack]:
    """{"": stack}, or {"encoder": ..., "decoder": ...} of an encoder-decoder, or the one of them that is there.

    Raises:
        PluginError: there is none.
    """
    return stacks.block_stacks(model, NAME)


def find_stack(model: nn.Module, side: str) -> Stack:
    """The stack of that side; "" is also the only one that there is.

    Raises:
        OptionError: there is none of that side.
    """
    return stacks.find_stack(model, side, NAME)


def usual_side(model: nn.Module, side: str = "") -> str:
    """`side`, or where nothing is said: of an encoder-decoder the decoder, of all others the only one."""
    return stacks.usual_side(model, side, NAME)
