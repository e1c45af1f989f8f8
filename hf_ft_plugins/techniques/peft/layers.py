"""A model's blocks and layers, read from its structure: what `find_targets` and `quantize` go through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...errors import PluginError
from ...models.embeddings import output_embeddings

NAME = "peft"
# Of the largest stack: an encoder-decoder's other stack is taken from this size on.
OTHER_STACK = 0.05


def block_stacks(model: Any) -> tuple[str, ...]:
    """Paths of the stacks of blocks that adapters go to.

    Raises:
        PluginError: there is none.
    """
    sizes = dict(_outermost_stacks(_text_part(model), _path_of(model, _text_part(model))))
    if not sizes:
        raise PluginError(
            f"{NAME}: no stack of blocks is found in a {type(model).__name__}. Name its layers: targets=..., among: "
            f"{some_names(model)}."
        )
    largest = max(sizes, key=lambda path: sizes[path])
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return (largest,)
    return tuple(path for path, size in sizes.items() if size >= OTHER_STACK * sizes[largest])


def is_linear(module: Any) -> bool:
    """`nn.Linear`, transformers' `Conv1D` and bitsandbytes' layers, which peft's methods know."""
    from transformers.pytorch_utils import Conv1D

    # That of nn.MultiheadAttention is called by its weight, past an adapter.
    direct = isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    return isinstance(module, torch.nn.Linear | Conv1D) and not direct


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the layers outside the backbone of a classifier, which no adapter reaches; none of a language model."""
    from ...models.heads import backbone_of, head_names

    if output_embeddings(model) is not None:
        return ()
    backbone, paths = backbone_of(model), set()
    for name in head_names(model):
        parts = name.split(".")[:-1]
        outer = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        whole = (path for path in outer if _can_be_saved(model.get_submodule(path), backbone))
        paths |= {path for path in [next(whole, None)] if path is not None}
    return shortest_names(model, paths)


def _can_be_saved(module: Any, backbone: Any) -> bool:
    is_list = isinstance(module, torch.nn.ModuleDict | torch.nn.ModuleList)
    return not is_list and not any(part is backbone for part in module.modules())


def shortest_names(model: Any, paths: Iterable[str]) -> tuple[str, ...]:
    """Ends of these paths that fit no other module; peft takes a name for every module whose path ends in it."""
    paths = set(paths)
    # A layer may hang in several places.
    others = (path for path, _ in model.named_modules(remove_duplicate=False) if path not in paths)
    taken = {end for path in others for end in _ends(path)}
    return tuple(sorted({next((end for end in _ends(path) if end not in taken), path) for path in paths}))


def _ends(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[-count:]) for count in range(1, len(parts) + 1))


def _text_part(model: Any) -> Any:
    text = text_config(model)
    if text is None or text is model.config:
        return model
    inside = [module for module in model.modules() if getattr(module, "config", None) is text]
    return inside[0] if inside else model


def _path_of(model: Any, part: Any) -> str:
    return next(path for path, module in model.named_modules() if module is part)


def _outermost_stacks(module: Any, path: str) -> Iterator[tuple[str, int]]:
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        size = sum(parameter.numel() for parameter in child.parameters())
        blocks = any(any(True for _ in block.children()) for block in child.children())
        if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential) and blocks and size:
            yield inside, size
        else:
            yield from _outermost_stacks(child, inside)


def some_names(model: Any) -> str:
    kinds = {without_numbers(path): None for path, module in model.named_modules() if not any(module.children())}
    return ", ".join(list(kinds)[:12])


def without_numbers(path: str) -> str:
    """What comes after the block's number: `mlp.experts.down_proj`."""
    return re.split(r"(?:^|\.)\d+\.", path)[-1]


def text_config(model: Any) -> Any:
    """A model's configuration, of one of several modalities that of the text; None where it has none."""
    config = getattr(model, "config", None)
    return config if config is None or not hasattr(config, "get_text_config") else config.get_text_config()
