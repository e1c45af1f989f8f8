"""The weights of a run's tasks from step to step, by the rules of `balance.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .balance import FAMO, dwa_weights, gradnorm_update


class Balancer:
    """What each task's loss is multiplied by in the next optimizer step, beside the weight of its own.

    Args:
        rule: `dwa`, `gradnorm` or `famo`; by any other the weights stay 1.
        tasks: their number.
        update_every: optimizer steps between changes by `dwa`.

    Attributes:
        weights: of the next step.
        gradient_norms: set before `after_step` by who computes the gradients, for `gradnorm`; those of tasks that the
            step did not have are not read.
    """

    def __init__(self, rule: str, tasks: int, update_every: int = 256) -> None:
        self.rule = rule
        self.update_every = update_every
        self.weights = [1.0] * tasks
        self.gradient_norms = [0.0] * tasks
        self._famo = FAMO(tasks) if rule == "famo" else None
        self._first: list[float | None] = [None] * tasks
        # Of `dwa`: sums and items since the last change, and the means of the time before.
        self._sums, self._items = [0.0] * tasks, [0.0] * tasks
        self._before: list[float] | None = None

    @property
    def fixed(self) -> bool:
        return self.rule not in ("dwa", "gradnorm", "famo")

    def after_step(self, sums: Sequence[float], items: Sequence[float], step: int) -> None:
        """Learn from the sums of the tasks' losses in optimizer step `step`, and their items; over all ranks."""
        means = [total / count if count else None for total, count in zip(sums, items, strict=True)]
        measured = [mean if mean is not None and math.isfinite(mean) else None for mean in means]
        self._first = [old if old is not None else new for old, new in zip(self._first, measured, strict=True)]
        if self.rule == "dwa":
            self._average(sums, items, step)
        elif self.rule == "gradnorm":
            self._even_gradients(means)
        elif self._famo is not None and None not in means:
            losses = [float(mean or 0.0) for mean in means]
            self._famo.observe(losses)
            # Times the tasks: weights of a mean of 1 leave the learning rate as it is under a plain sum.
            self.weights = [share * len(losses) for share in self._famo.weights(losses)]

    def _average(self, sums: Sequence[float], items: Sequence[float], step: int) -> None:
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._items = [old + new for old, new in zip(self._items, items, strict=True)]
        if step % self.update_every:
            return
        now = [total / count if count else math.nan for total, count in zip(self._sums, self._items, strict=True)]
        if self._before is not None:
            self.weights = dwa_weights(now, self._before)
        self._before = now
        self._sums, self._items = [0.0] * len(now), [0.0] * len(now)

    def _even_gradients(self, means: Sequence[float | None]) -> None:
        present = [task for task, mean in enumerate(means) if mean is not None]
        if len(present) < 2:
            return
        new = gradnorm_update(
            *(
                torch.tensor([float(values[task] or 0.0) for task in present], dtype=torch.float64)
                for values in (self.weights, self.gradient_norms, means, self._first)
            )
        )
        for task, weight in zip(present, new.tolist(), strict=True):
            self.weights[task] = weight

    def state_dict(self) -> dict[str, Any]:
        """Floats and lists, exact."""
        return {
            "weights": self.weights,
            "first": self._first,
            "sums": self._sums,
            "items": self._items,
            "before": self._before,
            "famo": self._famo.state_dict() if self._famo is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self._first = list(state["weights"]), list(state["first"])
        self._sums, self._items, self._before = list(state["sums"]), list(state["items"]), state["before"]
        if self._famo is not None:
            self._famo.load_state_dict(state["famo"])
