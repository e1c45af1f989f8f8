"""The warm-up, stable, decay learning-rate schedule: train at a constant rate, and let it fall only at the end.

While the rate is constant the length of the run need not be known: a checkpoint from that phase can be resumed with
more steps, and is then what a longer run would have been. A cosine has to be trained anew for every length.

Source: Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4 (the schedule; a tenth of the steps is enough to decay).
The shape `sqrt` is the "1-sqrt" of Hägele et al. 2024, arXiv:2405.18392, who also measured a decay of a fifth.

Deviations: MiniCPM decays exponentially, here the decay is linear or "1-sqrt" down to `floor`, both of which Hägele et
al. compare; and phases are given as shares of the run. Trainer's own `lr_scheduler_type="warmup_stable_decay"` gives
the same factors, but wants its phases in steps, counted by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from hf_ft_plugins import OptionError, Technique, option


def wsd_factor(
    step: int, *, total_steps: int, warmup_steps: int, decay_steps: int, shape: str = "linear", floor: float = 0.0
) -> float:
    """What the peak learning rate is multiplied by after `step` optimizer steps.

    Args:
        step: optimizer steps taken so far.
        total_steps: length of the run; the decay fills its last `decay_steps`.
        warmup_steps: the factor rises linearly from 0 to 1 over so many steps.
        shape: the decay goes with 1 - x (`linear`) or 1 - sqrt(x) (`sqrt`), x from 0 to 1.
        floor: the factor at the end of the decay.
    """
    if step < warmup_steps:
        return step / warmup_steps
    steps_into_decay = step - (total_steps - decay_steps)
    if steps_into_decay <= 0 or decay_steps == 0:
        return 1.0
    progress = min(1.0, steps_into_decay / decay_steps)
    remaining = 1 - (math.sqrt(progress) if shape == "sqrt" else progress)
    return floor + (1 - floor) * remaining


@dataclass(frozen=True, kw_only=True)
class WSDSchedule(Technique):
    """The technique `wsd-schedule`: owns the learning-rate scheduler (`ft_scheduler`)."""

    name: ClassVar[str] = "wsd-schedule"
    summary: ClassVar[str] = "keep the learning rate constant after warm-up and let it fall only at the end"

    warmup: float = option(0.0, help="share of the steps that warm up; 0 keeps the arguments' warmup_steps")
    decay: float = option(0.2, help="share of the steps, at the end, in which the rate falls; 0 never lets it fall")
    shape: Literal["linear", "sqrt"] = option("linear", help="how it falls: linear, or sqrt: steeply at first (1-sqrt)")
    floor: float = option(0.0, help="the rate at the end, as a share of the peak")

    def check(self) -> None:
        self.require(0 <= self.warmup < 1, "warmup", "it must lie in [0, 1).")
        self.require(0 <= self.decay <= 1, "decay", "it must lie in [0, 1].")
        self.require(self.warmup + self.decay <= 1, "decay", f"with warmup={self.warmup} it exceeds the whole run.")
        self.require(0 <= self.floor <= 1, "floor", "it must lie in [0, 1].")

    def ft_scheduler(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any:
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, self.factor_by_step(trainer.args, num_training_steps))

    def factor_by_step(self, args: Any, total_steps: int) -> partial[float]:
        """`wsd_factor` with this technique's options filled in.

        A partial has no attributes of its own that LambdaLR could save and later restore over the options of a
        resumed run, and unlike a lambda it can be pickled.
        """
        # Rounded down, so that shares which fill the run do not exceed it by a step.
        warmup_steps = int(self.warmup * total_steps) if self.warmup else args.get_warmup_steps(total_steps)
        decay_steps = int(self.decay * total_steps)
        if warmup_steps + decay_steps > total_steps:
            raise OptionError(
                f"{self.name}: option decay={self.decay} is {decay_steps} of {total_steps} steps, and the warm-up "
                f"takes {warmup_steps}. Lower decay, warmup or the arguments' warmup_steps, or train for more steps."
            )
        return partial(
            wsd_factor,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            shape=self.shape,
            floor=self.floor,
        )
