"""The technique `multitask`: one model, several tasks, one Trainer.

The script's model is a `MultiTaskModel`; its data are one data set whose rows carry the labels of several tasks, or a
mapping of data sets. This decides from which a batch is drawn, weighs the tasks' losses over the whole accumulated
batch, and says how each task is doing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import PluginError
from ...technique import Change, Technique, data_seed, option

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ...host.stash import Stash
    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion
    from .callback import MultiTaskCallback
    from .data import TaggedConcat
    from .metrics import MultiTaskMetrics
    from .mixing.sampler import MultiTaskSampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MultiTask(Technique):
    """See the options' help, `MultiTaskModel`, `MultiTaskCollator`, `MultiTaskSampler` and `MultiTaskMetrics`."""

    name: ClassVar[str] = "multitask"
    summary: ClassVar[str] = (
        "one model, several tasks: which data a batch is drawn from, and what each task's loss counts"
    )

    mix: Literal[
        "proportional",
        "temperature",
        "unimax",
        "uniform",
        "round_robin",
        "annealed",
        "weights",
        "loss_ratio",
        "progress",
    ] = option(
        "proportional",
        help="how often a data set is drawn from: by its size, by size^(1/temperature), evenly up to max_passes "
        "(unimax), evenly, in turn, from its size towards evenly (annealed), by weights, or by how its loss falls",
    )
    temperature: float = option(2.0, help="mix=temperature: 1 is proportional, more is more even")
    max_passes: float = option(4.0, help="mix=unimax: how often a data set may be repeated in the run")
    weights: tuple[float, ...] = option((), help="mix=weights: one for each data set, in their order; a+b")
    batches: Literal["homogeneous", "mixed"] = option(
        "homogeneous", help="homogeneous: a batch, on all ranks, is of one data set; mixed: each row is drawn by itself"
    )
    balance: Literal["sum", "uncertainty", "dwa", "gradnorm", "famo", "pcgrad", "cagrad"] = option(
        "sum",
        help="how the tasks' losses are weighed: as the tasks' weights say (sum), by learned variances, by how fast "
        "they fall (dwa), by their gradients' norms (gradnorm), so that all fall alike (famo), or by gradients that do "
        "not work against each other (pcgrad, cagrad)",
    )
    update_every: int = option(
        256, help="batches between changes of an adaptive mix, optimizer steps between changes of dwa's weights"
    )
    head_rate: float | None = option(
        None,
        help="rate of the tasks' heads, in multiples of the encoder's; none: 8, less where that would be above 0.004",
    )
    steps_per_epoch: int | None = option(None, help="batches in an epoch on each rank; none: as many as the rows fill")
    max_length: int | None = option(None, help="tokens in a row; none: what model and tokenizer take")

    def check(self) -> None:
        self.require(self.temperature > 0, "temperature", "it must be above 0.")
        self.require(self.max_passes > 0, "max_passes", "it must be above 0.")
        self.require(self.update_every >= 1, "update_every", "it must be 1 or more.", use=1)
        self.require(self.head_rate is None or self.head_rate > 0, "head_rate", "it must be above 0.")
        self.require(self.max_length is None or self.max_length >= 1, "max_length", "it must be 1 or more.")
        self.require(
            self.steps_per_epoch is None or self.steps_per_epoch >= 1, "steps_per_epoch", "it must be 1 or more.", use=1
        )
        self.require(
            (self.mix == "weights") == bool(self.weights), "weights", "give one for each data set with mix=weights."
        )
        self.require(
            self.batches == "homogeneous" or not self.adaptive, "batches", f"mix={self.mix} learns from batches of one."
        )

    def packages(self) -> dict[str, str]:
        return {"pcgrad": {"torchjd": "torchjd>=0.18"}, "cagrad": {"scipy": "scipy"}}.get(self.balance, {})

    def idle_options(self) -> dict[str, str]:
        needed = {"temperature": "temperature", "max_passes": "unimax"}
        return {
            name: f"mix is {self.mix}, and only {one} uses it"
            for name, one in needed.items()
            if name in self.changed_options() and self.mix != one
        }

    @property
    def adaptive(self) -> bool:
        return self.mix in ("loss_ratio", "progress")

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.SEVERAL_HEADS})

    def excludes(self) -> dict[Change, str]:
        return {
            Change.CLASS_LABELS: "multitask takes heads, labels and metrics from the model's tasks, not from one task.",
            Change.GENERATION: "multitask draws and collates batches for its heads, the other for text generation.",
        }

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    def ft_model(self, model: PreTrainedModel) -> None:
        from ...models.inputs import bare
        from .tasks import tasks_of

        tasks_of(model)
        if self.balance == "uncertainty":
            bare(model).learn_balance()

    def ft_dataset(self, dataset: Any, split: str, model: PreTrainedModel) -> TaggedConcat | None:
        from .data import multitask_dataset, read_as_it_is
        from .tasks import tasks_of

        if split != "train" and read_as_it_is(dataset):
            return None
        return multitask_dataset(dataset, tasks_of(model), split, need_all=split == "train")

    def ft_collator(self, collator: Any, split: str, model: PreTrainedModel, processing_class: Any) -> Any:
        import copy

        from .collator import MultiTaskCollator

        if isinstance(collator, MultiTaskCollator):
            own = copy.copy(collator)
            own.training, own.too_long = split == "train", type(collator.too_long)()
            return own
        if type(collator).__name__ not in ("DataCollatorWithPadding", "function"):
            logger.warning("%s: the script's own collator, a %s, stays.", self.name, type(collator).__name__)
            return None
        tokenizer = processing_class or getattr(collator, "tokenizer", None)
        if tokenizer is None:
            raise PluginError(
                f"{self.name}: the trainer has no tokenizer. Pass processing_class=tokenizer.",
                code="tokenizer-unsuited",
            )
        return MultiTaskCollator(tokenizer, model, self.max_length, training=split == "train")

    def ft_metrics(self, model: PreTrainedModel, args: TrainingArguments) -> MultiTaskMetrics | None:
        from .metrics import MultiTaskMetrics
        from .tasks import tasks_of

        return None if args.prediction_loss_only else MultiTaskMetrics(tasks_of(model))

    def ft_callbacks(self, stash: Stash) -> list[MultiTaskCallback]:
        from .callback import CALLBACK, MultiTaskCallback

        stash[CALLBACK] = MultiTaskCallback(self.balance, self.update_every)
        return [stash[CALLBACK]]

    def ft_columns(self, trainer: Trainer) -> list[str]:
        # Data that are given later, to `evaluate` or `predict`, keep the columns that the collator reads.
        from .data import columns_read
        from .tasks import tasks_of

        return columns_read(tasks_of(trainer.model))

    def ft_trainer(self, trainer: Trainer) -> None:
        from ...models.inputs import bare
        from .refusals import refuse_failing, refuse_unfit

        refuse_unfit(trainer, mix=self.mix, balance=self.balance, batches=self.batches)
        refuse_failing(trainer)
        if trainer.label_names != ["labels"]:
            logger.warning(
                "%s: label_names=%s is set to ['labels'], where a batch has the labels of all tasks.",
                self.name,
                trainer.label_names,
            )
            trainer.label_names = ["labels"]
        bare(trainer.model).touches_idle = trainer.args.world_size > 1

    def ft_param_groups(self, trainer: Trainer, model: PreTrainedModel) -> None:
        from .head_rate import fit_head_rate

        fit_head_rate(trainer.optimizer, model, self.head_rate)

    def ft_batch_sampler(self, trainer: Trainer, dataset: TaggedConcat) -> MultiTaskSampler:
        from ...host.stash import stash_of
        from .callback import CALLBACK
        from .mixing.sampler import MultiTaskSampler

        args = trainer.args
        strategy = getattr(args, "train_sampling_strategy", "random")
        if strategy != "random":
            logger.warning("%s: train_sampling_strategy=%r has no effect: tasks are mixed here.", self.name, strategy)
        sampler = MultiTaskSampler(
            dataset.sizes,
            # What `auto_find_batch_size` has come down to, where it has.
            trainer._train_batch_size,
            names=list(dataset.sources),
            mix=self.mix,
            temperature=self.temperature,
            max_passes=self.max_passes,
            weights=self.weights or None,
            unit="batch" if self.batches == "homogeneous" else "example",
            world_size=args.world_size,
            seed=data_seed(args),
            steps_per_epoch=self.steps_per_epoch,
            epochs=max(1, round(args.num_train_epochs)),
            update_every=self.update_every,
        )
        stash_of(trainer)[CALLBACK].follow(sampler)
        return sampler

    def ft_batches(self, trainer: Trainer, batches: list[dict[str, Any]]) -> None:
        from ...host.stash import stash_of
        from .callback import CALLBACK

        stash_of(trainer)[CALLBACK].weigh(batches)

    def ft_training_step(self, trainer: Trainer, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        from ...host.stash import stash_of
        from .callback import CALLBACK
        from .mixing.gradient_steps import GRADIENT_BALANCES, gradnorm_step, surgery_step

        if self.balance not in GRADIENT_BALANCES:
            return None
        callback = stash_of(trainer)[CALLBACK]
        assert callback.step is not None  # Since `ft_batches`.
        if self.balance == "gradnorm":
            return gradnorm_step(callback.balancer, callback.step, trainer, model, inputs)
        return surgery_step(self.balance, callback.step, trainer, model, inputs)

    def ft_report(self, trainer: Trainer) -> list[Section]:
        from ...host.stash import stash_of
        from .callback import CALLBACK

        return stash_of(trainer)[CALLBACK].sections()

    def ft_eval_sampler(self, trainer: Trainer, dataset: Any) -> Any:
        from ...host.evaluation_order import in_order

        return in_order(trainer, dataset)

    def ft_evaluation(self, trainer: Trainer, dataloader: Any) -> Any:
        from .collator import MultiTaskCollator, declared_in

        collator = trainer.eval_collator
        if not isinstance(collator, MultiTaskCollator):
            return None
        return declared_in(getattr(dataloader, "dataset", None), collator)
