"""Weights of tasks' losses that change while training: the rules, without a trainer.

All but `uncertainty` leave the sum of the tasks' weights as it is under a plain sum, so that the learning rate keeps
its meaning; of a loss that is not finite each rule says what it takes instead. No rule is known to beat a well-weighed
sum reliably (Kurin et al. 2022, "In defense of the unitary scalarization").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TINY = 1e-8


def uncertainty_loss(losses: Tensor, log_variances: Tensor, regression: Sequence[bool]) -> Tensor:
    """Sum of exp(-s) L + s / 2, of a regression exp(-s) L / 2 + s / 2, with s a task's log variance.

    Kendall, Gal and Cipolla 2018, equations 7 and 10. `MultiTaskModel` computes the same from sums over batches.

    Args:
        losses, log_variances: float [tasks].
    """
    halves = torch.tensor([0.5 if is_regression else 1.0 for is_regression in regression], device=losses.device)
    return (halves * torch.exp(-log_variances) * losses + 0.5 * log_variances).sum()


def dwa_weights(last: Sequence[float], before: Sequence[float], temperature: float = 2.0) -> list[float]:
    """Softmax over tasks of (last loss / the one before) / temperature, times the number of tasks.

    Dynamic weight average, Liu, Johns and Davison 2019, equation 7; there by epochs. A task that was not measured both
    times (a loss that is not finite), or whose loss before was not above 0, has a ratio of 1.
    """
    ratios = [_ratio(new, old) for new, old in zip(last, before, strict=True)]
    highest = max(ratios)
    exponentials = [math.exp((ratio - highest) / temperature) for ratio in ratios]
    return [len(ratios) * value / sum(exponentials) for value in exponentials]


def _ratio(new: float, old: float) -> float:
    ratio = new / old if math.isfinite(old) and old > 0 else math.nan
    return ratio if math.isfinite(ratio) else 1.0


def gradnorm_update(
    weights: Tensor,
    gradient_norms: Tensor,
    losses: Tensor,
    first_losses: Tensor,
    alpha: float = 1.5,
    learning_rate: float = 0.025,
) -> Tensor:
    """The weights after one step of gradient descent on how far the tasks' gradients are from equal training rates.

    Chen et al. 2018, equation 2 and algorithm 1: sum over tasks of |w g - mean(w g) r^alpha|, where r is a task's share
    of its first loss over the mean of these shares; the targets are constants. Weights stay above 0, and their sum as
    it was. A task with a value that is not finite, a loss below 0 or a first loss of 0 has no part: it keeps its
    weight, and is in no mean.

    Args:
        weights: float [tasks].
        gradient_norms: g, norms of the gradients of the unweighted losses in the last shared layer; float [tasks].
        losses, first_losses: float [tasks].
    """
    part = torch.isfinite(gradient_norms) & torch.isfinite(losses / first_losses) & (losses >= 0) & (first_losses > 0)
    old, norms = weights[part], gradient_norms[part]
    rates = losses[part] / first_losses[part]
    rates = rates / rates.mean().clamp(min=TINY)
    weighted = old * norms
    target = weighted.mean() * rates**alpha
    moved = (old - learning_rate * torch.sign(weighted - target) * norms).clamp(min=TINY)
    new = weights.clone()
    new[part] = moved * (old.sum() / moved.sum())
    return new


class FAMO:
    """Weights by which all losses fall at the same rate (Liu, Feng, Stone and Liu 2023, algorithm 1).

    Where the paper takes a batch's losses again after the step, this takes the losses of the next step: no second
    forward pass, and more noise. The least loss that a task can have is 0, and 1e-8 is added to all, as in the authors'
    code: a task whose loss is 0 (or below, which counts as 0) draws nearly all the weight. A loss that is not finite
    counts as the last one that was, or 1.

    Args:
        tasks: their number.
        learning_rate, weight_decay: of the logits, by Adam, as in the authors' code.
    """

    def __init__(self, tasks: int, learning_rate: float = 0.025, weight_decay: float = 1e-3) -> None:
        self.logits = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
        self._optimizer = torch.optim.Adam([self.logits], lr=learning_rate, weight_decay=weight_decay)
        self._last: list[float] | None = None

    def weights(self, losses: Sequence[float]) -> list[float]:
        """z / l over its sum, with z the softmax of the logits and l the losses: each task's share of the gradient."""
        shares = torch.softmax(self.logits.detach(), 0) / self._shifted(losses)
        return (shares / shares.sum()).tolist()

    def observe(self, losses: Sequence[float]) -> None:
        """Take the losses before a step; those of the call before are then the ones that the last step changed."""
        now = self._shifted(losses)
        if self._last is not None:
            fallen = torch.log(self._shifted(self._last)) - torch.log(now)
            (shares,) = torch.autograd.grad(torch.softmax(self.logits, 0), self.logits, grad_outputs=fallen)
            self.logits.grad = shares
            self._optimizer.step()
        self._last = self._finite(losses)

    def _finite(self, losses: Sequence[float]) -> list[float]:
        last = self._last or [1.0] * len(losses)
        return [float(new) if math.isfinite(new) else old for new, old in zip(losses, last, strict=True)]

    def _shifted(self, losses: Sequence[float]) -> Tensor:
        return torch.tensor(self._finite(losses), dtype=torch.float64).clamp(min=0.0) + TINY

    def state_dict(self) -> dict[str, Any]:
        """Floats and lists, exact."""
        moments = self._optimizer.state.get(self.logits, {})
        return {
            "logits": self.logits.tolist(),
            "last": self._last,
            "moments": {name: value.tolist() for name, value in moments.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.logits.copy_(torch.tensor(state["logits"], dtype=torch.float64))
        self._last = state["last"]
        self._optimizer.state[self.logits] = {
            name: torch.tensor(value, dtype=torch.float32 if name == "step" else torch.float64)
            for name, value in state["moments"].items()
        }
