"""A model's head, and one that fits a data set's labels. Used by `transfer` and `task`.

    labels = labels_of(train_dataset, "transfer", model)
    print(fit_head(model, labels, "transfer"))

Errors name the technique that asks.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import mends
from ..errors import PluginError
from .class_names import are_placeholders, match, names_in, written_alike
from .inputs import bare
from .labels import Labels, classifies_tokens, other_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadReport:
    """What `fit_head` did.

    Attributes:
        replaced: names of the parameters that are new, or whose rows changed.
        classes, before: names of the outputs now, and as they were.
        rows: of every output, the output before that its weights are taken from; None for new weights.
        guessed: `label = output before` of those whose names are written otherwise, as abbreviations are.
    """

    replaced: tuple[str, ...]
    classes: tuple[str, ...]
    before: tuple[str, ...] = ()
    rows: tuple[int | None, ...] = ()
    guessed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.replaced:
            return f"head kept for {len(self.classes)} outputs ({_shown(self.classes)}){self._taken()}"
        kept = sum(row is not None for row in self.rows)
        wider = "wider head" if kept == len(self.before) else f"head with {kept} of the rows before"
        what = "new head" if not kept else "rows put in the labels' order" if kept == len(self.rows) else wider
        return (
            f"{what} for {len(self.classes)} outputs ({_shown(self.classes)}), before {len(self.before)} "
            f"({_shown(self.before)}): {', '.join(self.replaced)}; the rest is kept{self._taken()}"
        )

    def _taken(self) -> str:
        return f"; taken for the same class: {_shown(self.guessed)}" if self.guessed else ""

    def log(self, technique: str) -> None:
        """A warning where something of the model was replaced, or classes are taken for the same by a guess."""
        logger.log(logging.WARNING if self.replaced or self.guessed else logging.INFO, "%s: %s", technique, self)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def backbone_of(model: Any) -> Any:
    """The pretrained part under the head, as transformers names it; the model itself where it names none."""
    model = bare(model)
    return getattr(model, getattr(model, "base_model_prefix", "") or "", model)


def head_names(model: Any) -> list[str]:
    """Names, in the base model, of the parameters outside the backbone (or of an output layer that is not tied); none
    where there is no head of its own.
    """
    base, backbone = bare(model), backbone_of(model)
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

    The head is kept where it has as many outputs, and their names mean the labels' or either are placeholders
    (`class_names`); the config's names then stay. In another order its rows are put in the labels' order. For classes
    that it had not it gets new rows, and rows of classes that the labels have not go; those of names written alike
    stay. Where none is left, each linear layer outside the backbone that has an output a class is made anew; other
    layers of the head are kept.

    Args:
        model: any `AutoModelFor...` with a config.
        seed: of the new weights; the global random state is left as it was.

    Raises:
        PluginError: the labels need another head, and there is no layer to replace, or it is inside an adapter.
    """
    config, base = model.config, bare(model)
    before, outputs = names_in(config), len(labels.names)
    rows = _rows(before, labels)
    wanted = list(zip(rows, _wanted_names(labels, before), strict=True))
    names = tuple(name if row is None or _is_another(name, before[row]) else before[row] for row, name in wanted)
    guessed = tuple(
        f"{name} = {before[row]}" for row, name in wanted if row is not None and not written_alike(name, before[row])
    )
    replaced: list[str] = []
    if list(rows) != list(range(len(before))):
        layers = _layers_to_change(model, labels, before, rows, technique)
        for path in layers:
            _change_rows(base, path, rows, seed)
            replaced += [name for name, _ in base.named_parameters() if name.startswith(f"{path}.")]
    maps = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    if names != before or len(config.id2label) != outputs:
        config.id2label, config.label2id = maps
    # A script may have set one of the two alone.
    if are_placeholders(tuple(config.label2id or ())):
        config.label2id = maps[1]
    if are_placeholders(tuple(config.id2label.values())):
        config.id2label = maps[0]
    if hasattr(base, "num_labels"):
        base.num_labels = outputs
    if labels.kind != "token":
        config.problem_type = labels.problem_type
    return HeadReport(tuple(replaced), names, before, tuple(rows), () if are_placeholders(before) else guessed)


def _rows(before: Sequence[str], labels: Labels) -> list[int | None]:
    """For each output that the labels ask for, the one of the head's that stands for it; None where none does."""
    wanted, same_size = labels.names, len(before) == len(labels.names)
    unnamed = are_placeholders(before) or are_placeholders(wanted) or labels.kind == "regression"
    if unnamed:
        return list(range(len(wanted))) if same_size else [None] * len(wanted)
    places = match(wanted, before)
    complete = None not in places if same_size else set(range(len(before))) <= set(places)
    # Among classes that are others, an abbreviation is as likely another class.
    return places if complete else match(wanted, before, abbreviated=False)


def _wanted_names(labels: Labels, before: Sequence[str]) -> Sequence[str]:
    return before if are_placeholders(labels.names) and len(before) == len(labels.names) else labels.names


def _is_another(name: str, before: str) -> bool:
    """Whether it is the name of another class, which takes the place of the one before."""
    return match([name], [before]) == [None]


def _layers_to_change(
    model: Any, labels: Labels, before: Sequence[str], rows: Sequence[int | None], technique: str
) -> list[str]:
    outputs = len(rows)
    layers = output_layers(model, len(before))
    adapted = bare(model) is not model
    if layers and not adapted:
        return layers
    why = "and adapters already" if adapted else "with no linear layer outside its backbone to replace"
    raise PluginError(
        f"{technique}: the data has {outputs} labels ({_shown(labels.names)}) and the model, a "
        f"{type(bare(model)).__name__}, {len(before)} outputs, {why}. Its outputs are {_shown(before)}. "
        f"{_how_to_fit(labels, before, rows, adapted)}",
        code="labels-unsuited",
        mend=[] if outputs == len(before) else [mends.set_model_argument("num_labels", outputs)],
    )


def _how_to_fit(labels: Labels, before: Sequence[str], rows: Sequence[int | None], adapted: bool) -> str:
    if len(rows) != len(before):
        load = f"Load it with AutoModelFor...Classification.from_pretrained(..., num_labels={len(rows)}"
        return f"{load}) before it gets them." if adapted else f"{load}, ignore_mismatched_sizes=True)."
    if None in rows:
        return (
            "Where its outputs are to learn these classes, name them so: model.config.id2label = "
            f"{dict(enumerate(labels.names))}."
        )
    return (
        "Put the labels in the model's order: dataset.align_labels_with_mapping(model.config.label2id, "
        f"{labels.column!r}), or name the column's classes as the model does."
    )


def output_layers(model: Any, outputs: int) -> list[str]:
    """Paths, in the base model, of the linear layers outside the backbone that have so many outputs.

    Where several have, as a hidden layer of the head that is as wide as there are classes, those that would be of
    another size with one class more.
    """
    base, backbone = bare(model), backbone_of(model)
    inside = set() if backbone is base else {id(module) for module in backbone.modules()}
    # Where the backbone is not named, only a direct child of the model is known to lie outside the backbone.
    named = base.named_children() if backbone is base else base.named_modules()
    found = [
        path
        for path, module in named
        if isinstance(module, torch.nn.Linear)
        and id(module) not in inside
        and module.out_features == outputs
        # What PEFT's modules_to_save keeps of the layer that it replaced.
        and "original_module" not in path.split(".")
    ]
    if len(found) < 2 or not type(base).__module__.startswith("transformers."):
        return found
    wider = _with_one_class_more(base)
    return [path for path in found if wider.get(f"{path}.weight") != base.get_submodule(path).weight.shape]


def _with_one_class_more(base: Any) -> dict[str, torch.Size]:
    """Sizes of the parameters that such a model would have."""
    config = copy.deepcopy(base.config)
    config.num_labels += 1
    # Without memory; what is drawn for it all the same is drawn again in the run.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {name: weight.shape for name, weight in type(base)(config).named_parameters()}


def _change_rows(base: Any, path: str, rows: Sequence[int | None], seed: int) -> None:
    """Give the layer an output for each of `rows`: the old one of that number, or, for None, a new one."""
    old = base.get_submodule(path)
    with torch.random.fork_rng(devices=[]):
        # Not of the GPUs, whose generators would not be put back.
        torch.default_generator.manual_seed(seed)
        new = torch.nn.Linear(old.in_features, len(rows), bias=old.bias is not None)
        if hasattr(base, "_init_weights"):
            base._init_weights(new)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.requires_grad_(old.weight.requires_grad or None in rows)
    kept = [(place, row) for place, row in enumerate(rows) if row is not None]
    with torch.no_grad():
        for place, row in kept:
            new.weight[place] = old.weight[row]
            if old.bias is not None:
                new.bias[place] = old.bias[row]
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, new)


@contextlib.contextmanager
def labels_as_numbers(model: Any, inputs: dict[str, Any]) -> Iterator[None]:
    """A loss is computed inside: the batch's labels get the type that the loss of the config's problem type takes.

    Whole numbers and truth values (ratings, 0 and 1) become float32 for a regression or several labels; truth values
    and fractional numbers, such as 1.0, int64 for classes. transformers' losses fail on them.
    """
    problem_type = getattr(getattr(bare(model), "config", None), "problem_type", None)
    labels = inputs.get("labels")
    if isinstance(labels, torch.Tensor) and other_labels(model) is None and not classifies_tokens(model):
        floating = labels.is_floating_point()
        if problem_type in ("regression", "multi_label_classification") and not floating:
            inputs["labels"] = labels.float()
        elif problem_type == "single_label_classification" and labels.dim() == 1:
            inputs["labels"] = labels.long()
    yield
