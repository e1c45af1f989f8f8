"""A technique without fault, and the same with one part of it exchanged."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainerCallback

from hf_ft_plugins import Technique, lr_scale, option

NAME = "planted"


class Counting(TrainerCallback):
    """Counts steps; from the fifth on the rate is halved."""

    def __init__(self):
        self.steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def on_step_begin(self, args, state, control, *, optimizer, **kwargs):
        self.steps += 1
        lr_scale.set_scale(optimizer, NAME, 0.5 if self.steps > 4 else 1.0)


@dataclass(frozen=True, kw_only=True)
class Sound(Technique):
    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "halve the rate after four steps"
    strength: float = option(0.5, help="how much")
    words: tuple[str, ...] = option((), help="some words")

    @functools.cached_property
    def doubled(self):
        return 2 * self.strength

    def ft_callbacks(self) -> list[Any]:
        assert self.doubled
        return [Counting()]


def acted(technique, trainer):
    return all(group.get(lr_scale.KEY, {}).get(NAME) == 0.5 for group in trainer.optimizer.param_groups)


def always(technique, trainer):
    return True


def technique(**members):
    """A sound technique with these members instead of its own."""
    cls = type("Planted", (Sound,), {"__annotations__": {}, **members})
    return dataclass(frozen=True, kw_only=True)(cls)()


def with_callback(**methods):
    """A technique whose callback has these methods instead of its own; the class can be pickled by its name."""
    callback = type("Callback", (Counting,), {"__reduce__": lambda self: (Counting, ()), **methods})
    return technique(ft_callbacks=lambda self: [callback()])
