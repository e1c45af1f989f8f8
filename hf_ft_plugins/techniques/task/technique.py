"""The technique `task`: from a labelled data set to a sound classifier or regressor with nothing but defaults.

The head and `problem_type` follow the data's labels (`labels.py`), the metrics follow the head (`metrics.py`), the best
checkpoint follows the metrics (`best.py`). Imbalance changes the training loss (`losses.py`) or the order of examples
(`sampler.py`), nothing else. After training the model is calibrated on the evaluation set (`calibration.py`) and what
it gets wrong is written to `output_dir/task` (`report.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ... import mends
from ...errors import PluginError
from ...technique import Change, Technique, data_seed, option
from . import NAME

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.nn import Module
    from torch.utils.data import Sampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from ...models.labels import Labels
    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion
    from .losses import TaskLoss
    from .metrics import TaskMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task(Technique):
    """See the options' help, `TaskLoss`, `BalancedSampler`, `TaskMetrics` and `BestMetricCallback`."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "classification and regression: head, metrics, best checkpoint, imbalance, calibration"

    imbalance: Literal["none", "weights", "sampler", "logit_adjust", "focal"] = option(
        "none",
        help="what to do for rare classes while training: weights by class, sampler (as many rows of each class), "
        "logit_adjust (logits shifted by the classes' frequencies), focal (hard examples count more)",
    )
    tau: float = option(1.0, help="logit_adjust: strength of the shift; 1 is right for the mean accuracy over classes")
    gamma: float = option(2.0, help="focal: how much less easy examples count")
    metric: str | None = option(
        None,
        help="what the best checkpoint is best by; none: the script's metric_for_best_model, else macro_f1 "
        "(several labels: average_precision; numbers: rmse; a script's own compute_metrics: loss)",
    )
    greater_is_better: bool | None = option(None, help="direction of the metric; none: by its name")
    early_stopping_patience: int | None = option(
        3, help="stop after this many evaluations without improvement; none: never"
    )
    early_stopping_threshold: float = option(0.0, help="an improvement is a change of more than this")
    calibrate: bool = option(True, help="fit a temperature and thresholds on half of the evaluation set after training")
    frequencies: str = option(
        "evaluation",
        help="for which class frequencies the final model's answers and probabilities are meant: evaluation (those of "
        "the evaluation set), training, equal (every class counts as much), or shares by class: 0.9/0.1",
    )
    worst_examples: int = option(50, help="how many examples of the highest loss the report lists")

    def check(self) -> None:
        self.require(self.tau > 0, "tau", "it must be above 0.")
        self.require(self.gamma > 0, "gamma", "it must be above 0; imbalance=none is gamma 0.")
        patience = self.early_stopping_patience
        self.require(
            patience is None or patience >= 1, "early_stopping_patience", "it must be 1 or more, or none.", use=1
        )
        self.require(self.early_stopping_threshold >= 0, "early_stopping_threshold", "it must be 0 or more.", use=0)
        self.require(
            _are_frequencies(self.frequencies),
            "frequencies",
            "it must be evaluation, training, equal, or a share above 0 of each class: 0.9/0.1.",
        )
        self.require(self.worst_examples >= 0, "worst_examples", "it must be 0 or more.", use=0)

    def answers(self, hook: str) -> bool:
        return super().answers(hook) and (hook != "ft_sampler" or self.imbalance == "sampler")

    def keeps_objective(self) -> bool:
        return self.imbalance in ("none", "sampler")

    def idle_options(self) -> dict[str, str]:
        needed = {"tau": "logit_adjust", "gamma": "focal"}
        idle = {
            name: f"imbalance is {self.imbalance}, and only {one} uses it"
            for name, one in needed.items()
            if name in self.changed_options() and self.imbalance != one
        }
        if not self.calibrate and "frequencies" in self.changed_options():
            idle["frequencies"] = "calibrate is false, so the model stays as it was trained"
        if self.early_stopping_patience is None and "early_stopping_threshold" in self.changed_options():
            idle["early_stopping_threshold"] = "early_stopping_patience is none, so the run is never stopped"
        return idle

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.CLASS_LABELS})

    def excludes(self) -> dict[Change, str]:
        return {Change.GENERATION: "task trains heads on labels, the other generation, each with its loss and metrics."}

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    def ft_model(self, model: Module, train_dataset: Any, args: TrainingArguments, first_batches: Any) -> None:
        from ...models.heads import fit_head
        from .labels import read_labels, refuse_no_labels
        from .not_finite import refuse_not_a_number

        labels = read_labels(train_dataset, model, args, first_batches)
        refuse_not_a_number(train_dataset, model, args)
        if labels is not None:
            fit_head(model, labels, self.name, args.seed).log(self.name)
        else:
            refuse_no_labels(train_dataset, model, args, first_batches)

    def ft_raw_dataset(self, trainer_class: type) -> None:
        if any(cls.__name__ == "RewardTrainer" and cls.__module__.startswith("trl.") for cls in trainer_class.__mro__):
            raise PluginError(
                f"{self.name}: a {trainer_class.__name__} learns from pairs which answer is better, with a loss and "
                f"metrics of its own, and there are no labels. Leave out {self.name}.",
                code="trainer-unsuited",
                mend=[mends.remove_technique(self.name)],
            )

    def ft_loss(self, trainer: Trainer, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        from ...models.heads import labels_as_numbers

        return labels_as_numbers(trainer.model, inputs)

    def ft_metrics(self, model: Module, args: TrainingArguments) -> TaskMetrics | None:
        from .labels import kind_of
        from .metrics import TaskMetrics

        return None if args.prediction_loss_only else TaskMetrics(kind_of(model))

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .best import BestMetricCallback
        from .finish import FinishCallback

        return [
            BestMetricCallback(self.early_stopping_patience, self.early_stopping_threshold),
            FinishCallback(calibrate=self.calibrate, worst_examples=self.worst_examples, frequencies=self.frequencies),
        ]

    def ft_loss_function(self, trainer: Trainer) -> TaskLoss | None:
        from .labels import kind_of, labels_of_training
        from .losses import new_loss, refuse_loss_of_its_own
        from .unfit import refuse_unfit

        labels = labels_of_training(trainer)
        refuse_unfit(trainer, labels, self.imbalance)
        self._note_frequencies(trainer, labels)
        if refuse_loss_of_its_own(trainer, self.imbalance):
            return None
        return new_loss(
            kind_of(trainer.model),
            trainer.train_dataset,
            labels,
            imbalance=self.imbalance,
            tau=self.tau,
            gamma=self.gamma,
        )

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from ...host.stash import stash_of
        from .report import WRITTEN, sections_of

        written = stash_of(trainer).get(WRITTEN)
        return None if written is None else sections_of(written)

    def _note_frequencies(self, trainer: Trainer, labels: Labels | None) -> None:
        from ...host.stash import stash_of
        from ...models.inputs import bare
        from .frequencies import TRAINED, Trained, refuse_unfit_frequencies
        from .labels import class_counts, kind_of

        if not self.calibrate:
            return
        kind, trained = kind_of(trainer.model), None
        if labels is not None and labels.values is not None and kind in ("single_label", "token"):
            exponent = {"weights": 0.0, "sampler": 0.0, "logit_adjust": 1 - self.tau}.get(self.imbalance, 1.0)
            trained = stash_of(trainer)[TRAINED] = Trained(class_counts(trainer.train_dataset, labels), exponent)
        refuse_unfit_frequencies(self.frequencies, kind, bare(trainer.model).config.num_labels, trained)
        if self.imbalance in ("weights", "sampler", "logit_adjust") and self.frequencies == "evaluation":
            logger.info(
                "%s: imbalance=%s teaches classes as if all were equally frequent; after training the answers are "
                "moved to the evaluation set's frequencies. To leave them where every class counts as much: "
                "frequencies=equal.",
                *(self.name, self.imbalance),
            )

    def ft_sampler(self, trainer: Trainer, dataset: Any) -> Sampler[int] | None:
        from .labels import labels_of_training
        from .sampler import BalancedSampler

        if self.imbalance != "sampler":
            return None
        labels = labels_of_training(trainer, dataset)
        assert labels is not None
        assert labels.values is not None, "refuse_unfit has seen to it"
        return BalancedSampler(labels.values, data_seed(trainer.args))

    def ft_trainer(self, trainer: Trainer) -> None:
        from .best import choose_metric

        # It sets arguments, which no earlier hook could: the metric depends on the metrics and the evaluation data that
        # all techniques have supplied, and whether those have labels on the columns that techniques keep. If a later
        # technique raises, the host restores the arguments.
        choose_metric(trainer, metric=self.metric, greater_is_better=self.greater_is_better)


def _are_frequencies(option: str) -> bool:
    if option == "evaluation":
        return True
    from .frequencies import asked

    try:
        asked(option)
    except ValueError:
        return False
    return True
