"""Weights that two layers share, such as embeddings and the output layer, where an adapter changes one of them.

peft merges into the shared tensor, so that the other layer changes with it, though it was trained without. Here each
layer gets a tensor of its own before the merge; after it they share one again where they are equal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...models.embeddings import tied_layers
from ...progress import progress
from .layers import NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Tolerance in units of the largest weight's last place: the same sum in another order.
ROUNDINGS = 8
# What peft puts between a wrapped layer's path and its own weight.
WRAPPED = ("base_layer", "original_module")


def copied(model: Any) -> Any:
    """A deep copy, where peft keeps views of the embeddings' adapters beside adapters that are tied to them, too."""
    views = (tensor for module in model.modules() for tensor in _tensors(vars(module)) if not tensor.is_leaf)
    return copy.deepcopy(model, {id(view): view.detach().clone() for view in views})


def _tensors(table: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for value in table.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def separated(model: PreTrainedModel) -> list[list[str]]:
    """Give, in place, each layer a tensor of its own where an adapter acts on one of those that share it.

    Args:
        model: the transformers model with adapters in it (`get_base_model()`).

    Returns:
        For each shared tensor the paths of the parameters, in the model without adapters.
    """
    groups = [paths for paths in tied_layers(model).values() if any(_is_wrapped(path) for path in paths)]
    for paths in groups:
        for path in paths[1:]:
            _set(model, path, _own(model.get_parameter(path)))
    return [[_without_wrapper(path) for path in paths] for paths in groups]


def joined(model: PreTrainedModel, groups: list[list[str]], tied: bool) -> None:
    """Let the layers share one tensor again, in place, where they are equal; else the configuration says that they
    do not, and no two layers of the model share one, since transformers ties all of them or none.

    Args:
        model: merged.
        groups: what `separated` returned.
        tied: the adapters themselves were tied: what differs by rounding is equal. (peft ties those of a linear
            layer; of a second table of embeddings, such as a decoder's, it does not.)
    """
    if not groups:
        return
    tensors = [[model.get_parameter(path) for path in paths] for paths in groups]
    same = _nearly_equal if tied else torch.equal
    equal = all(same(first, other) for first, *others in tensors for other in others)
    if equal:
        for paths, (first, *_) in zip(groups, tensors, strict=True):
            for path in paths[1:]:
                _set(model, path, first)
    else:
        for paths in tied_layers(model).values():
            for path in paths[1:]:
                _set(model, path, _own(model.get_parameter(path)))
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = equal


def other_places(model: PreTrainedModel) -> dict[str, str]:
    """Where a table of which peft trains single rows hangs without them, too, and where it hangs with them: of several
    places of one layer peft wraps those that are read (Marian's `shared` is not).
    """
    from peft.utils.other import TrainableTokensWrapper

    modules = list(model.named_modules(remove_duplicate=False))
    wrappers = {id(one.original_module): path for path, one in modules if isinstance(one, TrainableTokensWrapper)}
    inside = tuple(f"{path}." for path, one in modules if isinstance(one, TrainableTokensWrapper))
    return {
        path: wrappers[id(module)] for path, module in modules if id(module) in wrappers and not path.startswith(inside)
    }


def _nearly_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    rounding = ROUNDINGS * torch.finfo(one.dtype).eps * one.abs().max()
    return bool((one - other).abs().max() <= rounding)


def _own(parameter: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _set(model: PreTrainedModel, path: str, parameter: torch.nn.Parameter) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, parameter)


def adapters_are_tied(config: Any) -> bool:
    """Whether peft has tied the adapters, or trained copies, of the layers that share a tensor."""
    return any(getattr(config, name, None) for name in ("target_modules_to_tie", "modules_to_tie"))


def _is_wrapped(path: str) -> bool:
    return any(part in WRAPPED for part in path.split("."))


def _without_wrapper(path: str) -> str:
    kept: list[str] = []
    for part in path.split("."):
        if part == "base_layer" and kept and kept[-1] == "token_adapter":
            kept.pop()
        elif part not in WRAPPED:
            kept.append(part)
    return ".".join(kept)


def tensors_that_differ(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the tensors of `wanted` that `found` lacks or has with other bits."""
    return [
        name
        for name, tensor in progress(wanted.items(), f"{NAME}: comparing what was saved", unit="tensors")
        if name not in found or not torch.equal(found[name].to(tensor.device, tensor.dtype), tensor)
    ]
