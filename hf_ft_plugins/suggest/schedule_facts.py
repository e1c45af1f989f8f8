"""How long a run is, how often it evaluates, and what its arguments ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import has_length

from ..models.inputs import bare
from ..models.scored import is_causal
from ..shards import holds_pieces

# Whose `compute_loss` hands `num_items_in_batch` to the model, or is one of ours.
KNOWN_LOSSES = ("transformers", "hf_ft_plugins")
SELF_STEERING = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True, kw_only=True)
class ScheduleFacts:
    """Of the arguments and the callbacks.

    Attributes:
        steps: optimizer steps.
        passes: over the training data; None where their size is unknown.
        evaluations: how many are ahead while it trains.
        accumulation: batches in a step.
        rate, scheduler, optimizer: learning rate, and the arguments' names of the others.
        early_stopping: something ends the run when evaluations stop improving, or steers the rate by them.
        keeps_best: the best checkpoint is loaded at the end.
        metrics: the script computes metrics.
        own_loss: why the loss is the script's own; empty where it is the model's.
        sampling: how batches are drawn: random, group_by_length, ...
        checkpointing: of activations.
        precision: bf16, fp16 or float32.
        processes: that train together.
        sharded: FSDP or DeepSpeed cuts the weights up.
        loss_too_large: so many times larger than the mean is the loss that is stepped by, as the model leaves
            `num_items_in_batch` out; 1: it is right, or was not looked at.
    """

    steps: int
    passes: float | None
    evaluations: int
    accumulation: int
    rate: float
    scheduler: str
    optimizer: str
    early_stopping: bool
    keeps_best: bool
    metrics: bool
    own_loss: str
    sampling: str
    checkpointing: bool
    precision: str
    processes: int
    sharded: bool
    loss_too_large: int = 1


def schedule_facts(trainer: Any, loader: Any, batches: list[Any]) -> ScheduleFacts:
    """Of a trainer and its loader of training data (None: there is none), of which `batches` are the first."""
    args = trainer.args
    per_pass = None
    if loader is not None and has_length(loader):
        per_pass = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * (per_pass or 0))
    passes = steps / per_pass if per_pass else None
    names = [_word(args.lr_scheduler_type), *(type(one).__name__.lower() for one in [trainer.lr_scheduler] if one)]
    stops = any(isinstance(one, EarlyStoppingCallback) for one in trainer.callback_handler.callbacks)
    own_loss = _own_loss(trainer)
    return ScheduleFacts(
        steps=steps,
        passes=passes,
        evaluations=_evaluations(args, steps, passes),
        accumulation=args.gradient_accumulation_steps,
        rate=args.learning_rate,
        scheduler=names[-1],
        optimizer=type(trainer.optimizer).__name__ if trainer.optimizer is not None else _word(args.optim),
        early_stopping=stops or any(word in name for word in SELF_STEERING for name in names),
        keeps_best=bool(args.load_best_model_at_end),
        metrics=trainer.compute_metrics is not None,
        own_loss=own_loss,
        sampling=_word(getattr(args, "train_sampling_strategy", "random")),
        checkpointing=bool(args.gradient_checkpointing),
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        processes=args.world_size,
        sharded=holds_pieces(trainer),
        loss_too_large=1 if own_loss or not batches else _loss_too_large(trainer, batches[0]),
    )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def _evaluations(args: Any, steps: int, passes: float | None) -> int:
    strategy = _word(args.eval_strategy)
    if strategy == "epoch":
        return math.ceil(passes or 0)
    if strategy != "steps" or not args.eval_steps:
        return 0
    every = args.eval_steps if args.eval_steps >= 1 else math.ceil(steps * args.eval_steps)
    # The last step is followed by one, too.
    return math.ceil(steps / max(1, int(every)))


def _own_loss(trainer: Any) -> str:
    if trainer.compute_loss_func is not None:
        return "compute_loss_func"
    if trainer.args.label_smoothing_factor:
        return f"label_smoothing_factor={trainer.args.label_smoothing_factor}"
    for cls in type(trainer).__mro__:
        if "compute_loss" in vars(cls) and cls.__module__.partition(".")[0] not in KNOWN_LOSSES:
            return f"{cls.__name__}.compute_loss"
    model = bare(trainer.model)
    return "" if type(model).__module__.startswith("transformers.") else type(model).__name__


def _loss_too_large(trainer: Any, batch: Any) -> int:
    """Trainer leaves the division by the accumulated batches to models that take `num_items_in_batch`; whether this one
    divides by it is asked with one row.
    """
    steps, model = trainer.args.gradient_accumulation_steps, trainer.model
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    asked = trainer.model_accepts_loss_kwargs and scaled is None and not is_causal(model)
    if steps == 1 or not asked or not isinstance(batch, Mapping):
        return 1
    row = {name: value[:1] for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dim()}
    if "labels" not in row:
        return 1
    # A classifier writes into its configuration what its first labels are.
    config = bare(model).config
    training, problem = model.training, getattr(config, "problem_type", None)
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            few, many = (model(**row, num_items_in_batch=count)["loss"] for count in (1, 1000))
    finally:
        model.train(training)
        config.problem_type = problem
    return steps if bool(torch.isclose(few, many)) and bool(few) else 1
