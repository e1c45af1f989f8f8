"""Turning what a trainer's `CompactAdamW` trains to bf16, where its forward pass can bear it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import PluginError
from .optimizers.compact_adamw import CompactAdamW
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


def halve_weights(trainer: Trainer, model: Any, optimizer: CompactAdamW) -> None:
    """Turn the trained float32 weights of `model` to bf16, in place, and say so in the log.

    With autocast (bf16=True) only matrices are turned, so that norms of frozen and trained layers go together, and
    what is not trained stays as it is. Without it all is turned, so nothing may be left that is float32: a frozen
    layer, or the model's input. The model stays so after training, and so does what is saved: it is what was evaluated.

    Raises:
        PluginError: it needs autocast and there is none, or FSDP would put other tensors in the place of the weights.
    """
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    if not any(one.dtype is torch.float32 for one in trained):
        return
    if trainer.is_fsdp_enabled:
        raise PluginError(
            f"{NAME}: algorithm=compact-adamw turns float32 weights to bf16 before FSDP cuts them up, and what it "
            "keeps of them would be lost. Load the model with dtype=torch.bfloat16, or use another algorithm.",
            code="distributed-unsupported",
            mend=[mends.set_model_argument("dtype", "bfloat16")],
        )
    if not trainer.args.bf16:
        _refuse_mixed(model, {id(one) for one in trained})
    before = _gigabytes(model)
    count = optimizer.halve_weights(vectors=not trainer.args.bf16)
    # As transformers writes it to config.json.
    if getattr(model, "config", None) is not None and all(one.dtype is torch.bfloat16 for one in model.parameters()):
        model.config.dtype = torch.bfloat16
    logger.warning(
        "%s: algorithm=compact-adamw turned %d trained weights from float32 to bfloat16, the model from %.3f to %.3f "
        "GB. The optimizer keeps eight more bits of each; the model is saved in bfloat16.",
        *(NAME, count, before, _gigabytes(model)),
    )


def _refuse_mixed(model: Any, trained: set[int]) -> None:
    others = [
        name
        for name, one in model.named_parameters()
        if id(one) not in trained and one.is_floating_point() and one.dtype is not torch.bfloat16
    ]
    main_input = getattr(model, "main_input_name", "input_ids")
    if others:
        reason = f"{others[0]}, which is not trained, stays {next(_dtypes(model, others))}"
    elif main_input != "input_ids":
        reason = f"the model's input {main_input!r} is float32"
    else:
        return
    raise PluginError(
        f"{NAME}: algorithm=compact-adamw turns the trained weights to bfloat16, and {reason}, which layers cannot "
        "mix by themselves. Set bf16=True, or load the model with dtype=torch.bfloat16.",
        code="training-arguments",
        mend=[mends.set_argument("bf16", True), mends.set_model_argument("dtype", "bfloat16")],
    )


def _dtypes(model: Any, names: list[str]) -> Any:
    found = dict(model.named_parameters())
    return (str(found[name].dtype).removeprefix("torch.") for name in names)


def _gigabytes(model: Any) -> float:
    return sum(float(one.numel() * one.element_size()) for one in model.parameters()) / 1e9
