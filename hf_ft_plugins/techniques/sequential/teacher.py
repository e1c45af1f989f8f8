"""Learning without forgetting: on the new data, the model is to predict what it predicted when the stage began.

    teacher = frozen_copy(model)
    with remembering(model, teacher, 1.0, temperature=2.0):
        loss = model(**batch).loss          # + 1.0 x 2^2 x KL(teacher || student), both softened by the temperature

Li & Hoiem 2016 (arXiv:1606.09282, section 3), who take the old task's responses on the new images. Deviations: their
term is the cross-entropy with the softened responses, here it is the divergence (the same gradients); there each task
has a head of its own, here the stages share one; and the teacher runs beside the student, instead of once before, as
a batch's rows may be cut, packed or augmented anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import PluginError
from ...models.divergence import divergence, divisor_of_loss
from ...models.inputs import bare, decoder_inputs
from ...models.scored import is_causal, plain_loss
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer

# What is not for the teacher, who computes no loss.
NOT_INPUTS = ("labels", "shift_labels", "num_items_in_batch")


def frozen_copy(model: torch.nn.Module, start: Mapping[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """The model as it is, or as `start` has it, in evaluation mode and without gradients.

    Under an adapter of peft's the copy shares the frozen weights with the model: it costs no more than the adapter, and
    is exact whatever the adapter does. Without one they are copied, too, since another technique may thaw them.

    Args:
        model: not wrapped for several processes.
        start: the weights that differ from the model's now, by their names there, on any device; of a resumed run, the
            trainable ones and the floating buffers when the stage began.

    Raises:
        PluginError: a name or shape in `start` is not the model's.
    """
    shared = _frozen(model, set(start or ())) if hasattr(model, "peft_config") else []
    teacher: torch.nn.Module = copy.deepcopy(model, {id(weight): weight for weight in shared})
    if start is not None:
        _write(teacher, start)
    for weight in teacher.parameters():
        # Shared weights are so already.
        weight.requires_grad_(False)
    return teacher.eval()


@contextmanager
def remembering(
    model: Any, teacher: Any, weight: float, temperature: float = 2.0, trainer: Trainer | None = None
) -> Iterator[None]:
    """While it lasts, `model(**batch)` adds `weight` x temperature^2 x KL to `outputs.loss` wherever gradients are on.

    The term is divided as the model divides its own loss: by `num_items_in_batch` where it heeds it, else by what is
    scored in the batch.

    Args:
        model: what the trainer calls, with or without an adapter, not yet wrapped for several processes; it gives
            `logits`, [B, L, V] of tokens or [B, V] of rows that have one class each.
        teacher: of `frozen_copy`.
        trainer: where its `compute_loss_func` gets the labels instead of the model, the term is added to what that
            gives for the batch, and divided by `num_items_in_batch`.

    Raises:
        PluginError: from the call, if it has no labels, gives no logits, or these are no classes'.
    """
    function = None if trainer is None else trainer.compute_loss_func

    def add(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return outputs
        labels = kwargs.get("labels")
        apart = labels is None and function is not None
        _refuse_no_classes(module, outputs, weight, has_loss=apart or (labels is not None and "loss" in outputs))
        given = {name: value for name, value in kwargs.items() if name not in NOT_INPUTS}
        if labels is not None and bare(teacher).config.is_encoder_decoder and _decodes_nothing(given):
            given["decoder_input_ids"] = decoder_inputs(teacher, labels, NAME)
        with torch.no_grad():
            target = teacher(*args, **given).logits
        logits, shifted = outputs.logits, is_causal(module)

        def term(labels: torch.Tensor, items: Any) -> torch.Tensor:
            return weight * divergence(logits, target, labels, shifted=shifted, temperature=temperature, items=items)

        if trainer is not None and apart:
            # Only now: others look which function it is when a batch's loss begins.
            trainer.compute_loss_func = _with_term(function, term)
        else:
            items = kwargs.get("num_items_in_batch")
            items = divisor_of_loss(logits, labels, plain_loss(outputs), shifted=shifted, items=items)
            outputs["loss"] = outputs["loss"] + term(labels, items)
        return outputs

    handle = model.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        if trainer is not None:
            trainer.compute_loss_func = function


def _with_term(function: Any, term: Callable[[torch.Tensor, Any], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        own: torch.Tensor = function(outputs, labels, num_items_in_batch=num_items_in_batch)
        return own + term(labels, num_items_in_batch)

    return loss


def _frozen(model: torch.nn.Module, written: set[str]) -> list[torch.nn.Parameter]:
    named = model.named_parameters()
    return [weight for name, weight in named if not weight.requires_grad and name not in written]


@torch.no_grad()
def _write(teacher: torch.nn.Module, start: Mapping[str, torch.Tensor]) -> None:
    own = dict(teacher.named_parameters(remove_duplicate=False)) | dict(teacher.named_buffers(remove_duplicate=False))
    for name, tensor in start.items():
        if name not in own or own[name].shape != tensor.shape:
            found = list(own[name].shape) if name in own else "no such weight"
            raise PluginError(
                f"{NAME}: lwf remembers the model as it was when the stage began, and the weights of then have {name} "
                f"{list(tensor.shape)}, the model {found}. Resume with the model and adapter that the stage began "
                "with.",
                code="checkpoint-other-run",
            )
        own[name].copy_(tensor)


def _decodes_nothing(given: Mapping[str, Any]) -> bool:
    return given.get("decoder_input_ids") is None and given.get("decoder_inputs_embeds") is None


def _refuse_no_classes(model: Any, outputs: Any, weight: float, *, has_loss: bool) -> None:
    logits = getattr(outputs, "logits", None)
    if logits is None or not has_loss:
        raise PluginError(
            f"{NAME}: lwf={weight} needs a model called with labels that gives loss and logits, and "
            f"{type(model).__name__} did not. Set lwf=0.",
            code="trainer-unsuited",
            mend=[mends.set_option(NAME, "lwf", 0)],
        )
    kind = getattr(bare(model).config, "problem_type", None)
    if logits.shape[-1] < 2 or kind in ("regression", "multi_label_classification"):
        raise PluginError(
            f"{NAME}: lwf={weight} compares distributions over classes of which one is right, and the outputs of "
            f"{type(model).__name__} ({logits.shape[-1]}, problem_type={kind}) are none. Set lwf=0 and use replay or "
            "l2sp.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "lwf", 0)],
        )
