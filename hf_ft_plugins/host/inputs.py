"""Trainer mix-in: data sets, collators, metrics, samplers and loss functions that techniques supply.

Most of these hooks are called right after the trainer's own `__init__`: then its model, tokenizer and default collator
are known, whatever arguments the script's own Trainer class takes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import seed_worker

from .. import mends
from ..errors import PluginError
from ..technique import data_seed
from .adapter import Adapted
from .own_order import OwnOrder
from .train_order import DrawnByEpoch, draws_globally


class Inputs(Adapted, OwnOrder):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # The order of the training examples and their batches, where a technique supplies them.
    train_order: Any = None
    train_batches: Any = None
    # Whether the current evaluation is of other data than the trainer's own, with the same metric prefix, "eval".
    evaluates_others = False
    _evaluating = False
    # Collates evaluation and test data; `data_collator` collates training data.
    eval_collator: Any
    _supplied_collator: Any
    # The script's collator (or Trainer's default), and the trainer's data sets as supplied; None until then.
    _script_collator: Any = None
    _supplied_datasets: list[Any] | None = None

    def _known(self, model: Any) -> dict[str, Any]:
        """The arguments that all hooks about data have."""
        return {
            "model": model,
            "args": self.args,
            "processing_class": self.processing_class,
            "stash": self.ft_stash,
        }

    def _supply_inputs(self) -> None:
        known = self._known(self.model)
        self._script_collator = self.data_collator
        if self.train_dataset is not None and self.eval_dataset is None:
            parts = self._ask_owner("ft_held_out", dataset=self.train_dataset, args=self.args, stash=self.ft_stash)
            self.train_dataset, self.eval_dataset = (self.train_dataset, None) if parts is None else parts
        self.train_dataset = self._supplied_dataset(self.train_dataset, "train", known)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {
                name: self._supplied_dataset(dataset, name, known) for name, dataset in self.eval_dataset.items()
            }
            self._supplied_datasets = [self.train_dataset, *self.eval_dataset.values()]
        else:
            self.eval_dataset = self._supplied_dataset(self.eval_dataset, "eval", known)
            self._supplied_datasets = [self.train_dataset, self.eval_dataset]
        collators = [self._supplied_collator_for(split, known) for split in ("train", "eval")]
        self.data_collator, self.eval_collator = collators
        self._supplied_collator = self.data_collator
        if self.compute_metrics is None:
            self.compute_metrics = self._ask_owner("ft_metrics", **known)

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        # Called by TRL's trainers, with different arguments in each; `transformers.Trainer` has no such method.
        prepare = super()._prepare_dataset  # type: ignore[misc]
        given = inspect.signature(prepare).bind(*args, **kwargs)
        given.arguments["dataset"] = self._ask_chain(
            "ft_raw_dataset",
            dataset=given.arguments["dataset"],
            split=given.arguments["dataset_name"],
            args=given.arguments["args"],
            processing_class=given.arguments["processing_class"],
            trainer_class=type(self),
            stash=self.ft_stash,
        )
        return prepare(*given.args, **given.kwargs)

    def _supply_loss_function(self) -> None:
        function = self._ask_owner("ft_loss_function", trainer=self)
        if function is not None:
            self.compute_loss_func = function

    def _set_signature_columns_if_needed(self) -> None:
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            for _, columns in self._ask_all("ft_columns", trainer=self):
                self._signature_columns = [*(self._signature_columns or ()), *columns]  # type: ignore[assignment]

    def _change_model(self, model: Any) -> None:
        self._ask_all(
            "ft_model",
            model=model,
            train_dataset=self.train_dataset,
            args=self.args,
            processing_class=self.processing_class,
            first_batches=partial(self._first_batches, model),
            stash=self.ft_stash,
        )

    def _first_batches(self, model: Any, count: int, split: str = "train") -> list[Any]:
        """The first `count` rows as collated batches on this process's device; [] if there are no data.

        If there are several evaluation sets, the rows are the first one's.
        """
        training, name = split == "train", split
        dataset = self.train_dataset if training else self.eval_dataset
        if isinstance(dataset, dict) and not training:
            name, dataset = next(iter(dataset.items()), (split, None))
        if dataset is None:
            return []
        collator, signature = self.data_collator, self._signature_columns
        # A model that model_init makes later comes when the techniques have supplied all data.
        supplied = hasattr(self, "eval_collator")
        with self._collator(training) if supplied else contextlib.nullcontext():
            if not supplied:
                known = self._known(model)
                # The whole data set: a technique may change or refuse a few rows alone in another way.
                dataset = self._supplied_dataset(dataset, name, known)
                self.data_collator = self._supplied_collator_for("train" if training else "eval", known)
            try:
                return list(self.feature_batches(_first_rows(dataset, count)))
            finally:
                self.data_collator, self._signature_columns = collator, signature

    def call_model_init(self, trial: Any = None) -> Any:
        model = super().call_model_init(trial)
        # The first of these calls is in Trainer's `__init__`, which does not know the data yet.
        if hasattr(self, "eval_collator"):
            # Before quantisation, since Trainer does not move bitsandbytes' layers.
            if self.place_model_on_device:
                self._move_model_to_device(model, self.args.device)
            with contextlib.ExitStack() as undo:
                return self._supplied_model(model, undo)
        return model

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.train_order is not None:
            return self.train_order
        sampler = super()._get_train_sampler(train_dataset)
        if not draws_globally(sampler):
            return sampler
        self.train_order = DrawnByEpoch(sampler, data_seed(self.args))
        return self.train_order

    def _supplied_collator_for(self, split: str, known: dict[str, Any]) -> Any:
        answer = self._ask_owner("ft_collator", collator=self.data_collator, split=split, **known)
        return self.data_collator if answer is None else answer

    def _supplied_dataset(self, dataset: Any, split: str, known: dict[str, Any]) -> Any:
        if dataset is None:
            return None
        collator = self._script_collator or self.data_collator
        return self._ask_chain("ft_dataset", dataset=dataset, split=split, collator=collator, **known)

    def _supplied_later(self, dataset: Any, split: str) -> Any:
        """Data given to `evaluate` or `predict`, or set on the trainer later, after the hooks that the first had."""
        if self._supplied_datasets is None or any(dataset is known for known in self._supplied_datasets):
            return dataset
        return self._supplied_dataset(dataset, split, self._known(self.model))

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        batches = None
        if is_training:
            asked = {"trainer": self, "dataset": dataset}
            streams = isinstance(dataset, IterableDataset)
            self.train_order = None if streams else self._ask_for_order("ft_sampler", **asked)
            batches = self._ask_for_order("ft_batch_sampler", sampler=self.train_order, **asked)
            self.train_batches = batches
        else:
            # Trainer describes the data of `predict` as "test".
            dataset = self._supplied_later(dataset, "test" if description == "test" else "eval")
        if batches is None:
            with self._collator(is_training):
                return super()._get_dataloader(
                    dataset,
                    description,
                    batch_size,
                    sampler_fn=sampler_fn,
                    is_training=is_training,
                    dataloader_key=dataloader_key,
                    **kwargs,
                )
        if self.args.accelerator_config.split_batches:
            raise PluginError(
                "accelerator_config.split_batches=True cuts every batch into equal parts, and a technique supplies "
                "batches of unequal size. Set it to False.",
                code="training-arguments",
                mend=[mends.set_argument("accelerator_config", {"split_batches": False})],
            )
        if isinstance(batches, IterableDataset):
            return self._streaming_loader(batches)
        loader = DataLoader(batch_sampler=batches, **self._read_as(dataset, description), **self._loading())
        return self.accelerator.prepare(loader)

    def _streaming_loader(self, batches: IterableDataset[Any]) -> DataLoaderShard:
        # `accelerator.prepare` would shard the batches of an iterable data set a second time, or broadcast those of the
        # first rank.
        if self.args.accelerator_config.dispatch_batches:
            raise PluginError(
                "accelerator_config.dispatch_batches=True lets the first rank read for all, and a technique supplies "
                "batches that every rank reads itself. Leave it unset.",
                code="training-arguments",
                mend=[mends.set_argument("accelerator_config", {"dispatch_batches": None})],
            )
        return DataLoaderShard(
            batches,
            device=self.accelerator.device if self.accelerator.device_placement else None,
            _non_blocking=self.accelerator.non_blocking,
            batch_size=None,
            # The technique's own examples have no columns to remove.
            collate_fn=self.data_collator,
            **self._loading(),
        )

    @contextlib.contextmanager
    def _collator(self, is_training: bool) -> Iterator[None]:
        # Trainer has one collator for all data. One that the script has set since stays in use for both.
        training = self.data_collator
        if not is_training and training is self._supplied_collator:
            self.data_collator = self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def feature_batches(self, dataset: Any = None) -> Any:
        """The training data in order, all of them on every rank, collated as the training batches are, on this
        process's device.
        """
        try:
            read = self._read_as(self.train_dataset if dataset is None else dataset, "Training")
        except ValueError as error:
            self._refuse_own_features(error)
            raise
        loader = DataLoader(batch_size=self.args.eval_batch_size, **read)
        return prepare_data_loader(loader, device=self.args.device, num_processes=1, put_on_device=True)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        sampler = self._ask_owner("ft_eval_sampler", trainer=self, dataset=eval_dataset)
        return super()._get_eval_sampler(eval_dataset) if sampler is None else sampler

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("eval_dataset")
        own = given is None or given is self.eval_dataset or self.eval_dataset is None or isinstance(given, str)
        prefix = args[2] if len(args) > 2 else kwargs.get("metric_key_prefix", "eval")
        # If there are several sets, Trainer calls `evaluate` for each of them.
        outermost = not self._evaluating
        if outermost:
            self._evaluating, self.evaluates_others = True, not own and prefix == "eval"
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if outermost:
                self._evaluating = self.evaluates_others = False

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        prefix = kwargs.get("metric_key_prefix", "eval")
        with self._contexts("ft_evaluation", trainer=self, dataloader=dataloader, prefix=prefix):
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def _read_as(self, dataset: Any, description: str) -> dict[str, Any]:
        """The data set and the collator; one of them removes the columns that the model does not take."""
        # The columns of a stream may be unknown.
        if hasattr(dataset, "features") and getattr(dataset, "column_names", None) is not None:
            dataset = self._remove_unused_columns(dataset, description=description)
            return {"dataset": dataset, "collate_fn": self.data_collator}
        collator = self._get_collator_with_removed_columns(self.data_collator, description=description)
        return {"dataset": dataset, "collate_fn": collator}

    def _loading(self) -> dict[str, Any]:
        """The settings of a DataLoader (workers, memory), from the training arguments as Trainer takes them."""
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

    def _place_data(self, *, epoch: int, epochs_trained: int, steps_trained_in_current_epoch: int) -> None:
        """Set the epoch on the sampler, the batches and the collator, and the position in a stream in a resumed run.

        Trainer itself sets the epoch of a batch sampler through only some of accelerate's wrappers.

        Args:
            epoch: the epoch that begins, from 0.
            epochs_trained: the epoch in which the run started or resumed.
            steps_trained_in_current_epoch: the number of batches of that epoch that were trained on before.
        """
        for part in (self.train_order, self.train_batches, self.data_collator):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        skipped = steps_trained_in_current_epoch if epoch == epochs_trained else 0
        if skipped and hasattr(self.train_batches, "seek") and not self.args.ignore_data_skip:
            self.train_batches.seek(skipped)


def _first_rows(dataset: Any, count: int) -> Any:
    if hasattr(dataset, "select"):
        return dataset.select(range(min(count, len(dataset))))
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return [dataset[row] for row in range(min(count, len(dataset)))]
    return list(islice(dataset, count))
