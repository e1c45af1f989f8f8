"""What a data set's labels say about a model's head, and a head that fits them. Used by `transfer` and `task`.

    labels = labels_of(train_dataset, "transfer")
    print(fit_head(model, labels, "transfer"))

Errors name the technique that asks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import PluginError

logger = logging.getLogger(__name__)

Kind = Literal["single_label", "multi_label", "regression", "token"]
LABEL_COLUMNS = ("labels", "label")
IGNORED = -100


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        column: where they stand.
        kind: one class a row, several, numbers, or one class a token.
        names: of the classes, in the order of their numbers; of a regression, one name a target.
        values: of `single_label`, the class of each row, int64 [rows]; else, and where the data is streamed, None.
    """

    column: str
    kind: Kind
    names: tuple[str, ...]
    values: np.ndarray | None = None

    @property
    def problem_type(self) -> str:
        """What transformers calls it in `config.problem_type`."""
        return {"multi_label": "multi_label_classification", "regression": "regression"}.get(
            self.kind, "single_label_classification"
        )

    def counts(self) -> np.ndarray:
        """Rows of each class, int64 [classes]; single_label only."""
        assert self.values is not None
        return np.bincount(self.values, minlength=len(self.names))


@dataclass(frozen=True)
class HeadReport:
    """What `fit_head` did, by parameters' names."""

    replaced: tuple[str, ...]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.replaced:
            return f"head kept for {len(self.classes)} outputs"
        return f"new head for {len(self.classes)} outputs: {', '.join(self.replaced)}; the rest is kept"


def labels_of(dataset: Any, technique: str) -> Labels | None:
    """The labels of a `datasets.Dataset`, by its features; None where it has no features or no column of labels.

    A `ClassLabel` or a column of whole numbers is one class a row; a list of `ClassLabel` is one class a
    token; a list of numbers of equal length is several classes a row; a fractional number is a regression.

    Raises:
        PluginError: rows without a label, whole numbers that do not begin at 0 or leave one out, texts.
    """
    features = getattr(dataset, "features", None) or {}
    column = next((name for name in LABEL_COLUMNS if name in features), None)
    if column is None:
        return None
    feature = features[column]
    inner = getattr(feature, "feature", None)
    if inner is not None:
        if hasattr(inner, "names"):
            return Labels(column, "token", tuple(inner.names))
        width = getattr(feature, "length", -1)
        if width <= 0 and not hasattr(dataset, "__len__"):
            return None
        width = width if width > 0 else len(dataset.with_format(None)[0][column])
        if _is_fraction(inner):
            return Labels(column, "multi_label", tuple(f"LABEL_{index}" for index in range(width)))
        return None
    if _is_fraction(feature):
        return Labels(column, "regression", (column,))
    if not hasattr(dataset, "__len__"):
        # Streamed: only what the features say.
        names = getattr(feature, "names", None)
        return Labels(column, "single_label", tuple(names)) if names else None
    values = _whole_numbers(dataset, column, technique)
    names = getattr(feature, "names", None)
    if names is None:
        found = np.unique(values)
        if not np.array_equal(found, np.arange(len(found))):
            shown = ", ".join(map(str, found[:6]))
            raise PluginError(
                f"{technique}: the labels in column {column!r} are {shown}, ...; they must be 0 to classes - 1. Cast "
                f"the column: dataset.class_encode_column({column!r})."
            )
        names = [f"LABEL_{index}" for index in found]
    wrong = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(wrong):
        raise PluginError(
            f"{technique}: row {wrong[0]} has the label {values[wrong[0]]}, and there are {len(names)} classes "
            f"({', '.join(names[:6])}). Drop such rows, or give the column the right ClassLabel."
        )
    return Labels(column, "single_label", tuple(names), values)


def _is_fraction(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith("float")


def _whole_numbers(dataset: Any, column: str, technique: str) -> np.ndarray:
    values = list(dataset.with_format(None)[column])
    if None in values:
        raise PluginError(f"{technique}: row {values.index(None)} has no {column!r}. Drop such rows, or label them.")
    if isinstance(values[0], str):
        raise PluginError(
            f"{technique}: the column {column!r} holds texts, such as {values[0]!r}. Number them: "
            f"dataset.class_encode_column({column!r})."
        )
    return np.asarray(values, dtype=np.int64)


def base_of(model: Any) -> Any:
    """The model under a PEFT wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def backbone_of(model: Any) -> Any:
    """The pretrained part under the head, as transformers names it; the model itself where it names none."""
    model = base_of(model)
    return getattr(model, getattr(model, "base_model_prefix", "") or "", model)


def head_names(model: Any) -> list[str]:
    """Names, in the base model, of the parameters outside the backbone (or of an output layer that is not tied); none
    where there is no head of its own.
    """
    base, backbone = base_of(model), backbone_of(model)
    if backbone is not base:
        inside = _ids(backbone)
        return [name for name, parameter in base.named_parameters() if id(parameter) not in inside]
    layer = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if layer is not None:
        head = _ids(layer) - _ids(base.get_input_embeddings())
    else:
        outputs = getattr(getattr(base, "config", None), "num_labels", -1)
        head = set().union(*(_ids(base.get_submodule(path)) for path in output_layers(base, outputs)))
    return [name for name, parameter in base.named_parameters() if id(parameter) in head]


def _ids(module: Any) -> set[int]:
    return {id(parameter) for parameter in module.parameters()} if module is not None else set()


def fit_head(model: Any, labels: Labels, technique: str, seed: int = 0) -> HeadReport:
    """Give the model a head for these labels, in place, and its config their names and problem type.

    The head is kept where it has as many outputs and the config's names are the labels' or placeholders. Otherwise each
    linear layer outside the backbone that has an output a class is made anew; other layers of the head are kept.

    Args:
        model: any `AutoModelFor...` with a config.
        seed: of the new weights; the global random state is left as it was.

    Raises:
        PluginError: the labels need a new head, and there is no layer to replace, or it is inside an adapter.
    """
    config, base = model.config, base_of(model)
    names = dict(enumerate(labels.names))
    outputs = len(names)
    same_size = config.num_labels == outputs
    placeholders = all(str(name).startswith("LABEL_") for name in config.id2label.values())
    unnamed = all(name.startswith("LABEL_") for name in labels.names) or labels.kind == "regression"
    replaced: list[str] = []
    if not same_size or not (placeholders or unnamed or list(config.id2label.values()) == list(labels.names)):
        layers = output_layers(model, config.num_labels)
        if not layers:
            raise PluginError(
                f"{technique}: the data has {outputs} labels and the model, a {type(base).__name__}, "
                f"{config.num_labels} outputs, with no linear layer outside its backbone to replace. Load it with "
                f"AutoModelFor...Classification.from_pretrained(..., num_labels={outputs})."
            )
        if base is not model:
            raise PluginError(
                f"{technique}: the data has {outputs} labels and the model {config.num_labels} outputs, and adapters "
                f"already. Load it with num_labels={outputs} before it gets them."
            )
        for path in layers:
            _replace(base, path, outputs, seed)
            replaced += [name for name, _ in base.named_parameters() if name.startswith(f"{path}.")]
    if not unnamed or not same_size:
        config.id2label, config.label2id = names, {name: index for index, name in names.items()}
    if hasattr(base, "num_labels"):
        base.num_labels = outputs
    config.problem_type = labels.problem_type if labels.kind != "token" else config.problem_type
    return HeadReport(tuple(replaced), labels.names)


def output_layers(model: Any, outputs: int) -> list[str]:
    """Paths, in the base model, of the linear layers outside the backbone that have so many outputs."""
    base, backbone = base_of(model), backbone_of(model)
    inside = set() if backbone is base else {id(module) for module in backbone.modules()}
    # Where the backbone is not named, only a layer of the model itself can be told from one inside the backbone.
    named = base.named_children() if backbone is base else base.named_modules()
    return [
        path
        for path, module in named
        if isinstance(module, torch.nn.Linear)
        and id(module) not in inside
        and module.out_features == outputs
        # What PEFT's modules_to_save keeps of the layer that it replaced.
        and "original_module" not in path.split(".")
    ]


def _replace(base: Any, path: str, outputs: int, seed: int) -> None:
    old = base.get_submodule(path)
    with torch.random.fork_rng(devices=[]):
        # Not of the GPUs, whose generators would not be put back.
        torch.default_generator.manual_seed(seed)
        new = torch.nn.Linear(old.in_features, outputs, bias=old.bias is not None)
        if hasattr(base, "_init_weights"):
            base._init_weights(new)
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, new.to(device=old.weight.device, dtype=old.weight.dtype))
