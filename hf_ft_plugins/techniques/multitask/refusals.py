"""What `multitask` cannot run with, found when the trainer is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.utils import send_to_device
from transformers.integrations import is_deepspeed_zero3_enabled

from ... import mends
from ...errors import PluginError
from ...host.own_order import own_order
from ...models.inputs import bare
from ...shards import holds_pieces
from .collator import MultiTaskCollator
from .data import TaggedConcat
from .mixing.gradient_steps import GRADIENT_BALANCES
from .mixing.mixes import ADAPTIVE
from .tasks import NAME

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_unfit(trainer: Trainer, *, mix: str, balance: str, batches: str) -> None:
    """Refuse a trainer that leaves no room for several tasks, or whose arguments do not.

    Args:
        trainer: with its data as `multitask` supplies them.
        mix, balance, batches: the options of `multitask` of these names.

    Raises:
        PluginError: TRL's trainer, several GPUs in one process, a loss of the script's own, a metric of the best
            checkpoint that no evaluation gives, or what the mix or the balance cannot do.
    """
    for cls in type(trainer).__mro__:
        if cls.__module__.partition(".")[0] == "trl":
            does = "draws its own batches" if own_order(type(trainer)) else "prepares and weighs its own data"
            raise PluginError(
                f"{NAME}: {cls.__name__} is TRL's, and {does}. Use Trainer, or leave out {NAME}.",
                code="trainer-unsuited",
                mend=[mends.remove_technique(NAME)],
            )
    args = trainer.args
    if is_deepspeed_zero3_enabled():
        raise PluginError(
            f"{NAME}: ZeRO-3 gathers the weights of a head only where it is used, and a batch uses some of the heads. "
            "Use ZeRO-2, or FSDP2: fsdp=True.",
            code="distributed-unsupported",
            mend=[mends.all_of(mends.set_argument("deepspeed", None), mends.set_argument("fsdp", True))],
        )
    if args.n_gpu > 1:
        raise PluginError(
            f"{NAME}: one process drives {args.n_gpu} GPUs here, which splits a batch whose rows belong together. "
            "Start one process a GPU: torchrun --nproc_per_node=auto script.py.",
            code="distributed-unsupported",
            mend=[mends.launch_with("torchrun", "--nproc_per_node=auto")],
        )
    if trainer.compute_loss_func is not None or getattr(args, "label_smoothing_factor", 0.0) > 0:
        raise PluginError(
            f"{NAME}: each head has a loss of its own, and the trainer has a compute_loss_func or "
            f"label_smoothing_factor={args.label_smoothing_factor}. Leave it out.",
            code="technique-conflict",
            mend=[mends.set_argument("label_smoothing_factor", 0)] if trainer.compute_loss_func is None else [],
        )
    _refuse_unscored(trainer)
    if mix in ADAPTIVE and args.ignore_data_skip:
        raise PluginError(
            f"{NAME}: option mix={mix} needs to know which data each step had, and ignore_data_skip=True "
            "forgets it on resume. Set it to False.",
            code="training-arguments",
            mend=[mends.set_argument("ignore_data_skip", False)],
        )
    if balance in GRADIENT_BALANCES:
        _refuse_gradients(trainer, balance)
    if balance in (*GRADIENT_BALANCES, "famo") and batches == "homogeneous":
        _refuse_one_task_a_step(trainer, balance)


def refuse_failing(trainer: Trainer) -> None:
    """Try the model on the first row of its data, as it is to be trained: encoders differ in what they need and give.

    It is left as it was; where its weights are sharded it cannot be tried yet.

    Raises:
        PluginError: it does not run.
    """
    dataset = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    collator, model = trainer.data_collator, trainer.model
    if not isinstance(dataset, TaggedConcat) or not isinstance(collator, MultiTaskCollator):
        return
    if holds_pieces(trainer) or model.device.type == "meta":
        return
    # A collator of our own: the script's may count or keep what it is given.
    collator = MultiTaskCollator(collator.tokenizer, collator.tasks, collator.max_length)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    batch = send_to_device(collator([dataset[0]]), model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), trainer.compute_loss_context_manager():
            model.train()(**batch)
    except torch.OutOfMemoryError:
        raise
    except PluginError:
        raise
    except Exception as error:
        encoder = type(bare(model).encoder).__name__
        raise PluginError(
            f"{NAME}: the encoder, a {encoder}, does not run on a row of tokens with a mask, or gives no vector of "
            f"the config's width for each ({type(error).__name__}: {error}). Use an encoder that needs no more than "
            "input_ids and attention_mask, such as a BERT's.",
            code="model-unsuited",
        ) from error
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


def _refuse_unscored(trainer: Trainer) -> None:
    """Trainer would look in vain for the metric of the best checkpoint, at the first evaluation."""
    args, sets = trainer.args, trainer.eval_dataset
    sets = list(sets.values()) if isinstance(sets, dict) else [sets]
    scored = any(own.taught() for own in sets if isinstance(own, TaggedConcat))
    if args.metric_for_best_model and any(isinstance(own, TaggedConcat) for own in sets) and not scored:
        raise PluginError(
            f"{NAME}: metric_for_best_model={args.metric_for_best_model} needs evaluation data with labels, and these "
            "have the columns of no task. Leave it and load_best_model_at_end out, or say TaskSpec(columns=...).",
            code="training-arguments",
            mend=[
                mends.all_of(
                    mends.set_argument("metric_for_best_model", None),
                    mends.set_argument("load_best_model_at_end", False),
                )
            ],
        )


def _refuse_gradients(trainer: Trainer, balance: str) -> None:
    args = trainer.args
    if args.fp16:
        raise PluginError(
            f"{NAME}: option balance={balance} walks back for each task, and fp16 scales its "
            "gradients for one pass. Use bf16=True.",
            code="training-arguments",
            mend=[mends.all_of(mends.set_argument("fp16", False), mends.set_argument("bf16", True))],
        )
    if holds_pieces(trainer):
        raise PluginError(
            f"{NAME}: option balance={balance} needs whole gradients, and DeepSpeed, FSDP or distributed_config "
            "shards them. Use balance=uncertainty, or DDP.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "balance", "uncertainty")],
        )


def _refuse_one_task_a_step(trainer: Trainer, balance: str) -> None:
    dataset, steps = trainer.train_dataset, trainer.args.gradient_accumulation_steps
    together = max((len(tasks) for tasks in getattr(dataset, "tasks", {}).values()), default=0)
    if together < 2 and steps < 2:
        raise PluginError(
            f"{NAME}: option balance={balance} weighs tasks against each other within a step, and "
            "each batch is of one task, with gradient_accumulation_steps=1. Raise it, or use batches=mixed.",
            code="option-combination",
            mend=[
                mends.set_argument("gradient_accumulation_steps", max(2, len(getattr(dataset, "tasks", {})))),
                mends.set_option(NAME, "batches", "mixed"),
            ],
        )
