"""The layers that peft's LoRA is on: W x + scaling B A x, of which A [rank, in] and B [out, rank] learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...errors import PluginError
from ...models.linear_layers import is_linear
from .settings import NAME
from .start_weights import plain_name


@dataclass(frozen=True)
class LoraLayer:
    """A layer with a LoRA that learns.

    Attributes:
        path: of the module in the model.
        module: peft's.
        a, b: names of its matrices among the model's parameters.
        scaling: what B A is multiplied by.
    """

    path: str
    module: Any
    a: str
    b: str
    scaling: float


def has_adapter(model: Any) -> bool:
    """Whether peft has put something on the model."""
    return bool(getattr(model, "peft_config", None))


def refuse_other_adapters(model: Any, option: str) -> None:
    """
    Args:
        option: which asks, with its value, for the error.

    Raises:
        PluginError: the model has an active adapter that is not plain LoRA.
    """
    active = model.active_adapters
    for name in active() if callable(active) else active:
        config = model.peft_config[name]
        method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
        variant = next((one for one in ("use_dora", "use_qalora", "use_bdlora") if getattr(config, one, None)), None)
        if method != "lora" or variant is not None:
            found = f"method {method}" if variant is None else f"variant {variant} of LoRA"
            raise PluginError(
                f"{NAME}: {option} knows what LoRA adds to a layer, and not what peft's {found} does. Use plain LoRA, "
                "or protect earlier stages by replay, or by l2sp, which takes any parameters.",
                code="model-unsuited",
            )


def lora_layers(model: Any, option: str) -> list[LoraLayer]:
    """All layers with a LoRA that learns.

    Raises:
        PluginError: there is none; one is on something else than a linear layer; a layer has two that learn.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    refuse_other_adapters(model, option)
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, PeftLayer):
            continue
        path = plain_name(path)
        learn = [name for name, one in module.lora_A.items() if _learns(one) or _learns(module.lora_B[name])]
        if any(parameter.requires_grad for parameter in module.lora_embedding_A.values()) or (
            learn and (not is_linear(module.get_base_layer()) or not hasattr(module.lora_A[learn[0]], "weight"))
        ):
            raise PluginError(
                f"{NAME}: {option} knows LoRA on linear layers, and {path} is on a "
                f"{type(module.get_base_layer()).__name__}. Leave it out of target_modules, or use l2sp or replay.",
                code="model-unsuited",
            )
        if len(learn) > 1 or module.lora_variant:
            raise PluginError(
                f"{NAME}: {option} takes layers with one plain LoRA that learns, and {path} has "
                f"{', '.join([*learn, *map(str, module.lora_variant.values())])}. Train one at a time.",
                code="model-unsuited",
            )
        for name in learn:
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
            found.append(LoraLayer(path, module, names[id(a)], names[id(b)], float(module.scaling[name])))
    if not found:
        raise PluginError(
            f"{NAME}: {option}: no layer of this model has a LoRA that learns. Unfreeze it, or set it to 0.",
            code="model-unsuited",
        )
    return found


def _learns(layer: Any) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def matrix(parameter: torch.Tensor) -> torch.Tensor:
    """In 32 bits, or in 64 where it is, without its gradient."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
