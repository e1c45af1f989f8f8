"""Reference models that are not the model that the run begins with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import PluginError
from ...shards import is_zero3, whole_shape, whole_tensor
from .collator import NAME

if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)


def refuse_reference(trainer: Trainer, *, trained_adapter: str) -> None:
    """Look at a built trainer's reference, before the first step.

    Raises:
        PluginError: the reference lacks what was done to the model (a layer less, a head more); the model is a
            `PeftModel` whose adapter has been trained, and is its own reference, with `trained_adapter="refuse"`.
    """
    reference = getattr(trainer, "ref_model", None)
    if reference is not None:
        _refuse_other_parameters(trainer, reference)
    elif trained_adapter == "refuse" and _is_own_trained_reference(trainer.model):
        raise PluginError(
            f"{NAME}: the model is a PeftModel whose adapter has been trained, and a copy of it became the reference. "
            "To go on with a run, build the trainer with the base model and peft_config=..., and call "
            "trainer.train(resume_from_checkpoint=...). If the adapter is where this run is to begin, say so with "
            "trained_adapter=reference.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "trained_adapter", "reference")],
        )


def _refuse_other_parameters(trainer: Trainer, reference: Any) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    ours = dict(model.named_parameters())
    theirs = dict(trainer.accelerator.unwrap_model(reference).named_parameters())
    odd = [
        name
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or whole_shape(ours[name]) != whole_shape(theirs[name])
    ]
    if odd and type(model) is type(trainer.accelerator.unwrap_model(reference)):
        raise PluginError(
            f"{NAME}: the reference model lacks what was done to the model: {len(odd)} parameters differ in name or "
            f"shape, the first is {odd[0]}. TRL loads the reference from {model.config._name_or_path!r} again. Pass "
            "ref_model=copy.deepcopy(model) with the same changes, or train an adapter (peft_config=...), whose "
            "reference is the changed model itself.",
            code="model-unsuited",
        )
    if not odd and not all(_equal(ours[name], theirs[name]) for name in ours):
        logger.warning(
            "%s: the model's weights are not those of its reference (%s). Meant, if you passed ref_model; else the "
            "reference was loaded from disk again, without what was done to the model since: pass "
            "ref_model=copy.deepcopy(model).",
            *(NAME, model.config._name_or_path or "a model without a path"),
        )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if is_zero3(one) or is_zero3(other):
        # To gather both would cost what cutting them up was for.
        return True
    whole = [whole_tensor(tensor.detach()) for tensor in (one, other)]
    return one.dtype != other.dtype or torch.equal(whole[0], whole[1].to(whole[0].device))


def _is_own_trained_reference(model: Any) -> bool:
    if "ref" not in getattr(model, "peft_config", {}):
        return False
    # LoRA's second matrix is initialised to 0, DoRA's too.
    return any(
        bool(parameter.detach().any())
        for name, parameter in model.named_parameters()
        if "lora_B" in name and ".ref." not in name
    )
