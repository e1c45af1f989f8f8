"""Where a model's loss is scored, and what the sum over it is divided by: what changes or adds to a loss needs both.

A model gives one number. transformers' models divide the sum of their tokens' losses by `num_items_in_batch` where
Trainer says it and they heed it (T5 and BART take it and divide by the tokens of the batch), so what the number was
divided by is read off it.
"""

from __future__ import annotations

from typing import Any

import torch

from .inputs import bare

IGNORED = -100
_PLAIN = "hf_ft_plain_loss"


def is_causal(model: Any) -> bool:
    """Whether the model writes text, and the logits of a position are for the next one's label."""
    return writes_text(model) and not bare(model).config.is_encoder_decoder


def writes_text(model: Any) -> bool:
    """Whether the model is one of transformers' that generate."""
    can_generate = getattr(bare(model), "can_generate", None)
    return can_generate is not None and bool(can_generate())


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, of half precision in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def aligned(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, V] and the labels that they are scored by, int64 [B, T], -100 where there are none.

    Args:
        logits: float [B, L, V].
        labels: int64 [B, L], or shorter where the model has put tokens of its own before (prompt tuning).
        shifted: the logits of a position are for the next one's label; then T = L - 1.
    """
    labels = labels.to(logits.device)
    labels = torch.nn.functional.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=IGNORED)
    return (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)


def are_of_tokens(logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether each position of a row has logits and a label."""
    return logits.dim() == 3 and labels.dim() == 2 and labels.shape[1] <= logits.shape[1]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label, in nats, float [...]; 0 where the label is -100.

    Args:
        logits: float [..., V].
        labels: int64 [...].
    """
    flat = torch.nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def plain_loss(outputs: Any) -> torch.Tensor:
    """The loss that the model gave, whoever has changed `outputs.loss` since it was first asked for here."""
    if not hasattr(outputs, _PLAIN):
        setattr(outputs, _PLAIN, outputs.loss.detach())
    plain: torch.Tensor = getattr(outputs, _PLAIN)
    return plain


def router_loss(model: Any, outputs: Any) -> torch.Tensor:
    """What a mixture of experts has added to its loss to balance them: scalar, with gradients; 0 where it has none."""
    balance: Any = getattr(outputs, "aux_loss", None)
    if not torch.is_tensor(balance):
        return torch.zeros((), device=outputs.loss.device)
    model = bare(model)
    of_config = getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0)
    return float(getattr(model, "router_aux_loss_coef", of_config)) * balance


def divisor(loss: torch.Tensor, total: torch.Tensor, scored: torch.Tensor | int, items: Any) -> torch.Tensor:
    """What the model has divided `total` by to get `loss`: `items` or `scored`, whichever comes nearer.

    Args:
        loss: scalar, the model's own.
        total: scalar, the sum of the losses of what is scored.
        scored: their number in this batch.
        items: `num_items_in_batch`, the number in the whole step; None where nobody said it.
    """
    here = torch.as_tensor(scored, device=total.device).clamp(min=1)
    if items is None:
        return here
    whole = torch.as_tensor(items, device=total.device).clamp(min=1)
    heeded = torch.abs(loss - total / whole) <= torch.abs(loss - total / here)
    return torch.where(heeded, whole, here)
