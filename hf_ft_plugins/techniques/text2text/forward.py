"""What `text2text` gives a model beside the batch, so that taking its labels away changes nothing else.

A loss function of one's own (`compute_loss_func`) makes Trainer take the labels out of the batch. Then a decoder has no
input where the collator made none, and what a model adds to its loss itself (routers of experts, ProphetNet's further
tokens) is gone. So the decoder's input is made as the model makes it, and on its first batch the model is asked for its
own loss: where that is another than the mean over the target's tokens, it stays the model's.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ...models.inputs import bare, decoder_inputs
from .architecture import NAME, is_causal
from .loss import IGNORED, TokenMeanLoss

logger = logging.getLogger(__name__)

ROWS_ASKED = 2


def as_the_model_would(trainer: Any, inputs: Any) -> Any:
    """The context of one call of `compute_loss` with a `TokenMeanLoss`; None where the loss is the script's own.

    `decoder_input_ids` are added to `inputs`, in place, where an encoder-decoder's batch has none.
    """
    loss = trainer.compute_loss_func
    if not isinstance(loss, TokenMeanLoss) or inputs.get("labels") is None:
        return None
    model = bare(trainer.accelerator.unwrap_model(trainer.model))
    if not is_causal(model) and all(inputs.get(f"decoder_{name}") is None for name in ("input_ids", "inputs_embeds")):
        inputs["decoder_input_ids"] = decoder_inputs(model, inputs["labels"].clone(), NAME)
    if loss.label_smoothing:
        return None  # Of which stock knows nothing but the logits either.
    if loss.asked.own is None:
        loss.asked.own = has_its_own_loss(trainer.model_wrapped, model, inputs, loss)
    return _with_labels(model, inputs["labels"], loss) if loss.asked.own else None


@contextlib.contextmanager
def _with_labels(model: Any, labels: torch.Tensor, loss: TokenMeanLoss) -> Iterator[None]:
    """The model gets the labels that Trainer takes away, and gives the mean over this batch."""
    handle = model.register_forward_pre_hook(_Labels(_as_it_takes_them(labels, loss)), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Labels:
    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rest = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
        return args, rest | {"labels": self.labels}


def _as_it_takes_them(labels: torch.Tensor, loss: TokenMeanLoss) -> torch.Tensor:
    if loss.shift and not loss.asked.shifts:
        return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return labels


def has_its_own_loss(wrapped: Any, model: Any, inputs: Mapping[str, Any], loss: TokenMeanLoss) -> bool:
    """Whether the model's loss is another than `loss`; it is asked on the first rows of a batch, without gradients.

    Also finds out, of a causal model, whether it shifts its labels itself (`loss.asked.shifts`): decoder-only classes
    of encoder-decoders' families do not.
    """
    if not _takes_labels(model) or not torch.is_tensor(inputs["labels"]):
        return False
    rows = {
        name: _first(value, len(inputs["labels"])) for name, value in inputs.items() if name != "num_items_in_batch"
    }
    labels = rows.pop("labels")
    if not (labels[:, 1:] != IGNORED).any():
        return False
    with _undisturbed(model):
        alone = wrapped(**rows)
        if loss.shift:
            loss.asked.shifts = _shifts(wrapped, rows, labels)
        outputs = wrapped(**rows, labels=_as_it_takes_them(labels, loss))
    theirs = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if theirs is None:
        return False
    ours = loss(alone, labels)
    # What a model rounds in half precision is no other loss.
    exact = theirs.dtype == torch.float32 and _is_float32(model)
    same = torch.isclose(theirs.float(), ours.float(), rtol=1e-4 if exact else 3e-2, atol=0)
    adds = any(name.endswith("_loss") and value is not None for name, value in outputs.items())
    own = adds or not same or _moved(alone.get("logits"), outputs.get("logits"), exact=exact)
    if own:
        logger.warning(
            "%s: %s computes a loss of its own with labels (%.6g; the mean over the target's tokens is %.6g), which "
            "stays; each batch weighs as many tokens as it has.",
            NAME,
            type(model).__name__,
            float(theirs),
            float(ours),
        )
    return own


def _moved(alone: torch.Tensor | None, beside_labels: torch.Tensor | None, *, exact: bool) -> bool:
    """Whether labels change what a model computes: FSMT masks what comes later only where it gets them. Where it gives
    no logits beside a loss (liger's kernels), it is to compute the loss."""
    if alone is None or beside_labels is None or alone.shape != beside_labels.shape:
        return True
    return float((alone - beside_labels).abs().max()) > (1e-6 if exact else 1e-2) * float(alone.abs().max())


def _takes_labels(model: Any) -> bool:
    return "labels" in inspect.signature(model.forward).parameters


def _first(value: Any, rows: int) -> Any:
    whole = torch.is_tensor(value) and value.ndim > 0 and len(value) == rows
    return value[:ROWS_ASKED] if whole else value


def _is_float32(model: Any) -> bool:
    return next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled()


def _shifts(wrapped: Any, rows: Mapping[str, Any], labels: torch.Tensor) -> bool:
    """Whether the first label of a row means nothing to the model's loss: nothing comes before it to predict it."""
    changed = labels.clone()
    losses = []
    for token in (1, 2):
        changed[:, 0] = token
        losses.append(wrapped(**rows, labels=changed).loss)
    return any(loss is None for loss in losses) or torch.equal(*losses)


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Without gradients, dropout, or a number drawn from any generator that training draws from."""
    training = {module: module.training for module in model.modules()}
    numbers = np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numbers)
        for module, was in training.items():
            module.training = was
