"""A guard against gradients that are not finite: found before the step, dropped, counted.

One NaN batch destroys the weights of a stock run, whose log then shows a loss of 0.0. Dropping means `grad = None`
for every parameter, so that the optimizer changes neither weights nor moments; the schedule goes on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ... import mends
from ...errors import PluginError
from ...shards import whole_tensor
from .settings import NAME

if TYPE_CHECKING:
    from transformers import TrainingArguments

CUT_AFTER = 3  # dropped steps ...
CUT_WINDOW = 20  # ... among this many steps, since the last such cut
CUT_REASON = f"{CUT_AFTER} of {CUT_WINDOW} steps had gradients that are not finite"
SHARE_WINDOW = 100  # optimizer steps
SCALER_SEARCH = 16  # steps; fp16's scaler starts at 2**16 and halves its scale at every step that it skips


class NonFiniteGradientsError(PluginError):
    """Too large a share of the steps had gradients that are not finite; the weights are those of the last good step."""

    DEFAULT_CODE = "not-finite"


@dataclass(frozen=True)
class GuardState:
    """Dropped steps: how many in all, which of the last `SHARE_WINDOW`, and the step of the guard's last cut."""

    total: int = 0
    recent: tuple[int, ...] = ()
    last_cut: int = -1


def optimized_gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The gradients that the next step would apply; of a sparse one, its values."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]


def all_finite(gradients: Iterable[torch.Tensor]) -> bool:
    """Whether every element of all gradients is finite, on this rank and on all others."""
    plain, others = defaultdict(list), []
    for gradient in gradients:
        if type(gradient) is torch.Tensor and gradient.is_contiguous():
            plain[gradient.device, gradient.dtype].append(gradient)
        else:
            others.append(gradient)
    found = [_found_bad(same) for same in plain.values()]
    if others:
        norm = whole_tensor(torch.nn.utils.get_total_norm(others))
        found.append(1.0 - torch.isfinite(norm).float())
    device = found[0].device if found else None
    bad = sum((one.to(device).reshape(()) for one in found), torch.zeros((), device=device))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # With sharded gradients only the rank that holds the bad shard sees it.
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    return not bool(bad.item())


def _found_bad(gradients: list[torch.Tensor]) -> torch.Tensor:
    """[1]: 1.0 where an element is not finite. What `torch.amp.GradScaler` asks; takes a fifth of a norm's time."""
    found, scale = torch.zeros((2, 1), dtype=torch.float32, device=gradients[0].device)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale.fill_(1.0))
    return found


def drop(optimizer: torch.optim.Optimizer) -> None:
    """Forget every gradient, so that the next `step()` does nothing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def dropped(state: GuardState, step: int) -> GuardState:
    """The state after the gradients of `step` were dropped."""
    recent = tuple(old for old in state.recent if old > step - SHARE_WINDOW)
    return replace(state, total=state.total + 1, recent=(*recent, step))


def wants_cut(state: GuardState, step: int) -> bool:
    """Whether several of the latest steps were dropped since the guard last cut the rate."""
    since = max(state.last_cut, step - CUT_WINDOW)
    return sum(old > since for old in state.recent) >= CUT_AFTER


def is_hopeless(state: GuardState, step: int, max_steps: int, max_share: float) -> bool:
    """Whether more than `max_share` of the last 100 steps (or of all, in a shorter run) were dropped."""
    window = min(SHARE_WINDOW, max_steps)
    recent = sum(old > step - window for old in state.recent)
    return recent > max(CUT_AFTER, math.floor(max_share * window))


def too_many_dropped(
    state: GuardState, step: int, max_share: float, args: TrainingArguments
) -> NonFiniteGradientsError:
    """The error that ends a run when `is_hopeless`."""
    return NonFiniteGradientsError(
        f"{NAME}: the gradients of {state.total} of {step + 1} optimizer steps were not finite, more than "
        f"max_nonfinite_share={max_share} of the latest. They were dropped: the weights are those of the last finite "
        "step. Lower learning_rate, set max_grad_norm, prefer bf16 to fp16, or look for rows whose loss is not a "
        "number.",
        mend=[
            mends.set_argument("learning_rate", args.learning_rate / 10),
            *([mends.set_argument("max_grad_norm", 1.0)] if not args.max_grad_norm else []),
            *([_bf16_for_fp16()] if args.fp16 else []),
        ],
    )


def _bf16_for_fp16() -> mends.Step:
    return mends.all_of(mends.set_argument("fp16", False), mends.set_argument("bf16", True))
