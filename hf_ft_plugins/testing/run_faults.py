"""What a run is watched for: rates written by others than the scheduler, lost parameters, losses that keep a graph."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from .. import lr_scale
from ..host.trainer import with_plugins
from ..technique import Technique

# What evaluation may look at, and must leave on the trainer.
KEPT_ATTRIBUTES = (
    "model",
    "args",
    "data_collator",
    "compute_metrics",
    "compute_loss_func",
    "optimizer",
    "lr_scheduler",
)
PLAIN = (bool, int, float, str, bytes, type(None))
CONTAINERS = (list, dict, set)


class Watch(TrainerCallback):
    """Collects in `faults` what a technique may not do to a run's optimizer; each is a sentence without a subject."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        # Of each parameter, by identity, the rate of its group before the techniques split it.
        self.base_rates: dict[int, float] = {}

    def note_groups(self, optimizer: Any) -> None:
        """Remember the optimizer as Trainer made it."""
        groups = lr_scale.innermost(optimizer).param_groups
        self.base_rates = {id(weight): float(group["lr"]) for group in groups for weight in group["params"]}

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        groups = lr_scale.innermost(optimizer).param_groups
        if any(not group["params"] for group in groups):
            self.faults.append("a parameter group of the optimizer is empty")
        optimized = [id(weight) for group in groups for weight in group["params"]]
        lost = self.base_rates.keys() - set(optimized)
        if lost:
            self.faults.append(f"{len(lost)} of the optimizer's {len(self.base_rates)} parameters are in no group")
        if len(set(optimized)) < len(optimized):
            self.faults.append("a parameter is in two groups of the optimizer")
        for group in groups:
            rate = float(group.get("initial_lr", group["lr"]))
            if any(self.base_rates.get(id(weight), rate) != rate for weight in group["params"]):
                self.faults.append(f"{WRITTEN} {rate} when the optimizer was made{INSTEAD}")
        self._compare_rates("on_train_begin", optimizer=optimizer, **kwargs)

    def _compare_rates(self, event: str, *, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any) -> None:
        if optimizer is None or not hasattr(lr_scheduler, "get_last_lr"):
            return
        rates = [float(group["lr"]) for group in lr_scale.innermost(optimizer).param_groups]
        scheduled = list(map(float, lr_scheduler.get_last_lr()))
        if rates != scheduled:
            self.faults.append(f"{WRITTEN} {rates}, seen in {event}, where the scheduler has {scheduled}{INSTEAD}")


WRITTEN = 'it writes group["lr"]:'
INSTEAD = ". Use lr_scale.set_scale"


def _comparing(event: str) -> Any:
    def compare(self: Watch, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._compare_rates(event, **kwargs)

    return compare


for _event in ("epoch_begin", "step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end"):
    setattr(Watch, f"on_{_event}", _comparing(f"on_{_event}"))
for _event in ("evaluate", "log", "save", "epoch_end", "train_end"):
    setattr(Watch, f"on_{_event}", _comparing(f"on_{_event}"))


def watched_host(trainer_class: type, technique: Technique, watch: Watch) -> type:
    """A host of `technique` that shows `watch` the optimizer before the techniques do, and each batch's loss after."""

    class Seeing(trainer_class):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            watch.note_groups(optimizer)
            return optimizer

    Seeing.__name__, Seeing.__qualname__ = trainer_class.__name__, trainer_class.__qualname__
    Seeing.__module__ = trainer_class.__module__
    host = with_plugins(Seeing, technique)

    class Watched(host):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if getattr(loss, "requires_grad", False):
                watch.faults.append("ft_training_step returns a loss with its graph. Detach it")
            return loss

    Watched.__name__, Watched.__qualname__, Watched.__module__ = host.__name__, host.__qualname__, host.__module__
    return Watched


class WeightsAfter(TrainerCallback):
    """Copies the weights after so many optimizer steps, and ends the run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.weights: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            control.should_training_stop = True


def random_states() -> dict[str, Any]:
    """The global random numbers' states, of Python, numpy and torch."""
    return {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def attributes_of(trainer: Any) -> dict[str, Any]:
    """What an evaluation is to leave as it was, by identity."""
    return {name: getattr(trainer, name, None) for name in KEPT_ATTRIBUTES}


def class_state(technique: Technique) -> dict[str, Any]:
    """What a technique and its classes hold beside code: values of plain attributes, lengths of containers.

    Cached properties are left out: they depend on the options alone.
    """
    owners = [cls for cls in type(technique).__mro__ if issubclass(cls, Technique)]
    cached = {name for cls in owners for name, value in vars(cls).items() if _is_cached(value)}
    return {
        f"{owner}.{name}": value if isinstance(value, PLAIN) else len(value)
        for owner, attributes in [("self", vars(technique)), *((cls.__name__, vars(cls)) for cls in owners)]
        for name, value in attributes.items()
        if isinstance(value, (*PLAIN, *CONTAINERS)) and name not in cached and not name.startswith("__")
    }


def _is_cached(value: Any) -> bool:
    return type(value).__name__ == "cached_property"
