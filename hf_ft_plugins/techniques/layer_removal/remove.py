"""Layers taken out of a model in place, so that it generates, is saved and loads again as what it then is.

Not only the list of modules changes, but also what other code reads: the configuration's settings of each layer
(`config_editing`), and the layer numbers kept in modules, by which layers find their place in the cache.
`config_agreement` finds what was overlooked: the model must be the one that its edited configuration builds.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ...errors import OptionError, PluginError
from ...models.inputs import bare
from ...models.unchanged import remembered, unchanged_on_error
from .config_agreement import Differences, describe, differences, new_differences, rebuilt
from .config_editing import edit_config, original_layers, remember_removed, rename_paths
from .stacks import NAME, Stack, find_stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


__all__ = ["Removal", "original_layers", "refuse_architecture", "remove_layers"]

logger = logging.getLogger(__name__)

_REMOVALS: weakref.WeakKeyDictionary[Any, Callable[[], Removal | None]] = weakref.WeakKeyDictionary()
OWN_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number")


@dataclass(frozen=True)
class Removal:
    """What was taken out, and the way back.

    Attributes:
        stack: whose layers; removed: their numbers in the stack as it was, ascending.
    """

    stack: Stack
    removed: tuple[int, ...]
    _take_back: Callable[[], None]

    def restore(self) -> None:
        """Put the layers back, in place."""
        _unscale(self.stack.parent)
        self._take_back()
        for model, removal in list(_REMOVALS.items()):
            if removal() is self:
                del _REMOVALS[model]


def remove_layers(
    model: PreTrainedModel, layers: Sequence[int], *, side: str = "", check: bool = True, suggest: bool = True
) -> Removal:
    """Remove blocks by number, in place. If it fails the model is as it was.

    Args:
        model: a `PreTrainedModel`.
        layers: numbers in the stack as it is, from 0.
        side: of an encoder-decoder "encoder" or "decoder".
        check: compare the result with what its configuration makes, and put all back if they differ.
        suggest: look for other layers that could be removed, to name them in the error.

    Returns:
        the way back. The configuration remembers, in `removed_layers`, the numbers in the original stack.

    Raises:
        OptionError: a number is no layer's, or none would be left.
        PluginError: this architecture cannot lose these layers.
    """
    stack = find_stack(model, side)
    depth = len(stack.layers)
    out = sorted(set(layers))
    wrong = [layer for layer in out if not 0 <= layer < depth]
    if wrong or not out:
        raise OptionError(f"{NAME}: layers={list(layers)}; {stack.name} has layers 0 to {depth - 1}.")
    if len(out) >= depth:
        raise OptionError(f"{NAME}: layers={list(layers)} are all of {stack.name}; at least one must be left.")
    refuse_architecture(model, stack, side, out)
    kept = [layer for layer in range(depth) if layer not in out]
    before = _differences_of_whole(model) if check else None
    lists = [f"{stack.name.removesuffix(stack.key)}{key}." for key in stack.keys]
    _unscale(stack.parent)
    found: Differences = {}
    changed = remembered(model)
    with unchanged_on_error(model):
        try:
            _take_out(model, stack, side, kept, depth)
        except PluginError:
            raise
        except Exception as error:
            # Configurations check what is written to them.
            raise PluginError(
                f"{NAME}: the configuration of {type(bare(model)).__name__} cannot be told that layers {out} are gone: "
                f"{type(error).__name__}: {error} Remove other layers, or none.",
                code="model-unsuited",
            ) from error
        if before is not None:
            _spread_drop_paths(model)
            found = new_differences(model, before, lambda name: _name_before(name, lists, kept))
    if found:
        changed()()
        remedy = _other_layers(model, depth, len(out), side) if suggest else "Remove others, or none."
        raise PluginError(f"{describe(bare(model), found)} {remedy}", code="model-unsuited")
    removal = Removal(stack, tuple(out), changed())
    _REMOVALS[model] = weakref.ref(removal)
    return removal


@contextmanager
def whole_again(model: PreTrainedModel) -> Iterator[bool]:
    """Put the last removed layers back for a while; yields whether that is possible, as the `Removal` still exists."""
    removal = _REMOVALS.get(model, lambda: None)()
    if removal is None:
        yield False
        return
    changed = remembered(model)
    removal.restore()
    back = changed()
    _REMOVALS[model] = weakref.ref(removal)
    try:
        yield True
    finally:
        back()


def refuse_architecture(model: PreTrainedModel, stack: Stack, side: str, out: Sequence[int]) -> None:
    """
    Raises:
        PluginError: without these layers the model would be wrong in a way that its configuration cannot say.
    """
    config, what = stack.config, type(bare(model)).__name__
    settings = vars(config)
    why = None
    if settings.get("num_kv_shared_layers"):
        why = "its last layers read the keys and values of earlier ones, by number"
    elif settings.get("scale_attn_by_inverse_layer_idx"):
        why = "attention is scaled by each layer's number (scale_attn_by_inverse_layer_idx), so others would change"
    elif settings.get("hidden_size_per_layer_input"):
        why = "its embeddings hold a part for each layer (hidden_size_per_layer_input)"
    elif settings.get("use_weighted_layer_sum") and hasattr(bare(model), "layer_weights"):
        why = "its head weighs the output of each layer (use_weighted_layer_sum)"
    elif any(_is_of_stages(settings.get(name), stack) for name in ("depths", "block_sizes", "hidden_sizes")):
        why = (
            f"{stack.name} is a list of stages, each of which makes its input smaller for the next; only single layers "
            "can go"
        )
    elif 0 in out and any("relative_attention_bias" in name for name, _ in stack.layers[0].named_parameters()):
        others = [name for name, _ in stack.layers[1:].named_parameters() if "relative_attention_bias" in name]
        if not others:
            why = "its first layer holds the positions of all (relative_attention_bias); remove others"
    if why is not None:
        raise PluginError(f"{NAME}: {what} cannot lose layers {list(out)}: {why}.", code="model-unsuited")


def _other_layers(model: PreTrainedModel, depth: int, count: int, side: str) -> str:
    """Which layers could be removed instead: the last ones, as that changes no other layer's number."""
    last = range(depth - count, depth)
    try:
        remove_layers(model, last, side=side, suggest=False).restore()
    except PluginError:
        return "Remove others, or none."
    return (
        "It follows from a layer's number what it does: remove the last ones, whose loss leaves all numbers, "
        f"layers={'+'.join(map(str, last))} with protect_last=0; or none."
    )


def _is_of_stages(sizes: Any, stack: Stack) -> bool:
    return isinstance(sizes, (list, tuple)) and len(sizes) == len(stack.layers)


def _differences_of_whole(model: PreTrainedModel) -> Differences | None:
    try:
        return differences(model)
    except PluginError as error:
        logger.warning("%s, even whole; so it is not compared with what its configuration makes", error)
        return None


def _name_before(name: str, lists: list[str], kept: list[int]) -> str:
    for prefix in lists:
        number, dot, rest = name.removeprefix(prefix).partition(".")
        number, space, more = number.partition(" ")
        if name.startswith(prefix) and number.isdigit() and int(number) < len(kept):
            return f"{prefix}{kept[int(number)]}{space}{more}{dot}{rest}"
    return name


def _take_out(model: PreTrainedModel, stack: Stack, side: str, kept: list[int], depth: int) -> None:
    lists = [stack.parent._modules[key] for key in stack.keys]
    copies = {id(own): own for own in _configs_in(stack) if own is not stack.config}
    remember_removed(stack.config, side, kept, depth)
    for config in (stack.config, *copies.values()):
        edit_config(config, stack, kept, depth)
    rename_paths(model, stack, kept)
    for listed in lists:
        # In place: the list may be of a class of its own, and others may hold it.
        assert isinstance(listed, nn.ModuleList)
        left = [listed[layer] for layer in kept]
        listed._modules.clear()
        listed._modules.update({str(number): layer for number, layer in enumerate(left)})
        # BigBird's seed is a layer's number, and draws the blocks that it looks at where it does not look at all.
        sees_all = vars(stack.config).get("attention_type") == "original_full"
        _number(listed, (*OWN_NUMBERS, "seed") if sees_all else OWN_NUMBERS)
    for module in stack.parent.modules():
        for name in (*stack.counts, "num_hidden_layers", "num_layers", "n_layers"):
            if vars(module).get(name) == depth:
                setattr(module, name, len(kept))
    for name, value in list(vars(stack.parent).items()):
        # Gemma's number of the first layer that shares keys and values; the depth if none does.
        if "layer" in name and value == depth and type(value) is int:
            setattr(stack.parent, name, len(kept))


def _configs_in(stack: Stack) -> list[Any]:
    """The configurations that the layers, and the module that holds them, read: T5's stacks have copies, and layers of
    different kinds one each."""
    found = [getattr(module, "config", None) for module in stack.parent.modules()]
    return [own for own in found if type(own) is type(stack.config)]


def _number(layers: nn.ModuleList, names: Sequence[str]) -> None:
    """Renumber layers and their submodules."""
    for number, layer in enumerate(layers):
        for module in layer.modules():
            for name in names:
                if isinstance(vars(module).get(name), int):
                    setattr(module, name, number)


def _unscale(parent: Any) -> None:
    """RWKV divides weights by layers' numbers to be evaluated, and multiplies by what these are when it is trained."""
    if getattr(parent, "layers_are_rescaled", False):
        training, parent.training = parent.training, True
        parent._rescale_layers()
        parent.training = training


def _spread_drop_paths(model: PreTrainedModel) -> None:
    """Rates of dropped paths rise over the layers, in training alone: as the configuration spreads them over these."""
    modules = dict(bare(model).named_modules())
    if not any(hasattr(module, "drop_prob") for module in modules.values()):
        return
    for name, expected in rebuilt(bare(model)).named_modules():
        own = modules.get(name)
        if own is None or not any("DropPath" in type(one).__name__ for one in (own, expected)):
            continue
        if type(own) is type(expected):
            own.drop_prob = expected.drop_prob
        elif not list(own.parameters()):
            # That of the first layer, with a rate of 0, is nn.Identity in some models.
            above, _, key = name.rpartition(".")
            bare(model).get_submodule(above)._modules[key] = expected.train(own.training)
