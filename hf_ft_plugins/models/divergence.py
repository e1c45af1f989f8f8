"""How far a model's predictions are from another's, where its loss is scored: distillation's term.

Hinton et al. 2015 (arXiv:1503.02531): both softened by a temperature, and the term multiplied by its square, so that
its gradients keep their size.
"""

from __future__ import annotations

from typing import Any

import torch

from .scored import IGNORED, aligned, are_of_tokens, at_least_float32, divisor, token_losses


def divergence(
    logits: torch.Tensor,
    target: torch.Tensor,
    labels: torch.Tensor,
    *,
    shifted: bool,
    temperature: float = 1.0,
    items: Any = None,
) -> torch.Tensor:
    """temperature^2 x KL(target || logits), in nats, mean over what is scored.

    Args:
        logits, target: float [B, L, V], or [B, V] of a classifier of rows.
        labels: int64 [B, L], -100 where nothing is scored, or of rows, [B] or [B, ...].
        shifted: the logits of a position are for the next one's label.
        items: number to divide by, instead of the scored ones here.
    """
    if are_of_tokens(logits, labels):
        target, _ = aligned(target, labels, shifted=shifted)
        logits, labels = aligned(logits, labels, shifted=shifted)
        scored = labels != IGNORED
        logits, target = logits[scored], target[scored]
    logits, target = at_least_float32(logits).flatten(0, -2), at_least_float32(target).flatten(0, -2)
    summed = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(-1), (target / temperature).log_softmax(-1), reduction="sum", log_target=True
    )
    return temperature**2 * summed / (max(len(logits), 1) if items is None else items)


def divisor_of_loss(
    logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, *, shifted: bool, items: Any
) -> torch.Tensor | None:
    """The `items` by which a divergence is divided as the model divides its own loss; None for the mean.

    Args:
        logits, labels, shifted: as for `divergence`.
        loss: scalar, the model's own.
        items: `num_items_in_batch`, which not all models heed; None where nobody said it.
    """
    if items is None:
        return None
    if are_of_tokens(logits, labels):
        logits, labels = aligned(logits, labels, shifted=shifted)
    elif labels.shape != logits.shape[:1] or labels.dtype != torch.int64 or logits.shape[-1] < 2:
        # Numbers, or several classes a row: transformers' losses of these are means.
        return None
    total = token_losses(logits.detach(), labels.to(logits.device)).sum()
    return divisor(loss, total, (labels != IGNORED).sum(), items)
