"""Gradient accumulation without gradients: each micro-batch's goes into the optimizer's moments and is freed.

AdamA (Zhang et al. 2023, arXiv:2305.19982, algorithm 1). Trainer divides each loss so that the gradients g_1 ... g_N of
the micro-batches add up to the step's. The first moment gets that sum, exactly. The second gets N (g_1^2 + ... + g_N^2)
where the step's own gradient would give it (g_1 + ... + g_N)^2: never less (Cauchy-Schwarz), as much where all
micro-batches agree, and N times as much in the mean where they are nothing but noise, so that steps are shorter. The
paper gives it the sum without N, for which steps are longer by up to sqrt(N).

The norm of the step's gradient is never known either. What is logged, and what clip=lagged clips by, is
sqrt(N (|g_1|^2 + ... + |g_N|^2)), which it does not exceed; clip=per_tensor clips each tensor's g_i by N |g_i|.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ... import mends
from ...errors import OptionError
from .optimizers.compact_adamw import CompactAdamW
from .settings import NAME

FOLDABLE = "torch.optim.AdamW, torch.optim.Adam without weight decay (algorithm=script) and algorithm=compact-adamw"


class Folding(Protocol):
    """What takes the gradients of a step one by one."""

    def fold(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor | None,
        group: dict[str, Any],
        *,
        first: bool,
        last: bool,
        count: int,
    ) -> None:
        """Take one of the gradients whose sum is a step's, without building a graph.

        Args:
            gradient: None with `last` where the parameter has none in the last micro-batch.
            group: the parameter's, with the rate to step with in `lr`.
            first: whether it is the parameter's first one in this step.
            last: whether to change the weight now.
            count: how many micro-batches make the step.
        """


class AdamFolding:
    """Folds into the state of `torch.optim.AdamW` or `Adam`, which can step without it before and after."""

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def fold(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor | None,
        group: dict[str, Any],
        *,
        first: bool,
        last: bool,
        count: int,
    ) -> None:
        """See `Folding.fold`."""
        state = self._state(parameter, group)
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if first:
            state["step"] += 1
            mean.mul_(beta1)
            square.mul_(beta2)
        if gradient is not None:
            mean.add_(gradient, alpha=1 - beta1)
            square.addcmul_(gradient, gradient, value=count * (1 - beta2))
        if last:
            lr, step = float(group["lr"]), float(state["step"])
            if group["weight_decay"] != 0:
                parameter.mul_(1 - lr * group["weight_decay"])
            divisor = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
            parameter.addcdiv_(mean, divisor, value=-lr / (1 - beta1**step))

    def _state(self, parameter: torch.Tensor, group: dict[str, Any]) -> Any:
        state = self.optimizer.state[parameter]
        if not state:
            # As Adam's own: the count on the host, unless its kernel wants it on the device.
            device = parameter.device if group.get("fused") else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def folding_of(optimizer: torch.optim.Optimizer) -> Folding:
    """What folds gradients into this optimizer's moments.

    Raises:
        OptionError: it has no moments to fold into, or they mean something else.
    """
    if isinstance(optimizer, CompactAdamW):
        return optimizer
    reason = _why_not(optimizer)
    if reason is not None:
        raise OptionError(
            f"{NAME}: accumulation=fold is for {FOLDABLE}, and {type(optimizer).__name__} {reason}. Use one of "
            "these, or accumulation=buffer.",
            code="option-combination",
            mend=[mends.set_option(NAME, "accumulation", "buffer")],
        )
    assert isinstance(optimizer, torch.optim.Adam)
    return AdamFolding(optimizer)


def _why_not(optimizer: torch.optim.Optimizer) -> str | None:
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return "is none of them"
    for group in optimizer.param_groups:
        on = [name for name in ("amsgrad", "maximize", "capturable", "differentiable") if group.get(name)]
        if on:
            return f"has {on[0]}=True"
        if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
            return f"has weight_decay={group['weight_decay']}, which Adam adds to the gradient"
    return None
