"""The examples of the built-in techniques, and three techniques that only tests have, two of which conflict."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from transformers import TrainerCallback

from hf_ft_plugins import lr_scale
from hf_ft_plugins.registry import offers
from hf_ft_plugins.technique import Technique, option
from hf_ft_plugins.testing import Example, example_of


class HalvingCallback(TrainerCallback):
    """Halves the rate from a step on; remembers that step."""

    def __init__(self, after: int) -> None:
        self.after, self.halved_at = after, None

    def state_dict(self) -> dict[str, Any]:
        return {"halved_at": self.halved_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.halved_at = state["halved_at"]

    def on_step_begin(self, args, state, control, *, optimizer, **kwargs):
        if self.halved_at is None and state.global_step >= self.after:
            self.halved_at = state.global_step
        lr_scale.set_scale(optimizer, "halve-lr", 1.0 if self.halved_at is None else 0.5)


@dataclass(frozen=True, kw_only=True)
class HalveLR(Technique):
    name: ClassVar[str] = "halve-lr"
    summary: ClassVar[str] = "halve the learning rate after some steps"
    after: int = option(4, help="optimizer steps at the full rate")

    def ft_callbacks(self) -> list[Any]:
        return [HalvingCallback(self.after)]


def halved(technique, trainer):
    return all(group.get(lr_scale.KEY, {}).get(technique.name) == 0.5 for group in trainer.optimizer.param_groups)


@dataclass(frozen=True, kw_only=True)
class SquareRootSchedule(Technique):
    name: ClassVar[str] = "square-root-schedule"
    summary: ClassVar[str] = "decay the learning rate with the square root of the step"
    kind: Literal["inverse"] = option("inverse", help="the only kind")

    def ft_scheduler(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) ** -0.5)


@dataclass(frozen=True, kw_only=True)
class OtherSchedule(SquareRootSchedule):
    name: ClassVar[str] = "other-schedule"


def decayed(technique, trainer):
    return trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-2 * 15**-0.5)


BUILT_IN = [example_of(offer.name) for offer in offers() if offer.distribution == "hf-ft-plugins"]
EXAMPLES = [
    *BUILT_IN,
    Example(HalveLR(), halved),
    Example(SquareRootSchedule(), decayed),
    Example(OtherSchedule(), decayed),
]
