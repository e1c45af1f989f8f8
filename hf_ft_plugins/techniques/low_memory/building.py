"""Stepping a trainer's optimizer within the backward pass, under its clipping, accumulation and other techniques."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from ... import mends
from ...errors import OptionError
from ...host import hooks
from .clipping import Clipping
from .folding import folding_of
from .fused_backward import FusedBackward
from .replicas import MeanOverRanks, are_replicas
from .settings import NAME

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import Trainer

logger = logging.getLogger(__name__)

CLIPPED = {
    "lagged": "by the norm of the step before",
    "two_pass": "by the norm of all gradients, for which each backward pass runs twice",
    "per_tensor": "each gradient by its own norm",
    "none": "not at all",
}


def fuse(
    optimizer: Optimizer, trainer: Trainer, model: Any, *, clip: str, default: str, accumulation: str
) -> FusedBackward:
    """`optimizer`, stepped within the backward pass where that is right, and after it, tensor by tensor, where not.

    Args:
        clip: the option; `default`: what its auto means.
        accumulation: the option.

    Raises:
        OptionError: accumulation=refuse, and there is some; accumulation=fold with an optimizer that cannot.
        PluginError: the optimizer does not treat each tensor alone.
    """
    kept = why_gradients_are_kept(trainer, accumulation)
    if kept is not None:
        logger.warning("%s: gradients are kept until the whole step is there: %s.", NAME, kept)
    folds = kept is None and trainer.args.gradient_accumulation_steps > 1
    folding = folding_of(optimizer) if folds else None
    way = clip if clip != "auto" else default
    if folds and way == "two_pass" and trainer.args.max_grad_norm > 0:
        raise OptionError(
            f"{NAME}: clip=two_pass takes the norm of a whole step's gradient, which accumulation=fold never has. Use "
            "clip=lagged or clip=per_tensor, or accumulation=buffer.",
            code="option-combination",
            mend=[mends.set_option(NAME, "clip", "lagged"), mends.set_option(NAME, "accumulation", "buffer")],
        )
    clipping = None
    if kept is None and trainer.args.max_grad_norm > 0:
        logger.info("%s: max_grad_norm=%s is applied %s.", NAME, trainer.args.max_grad_norm, CLIPPED[way])
        if way != "none":
            lagged: Literal["lagged", "per_tensor"] = "per_tensor" if way == "per_tensor" else "lagged"
            clipping = Clipping(trainer.args.max_grad_norm, lagged)
    reduce = MeanOverRanks(model) if kept is None and are_replicas(trainer) else None
    return FusedBackward(
        optimizer,
        clipping=clipping,
        two_pass=way == "two_pass" and clipping is not None,
        in_backward=kept is None,
        names={id(parameter): name for name, parameter in model.named_parameters()},
        folding=folding,
        micro_batches=lambda: trainer.current_gradient_accumulation_steps,
        reduce=reduce,
        left=reduce.left if reduce is not None else (),
    )


def why_gradients_are_kept(trainer: Trainer, accumulation: str) -> str | None:
    """Why no parameter can be stepped before all gradients of a step are there; None where each can.

    Raises:
        OptionError: accumulation=refuse, and there is some.
    """
    steps = trainer.args.gradient_accumulation_steps
    if steps > 1 and accumulation == "refuse":
        raise OptionError(
            f"{NAME}: accumulation=refuse, and gradient_accumulation_steps={steps}. Set it to 1 with a larger "
            "per_device_train_batch_size, or accumulation=buffer.",
            code="option-combination",
            mend=[
                mends.all_of(
                    mends.set_argument("gradient_accumulation_steps", 1),
                    mends.set_argument("per_device_train_batch_size", steps * trainer.args.per_device_train_batch_size),
                ),
                mends.set_option(NAME, "accumulation", "buffer"),
            ],
        )
    owner = hooks.owner(getattr(trainer, "_ft_techniques", ()), "ft_training_step")
    if owner is not None:
        return f"{owner.name} runs the backward pass"
    if steps > 1 and accumulation != "fold":
        return f"gradient_accumulation_steps={steps} with accumulation={accumulation} sums them"
    return None
