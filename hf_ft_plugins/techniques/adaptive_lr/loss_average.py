"""The exponential average of the training loss, which is watched where nothing is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class LossAverage:
    """An average of logged losses that forgets with the optimizer's steps, not with the entries of the log.

    Attributes:
        sum, weight: of the losses so far; their quotient is the average, without the bias of the first steps.
        step: optimizer step of the last entry.
        decided: optimizer step of the last decision.
    """

    sum: float = 0.0
    weight: float = 0.0
    step: int = 0
    decided: int = 0

    def add(self, loss: float, step: int, ema_steps: int) -> None:
        """Take in the loss logged at `step`; `ema_steps`: time constant, in optimizer steps."""
        keep = math.exp(-(step - self.step) / ema_steps)
        self.sum = keep * self.sum + (1 - keep) * loss
        self.weight = keep * self.weight + (1 - keep)

    @property
    def value(self) -> float:
        return self.sum / self.weight
