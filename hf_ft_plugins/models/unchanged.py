"""A model that is structurally as it was if an error leaves the block that changes it.

    with unchanged_on_error(model):
        model.classifier = nn.Linear(...)
        model.config.num_labels = 3
        raise ValueError          # classifier and configuration are the old ones

All is kept by reference: which module hangs where, and not what a weight holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import GenerationConfig, PreTrainedConfig
from transformers.quantizers.base import HfQuantizer
from transformers.utils import ModelOutput

PutBack = Callable[[], None]
# Compares what is there with what was, and says how to put back what differs, if anything does.
Difference = Callable[[], PutBack | None]
# Whose attributes belong to the model.
PARTS = (nn.Module, torch.Tensor, PreTrainedConfig, GenerationConfig, HfQuantizer)


@contextmanager
def unchanged_on_error(model: nn.Module, *, storages: bool = True) -> Iterator[None]:
    """If an exception of any class leaves the block, the model is put back as it was when the block began.

    Put back are, in the same objects: every module's sub-modules, parameters, buffers, hooks, class and plain
    attributes with the lists and dicts in them (numbers of layers, a patched `forward`); its configurations with all
    that is nested in them; of each parameter and buffer the tensor itself, `requires_grad`, `grad`, the storage that it
    reads, and what hangs on it (bitsandbytes' state). So what was tied is tied.

    Not put back: values that are written into a weight in place, and whatever is not reached from the model (a
    trainer, the random state, variables in closures). Nothing is copied, but what the block replaces stays in memory
    until it ends.

    Args:
        model: any module, with adapters or quantised or neither.
        storages: whether the storage that a tensor reads is kept, too. Without, a block that moves weights to another
            device frees their memory; they are moved back.
    """
    differences = _kept(model, storages=storages)
    try:
        yield
    except BaseException:
        _taking_back(differences)()
        raise


def remembered(model: nn.Module) -> Callable[[], PutBack]:
    """What to call after the model was changed in place: it returns a function that takes back this change alone.

        changed = remembered(model)
        model.config.num_labels = 3
        take_back = changed()

    What can be put back is as for `unchanged_on_error`; what is changed later stays.
    """
    differences = _kept(model)
    return lambda: _taking_back(differences)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each module is in the mode that it was in, frozen parts too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _taking_back(differences: list[Difference]) -> PutBack:
    found = [put_back for put_back in (difference() for difference in differences) if put_back is not None]

    def take_back() -> None:
        for put_back in found:
            put_back()

    return take_back


def _kept(model: nn.Module, *, storages: bool = True) -> list[Difference]:
    """Each thing that the model consists of."""
    # Held, so that nobody else gets their ids meanwhile.
    seen: dict[int, Any] = {}
    waiting: list[tuple[str, Any]] = [("", model)]
    differences: list[Difference] = []
    while waiting:
        name, thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, ModelOutput):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            differences.append(_tensor(thing, storages))
        elif isinstance(thing, (list, deque, set, dict)):
            differences.append(_container(thing))
        if isinstance(thing, dict):
            waiting += ((str(key), value) for key, value in thing.items())
        elif isinstance(thing, (list, deque, set, tuple, frozenset)):
            waiting += (("", one) for one in thing)
        if _has_parts(name, thing):
            differences.append(_attributes(thing))
            waiting += vars(thing).items()
    return differences


def _has_parts(name: str, thing: Any) -> bool:
    """Whether the attributes of what is called so belong to the model."""
    if isinstance(thing, type) or not hasattr(thing, "__dict__"):
        return False
    # Called a configuration: a model that is none of transformers' has one of any class.
    return isinstance(thing, PARTS) or is_dataclass(thing) or name.endswith("config") or _is_of_bitsandbytes(thing)


def _is_of_bitsandbytes(thing: Any) -> bool:
    return type(thing).__module__.startswith("bitsandbytes.")


def _attributes(owner: Any) -> Difference:
    cls, attributes = owner.__class__, dict(vars(owner))

    def difference() -> PutBack | None:
        now = vars(owner)
        if owner.__class__ is cls and _same(now, attributes):
            return None
        changed = {key for key, value in attributes.items() if key not in now or now[key] is not value}
        added = set(now) - set(attributes)

        def put_back() -> None:
            if owner.__class__ is not cls:
                # A parametrisation, for example, gives a module a class of its own.
                object.__setattr__(owner, "__class__", cls)
            now = dict(vars(owner))
            vars(owner).clear()
            for key, value in attributes.items():
                if key in changed or key in now:
                    vars(owner)[key] = value if key in changed else now[key]
            vars(owner).update({key: value for key, value in now.items() if key not in added | set(attributes)})

        return put_back

    return difference


def _container(owner: Any) -> Difference:
    content = dict(owner) if isinstance(owner, dict) else set(owner) if isinstance(owner, set) else list(owner)

    def is_same() -> bool:
        if isinstance(content, dict):
            return _same(owner, content)
        if isinstance(content, set):
            return owner == content
        return len(owner) == len(content) and all(one is other for one, other in zip(owner, content, strict=True))

    def put_back() -> None:
        owner.clear()
        (owner.extend if isinstance(content, list) else owner.update)(content)

    return lambda: None if is_same() else put_back


def _tensor(tensor: torch.Tensor, keep: bool) -> Difference:
    if not tensor.is_leaf:
        return lambda: None
    learned, gradient, device = tensor.requires_grad, tensor.grad, tensor.device
    # Such a tensor consists of others, and has no storage of its own.
    storage = tensor.data if keep and not is_traceable_wrapper_subclass(tensor) else None

    def is_in_place() -> bool:
        return tensor.device == device if storage is None else _place(tensor) == _place(storage)

    def is_same() -> bool:
        return tensor.requires_grad == learned and tensor.grad is gradient and is_in_place()

    def put_back() -> None:
        if not learned:
            tensor.requires_grad_(False)
        if not is_in_place():
            tensor.grad = None
            tensor.data = tensor.data.to(device) if storage is None else storage
        tensor.requires_grad_(learned)
        if tensor.grad is not gradient:
            tensor.grad = gradient

    return lambda: None if is_same() else put_back


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """The same objects in the same order, without asking them whether they are equal."""
    return list(one) == list(other) and all(one[key] is other[key] for key in other)
