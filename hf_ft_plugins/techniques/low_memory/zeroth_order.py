"""A training step of Trainer's with MeZO: two forward passes of a batch, and no backward pass."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ... import lr_scale, mends
from ...errors import PluginError
from .optimizers.mezo import MeZO
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


def training_step(trainer: Trainer, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
    """What `Trainer.training_step` does, with `MeZO.estimate` in the place of the backward pass.

    Micro-batches of one optimizer step go along one direction, and ranks, too: the mean of their slopes is taken after
    the last micro-batch.

    Args:
        trainer: its optimizer is a `MeZO`.
        model: as Trainer's `training_step` gets it, under DDP or not.
        inputs: one batch.
        num_items_in_batch: as for `compute_loss`.

    Returns:
        [], this rank's share of the loss, detached: the mean of both passes.
    """
    optimizer = lr_scale.innermost(trainer.optimizer)
    assert isinstance(optimizer, MeZO)
    model.train()
    inputs = trainer._prepare_inputs(inputs)
    divisor = 1 if _is_scaled(trainer, num_items_in_batch) else trainer.current_gradient_accumulation_steps

    def loss() -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            # It takes the labels out of what it gets.
            found = trainer.compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
        assert isinstance(found, torch.Tensor)
        return found / divisor

    # Evaluation is done at the weights themselves, since they are put back after each batch.
    mean = optimizer.estimate(loss, seed=trainer.args.seed)
    if trainer.accelerator.sync_gradients and trainer.args.world_size > 1:
        optimizer.reduce(lambda value: trainer.accelerator.reduce(value, reduction="mean"))
    return mean


def _is_scaled(trainer: Any, num_items_in_batch: Any) -> bool:
    """Whether the loss is a share of that of all micro-batches already: as in `Trainer.training_step`."""
    stated = getattr(trainer, "loss_is_scaled_for_ga", None)
    if stated is not None:
        return bool(stated)
    by_the_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(by_the_model or trainer.compute_loss_func is not None)


def refuse_unfit(trainer: Trainer) -> None:
    """Raise `PluginError` where weights cannot be perturbed in place, or the step does more than two forward passes.

    Otherwise the log says that max_grad_norm, which Trainer has by default, does nothing.
    """
    args = trainer.args
    other = "Use another algorithm."
    if args.fp16:
        raise PluginError(
            f"{NAME}: algorithm=mezo has no gradients, which fp16=True would scale. Use bf16=True.",
            code="training-arguments",
            mend=[mends.all_of(mends.set_argument("fp16", False), mends.set_argument("bf16", True))],
        )
    if args.fsdp or args.deepspeed:
        what = "FSDP" if args.fsdp else "DeepSpeed"
        raise PluginError(
            f"{NAME}: algorithm=mezo under {what} has not been tested: it keeps shards of weights. {other}",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        raise PluginError(
            f"{NAME}: algorithm=mezo with a parallelism_config has not been tested. {other}",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if args.n_gpu > 1:
        raise PluginError(
            f"{NAME}: algorithm=mezo under DataParallel has not been tested. Start one process a GPU with torchrun.",
            code="distributed-unsupported",
            mend=[mends.launch_with("torchrun", "--nproc_per_node=auto")],
        )
    for kind in type(trainer).__mro__:
        own = kind.__module__.startswith(("hf_ft_plugins.", "transformers."))
        # TRL's trainers whose step is Trainer's but for this context, which offloads what a backward pass needs.
        only_offloads = hasattr(trainer, "maybe_activation_offload_context")
        if "training_step" in vars(kind) and not own and not only_offloads:
            raise PluginError(
                f"{NAME}: algorithm=mezo replaces the training step, and {kind.__name__}.training_step is one of its "
                f"own, which would not be called. {other}",
                code="trainer-unsuited",
                mend=[mends.set_option(NAME, "algorithm", "script")],
            )
    if args.max_grad_norm > 0:
        logger.info(
            "%s: max_grad_norm=%s is not applied: there are no gradients. The grad_norm in the log is the slope along "
            "the direction.",
            *(NAME, args.max_grad_norm),
        )
