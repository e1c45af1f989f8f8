"""Penalties on the distance from the weights that a stage starts from, as gradients that are added once a step.

- L2-SP: alpha/2 |theta - theta0|^2. Xuhong et al. 2018 (arXiv:1802.01483). A parameter that was not there at
  the start has no penalty here; theirs pulls it to 0 with a weight of its own, which is the optimizer's weight decay.
- EWC: lambda/2 sum_i F_i (theta_i - theta0_i)^2. Kirkpatrick et al. 2017 (arXiv:1612.00796, equation 3).

Added to the loss, a penalty would be counted once for each batch that a step accumulates, and would be clipped with the
gradients. Its gradient is known in closed form, and is added after clipping. Where a parameter has no gradient in a
step (frozen, or not used), none is added, so that the optimizer leaves it alone.

Arithmetic is in 32 bits or more, whatever the weights are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ...shards import own_part, whole_tensor

Parameters = Mapping[str, torch.nn.Parameter]


class Penalty(Protocol):
    """What is added to the gradients of a step."""

    def add_gradients(self, parameters: Parameters) -> None:
        """Add the penalty's gradient to `grad` of each parameter that has one, sharded or not; no communication."""

    def value(self, parameters: Parameters) -> float:
        """The penalty itself, the same on every rank; every rank has to ask for it."""


@dataclass(frozen=True)
class L2SP:
    """weight/2 |theta - start|^2.

    Attributes:
        weight: 0 or more.
        start: by name, like the parameters in shape, device and shards.
    """

    weight: float
    start: Mapping[str, torch.Tensor]

    @torch.no_grad()
    def add_gradients(self, parameters: Parameters) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None and name in self.start:
                add_in_full(parameter.grad, self.weight * _distance(parameter, self.start[name]))

    @torch.no_grad()
    def value(self, parameters: Parameters) -> float:
        squares = (
            (in_full(parameter) - in_full(self.start[name])).square().sum()
            for name, parameter in parameters.items()
            if name in self.start
        )
        return self.weight / 2 * sum(float(whole_tensor(one)) for one in squares)


@dataclass(frozen=True)
class EWC:
    """weight/2 sum F (theta - start)^2.

    Attributes:
        weight: 0 or more.
        start: by name, like the parameters in shape, device and shards.
        fisher: the same, in 32 bits, 0 or more; a parameter without has no penalty.
    """

    weight: float
    start: Mapping[str, torch.Tensor]
    fisher: Mapping[str, torch.Tensor]

    @torch.no_grad()
    def add_gradients(self, parameters: Parameters) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None and name in self.fisher:
                distance = _distance(parameter, self.start[name])
                add_in_full(parameter.grad, self.weight * own_part(self.fisher[name]) * distance)

    @torch.no_grad()
    def value(self, parameters: Parameters) -> float:
        squares = (
            (self.fisher[name] * (in_full(parameter) - in_full(self.start[name])).square()).sum()
            for name, parameter in parameters.items()
            if name in self.fisher
        )
        return self.weight / 2 * sum(float(whole_tensor(one)) for one in squares)


@dataclass(frozen=True)
class Together:
    """Several penalties as one."""

    parts: tuple[Penalty, ...]

    def add_gradients(self, parameters: Parameters) -> None:
        for part in self.parts:
            part.add_gradients(parameters)

    def value(self, parameters: Parameters) -> float:
        return sum(part.value(parameters) for part in self.parts)


def add_in_full(gradient: torch.Tensor, added: torch.Tensor) -> None:
    """Add to this rank's part of a gradient, in place, rounded to its dtype once.

    Args:
        gradient: of any dtype, sharded or not.
        added: this rank's part, in 32 bits or more.
    """
    own = own_part(gradient)
    if own.dtype == added.dtype:
        own.add_(added)
    else:
        own.copy_(own.to(added.dtype) + added)


def in_full(tensor: torch.Tensor) -> torch.Tensor:
    """In 32 bits, or in 64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _distance(parameter: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return in_full(own_part(parameter)) - in_full(own_part(start))
