"""Is a model what its configuration makes? Compared module by module with a new one, which holds no weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import configuration_utils
from transformers.pytorch_utils import Conv1D

from ...errors import PluginError
from ...models.inputs import bare
from .stacks import NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

# Attributes whose difference between two builds of one architecture means nothing. Trainers set the padding token of a
# model that has none; a quantised model is built unquantised.
INCIDENTAL = (
    *("training", "gradient_checkpointing", "name_or_path", "call_super_init", "dump_patches", "padding_idx"),
    *("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "layers_are_rescaled"),
)
# How many outputs and inputs a linear layer has, by the names of those that quantise it.
SIZES = (("out_features", "outfeatures", "nf"), ("in_features", "infeatures", "nx"))
MISSING = "not there"
KINDS: tuple[str, ...] = tuple(getattr(configuration_utils, "ALLOWED_LAYER_TYPES", ()))

Differences = dict[str, tuple[Any, Any]]


def check_structure(model: PreTrainedModel) -> None:
    """Compare the model with a new one of its configuration: classes, parameters' shapes, and numbers kept in modules.

    Raises:
        PluginError: they differ; it names the first places.
    """
    found = differences(model)
    if found:
        raise PluginError(f"{describe(model, found)} Remove others, or none.", code="model-unsuited")


def new_differences(model: PreTrainedModel, before: Differences, name_before: Callable[[str], str]) -> Differences:
    """What of a model without some layers is not what its configuration makes, but for what differed before.

    Args:
        before: the differences of the whole model.
        name_before: what a module, by its name, was called before.
    """
    return {name: pair for name, pair in differences(model).items() if before.get(name_before(name)) != pair}


def differences(model: PreTrainedModel) -> Differences:
    """What of the model, by name, is not as in a new one of its configuration: what it is here, and there.

    Raises:
        PluginError: no model can be built of this configuration.
    """
    model = bare(model)
    expected = rebuilt(model)
    ours, theirs = _described(model), _described(expected)
    odd = {
        name: (ours.get(name, MISSING), theirs.get(name, MISSING))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }
    left_over = _of_kinds_that_are_gone(model.config)
    return {
        name: (one, other)
        for name, (one, other) in odd.items()
        if not _of_quantised(name, model, expected)
        and not (other == MISSING and name.rpartition(".")[2].startswith(left_over))
    }


def rebuilt(model: PreTrainedModel) -> Any:
    """A new model, without weights, of what would be saved as the configuration.

    Raises:
        PluginError: there is none.
    """
    try:
        config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
        with torch.device("meta"):
            return type(model)(config)
    except Exception as error:
        raise PluginError(
            f"{NAME}: {type(model).__name__} cannot be built from its configuration: "
            f"{type(error).__name__}: {error} Remove other layers, or none.",
            code="model-unsuited",
        ) from error


def describe(model: PreTrainedModel, found: Differences) -> str:
    places = "; ".join(
        f"{name} is {ours}, saved and loaded again {theirs}" for name, (ours, theirs) in [*found.items()][:3]
    )
    return (
        f"{NAME}: {type(model).__name__} cannot be told by its configuration without these layers, "
        f"{len(found)} places differ: {places}."
    )


def _described(model: PreTrainedModel) -> dict[str, Any]:
    described: dict[str, Any] = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules():
        described[f"{name} (class)"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float, str)) and not key.startswith("_") and key not in INCIDENTAL:
                described[f"{name}.{key}"] = value
    return described


def _of_kinds_that_are_gone(config: Any) -> tuple[str, ...]:
    """How attributes begin that modules beside the layers keep for a kind of layer: of those that no layer is of."""
    kinds = vars(config.get_text_config()).get("layer_types") or ()
    return tuple(f"{kind}_" for kind in KINDS if kinds and kind not in kinds)


def _of_quantised(name: str, model: PreTrainedModel, expected: Any) -> bool:
    """Whether this is of a linear layer that is quantised and as large as the one it is made from."""
    if not _is_quantised(model):
        return False
    parts = name.removesuffix(" (class)").split(".")
    for count in range(len(parts), 0, -1):
        path = ".".join(parts[:count])
        ours, theirs = _module(model, path), _module(expected, path)
        if isinstance(theirs, (nn.Linear, Conv1D)) and isinstance(ours, nn.Module):
            has_bias = [getattr(one, "bias", None) is not None for one in (ours, theirs)]
            return type(ours) is not type(theirs) and _size(ours) == _size(theirs) and has_bias[0] == has_bias[1]
    return False


def _is_quantised(model: PreTrainedModel) -> bool:
    marked = getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None
    return bool(marked or getattr(model.config, "quantization_config", None))


def _module(model: nn.Module, path: str) -> Any:
    found: Any = model
    for part in path.split("."):
        found = found._modules.get(part) if isinstance(found, nn.Module) else None
    return found


def _size(module: Any) -> tuple[Any, ...]:
    return tuple(next((getattr(module, name) for name in names if hasattr(module, name)), None) for names in SIZES)
