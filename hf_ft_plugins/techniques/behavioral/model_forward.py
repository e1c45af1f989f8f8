"""What a model's `forward` does with the batch's extra keys: scale gradients by row, and share prefixes.

TRL's trainers hand every key of a batch that they do not know to the model, so that what belongs to a batch reaches the
forward pass of that batch without a change to the trainer.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .collator import FLIP, WEIGHT
from .prefix_sharing import PassCost, shareable, shared_forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gated(values: Tensor, weights: Tensor) -> Tensor:
    """`values`, unchanged, whose gradient is that of `values` times each row's weight.

    The straight-through v - w v + w v with the first two detached: a loss that is a mean over rows of functions of
    their own values then has the gradient of the weighted mean, and is itself reported unweighted.

    Args:
        values: float [N, ...].
        weights: float [N], or [B] with N = 2B: chosen rows, then rejected rows.
    """
    if len(values) == 2 * len(weights):
        weights = torch.cat([weights, weights])
    weights = weights.to(values).view(-1, *[1] * (values.ndim - 1))
    fixed = values.detach()
    return fixed + weights * (values - fixed)


def behavioral_forward(model: PreTrainedModel, *, share_prefixes: bool = False, cost: PassCost | None = None) -> None:
    """Make `model.forward` take `behavior_weight` and `behavior_eps`, in place; call it after TRL's fused head is on.

    The first scales the gradient of the output's `log_probs` or `logits` (see `gated`); the second is for the loss
    (see `flip_probabilities.py`) and ignored. Passes that record no gradient ignore both.

    Args:
        model: the innermost model: TRL's policy or reference, not its PEFT or DDP wrapper.
        share_prefixes: run passes of chosen and rejected rows as `shared_forward` does.
        cost: of a pass, by which it leaves out batches that would cost more; None: it takes all.
    """
    inner = model.forward

    # The signature is what `generate` checks its arguments against.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights = kwargs.pop(WEIGHT, None)
        kwargs.pop(FLIP, None)
        if share_prefixes and not args and shareable(kwargs):
            outputs = shared_forward(inner, self.config, cost=cost, **kwargs)
        else:
            outputs = inner(*args, **kwargs)
        if weights is not None and torch.is_grad_enabled():
            for name in ("log_probs", "logits"):
                values = getattr(outputs, name, None)
                if values is not None:
                    setattr(outputs, name, gated(values, weights))
        return outputs

    forward.shares_prefixes = share_prefixes  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
