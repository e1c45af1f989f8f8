"""Which callbacks and contexts the options of `sequential` ask for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ...host.stash import parts_of
from ...technique import data_seed
from .replay import batches_of, pools_of
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from .technique import Sequential


def callbacks_of(technique: Sequential, args: Any) -> list[TrainerCallback]:
    """The callbacks of one run, in the order in which they act."""
    callbacks: list[TrainerCallback] = []
    if technique.lwf or technique.wise is not None:
        from .start_memory import StartMemory

        callbacks.append(StartMemory(lwf=technique.lwf, temperature=technique.lwf_temperature, wise=technique.wise))
    if technique.penalties:
        callbacks.append(_penalties(technique, args))
    if technique.records is not None:
        from .stage_callback import StageCallback

        callbacks.append(
            StageCallback(
                technique.records,
                technique.stage,
                options=technique.options(),
                replay_rows=technique.keep_rows if technique.replay else 0,
                evaluation_rows=technique.evaluation_rows,
                own_answers=technique.own_answers,
                metric=technique.metric,
                greater_is_better=technique.greater_is_better,
            )
        )
    return callbacks


def _penalties(technique: Sequential, args: Any) -> TrainerCallback:
    from .penalty_callback import PenaltyCallback

    records = technique.records
    stages = [] if records is None else [stage.name for stage in records.finished()]
    adapters = [] if records is None else [records.of(stage) / "adapter" for stage in stages]
    callback = PenaltyCallback(
        l2sp=technique.l2sp,
        ewc=technique.ewc if stages else 0.0,
        olora=technique.olora if stages else 0.0,
        fisher=technique.fisher,
        fisher_rows=technique.fisher_rows * max(len(stages), 1),
        seed=data_seed(args),
        earlier_adapters=[folder for folder in adapters if folder.is_dir()],
    )
    if records is not None:
        callback.earlier_batches = lambda: batches_of(
            callback._trainer, pools_of(records, stages), technique.fisher_rows
        )
    return callback


def protected_loss(trainer: Trainer, token_weights: Any) -> ExitStack:
    """A context manager in which a batch's loss is computed."""
    from .start_memory import StartMemory
    from .token_weights import weighing

    contexts = ExitStack()
    memory = parts_of(trainer).get(f"{NAME}/StartMemory")
    if isinstance(memory, StartMemory):
        contexts.enter_context(memory.learning())
    if token_weights != "none":
        contexts.enter_context(weighing(trainer.accelerator.unwrap_model(trainer.model), token_weights))
    return contexts
