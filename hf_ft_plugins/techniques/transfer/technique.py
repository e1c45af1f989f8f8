"""The technique `transfer`: a pretrained model on a new, smaller data set, text or vision.

Fine-tuning everything at one rate distorts what the backbone has learned before the new head knows anything. Here the
head is made to fit the labels and learns first; then all layers learn, the lower the slower.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Change, Technique, option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.nn import Module
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion

logger = logging.getLogger(__name__)

# Its head would learn alone for 50 steps.
SHORT_RUN = 250


@dataclass(frozen=True, kw_only=True)
class Transfer(Technique):
    """See the options' help, `GradualUnfreezing`, `layerwise_lr`, `fit_probe` and `freeze`."""

    name: ClassVar[str] = "transfer"
    summary: ClassVar[str] = "a pretrained model on new data: a new head first, then all layers, the lower the slower"

    strategy: Literal["lpft", "full", "probe", "gradual"] = option(
        "lpft",
        help="lpft: the head alone, then everything; probe: the head alone; gradual: layer after layer from the top; "
        "full: everything from the start",
    )
    layer_decay: float | None = option(
        None,
        help="each group of layers learns at this share of the rate of the one above it; none: 0.8, and 1 in runs of "
        f"fewer than {SHORT_RUN} steps whose head has not learned on cached features",
    )
    unfrozen_at: float | None = option(
        None,
        help="share of the steps after which every layer learns; default 0.2 (0 in runs of fewer than "
        f"{SHORT_RUN} steps), gradual 0.5; see cache_features",
    )
    rewarm: float = option(0.05, help="share of the steps over which the rate of an unfrozen layer rises from zero")
    cache_features: Literal["auto", "always", "never"] = option(
        "auto",
        help="probe and lpft: compute the frozen backbone's features once and train the head on them before the first "
        "step, where data do not change from pass to pass",
    )
    probe_steps: int = option(
        100, help="steps of the head on cached features, each of up to 256 examples; at least 40 passes"
    )
    probe_learning_rate: float | None = option(
        None, help="of the head alone; none: 1e-3, on cached features 3e-3, or the run's where that is higher"
    )
    read_out: Literal["auto", "keep"] = option(
        "auto",
        help="lpft: of up to 1000 texts with a label each, solve the head in closed form, on a mean over tokens where "
        "that tells more than the model's own read-out; keep: not",
    )
    freeze: tuple[str, ...] = option((), help="names of parameters or modules that never learn, with * and ?; a+b")
    new_head: bool = option(True, help="make a head that fits the labels of the training data, where it does not")

    def check(self) -> None:
        self.require(0 < self.decay <= 1, "layer_decay", "it must lie in (0, 1].")
        self.require(self.unfrozen_at is None or 0 <= self.unfrozen_at < 1, "unfrozen_at", "it must lie in [0, 1).")
        self.require(0 <= self.rewarm < 1, "rewarm", "it must lie in [0, 1).")
        self.require(self.probe_steps >= 1, "probe_steps", "it must be 1 or more.", use=1)
        self.require(
            self.probe_learning_rate is None or self.probe_learning_rate > 0, "probe_learning_rate", "it must be > 0."
        )

    def keeps_objective(self) -> bool:
        return True

    def changes(self) -> frozenset[Change]:
        return frozenset() if self.strategy == "full" else frozenset({Change.LAYERS})

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    @property
    def all_learn_from(self) -> float:
        if self.unfrozen_at is not None:
            return self.unfrozen_at
        return 0.5 if self.strategy == "gradual" else 0.2

    @property
    def short_run(self) -> int:
        """Fewer steps are too few for a head to learn alone; 0 where the options say how it is to learn."""
        asked = self.unfrozen_at is not None or self.probe_learning_rate is not None or self.cache_features == "never"
        return 0 if asked else SHORT_RUN

    @property
    def decay(self) -> float:
        return 0.8 if self.layer_decay is None else self.layer_decay

    @property
    def by_layer(self) -> bool:
        return self.decay < 1 or self.strategy == "gradual"

    @property
    def scales_rates(self) -> bool:
        return self.decay < 1 or self.strategy != "full"

    def ft_model(self, model: Module, train_dataset: Any, args: TrainingArguments, first_batches: Any) -> None:
        from ...models.heads import fit_head
        from ...models.inputs import bare
        from ...models.labels import labels_of, other_labels
        from .layers import freeze

        # A model of several tasks has heads by its config.
        several = getattr(bare(model), "labels_in_config", False)
        if self.new_head and not several and hasattr(getattr(model, "config", None), "num_labels"):
            why = other_labels(model)
            if why is not None:
                logger.info("%s: the head of a %s stays: %s.", self.name, type(bare(model)).__name__, why)
            else:
                names = args.label_names or ()
                labels = labels_of(train_dataset, self.name, model, label_names=names, first_batches=first_batches)
                if labels is not None:
                    fit_head(model, labels, self.name, args.seed).log(self.name)
        if self.freeze:
            logger.info("%s: frozen for good: %s", self.name, ", ".join(freeze(model, *self.freeze)))

    def ft_loss(self, trainer: Trainer, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        from ...models.heads import labels_as_numbers

        return labels_as_numbers(trainer.model, inputs)

    def ft_trainer(self, trainer: Trainer) -> None:
        from ... import lr_scale
        from .layers import groups_of
        from .thawing import refuse_unfit

        if self.scales_rates:
            lr_scale.refuse_when_built(trainer, self.name, by_group=True)
            groups = groups_of(trainer.model, by_layer=self.by_layer)
            refuse_unfit(self.strategy, groups, trainer.args, trainer.model)

    def ft_param_groups(self, model: Module, trainer: Trainer) -> None:
        from .layers import groups_of, layerwise_lr

        if self.scales_rates:
            layerwise_lr(trainer.optimizer, model, self.decay, groups=groups_of(model, by_layer=self.by_layer))

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from ...host.stash import parts_of
        from .unfreezing import GradualUnfreezing

        part = parts_of(trainer).get(f"{self.name}/{GradualUnfreezing.__name__}")
        rows = part.as_rows() if part is not None else None
        return None if rows is None else [rows]

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .unfreezing import GradualUnfreezing

        if self.strategy == "full" and self.layer_decay is not None:
            return []
        return [
            GradualUnfreezing(
                self.strategy,
                unfrozen_at=self.all_learn_from,
                rewarm=self.rewarm,
                probe_learning_rate=self.probe_learning_rate,
                cache_features=self.cache_features,
                probe_steps=self.probe_steps,
                read_out=self.read_out,
                short_run=self.short_run,
                flat_if_short=self.layer_decay is None,
                by_layer=self.by_layer,
            )
        ]

    def plan_for(self, model: Module) -> str | None:
        from .layers import depth_factors, groups_of

        groups = groups_of(model, by_layer=self.by_layer)
        factors = depth_factors(groups, self.decay)
        return "\n".join(f"{factors[group.name]:7.4f} of the rate: {group}" for group in groups)
