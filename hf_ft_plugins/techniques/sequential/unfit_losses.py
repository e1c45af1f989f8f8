"""Trainers whose loss cannot be weighted or added to, refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import mends
from ...errors import PluginError
from ...models.scored import writes_text
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_weighing(trainer: Trainer, kind: str) -> None:
    """Raise `PluginError` where `weighing` would not weight the loss that is trained on.

    Args:
        kind: of the weights, for the text.
    """
    option, off = f"{NAME}: token_weights={kind}", "token_weights=none"
    if not writes_text(trainer.model):
        raise PluginError(
            f"{option} weights the tokens that a model writes, and a {type(trainer.model).__name__} writes none. "
            f"Set {off}.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "token_weights", "none")],
        )
    if trainer.compute_loss_func is not None:
        raise PluginError(
            f"{option} weights the loss that the model computes, and here compute_loss_func does. Leave it out (or the "
            f"technique that sets it), or set {off}.",
            code="technique-conflict",
            mend=[mends.set_option(NAME, "token_weights", "none")],
        )
    _refuse_smoothing(trainer, option, off, mends.set_option(NAME, "token_weights", "none"))
    if is_trls(trainer):
        if not any(cls.__name__ == "SFTTrainer" for cls in type(trainer).__mro__):
            raise PluginError(
                f"{option} weights the tokens of an answer to learn, and {type(trainer).__name__} learns from "
                f"preferences, rewards or a teacher with a loss of its own. Set {off}.",
                code="trainer-unsuited",
                mend=[mends.set_option(NAME, "token_weights", "none")],
            )
        if trainer.args.loss_type != "nll":
            raise PluginError(
                f"{option} weights the likelihood of tokens, and loss_type={trainer.args.loss_type!r} has weights of "
                f"its own. Set loss_type='nll', or {off}.",
                code="training-arguments",
                mend=[mends.set_argument("loss_type", "nll"), mends.set_option(NAME, "token_weights", "none")],
            )
    elif trainer.args.use_liger_kernel:
        raise PluginError(
            f"{option} needs logits, and use_liger_kernel=True computes the loss without. Set use_liger_kernel=False, "
            f"or {off}.",
            code="training-arguments",
            mend=[mends.set_argument("use_liger_kernel", False), mends.set_option(NAME, "token_weights", "none")],
        )
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.sp_enabled or parallel.cp_enabled):
        raise PluginError(
            f"{option} needs whole rows, and sequence and context parallelism cut them up between ranks. Train "
            f"without, or set {off}.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "token_weights", "none")],
        )


def refuse_remembering(trainer: Trainer, weight: float) -> None:
    """Raise `PluginError` where the model cannot be copied, or `remembering` would not add to what is trained on.

    Args:
        weight: of the term, for the text.
    """
    option, off = f"{NAME}: lwf={weight}", "lwf=0"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        how = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        raise PluginError(
            f"{option} runs a copy of the model beside it, and {how} cuts the model up, which cannot be copied so. "
            f"Set {off} and use replay, l2sp or wise, or train with DistributedDataParallel.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "lwf", 0)],
        )
    if any(hasattr(one, "full_tensor") for one in trainer.model.parameters()):
        raise PluginError(
            f"{option} runs a copy of the model beside it, and this one was loaded in shards, which cannot be copied "
            f"so. Set {off}, or load it whole.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "lwf", 0), mends.set_model_argument("distributed_config", None)],
        )
    if is_trls(trainer):
        raise PluginError(
            f"{option} compares logits, and {type(trainer).__name__} is TRL's, whose losses are computed without them "
            f"or outside the model. Set {off} and use replay or token_weights, or train with Trainer.",
            code="trainer-unsuited",
            mend=[mends.set_option(NAME, "lwf", 0)],
        )
    if trainer.args.use_liger_kernel:
        raise PluginError(
            f"{option} compares logits, and use_liger_kernel=True computes the loss without. Set "
            f"use_liger_kernel=False, or {off}.",
            code="training-arguments",
            mend=[mends.set_argument("use_liger_kernel", False), mends.set_option(NAME, "lwf", 0)],
        )
    _refuse_smoothing(trainer, option, off, mends.set_option(NAME, "lwf", 0))


def _refuse_smoothing(trainer: Trainer, option: str, off: str, mend: mends.Step) -> None:
    if trainer.args.label_smoothing_factor and trainer.compute_loss_func is None:
        raise PluginError(
            f"{option} needs a model called with labels, and Trainer keeps them for label_smoothing_factor="
            f"{trainer.args.label_smoothing_factor}. Set it to 0, or {off}.",
            code="training-arguments",
            mend=[mends.set_argument("label_smoothing_factor", 0), mend],
        )


def is_trls(trainer: Any) -> bool:
    """Whether the trainer's class, or one that it is made of, is TRL's."""
    return any(cls.__module__.partition(".")[0] == "trl" for cls in type(trainer).__mro__)
