"""Layers taken out of a model in place, so that it generates, is saved and loads again as what it then is.

Beside the list of modules this mends what other code reads: the number of layers, every list of the configuration with
an entry for each layer or with layers' numbers, and the numbers that the layers keep of themselves, by which they find
their place in the cache. What nobody thought of is found by `verify.check_structure`: the model must be what its
configuration now makes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import OptionError, PluginError
from .stacks import NAME, Stack, block_stacks

logger = logging.getLogger(__name__)

REMOVED = "removed_layers"
OWN_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number")
# Lists of layers' numbers; all other lists that are as long as the stack have an entry for each layer.
NUMBERS = ("mlp_only_layers", "moe_layers", "full_attention_layers", "cross_attention_layers")
NOT_BY_LAYER = ("architectures", "removed_layers", "no_split_modules")


@dataclass(frozen=True)
class Removal:
    """What was taken out, and the way back.

    Attributes:
        stack: whose layers; removed: their numbers in the stack as it was, ascending.
    """

    stack: Stack
    removed: tuple[int, ...]
    _layers: list[nn.Module]
    _config: dict[str, Any]

    def restore(self) -> None:
        """Put the layers back, in place."""
        setattr(self.stack.parent, self.stack.key, nn.ModuleList(self._layers))
        self.stack.config.__dict__.clear()
        self.stack.config.__dict__.update(self._config)
        _number(self._layers)
        _count(self.stack, len(self._layers) - len(self.removed), len(self._layers))


def remove_layers(model: Any, layers: Sequence[int], *, side: str = "", check: bool = True) -> Removal:
    """Remove blocks by number, in place.

    Args:
        model: a `PreTrainedModel`.
        layers: numbers in the stack as it is, from 0.
        side: of an encoder-decoder "encoder" or "decoder".
        check: compare the result with what its configuration makes, and put all back if they differ.

    Returns:
        the way back. The configuration remembers, in `removed_layers`, the numbers in the original stack.

    Raises:
        OptionError: a number is no layer's, or none would be left.
        PluginError: this architecture cannot lose these layers.
    """
    stacks = block_stacks(model)
    if side not in stacks:
        raise OptionError(f"{NAME}: side={side!r}; this model has {', '.join(map(repr, stacks))}.")
    stack = stacks[side]
    depth = len(stack.layers)
    out = sorted(set(layers))
    wrong = [layer for layer in out if not 0 <= layer < depth]
    if wrong or not out:
        raise OptionError(f"{NAME}: layers={list(layers)}; {stack.name} has layers 0 to {depth - 1}.")
    if len(out) >= depth:
        raise OptionError(f"{NAME}: layers={list(layers)} are all of {stack.name}; at least one must be left.")
    refuse_architecture(model, stack, side, out)
    kept = [layer for layer in range(depth) if layer not in out]
    removal = Removal(stack, tuple(out), list(stack.layers), copy.deepcopy(stack.config.__dict__))
    _edit_config(stack, kept, depth, side)
    setattr(stack.parent, stack.key, nn.ModuleList([removal._layers[layer] for layer in kept]))
    _number(list(stack.layers))
    _count(stack, depth, len(kept))
    if check:
        from .verify import check_structure

        try:
            check_structure(model)
        except PluginError:
            removal.restore()
            raise
    return removal


def original_layers(config: Any, side: str = "") -> tuple[int, ...]:
    """The numbers, in the original stack, of the layers that are no longer there."""
    return tuple((getattr(config, REMOVED, None) or {}).get(side, ()))


def refuse_architecture(model: Any, stack: Stack, side: str, out: Sequence[int]) -> None:
    """
    Raises:
        PluginError: without these layers the model would be wrong in a way that its configuration cannot say.
    """
    config, what = stack.config, type(model).__name__
    why = None
    if getattr(config, "num_kv_shared_layers", 0):
        why = "its last layers read the keys and values of earlier ones, by number"
    elif getattr(config, "scale_attn_by_inverse_layer_idx", False):
        why = "attention is scaled by each layer's number (scale_attn_by_inverse_layer_idx), so others would change"
    elif 0 in out and any("relative_attention_bias" in name for name, _ in stack.layers[0].named_parameters()):
        others = [name for name, _ in stack.layers[1:].named_parameters() if "relative_attention_bias" in name]
        if not others:
            why = "its first layer holds the positions of all (relative_attention_bias); remove others"
    if why is not None:
        raise PluginError(f"{NAME}: {what} cannot lose layers {list(out)}: {why}.")


def _edit_config(stack: Stack, kept: list[int], depth: int, side: str) -> None:
    config = stack.config
    gone_before = original_layers(config, side)
    original = list(range(depth + len(gone_before)))
    there = [layer for layer in original if layer not in gone_before]
    still_there = {there[layer] for layer in kept}
    for name, value in list(vars(config).items()):
        public = name.lstrip("_")
        if not isinstance(value, (list, tuple)) or public in NOT_BY_LAYER:
            continue
        if public in NUMBERS:
            new = [kept.index(layer) for layer in value if layer in kept]
        elif len(value) == depth:
            new = [value[layer] for layer in kept]
        else:
            continue
        setattr(config, name, type(value)(new))
    _edit_patterns(config, kept, depth)
    for name in stack.counts:
        setattr(config, name, len(kept))
    removed = {side: [layer for layer in original if layer not in still_there]}
    setattr(config, REMOVED, {**(getattr(config, REMOVED, None) or {}), **removed})


def _edit_patterns(config: Any, kept: list[int], depth: int) -> None:
    """What is told of layers by a rule over their numbers."""
    if getattr(config, "decoder_sparse_step", None):
        # Qwen's: sparse are every n-th, but for those named.
        step, named = config.decoder_sparse_step, set(getattr(config, "mlp_only_layers", None) or ())
        if step > 1:
            config.mlp_only_layers = [new for new, old in enumerate(kept) if new in named or (old + 1) % step]
            config.decoder_sparse_step = 1
    if getattr(config, "first_k_dense_replace", None):
        config.first_k_dense_replace = sum(layer < config.first_k_dense_replace for layer in kept)
    if getattr(config, "attention_types", None) and hasattr(config, "attention_layers"):
        # GPT-Neo's: the list is made of this when it is loaded.
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(layer < config.max_window_layers for layer in kept)


def _count(stack: Stack, before: int, after: int) -> None:
    """Tell the module that holds the layers how many there are, where it, or a configuration of its own, keeps that."""
    places = [vars(stack.parent)]
    own = getattr(stack.parent, "config", stack.config)
    if own is not stack.config:
        # T5's stacks have copies, in which num_layers is of that side.
        places.append(vars(own))
    for place in places:
        for name in (*stack.counts, "num_layers"):
            if place.get(name) == before:
                place[name] = after


def _number(layers: list[nn.Module]) -> None:
    """Tell layers, and what they consist of, which number they have."""
    for number, layer in enumerate(layers):
        for module in layer.modules():
            for name in OWN_NUMBERS:
                if isinstance(vars(module).get(name), int):
                    setattr(module, name, number)
