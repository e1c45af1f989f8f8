"""A model as it was: what is changed in place, and then fails, is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def restored_on_error(model: Any) -> Iterator[None]:
    """Put a model's modules, parameters, hooks, marks and configuration back if what runs inside raises.

    What is kept are references, no copies of weights: a layer that is replaced lives on until the end. Values that are
    written into a parameter's own memory stay written; a parameter that got another tensor (`weight.data = ...`) gets
    its own back, and one that was moved to another device is moved back.
    """
    modules = [(module, _attributes(module)) for module in model.modules()]
    configs = {id(config): (config, dict(vars(config))) for module, _ in modules for config in _configs(module)}
    parameters = [(one, one.requires_grad, one.device) for one in model.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for config, values in configs.values():
            config.__dict__.clear()
            config.__dict__.update(values)
        for parameter, learns, device in parameters:
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
            parameter.requires_grad_(learns)
        raise


@contextlib.contextmanager
def weights_restored_on_error(model: Any) -> Iterator[None]:
    """Give each parameter the tensor back that it had if what runs inside raises; the old ones are kept until then."""
    tensors = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for parameter, tensor in tensors:
            parameter.data = tensor
        raise


def _attributes(module: Any) -> dict[str, Any]:
    """What a module has, with copies of its own tables of parts and hooks."""
    tables = {name: value for name, value in vars(module).items() if name.startswith("_") and isinstance(value, dict)}
    return {**vars(module), **{name: value.copy() for name, value in tables.items()}}


def _configs(module: Any) -> Iterator[Any]:
    from transformers import PretrainedConfig

    own = [value for value in vars(module).values() if isinstance(value, PretrainedConfig)]
    while own:
        config = own.pop()
        yield config
        own += [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
