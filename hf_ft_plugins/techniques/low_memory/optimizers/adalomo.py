"""AdaLomo: gradients divided by a factored second moment, in steps relative to the size of each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from ....errors import PluginError
from ..clipping import norm_of, total_of
from ..settings import NAME
from .per_tensor import PerTensorOptimizer

CHUNK = 2**22  # numbers of a tensor that are computed at once: 16 MiB in float32


class AdaLOMO(PerTensorOptimizer):
    """AdaLomo (Lv et al. 2023, arXiv:2310.10195, algorithm 1), with the constants of its authors' implementation.

    In step t of a tensor theta with n numbers and gradient g:

        beta = 1 - t ** decay_rate
        v <- beta v + (1 - beta) (g^2 + eps[0]), kept as the means of its rows and columns
        u = g / sqrt(v);  u <- u / max(1, rms(u) / clip_threshold)
        theta <- theta - lr max(eps[1], rms(theta)) (u + weight_decay theta)

    where rms(x) = |x| / sqrt(n). So `lr` is a step relative to the tensor's size, and suits well above AdamW's: the
    authors tune LLaMA-7B with 5e-4. Gradients need no clipping: each update is scaled by its own norm ("grouped update
    normalisation").

    State: `row` and `column`, float32, the means of v over its two largest dimensions, for each place in the others
    (a matrix [n, m] has [n, 1] and [1, m]; expert weights [e, n, m] have [e, n, 1] and [e, 1, m]); of a vector, v
    itself. Temporary memory: a few chunks of 16 MiB, whatever the tensor's size.

    Deviations: tensors of more than two dimensions are factored as said, where the authors' code takes the last two
    dimensions, and steps are counted for each tensor alone. Weights in bfloat16 are rounded to nearest after each
    step, so that a number that changes by less than about 1/500 of itself stays as it is.

    Args:
        params: tensors, or groups of them.
        lr: 0 or more, relative: see above.
        weight_decay: 0 or more, relative to the step as in Adafactor.
        eps: what is added to g^2, and the least size of a tensor that its step is relative to.
        clip_threshold: the largest rms of an update.
        decay_rate: less than 0: how fast the average's memory grows.

    Raises:
        PluginError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
    ) -> None:
        _require(lr >= 0, "lr", lr, "0 or more")
        _require(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
        _require(len(eps) == 2 and min(eps) > 0, "eps", eps, "two numbers above 0, such as (1e-30, 1e-3)")
        _require(clip_threshold > 0, "clip_threshold", clip_threshold, "more than 0, such as 1.0")
        _require(decay_rate < 0, "decay_rate", decay_rate, "less than 0, such as -0.8")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "eps": tuple(eps),
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
        }
        super().__init__(params, defaults)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if parameter.numel() == 0:
            return
        parts = _parts(parameter)
        roots = _follow_second_moment(gradient, parts, state, group)
        size = math.sqrt(parameter.numel())
        norm = None
        for part in parts:
            norm = total_of(norm, norm_of(_divided(gradient, roots, part)))
        assert norm is not None
        shrink = (norm / (size * group["clip_threshold"])).clamp(min=1.0)
        rate = group["lr"] * (norm_of(parameter) / size).clamp(min=group["eps"][1])
        for part in parts:
            update = _divided(gradient, roots, part).mul_(rate / shrink)
            weights = parameter[part]
            exact = weights.to(update.dtype)
            if group["weight_decay"] != 0:
                update.add_(exact * (rate * group["weight_decay"]))
            weights.copy_(exact.sub_(update))


def _follow_second_moment(
    gradient: torch.Tensor, parts: list[Any], state: dict[str, Any], group: dict[str, Any]
) -> list[torch.Tensor]:
    """Bring the state up to date; returns 1 / sqrt(v) as factors that broadcast to the gradient's shape."""
    state["step"] = state.get("step", 0) + 1
    beta, eps = 1.0 - state["step"] ** group["decay_rate"], group["eps"][0]
    if gradient.ndim < 2:
        _follow(state, "square", _exact(gradient).square() + eps, beta)
        return [state["square"].rsqrt()]
    rows, columns = _factored(gradient)
    row_means, column_means = [], []
    for part in parts:
        square = _exact(gradient[part]).square() + eps
        row_means.append(square.mean(columns, keepdim=True))
        column_means.append(square.mean(rows, keepdim=True))
    _follow(state, "row", torch.cat(row_means) if len(parts) > 1 else row_means[0], beta)
    _follow(state, "column", _column(column_means, row_means, gradient, rows), beta)
    share = state["row"] / state["row"].mean(rows, keepdim=True)
    # Rows that never had a gradient, beside very large ones, would be divided by 0.
    return [share.clamp_(min=torch.finfo(share.dtype).tiny).rsqrt_(), state["column"].rsqrt()]


def _column(
    means: list[torch.Tensor], row_means: list[torch.Tensor], gradient: torch.Tensor, rows: int
) -> torch.Tensor:
    """The means over all rows, of those over the rows of each part."""
    if len(means) == 1:
        return means[0]
    if rows != 0:
        return torch.cat(means)
    weighted = [mean * (one.shape[0] / gradient.shape[0]) for mean, one in zip(means, row_means, strict=True)]
    return torch.stack(weighted).sum(0)


def _follow(state: dict[str, Any], name: str, now: torch.Tensor, beta: float) -> None:
    now = _settled(now)
    if name in state:
        state[name].mul_(beta).add_(now, alpha=1.0 - beta)
    else:
        state[name] = now  # beta is 0 in the first step


def _divided(gradient: torch.Tensor, roots: list[torch.Tensor], part: Any) -> torch.Tensor:
    """g / sqrt(v) of one part, in memory of its own."""
    update = _exact(gradient[part])
    for index, root in enumerate(roots):
        factor = root[part] if root.shape[:1] == gradient.shape[:1] else root
        update = update * factor if index == 0 else update.mul_(factor)
    return update


def _factored(gradient: torch.Tensor) -> tuple[int, int]:
    """Its two largest dimensions, in their order; among equals the last."""
    by_size = sorted(range(gradient.ndim), key=lambda one: (gradient.shape[one], one))
    first, second = sorted(by_size[-2:])
    return first, second


def _parts(tensor: torch.Tensor) -> list[Any]:
    """Indices of the first dimension that cut a large tensor into parts; of one that is sharded, all of it."""
    if tensor.ndim < 2 or hasattr(tensor, "placements"):
        return [...]
    rows = max(1, CHUNK * tensor.shape[0] // tensor.numel())
    return [slice(start, start + rows) for start in range(0, tensor.shape[0], rows)]


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _settled(tensor: torch.Tensor) -> torch.Tensor:
    """A sum that a sharded tensor's ranks still hold in parts, as one."""
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in placements]
    return tensor.redistribute(placements=whole)


def _require(holds: bool, argument: str, value: Any, wanted: str) -> None:
    if not holds:
        raise PluginError(
            f"{NAME}: AdaLOMO({argument}={value!r}) is out of range. Set {argument} to {wanted}.", code="option-value"
        )
