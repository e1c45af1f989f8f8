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
PARTS = StashKey[tuple[Any, Any]]("adaptive-lr: what is trained on, and what is held out")
# How often a run is evaluated, unless that takes more than this share of the training: a row's evaluation takes a third
# of what its training does.
EVALUATIONS = 30
MOST_OF_TRAINING = 0.25


def in_two(dataset: Any, share: float, seed: int, name: str = "") -> tuple[Any, Any]:
    """`dataset` in two: what is trained on, and `share` of the rows, drawn at random by `seed`, to evaluate on.

    Both keep the order of the rows. Of several data sets, by name, each is cut in two.

    Args:
        name: of the data set, in errors.

    Raises:
        PluginError: a stream, or too few rows for one in each part.
    """
    if isinstance(dataset, Mapping):
        pairs = {key: in_two(one, share, seed, f" of {key!r}") for key, one in dataset.items()}
        # sentence-transformers takes a `DatasetDict`, and no other mapping.
        kind = type(dataset) if isinstance(dataset, dict) else dict
        return kind({key: kept for key, (kept, _) in pairs.items()}), kind(
            {key: held for key, (_, held) in pairs.items()}
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise PluginError(
            f"{NAME}: hold_out={share} takes rows by their position, and the training data{name} are a stream "
            f"({type(dataset).__name__}). Give the trainer an eval_dataset, or leave hold_out out.",
            code="data-unsuited",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    rows = len(dataset)
    held = round(share * rows)
    if not 0 < held < rows:
        raise PluginError(
            f"{NAME}: hold_out={share} of the {rows} training rows{name} is {held}, and both parts need one. Give the "
            "trainer an eval_dataset, or leave hold_out out.",
            code="data-missing",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    order = np.random.default_rng(seed).permutation(rows)
    return _rows(dataset, np.sort(order[held:]).tolist()), _rows(dataset, np.sort(order[:held]).tolist())


class PartByHoldOut(Subset[Any]):
    """Rows of a data set, which has the attributes of the whole: weights of classes, a tokenizer."""

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not there, as the data set itself is not while a copy is made.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _rows(dataset: Any, positions: Sequence[int]) -> Any:
    if hasattr(dataset, "select"):
        return dataset.select(positions)
    if isinstance(dataset, list):
        return [dataset[position] for position in positions]
    return PartByHoldOut(dataset, positions)


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


def settle(trainer: Trainer) -> None:
    """The trainer is built: refuse what is unfit, and keep in mind its data; warn where nothing was held out."""
    if held_out_rows(trainer):
        refuse_unfit(trainer)
        stash_of(trainer)[PARTS] = (trainer.train_dataset, trainer.eval_dataset)
    elif trainer.eval_dataset is not None:
        how = ", which eval_strategy='no' never evaluates: set it" if trainer.args.eval_strategy == "no" else ""
        logger.warning("%s: hold_out does nothing: the script has an eval_dataset%s.", NAME, how)


def refuse_unfit(trainer: Trainer) -> None:
    """Raise `PluginError` where evaluations of held-out rows cannot steer.

    That is where a trainer samples its own completions, and where `dataloader_drop_last` leaves no batch of a part.
    """
    args = trainer.args
    if hasattr(trainer, "num_generations"):
        raise PluginError(
            f"{NAME}: hold_out watches the loss on rows that are held out, and that of a {type(trainer).__name__}, "
            "which samples the completions itself, says nothing of them. Leave hold_out out, or give the trainer an "
            "eval_dataset and watch its reward: metric=eval_reward.",
            code="trainer-unsuited",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    parts = (trainer.train_dataset, args.train_batch_size), (trainer.eval_dataset, args.eval_batch_size)
    for dataset, batch in parts if args.dataloader_drop_last else ():
        least = min(map(len, dataset.values())) if isinstance(dataset, Mapping) else len(dataset)
        if least < batch * args.world_size:
            raise PluginError(
                f"{NAME}: with hold_out a part has {least} rows, and dataloader_drop_last=True leaves out what fills "
                f"no batch of {batch * args.world_size}. Set it to False, or use smaller batches.",
                code="training-arguments",
                mend=[mends.set_argument("dataloader_drop_last", False), mends.remove_option(NAME, "hold_out")],
            )


def refuse_changed(trainer: Trainer, share: float) -> None:
    """Raise `PluginError` where the script has set data on the trainer since rows were held out, or too late for it."""
    given = stash_of(trainer).get(PARTS)
    if given is None and trainer.eval_dataset is not None:
        return
    if given is None:
        raise PluginError(
            f"{NAME}: hold_out={share} takes rows when the trainer is built, and it was built without training data. "
            "Give it train_dataset then.",
            code="data-missing",
            mend=[mends.remove_option(NAME, "hold_out")],
        )
    for name, part in zip(("train_dataset", "eval_dataset"), given, strict=True):
        if getattr(trainer, name) is not part:
            raise PluginError(
                f"{NAME}: hold_out={share} took rows when the trainer was built, and the script has set "
                f"trainer.{name} since. Give all data when it is built, or leave hold_out out.",
                code="option-combination",
                mend=[mends.remove_option(NAME, "hold_out")],
            )


class HeldOutEvaluations(WithTrainer, TrainerCallback):
    """Asks for evaluations while training, where rows are held out: every `steps_between`, and at the end."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        refuse_changed(self._trainer, self.share)
        held_out = held_out_rows(self._trainer)
        self._every = steps_between(args, state.max_steps, held_out) if held_out else 0
        if held_out:
            logger.info("%s: %d rows are held out, and evaluated every %d steps.", NAME, held_out, self._every)
        if held_out and getattr(args, "predict_with_generate", False):
            logger.warning(
                "%s: each evaluation of the %d rows generates, which takes longer than their training: set "
                "predict_with_generate=False, or hold fewer out.",
                *(NAME, held_out),
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._every and (state.global_step % self._every == 0 or state.global_step == state.max_steps):
            control.should_evaluate = True
