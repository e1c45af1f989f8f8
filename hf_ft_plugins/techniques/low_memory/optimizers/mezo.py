"""MeZO: gradient descent along a random direction, by two forward passes and no backward pass."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .... import mends
from ....errors import PluginError
from ..keyed_random import generator
from ..settings import NAME

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slope:
    """What is known of the current step.

    Attributes:
        seed: of the direction.
        value: [] float32 or float64, (loss above - loss below) / (2 perturbation), summed over the micro-batches.
    """

    seed: int
    value: torch.Tensor


class MeZO(torch.optim.Optimizer):
    """g = (L(theta + e z) - L(theta - e z)) / 2e; theta <- theta - lr (g z + weight_decay theta), z ~ N(0, I).

        loss = optimizer.estimate(lambda: model(**batch).loss)
        optimizer.step()

    Malladi et al. 2023, arXiv:2305.17333, algorithm 1 (MeZO with SGD), weight decay as in the authors' code. Neither a
    gradient nor a direction is kept: z is drawn again, tensor by tensor, from (seed, step, place of the parameter), so
    that beside the weights there is one tensor of the largest parameter's size. Several calls of `estimate` before a
    step (micro-batches) go along the same direction, and their values are summed.

    The weights are perturbed in place, by +e z, -2 e z and +e z. What is lost in these three roundings is of the order
    of float32's last bit of each weight, and adds up as a random walk does: about 1e-7 sqrt(steps) of the weight. With
    16-bit weights it would be more than the step itself, so they are refused.

    Args:
        params: float32 or float64 tensors, or groups of them; what needs no gradient is not perturbed.
        lr: well below AdamW's; the paper's are 1e-7 to 1e-6 for models of 1e9 parameters.
        perturbation: e, above 0; the paper's 1e-3.
        weight_decay: 0 or more.

    Raises:
        PluginError: an argument is out of range, or a tensor is of another type.
    """

    # So that nobody gives it some to find out how it steps (`lr_scale.py`).
    steps_without_gradients = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, perturbation: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        for name, value, holds in (
            ("lr", lr, lr >= 0),
            ("perturbation", perturbation, perturbation > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
        ):
            if not holds:
                least = "above 0" if name == "perturbation" else "0 or more"
                raise PluginError(
                    f"{NAME}: MeZO({name}={value}) is not allowed: it must be {least}.", code="option-value"
                )
        # `steps`, of which the first group's counts, is saved with the groups.
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "steps": 0})
        self.perturbation = perturbation
        self.skipped_steps = 0
        self.slope: Slope | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                raise PluginError(
                    f"{NAME}: MeZO perturbs weights in place, and those in {parameter.dtype} would lose more by that "
                    "than a step gives them. Load the model in float32; bf16=True still computes in bfloat16.",
                    code="model-unsuited",
                    mend=[mends.set_model_argument("dtype", "float32")],
                )

    @torch.no_grad()
    def estimate(self, loss: Callable[[], torch.Tensor], seed: int = 0) -> torch.Tensor:
        """Add to `slope` that of `loss` along this step's direction, without building a graph.

        Both calls get the same random numbers (dropout), of the global generators, which end up where one call leaves
        them. The weights are put back where `loss` raises, too.

        Args:
            loss: called twice; returns a scalar.
            seed: of the run; the same for all calls before a step.

        Returns:
            [], the mean of the two losses, which is the loss at theta but for terms in e squared.
        """
        if self.slope is not None and self.slope.seed != seed:
            raise PluginError(
                f"{NAME}: MeZO.estimate(seed={seed}) in a step that began with seed={self.slope.seed}.",
                code="part-misused",
            )
        at = 0.0
        try:
            self._perturb(seed, 1.0)
            at = 1.0
            with self._same_random_numbers():
                above = loss().detach()
            self._perturb(seed, -2.0)
            at = -1.0
            below = loss().detach()
        finally:
            self._perturb(seed, -at)
        exact = torch.promote_types(above.dtype, torch.float32)
        value = (above.to(exact) - below.to(exact)) / (2 * self.perturbation)
        self.slope = Slope(seed, value if self.slope is None else self.slope.value + value)
        return (above + below) / 2

    def reduce(self, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace the slope by its mean over ranks, all of which then take the same step."""
        if self.slope is not None:
            self.slope = Slope(self.slope.seed, mean(self.slope.value))

    def norm_of_step(self) -> torch.Tensor | None:
        """[]: the absolute slope along the direction, whose length is about the root of the number of parameters."""
        return None if self.slope is None else self.slope.value.abs()

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> Any:
        """Step along the direction.

        Args:
            closure: where `estimate` was not called: what it is to be called with.

        Raises:
            PluginError: nothing was estimated.
        """
        loss = None if closure is None else self.estimate(closure)
        if self.slope is None:
            raise PluginError(
                f"{NAME}: MeZO.step() has nothing to go by. Call estimate(loss) first, or step(loss).",
                code="part-misused",
            )
        slope = float(self.slope.value)
        if slope - slope == 0:
            for group, parameter, direction in self._directions(self.slope.seed):
                if group["weight_decay"] != 0:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * slope)
        else:
            self.skipped_steps += 1
            logger.warning("%s: a loss was not finite; the step was dropped.", NAME)
        self.slope = None
        steps = self.param_groups[0]["steps"] + 1
        for group in self.param_groups:
            group["steps"] = steps
        return loss

    def _perturb(self, seed: int, times: float) -> None:
        for _, parameter, direction in self._directions(seed):
            parameter.add_(direction, alpha=times * self.perturbation)

    def _directions(self, seed: int) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
        step, place = self.param_groups[0]["steps"], 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.requires_grad:
                    drawn = generator(parameter.device, "mezo", seed, step, place)
                    yield (
                        group,
                        parameter,
                        torch.randn(parameter.shape, generator=drawn, device=parameter.device, dtype=parameter.dtype),
                    )

    @contextlib.contextmanager
    def _same_random_numbers(self) -> Iterator[None]:
        """Leave all global generators as they were: torch's, numpy's and Python's."""
        devices = {one.device for group in self.param_groups for one in group["params"] if one.device.type != "cpu"}
        kind = next((device.type for device in devices), "cuda")
        of_python, of_numpy = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(list(devices), device_type=kind):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
