"""A model's layers as peft names them. Where they are is read by `models/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...errors import PluginError
from ...models.embeddings import output_embeddings
from ...models.heads import backbone_of, head_names
from ...models.stacks import text_stacks

NAME = "peft"


def block_stacks(model: Any) -> tuple[str, ...]:
    """Paths of the lists of blocks that adapters go to.

    Raises:
        PluginError: there is none.
    """
    paths = tuple(path for stack in text_stacks(model) for path in stack.paths)
    if not paths:
        raise PluginError(
            f"{NAME}: no stack of blocks is found in a {type(model).__name__}. Name its layers: targets=..., among: "
            f"{some_names(model)}.",
            code="model-unsuited",
        )
    return paths


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the layers outside the backbone of a classifier, which no adapter reaches; none of a language model."""
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


def some_names(model: Any) -> str:
    kinds = {without_numbers(path): None for path, module in model.named_modules() if not any(module.children())}
    return ", ".join(list(kinds)[:12])


def without_numbers(path: str) -> str:
    """What comes after the block's number: `mlp.experts.down_proj`."""
    return re.split(r"(?:^|\.)\d+\.", path)[-1]
