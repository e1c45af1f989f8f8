"""Healing helped by the original: its distribution over the next token is a part of what the smaller model learns.

    with distilling(model, original, 1.0):
        loss = model(**batch).loss          # cross-entropy + 1.0 x KL(original || model)

The term is averaged as the model averages its own loss: over the scored tokens, or over those of the whole step where
the trainer says how many there are (`num_items_in_batch`) and the model heeds it. Hinton et al. 2015 (arXiv:1503.02531)
at temperature 1; Muralidharan et al. 2024 (arXiv:2407.14679, section 3) heal pruned language models so, without the
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...models.divergence import divergence, divisor_of_loss
from ...models.inputs import decoder_inputs
from ...models.scored import is_causal, plain_loss
from ...models.unchanged import evaluating
from .stacks import NAME
from .trial_inputs import forward


@contextmanager
def distilling(model: Any, original: Any, weight: float) -> Iterator[None]:
    """While it lasts, `model(**batch)` adds `weight` x KL to `outputs.loss` wherever gradients are on.

    Args:
        model: what the trainer calls, with or without an adapter, not yet wrapped for several processes.
        original: the whole model; it is moved to the model's device, and gets no gradients.

    Raises:
        PluginError: from the call, if it has no labels or gives no logits.
    """

    def add(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return outputs
        logits = getattr(outputs, "logits", None)
        labels = kwargs.get("labels")
        if logits is None or labels is None or getattr(outputs, "loss", None) is None:
            raise PluginError(
                f"{NAME}: distill={weight} needs a model called with labels that gives loss and logits, and "
                f"{type(module).__name__} did not: Trainer and Seq2SeqTrainer call it so, TRL's trainers do not. "
                "Set distill=0.",
                code="trainer-unsuited",
                mend=[mends.set_option(NAME, "distill", 0)],
            )
        given = {name: value for name, value in kwargs.items() if name not in ("labels", "num_items_in_batch")}
        if "decoder_input_ids" not in given and getattr(original.config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = decoder_inputs(original, labels, NAME)
        with torch.no_grad():
            target = original.to(logits.device)(**given).logits
        shifted, items = is_causal(original), kwargs.get("num_items_in_batch")
        items = divisor_of_loss(logits, labels, plain_loss(outputs), shifted=shifted, items=items)
        outputs["loss"] = outputs["loss"] + weight * divergence(logits, target, labels, shifted=shifted, items=items)
        return outputs

    original.eval()
    handle = model.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def refuse_other_losses(model: Any, batches: Any, weight: float) -> None:
    """
    Raises:
        PluginError: the model gives a loss of one of the batches, and not by `labels` and `logits`.
    """
    for batch in batches:
        with evaluating(model):
            outputs = forward(model, batch)
        if getattr(outputs, "loss", None) is None:
            continue
        missing = "labels" if batch.get("labels") is None else "logits" if not hasattr(outputs, "logits") else None
        if missing is not None:
            raise PluginError(
                f"{NAME}: distill={weight} compares `logits` where there are `labels`, and the loss of a "
                f"{type(model).__name__} on this data ({', '.join(batch)}) is without {missing}. Set distill=0.",
                code="model-unsuited",
                mend=[mends.set_option(NAME, "distill", 0)],
            )
        return
