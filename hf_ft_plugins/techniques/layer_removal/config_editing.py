"""Edits a configuration's settings of each layer when some layers are removed.

Beside the number of layers that is every list with an entry for each layer or with layers' numbers, rules over these
numbers, and paths of modules that hold them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .stacks import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


REMOVED = "removed_layers"
# Lists of layers' numbers; all other lists that are as long as the stack have an entry for each layer.
NUMBERS = re.compile(
    r"(mlp_only|moe|full_attention|cross_attention)_layers|.*(layers?|attn)_(ids|indices|indexes|idxs?)|.*block_(indices|indexes)"
)
# Lists that may be as long by chance.
NOT_BY_LAYER = re.compile(
    r"architectures|removed_layers|no_split_modules|stage_names|.*token.*|.*labels?|.*(conv|tdnn|kernel|stride|dilation)"
    r".*|.*_(sizes|section|sections|shape|resolution|ratios|mean|std)|image_size|patch_size|depths|hidden_sizes|_?out_.*"
)
# Settings that count how many of the first layers are of another kind.
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")


def original_layers(config: Any, side: str = "") -> tuple[int, ...]:
    """The numbers, in the original stack, of the layers that are no longer there."""
    return tuple((getattr(config, REMOVED, None) or {}).get(side, ()))


def remember_removed(config: Any, side: str, kept: list[int], depth: int) -> None:
    """Write into the configuration which layers are gone, numbered as in the original stack."""
    gone_before = original_layers(config, side)
    original = range(depth + len(gone_before))
    there = [layer for layer in original if layer not in gone_before]
    still_there = {there[layer] for layer in kept}
    removed = {side: [layer for layer in original if layer not in still_there]}
    setattr(config, REMOVED, {**(getattr(config, REMOVED, None) or {}), **removed})


def edit_config(config: Any, stack: Stack, kept: list[int], depth: int) -> None:
    """Reduce a configuration to the layers that are kept; it may be the stack's own or a copy of it."""
    for name, value in list(vars(config).items()):
        public = name.lstrip("_")
        if not isinstance(value, (list, tuple)) or NOT_BY_LAYER.fullmatch(public) or _of_other_half(public, stack):
            continue
        if NUMBERS.fullmatch(public) and all(isinstance(layer, int) for layer in value):
            new = [kept.index(layer) for layer in value if layer in kept]
        elif len(value) == depth:
            new = [value[layer] for layer in kept]
        else:
            continue
        setattr(config, name, type(value)(new))
    _edit_rules(config, kept, depth)
    for name in (*stack.counts, "num_layers"):
        # Copies, as T5's stacks have, keep their own count in num_layers.
        if (name in stack.counts or config is not stack.config) and vars(config).get(name) == depth:
            setattr(config, name, len(kept))
    _edit_stages(config, kept, depth)
    spec = vars(config).get("_heterogeneity_spec")
    if spec is not None:
        settings = spec.per_layer_overrides
        config.per_layer_config = {new: dict(settings[old]) for new, old in enumerate(kept) if old in settings} or None


def _of_other_half(name: str, stack: Stack) -> bool:
    if stack.half == "decoder":
        # A setting that names neither half belongs to the encoder: LED's attention_window.
        return "decoder" not in name
    return stack.half == "encoder" and "decoder" in name


def _edit_rules(config: Any, kept: list[int], depth: int) -> None:
    """Edit settings that are rules over the layers' numbers."""
    if getattr(config, "decoder_sparse_step", None) and hasattr(config, "mlp_only_layers"):
        # Qwen: every n-th layer is sparse, except those named, which are renumbered already.
        step, named = config.decoder_sparse_step, set(config.mlp_only_layers or ())
        if step > 1:
            config.mlp_only_layers = [new for new, old in enumerate(kept) if new in named or (old + 1) % step]
            config.decoder_sparse_step = 1
    for name in FIRST:
        if vars(config).get(name):
            setattr(config, name, sum(layer < getattr(config, name) for layer in kept))
    if isinstance(vars(config).get("moe_layer_end_index"), int) and config.moe_layer_end_index >= 0:
        config.moe_layer_end_index = sum(layer <= config.moe_layer_end_index for layer in kept) - 1
    if getattr(config, "attention_types", None) and hasattr(config, "attention_layers"):
        # GPT-Neo makes attention_layers from attention_types when it is loaded.
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def _edit_stages(config: Any, kept: list[int], depth: int) -> None:
    """A vision backbone names what comes out of each layer (after "stem"), and which of these it gives."""
    names = vars(config).get("stage_names")
    if not names or len(names) != depth + 1:
        return
    given = list(vars(config).get("_out_indices") or ())
    new = [kept.index(index - 1) + 1 for index in given if index - 1 in kept]
    new = [0] * (0 in given) + new
    if depth in given and len(kept) not in new:
        # A classifier reads the last one.
        new.append(len(kept))
    config.stage_names = names[: len(kept) + 1]
    if given:
        config._out_indices = type(config._out_indices)(new)
        config._out_features = [config.stage_names[index] for index in new]


def renamed(path: str, stack: Stack, kept: list[int]) -> str | None:
    """The path of a module in the new numbering; None if it is of a layer that is gone."""
    found = re.search(rf"(^|\.){re.escape(stack.key)}\.(\d+)(?=\.|$)", path)
    if found is None:
        return path
    old = int(found[2])
    return None if old not in kept else f"{path[: found.start(2)]}{kept.index(old)}{path[found.end(2) :]}"


def rename_paths(model: PreTrainedModel, stack: Stack, kept: list[int]) -> None:
    """In what a quantiser, accelerate or Whisper's timestamps know of single layers."""
    if getattr(model, "hf_device_map", None):
        model.hf_device_map = _renamed_keys(model.hf_device_map, stack, kept)
    quantization = getattr(model.config, "quantization_config", None)
    settings = quantization if isinstance(quantization, dict) else vars(quantization) if quantization else {}
    for owner in (settings, vars(model.hf_quantizer) if getattr(model, "hf_quantizer", None) else {}):
        for name, value in list(owner.items()):
            if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
                owner[name] = [new for new in (renamed(one, stack, kept) for one in value) if new is not None]
            elif name == "dynamic" and isinstance(value, dict):
                owner[name] = _renamed_keys(value, stack, kept)
    generation: Any = getattr(model, "generation_config", None)
    heads = getattr(generation, "alignment_heads", None)
    if heads and stack.half == "decoder":
        generation.alignment_heads = [[kept.index(layer), head] for layer, head in heads if layer in kept]


def _renamed_keys(paths: dict[str, Any], stack: Stack, kept: list[int]) -> dict[str, Any]:
    new = {renamed(path, stack, kept): value for path, value in paths.items()}
    return {path: value for path, value in new.items() if path is not None}
