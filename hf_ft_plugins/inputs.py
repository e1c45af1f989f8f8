"""Trainer mix-in: what a trainer reads (data sets, collator, metrics, batches), as the techniques supply it.

Asked right after the trainer's own `__init__`, when its model, tokenizer and default collator are known, whatever the
signature of the script's own class.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.data_loader import DataLoaderShard
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import seed_worker

from .errors import PluginError


class Inputs:
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # The batch sampler of the training data, where a technique supplies one.
    train_batches: Any = None
    # What collates evaluation and test data; `data_collator` collates training data.
    eval_collator: Any
    _supplied_collator: Any

    model: Any
    args: Any
    accelerator: Any
    processing_class: Any
    data_collator: Any
    callback_handler: Any
    compute_metrics: Any
    train_dataset: Any
    eval_dataset: Any
    _ask_chain: Any
    _ask_owner: Any
    _remove_unused_columns: Any
    _get_collator_with_removed_columns: Any

    def _supply_inputs(self) -> None:
        known = {"model": self.model, "args": self.args, "processing_class": self.processing_class}
        self.train_dataset = self._supplied_dataset(self.train_dataset, "train", known)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {
                name: self._supplied_dataset(dataset, name, known) for name, dataset in self.eval_dataset.items()
            }
        else:
            self.eval_dataset = self._supplied_dataset(self.eval_dataset, "eval", known)
        script_collator = self.data_collator
        self.data_collator, self.eval_collator = (
            self._ask_owner("ft_collator", collator=script_collator, split=split, **known) or script_collator
            for split in ("train", "eval")
        )
        self._supplied_collator = self.data_collator
        if self.compute_metrics is None:
            self.compute_metrics = self._ask_owner("ft_metrics", **known)

    def _supplied_dataset(self, dataset: Any, split: str, known: dict[str, Any]) -> Any:
        return dataset if dataset is None else self._ask_chain("ft_dataset", dataset=dataset, split=split, **known)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **kwargs: Any,
    ) -> Any:
        batches = None
        if is_training:
            batches = self._ask_owner("ft_batch_sampler", trainer=self, dataset=dataset)
            self.train_batches = batches
        if batches is None:
            with self._collator(is_training):
                return super()._get_dataloader(  # type: ignore[misc]
                    dataset, description, batch_size, sampler_fn=sampler_fn, is_training=is_training, **kwargs
                )
        if self.args.accelerator_config.split_batches:
            raise PluginError(
                "accelerator_config.split_batches=True cuts every batch into equal parts, and a technique supplies "
                "batches of unequal size. Set it to False."
            )
        if isinstance(batches, IterableDataset):
            return self._streaming_loader(batches)
        loader = DataLoader(batch_sampler=batches, **self._read_as(dataset, description), **self._loading())
        return self.accelerator.prepare(loader)

    def _streaming_loader(self, batches: IterableDataset[Any]) -> DataLoaderShard:
        # Not `accelerator.prepare`, which deals out the batches of an iterable data set once more, or sends those of
        # the first rank to all.
        if self.args.accelerator_config.dispatch_batches:
            raise PluginError(
                "accelerator_config.dispatch_batches=True lets the first rank read for all, and a technique supplies "
                "batches that every rank reads itself. Leave it unset."
            )
        return DataLoaderShard(
            batches,
            device=self.accelerator.device if self.accelerator.device_placement else None,
            _non_blocking=self.accelerator.non_blocking,
            batch_size=None,
            # Its examples are the technique's, without columns to remove.
            collate_fn=self.data_collator,
            **self._loading(),
        )

    @contextlib.contextmanager
    def _collator(self, is_training: bool) -> Iterator[None]:
        # Trainer knows one collator. A class that sets its own later keeps it.
        training = self.data_collator
        if not is_training and training is self._supplied_collator:
            self.data_collator = self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def _read_as(self, dataset: Any, description: str) -> dict[str, Any]:
        """The data set and the collator, one of which leaves out the columns that the model does not take."""
        if hasattr(dataset, "column_names") and hasattr(dataset, "features"):
            dataset = self._remove_unused_columns(dataset, description=description)
            return {"dataset": dataset, "collate_fn": self.data_collator}
        collator = self._get_collator_with_removed_columns(self.data_collator, description=description)
        return {"dataset": dataset, "collate_fn": collator}

    def _loading(self) -> dict[str, Any]:
        """How a DataLoader works, as Trainer has it."""
        names = (
            "num_workers",
            "pin_memory",
            "persistent_workers",
            "multiprocessing_context",
            "prefetch_factor",
            "in_order",
        )
        settings = {name: getattr(self.args, f"dataloader_{name}", None) for name in names}
        return {
            "worker_init_fn": partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
            **{name: value for name, value in settings.items() if value is not None},
        }

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer reaches a batch sampler's epoch only through some of accelerate's wrappers.
        for part in (self.train_batches, self.data_collator):
            if hasattr(part, "set_epoch"):
                part.set_epoch(kwargs["epoch"])
        with self._counting_passes(kwargs["epoch"]):
            return super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    # ---- passes of streaming data ----

    @contextlib.contextmanager
    def _counting_passes(self, epoch: int) -> Iterator[None]:
        """At the end of a pass of a technique's stream, the state says how many are done: a checkpoint is exact."""
        if not isinstance(self.train_batches, IterableDataset):
            yield
            return
        counting = _CountsPasses(epoch)
        self.callback_handler.callbacks.insert(0, counting)
        try:
            yield
        finally:
            self.callback_handler.callbacks.remove(counting)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(  # type: ignore[misc]
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if (
            resume_from_checkpoint is None
            or self.args.ignore_data_skip
            or not isinstance(self.train_batches, IterableDataset)
        ):
            return epochs, batches
        # Stock Trainer takes all steps of a stream for those of its first pass.
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        passes, steps = _place(saved.epoch or 0.0, saved.global_step, saved.max_steps)
        return passes, steps * self.args.gradient_accumulation_steps


def _place(epoch: float, global_step: int, max_steps: int) -> tuple[int, int]:
    """Passes done, and steps in the present one, from the state of a run on a stream of unknown length.

    Trainer counts `max_steps` steps to an epoch there, so `epoch` is the number of passes done plus the share of
    `max_steps` that the present pass has had.
    """
    if global_step == max_steps and epoch == 1.0:
        return 0, global_step  # The whole run was within its first pass.
    passes = math.floor(epoch)
    return passes, round((epoch - passes) * max_steps)


class _CountsPasses(TrainerCallback):
    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that has had all its steps may be given more, and then goes on within the pass.
        if not control.should_training_stop:
            state.epoch = float(self._epoch + 1)
