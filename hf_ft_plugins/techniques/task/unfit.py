"""What a run cannot learn from its labels, refused when the trainer is built; what is doubtful is warned of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ... import mends
from ...errors import PluginError
from ...models.class_names import are_placeholders, match
from ...models.heads import head_names
from ...models.inputs import bare
from ...models.label_columns import columns_of, label_values
from ...models.labels import IGNORED, Labels
from . import NAME
from .labels import class_counts
from .losses import Imbalance

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import Trainer

logger = logging.getLogger(__name__)

NEEDS_COUNTS = ("weights", "sampler", "logit_adjust")


def refuse_unfit(trainer: Trainer, labels: Labels | None, imbalance: Imbalance) -> None:
    """Raise `PluginError` where the data or the trainer cannot do what `imbalance` asks; warn of what is doubtful."""
    if imbalance in NEEDS_COUNTS:
        streams = not hasattr(trainer.train_dataset, "__len__")
        if labels is None or streams:
            why = "is streamed" if streams else "has no column 'labels' or 'label' with features that reaches the model"
            raise PluginError(
                f"{NAME}: imbalance={imbalance} counts the labels before training, and the training set {why}. Pass a "
                "datasets.Dataset with a ClassLabel column, or use imbalance=focal.",
                code="data-unsuited",
                mend=[mends.set_option(NAME, "imbalance", "focal")],
            )
        if labels.kind == "regression" or (imbalance == "sampler" and labels.kind != "single_label"):
            raise PluginError(
                f"{NAME}: imbalance={imbalance} needs one class a row, and the column {labels.column!r} holds "
                f"{'numbers' if labels.kind == 'regression' else 'several'}. Use "
                f"imbalance={'none' if labels.kind == 'regression' else 'weights'}.",
                code="labels-unsuited",
                mend=[mends.set_option(NAME, "imbalance", "none" if labels.kind == "regression" else "weights")],
            )
    if imbalance == "focal" and labels is not None and labels.kind == "regression":
        raise PluginError(
            f"{NAME}: imbalance=focal needs classes, and the labels are numbers. Use imbalance=none.",
            code="labels-unsuited",
            mend=[mends.set_option(NAME, "imbalance", "none")],
        )
    if labels is not None and labels.kind != "regression" and hasattr(trainer.train_dataset, "__len__"):
        _judge_counts(trainer.train_dataset, labels, imbalance)
    _refuse_frozen_head(trainer.model)
    _refuse_other_evaluation_labels(trainer, labels)


def _judge_counts(dataset: Any, labels: Labels, imbalance: Imbalance) -> None:
    if labels.kind == "single_label" and labels.values is None:
        return
    counts = class_counts(dataset, labels)
    absent = [name for name, count in zip(labels.names, counts, strict=True) if count == 0]
    if absent and imbalance in NEEDS_COUNTS:
        raise PluginError(
            f"{NAME}: imbalance={imbalance}, and no training row has the label {absent[0]!r} "
            f"({len(absent)} of {len(counts)} labels have none). Add rows, or drop the label from the column's names.",
            code="labels-unsuited",
            mend=[mends.set_option(NAME, "imbalance", "none")],
        )
    single = [name for name, count in zip(labels.names, counts, strict=True) if count == 1]
    for names, how_many in ((absent, "no example"), (single, "a single example")):
        if names:
            logger.warning(
                "%s: %d classes have %s in the training set: %s. They will hardly be learned; add rows or merge "
                "classes.",
                NAME,
                len(names),
                how_many,
                ", ".join(names[:6]),
            )


def _refuse_frozen_head(model: Module) -> None:
    if not hasattr(model, "peft_config"):
        return
    parameters = dict(bare(model).named_parameters())
    head = head_names(model)
    if head and not any(parameters[name].requires_grad for name in head):
        module = head[0].split(".")[0]
        raise PluginError(
            f"{NAME}: the model has adapters and its head, {module!r}, is frozen as it was initialised, so it "
            f"would neither be trained nor saved. Set modules_to_save=[{module!r}] (or task_type) in the PeftConfig.",
            code="model-unsuited",
        )


def _refuse_other_evaluation_labels(trainer: Trainer, labels: Labels | None) -> None:
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for split, dataset in sets.items():
        features = columns_of(dataset)
        if labels is None or labels.kind != "single_label" or labels.column not in features:
            continue
        names = getattr(features[labels.column], "names", None)
        trained = getattr(columns_of(trainer.train_dataset).get(labels.column), "names", None)
        if names is not None and trained is not None and not _same_numbers(names, trained):
            raise PluginError(
                f"{NAME}: the classes of the {split} set ({', '.join(names[:6])}) are not those of the "
                f"training set ({', '.join(labels.names[:6])}), by name or order. Cast both to one ClassLabel.",
                code="labels-unsuited",
            )
        if hasattr(dataset, "__len__"):
            found = label_values(dataset, labels.column)
            if all(value is None for value in found):
                continue  # Not labelled.
            fitting = (*range(len(labels.names)), IGNORED)
            wrong = [row for row, value in enumerate(found) if value not in fitting]
            if len(wrong):
                raise PluginError(
                    f"{NAME}: row {wrong[0]} of the {split} set has the label {found[wrong[0]]}, and the "
                    f"training set has {len(labels.names)} classes. Drop such rows, or train on them too.",
                    code="labels-unsuited",
                    mend=[mends.drop_rows(split, wrong)],
                )


def _same_numbers(names: list[str], others: list[str]) -> bool:
    """Whether the classes that both name have the same numbers."""
    common = min(len(names), len(others))
    unnamed = are_placeholders(names) or are_placeholders(others)
    return unnamed or match(names[:common], others[:common]) == list(range(common))
