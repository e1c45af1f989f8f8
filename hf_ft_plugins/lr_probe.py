"""Tests whether a factor on `group["lr"]` reaches the weights, on a twin: a copy of the optimizer with small weights.

Most optimizers read the learning rate of a parameter group in every step. Some do not: they compute a rate of their own
(Adafactor with a relative step), read it only once (Rprop), keep the rate from their construction, or search for the
step length (L-BFGS with a line search). There a factor changes the logged rate and nothing else.

Two twins take a few steps: one at a fixed rate, the other at a tenth of that rate from the third step on. If the last
step moves the weights of both alike, a factor has no effect.

Only the settings of the real optimizer are copied; it is not stepped or changed, and the global random state stays as
it was.
"""

from __future__ import annotations

import contextlib
import enum
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

RATE, FACTOR = 1e-2, 0.1
# The first step creates the optimizer's state, the second may compute the next rate from it, the last is compared.
PLAIN_STEPS, SCALED_STEPS = 2, 3
# Relative to the largest movement of the weights: if a factor of 0.1 changes less than this, it has no effect.
LEAST_CHANGE = 0.02
SIDE = 16  # largest size of a twin's weights in each dimension
# Types of values that a twin may share with the original, since they hold no weights.
SHARED = (
    *(bool, int, float, complex, str, bytes, enum.Enum, type, types.BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.layout, type(None)),
)
# Of bitsandbytes: registries of settings, looked up by weight.
SHARED_BY_NAME = ("GlobalOptimManager", "GlobalPageManager")
HEAP_TYPE = 1 << 9  # CPython's type flag of classes that Python code defines


class Unprobed(Exception):
    """The optimizer cannot be tested; the message gives the reason."""


class Unequal(Exception):
    """The optimizer's step fails if its groups have different rates; the message is the optimizer's own."""


def deaf_groups(optimizer: torch.optim.Optimizer, scaled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the groups whose weights move the same way at another rate: those that a factor does not reach.

    Args:
        scaled: the groups to test, some or all of `optimizer.param_groups`.

    Raises:
        Unprobed: no twin can be made or stepped.
        Unequal: the optimizer needs one rate for all groups, and `scaled` are only some of them.
    """
    with _undisturbed(optimizer):
        plain = _movements(optimizer, scaled, 1.0)
        try:
            other = _movements(optimizer, scaled, FACTOR)
        except Unprobed as failed:
            if len(scaled) < len(optimizer.param_groups):
                raise Unequal(str(failed)) from failed
            raise
    deaf = []
    for group, first, second in zip(scaled, plain, other, strict=True):
        largest = max(first.abs().max().item(), second.abs().max().item())
        if not largest > 0:
            raise Unprobed("its step moves no weights")
        if (first - second).abs().max().item() <= LEAST_CHANGE * largest:
            deaf.append(group)
    return deaf


@contextlib.contextmanager
def _undisturbed(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    devices = {weight.device for group in optimizer.param_groups for weight in group["params"]}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]), torch.enable_grad():
        yield


def _movements(optimizer: torch.optim.Optimizer, scaled: list[dict[str, Any]], factor: float) -> list[torch.Tensor]:
    """How the last of a few steps moves one weight of each group in `scaled`, whose rate is multiplied by `factor` from
    the third step on.
    """
    twins = Twins(optimizer)
    groups = [(twins.of(group), any(group is one for one in scaled)) for group in optimizer.param_groups]
    weights = [twins.weight(group) for group in scaled]
    before: list[torch.Tensor] = []
    try:
        for step in range(PLAIN_STEPS + SCALED_STEPS):
            before = [weight.detach().clone() for weight in weights]
            for group, is_scaled in groups:
                set_rate(group, RATE * (factor if is_scaled and step >= PLAIN_STEPS else 1.0))
                set_gradients(group, step, sparse=twins.sparse)
            # A closure would evaluate the model again; here the loss is constant.
            twins.optimizer.step(lambda: 0.0) if twins.wants_closure else twins.optimizer.step()
    except Exception as error:
        raise Unprobed(f"its step fails on a small copy: {type(error).__name__}: {error}") from error
    return [weight.detach() - old for weight, old in zip(weights, before, strict=True)]


def set_gradients(group: dict[str, Any], step: int, *, sparse: bool = False) -> None:
    """Give each small weight of a twin's group a gradient that is another one in each step."""
    for parameter in group["params"]:
        parameter.grad = _gradient(parameter, step, sparse)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the rate of a twin's group, if it has one."""
    given = group.get("lr")
    if isinstance(given, torch.Tensor):
        group["lr"] = torch.full_like(given, rate)
    elif given is not None:
        group["lr"] = rate


def _gradient(parameter: torch.Tensor, step: int, sparse: bool) -> torch.Tensor:
    places = torch.arange(parameter.numel(), dtype=torch.float32, device=parameter.device)
    gradient = (torch.cos(places * 1.7 + step * 0.3) + 0.1).reshape(parameter.shape)
    return gradient.to_sparse(1) if sparse else gradient


class Twins:
    """A copy of an optimizer and of the objects it holds, nested optimizers included, with one or a few small weights a
    group.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights_of_a_group: int = 1) -> None:
        name = type(optimizer).__name__
        self.sparse = name == "SparseAdam"
        self.wants_closure = name == "LBFGS"
        self._weights_of_a_group = weights_of_a_group
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []
        # By identity, so that every list of weights in the optimizer is copied with the small ones.
        self._weights = {id(one): one for group in optimizer.param_groups for one in group["params"]}
        self.optimizer = self._optimizer(optimizer)
        # Schedule-free optimizers step in one of two modes.
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()

    def of(self, group: dict[str, Any]) -> dict[str, Any]:
        """The twin of one of the optimizer's groups."""
        return self._known[id(group)]

    def weight(self, group: dict[str, Any]) -> torch.Tensor:
        """The small weight that represents a group's weights."""
        weights = self.of(group)["params"]
        if not weights:
            raise Unprobed("one of its groups holds no weights")
        return weights[0]

    def _optimizer(self, original: torch.optim.Optimizer) -> Any:
        twin = object.__new__(type(original))
        self._known[id(original)] = twin
        for key, value in vars(original).items():
            if key.endswith("_hooks"):
                setattr(twin, key, type(value)())
            elif key == "state":
                twin.state = defaultdict(dict)
            # Schedulers replace `step` on the instance by a wrapper that counts; the twin keeps its class's.
            elif key != "step":
                setattr(twin, key, self._copied(value))
        return twin

    def _copied(self, value: Any) -> Any:
        if id(value) in self._known:
            return self._known[id(value)]
        copy = self._new(value)
        self._known[id(value)] = copy
        self._kept.append(value)
        return copy

    def _new(self, value: Any) -> Any:
        if isinstance(value, torch.optim.Optimizer):
            return self._optimizer(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            copy = value.copy()
            self._known[id(value)] = copy
            copy.clear()
            for key, item in value.items():
                copy[self._copied(key)] = self._group_weights(item) if key == "params" else self._copied(item)
            return copy
        if isinstance(value, list | tuple | set | frozenset):
            items = [self._copied(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, types.MethodType) and id(value.__self__) in self._known:
            return types.MethodType(value.__func__, self._known[id(value.__self__)])
        plain_function = isinstance(value, types.FunctionType) and value.__closure__ is None
        if plain_function or isinstance(value, SHARED) or type(value).__name__ in SHARED_BY_NAME:
            return value
        if isinstance(value, torch.nn.Module) or not _is_plain(value):
            raise Unprobed(f"it holds a {type(value).__name__}")
        copy = object.__new__(type(value))
        self._known[id(value)] = copy
        vars(copy).update({key: self._copied(item) for key, item in vars(value).items()})
        return copy

    def _group_weights(self, weights: Any) -> Any:
        """One or a few weights represent all weights of a group."""
        if not isinstance(weights, list):
            return self._copied(weights)
        return [self._copied(one) for one in [one for one in weights if one.numel()][: self._weights_of_a_group]]

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if id(value) not in self._weights:
            if value.numel() > SIDE**2:
                raise Unprobed("it holds large tensors that are no weights")
            return value.detach().clone()
        if value.is_meta:
            raise Unprobed("its weights are not loaded")
        shape = [min(side, SIDE) for side in value.shape]
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device=value.device)
        return torch.nn.Parameter((0.5 + 0.1 * torch.sin(places)).reshape(shape))


def _is_plain(value: Any) -> bool:
    """Whether an object consists of its attributes alone, so that copying them copies it."""
    kinds = type(value).__mro__[:-1]
    return (
        hasattr(value, "__dict__")
        and type(value).__reduce_ex__ is object.__reduce_ex__
        and all(kind.__flags__ & HEAP_TYPE and "__slots__" not in vars(kind) for kind in kinds)
    )
