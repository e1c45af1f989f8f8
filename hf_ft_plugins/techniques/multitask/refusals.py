"""What `multitask` cannot run with, found when the trainer is built."""

from __future__ import annotations

from typing import Any

from ...errors import PluginError
from .data import TaggedConcat

# TRL's trainers that draw their own batches, each example several times.
OWN_SAMPLER = ("GRPOTrainer", "RLOOTrainer")


def refuse_unfit(technique: Any, trainer: Any) -> None:
    """Raise a `PluginError` where this trainer or its arguments leave no room for several tasks."""
    name = technique.name
    for cls in type(trainer).__mro__:
        if cls.__module__.partition(".")[0] == "trl":
            does = "draws its own batches" if cls.__name__ in OWN_SAMPLER else "prepares and weighs its own data"
            raise PluginError(f"{name}: {cls.__name__} is TRL's, and {does}. Use Trainer, or leave out {name}.")
    args = trainer.args
    if args.n_gpu > 1:
        raise PluginError(
            f"{name}: one process drives {args.n_gpu} GPUs here, which splits a batch whose rows belong together. "
            "Start one process a GPU: torchrun --nproc_per_node=auto script.py."
        )
    if trainer.compute_loss_func is not None or getattr(args, "label_smoothing_factor", 0.0) > 0:
        raise PluginError(
            f"{name}: each head has a loss of its own, and the trainer has a compute_loss_func or "
            f"label_smoothing_factor={args.label_smoothing_factor}. Leave it out."
        )
    _refuse_unscored(name, trainer)
    if technique.adaptive and args.ignore_data_skip:
        raise PluginError(
            f"{name}: option mix={technique.mix} needs to know which data each step had, and ignore_data_skip=True "
            "forgets it on resume. Set it to False."
        )
    if technique.balance in ("pcgrad", "cagrad", "gradnorm"):
        _refuse_gradients(technique, trainer)
    if technique.balance in ("pcgrad", "cagrad", "gradnorm", "famo"):
        _refuse_one_task_a_step(technique, trainer)


def _refuse_unscored(name: str, trainer: Any) -> None:
    """Trainer would look in vain for the metric of the best checkpoint, at the first evaluation."""
    args, sets = trainer.args, trainer.eval_dataset
    sets = list(sets.values()) if isinstance(sets, dict) else [sets]
    scored = any(own.taught() for own in sets if isinstance(own, TaggedConcat))
    if args.metric_for_best_model and any(isinstance(own, TaggedConcat) for own in sets) and not scored:
        raise PluginError(
            f"{name}: metric_for_best_model={args.metric_for_best_model} needs evaluation data with labels, and these "
            "have the columns of no task. Leave it and load_best_model_at_end out, or say TaskSpec(columns=...)."
        )


def _refuse_gradients(technique: Any, trainer: Any) -> None:
    args = trainer.args
    if args.fp16:
        raise PluginError(
            f"{technique.name}: option balance={technique.balance} walks back for each task, and fp16 scales its "
            "gradients for one pass. Use bf16=True."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise PluginError(
            f"{technique.name}: option balance={technique.balance} needs whole gradients, and DeepSpeed or FSDP shards "
            "them. Use balance=uncertainty, or DDP."
        )


def _refuse_one_task_a_step(technique: Any, trainer: Any) -> None:
    dataset, steps = trainer.train_dataset, trainer.args.gradient_accumulation_steps
    together = max((len(tasks) for tasks in getattr(dataset, "tasks", {}).values()), default=0)
    if together < 2 and steps < 2 and technique.batches == "homogeneous":
        raise PluginError(
            f"{technique.name}: option balance={technique.balance} weighs tasks against each other within a step, and "
            "each batch is of one task, with gradient_accumulation_steps=1. Raise it, or use batches=mixed."
        )
