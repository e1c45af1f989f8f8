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
    loss: torch.Tensor | None = None,
    items: Any = None,
) -> torch.Tensor:
    """temperature^2 x KL(target || logits), in nats, divided as the model divides its own loss.

    Args:
        logits, target: float [B, L, V], or [B, V] of a classifier of rows.
        labels: int64 [B, L], -100 where nothing is scored, or of rows, [B] or [B, ...].
        shifted: the logits of a position are for the next one's label.
        loss: scalar, the model's own; tells whether it heeds `items`.
        items: number of what is scored in the whole step; without, or where the loss does not heed it, the term is
            the mean over what is scored here.
    """
    if are_of_tokens(logits, labels):
        target, _ = aligned(target, labels, shifted=shifted)
        logits, labels = aligned(logits, labels, shifted=shifted)
        scored = labels != IGNORED
        logits, target, labels = logits[scored], target[scored], labels[scored]
    logits, target = at_least_float32(logits).flatten(0, -2), at_least_float32(target).flatten(0, -2)
    summed = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(-1), (target / temperature).log_softmax(-1), reduction="sum", log_target=True
    )
    return temperature**2 * summed / _divisor(logits.detach(), labels, loss, items)


def _divisor(logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor | None, items: Any) -> torch.Tensor:
    """Of rows that are no classes' (numbers, several classes each), transformers' losses are means over the batch."""
    classes = labels.shape == logits.shape[:1] and labels.dtype == torch.int64 and logits.shape[-1] > 1
    if items is None or loss is None or not classes:
        return torch.as_tensor(max(len(logits), 1), device=logits.device)
    return divisor(loss, token_losses(logits, labels.to(logits.device)).sum(), len(logits), items)
