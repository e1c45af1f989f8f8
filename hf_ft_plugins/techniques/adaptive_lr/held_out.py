"""Rows of the training data that are kept for evaluation, where the script has none."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, Subset
from transformers import TrainerCallback

from ... import mends
from ...errors import PluginError
from ...host.stash import StashKey, WithTrainer, stash_of
from .settings import NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

HELD_OUT = StashKey[int]("adaptive-lr: how many training rows are held out")
# How often a run is evaluated, unless that takes more than this share of the training: a row's evaluation takes a third
# of what its training does.
EVALUATIONS = 30
MOST_OF_TRAINING = 0.25


def in_two(dataset: Any, share: float, seed: int) -> tuple[Any, Any]:
    """`dataset` in two: what is trained on, and `share` of the rows, drawn at random by `seed`, to evaluate on.

    Both keep the order of the rows. Of several data sets, by name, each is cut in two.

    Raises:
        PluginError: a stream, or too few rows for one in each part.
    """
    if isinstance(dataset, Mapping):
        parts = {name: in_two(one, share, seed) for name, one in dataset.items()}
        return {name: kept for name, (kept, _) in parts.items()}, {name: held for name, (_, held) in parts.items()}
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise PluginError(
            f"{NAME}: hold_out={share} takes rows by their position, and the training data are a stream "
            f"({type(dataset).__name__}). Give the trainer an eval_dataset, or leave hold_out out.",
            code="data-unsuited",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    rows = len(dataset)
    held = round(share * rows)
    if not 0 < held < rows:
        raise PluginError(
            f"{NAME}: hold_out={share} of {rows} training rows is {held}, and both parts need one. Give the trainer an "
            "eval_dataset, or leave hold_out out.",
            code="data-missing",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    order = np.random.default_rng(seed).permutation(rows)
    return _rows(dataset, np.sort(order[held:]).tolist()), _rows(dataset, np.sort(order[:held]).tolist())


def _rows(dataset: Any, positions: Sequence[int]) -> Any:
    if hasattr(dataset, "select"):
        return dataset.select(positions)
    if isinstance(dataset, list):
        return [dataset[position] for position in positions]
    return Subset(dataset, positions)


def count_rows(dataset: Any) -> int:
    """How many rows, of several data sets together."""
    return sum(map(len, dataset.values())) if isinstance(dataset, Mapping) else len(dataset)


def steps_between(args: TrainingArguments, max_steps: int, held_out: int) -> int:
    """Optimizer steps from one evaluation of `held_out` rows to the next, in a run of `max_steps`."""
    rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(1, math.ceil(max_steps / EVALUATIONS), math.ceil(held_out / 3 / MOST_OF_TRAINING / rows_a_step))


def held_out_rows(trainer: Trainer | None) -> int:
    """How many rows of the trainer's training data are held out, 0 where it is evaluated as its script says."""
    return 0 if trainer is None else stash_of(trainer).get(HELD_OUT, 0)


def say_idle(share: float, trainer: Trainer) -> None:
    """Warn where nothing was held out of the trainer's data, since its script has evaluation data."""
    if trainer.eval_dataset is not None and not held_out_rows(trainer):
        how = ", which eval_strategy='no' never evaluates: set it" if trainer.args.eval_strategy == "no" else ""
        logger.warning("%s: hold_out=%s does nothing: the script has an eval_dataset%s.", NAME, share, how)


class HeldOutEvaluations(WithTrainer, TrainerCallback):
    """Asks for evaluations while training, where rows are held out: every `steps_between`, and at the end."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        held_out = held_out_rows(self._trainer)
        self._every = steps_between(args, state.max_steps, held_out) if held_out else 0
        if held_out:
            logger.info("%s: %d rows are held out, and evaluated every %d steps.", NAME, held_out, self._every)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._every and (state.global_step % self._every == 0 or state.global_step == state.max_steps):
            control.should_evaluate = True
