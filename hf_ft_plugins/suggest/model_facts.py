"""What kind of model a run trains, how much of it, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.heads import head_names
from ..models.inputs import bare, main_input_name
from ..models.label_kinds import CLASSIFIERS, classifies_tokens
from ..models.scored import writes_text
from .origins import Loaded

SEVERAL, SEQ2SEQ, CAUSAL = "several tasks", "encoder-decoder that writes text", "causal language model"
CLASSIFIER, TOKENS, OTHER = "classifier", "classifier of tokens", "other"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Of the model as the trainer has it.

    Attributes:
        name: of its class.
        kind: one of the constants of this module.
        type: of its configuration, such as `bert`.
        input: the name of its main input.
        parameters, trained: how many there are, and learn.
        pretrained: `from_pretrained` has given it, or a part of it.
        loaded_from: the folder or name; empty where nothing was loaded.
        new_head: its head, or a part of it, was not among what was loaded.
        adapter: peft's type of the script's own adapter; empty without.
        quantised: its weights are.
        outputs: how many classes or numbers its head gives; None of other heads.
        tasks: names of the tasks of a model of several.
    """

    name: str
    kind: str
    type: str
    input: str
    parameters: int
    trained: int
    pretrained: bool
    loaded_from: str
    new_head: bool
    adapter: str
    quantised: bool
    outputs: int | None
    tasks: tuple[str, ...]


def model_facts(model: Any, loaded: Loaded) -> ModelFacts:
    """Of any model, under PEFT or not."""
    base = bare(model)
    config = getattr(base, "config", None)
    kind = kind_of(base)
    origin = next((loaded[one] for one in base.modules() if one in loaded), None)
    own = loaded.get(base)
    parameters = list(model.parameters())
    tasks = getattr(config, "tasks", None)
    return ModelFacts(
        name=type(base).__name__,
        kind=kind,
        type=str(getattr(config, "model_type", "")),
        input=main_input_name(base),
        parameters=sum(one.numel() for one in parameters),
        trained=sum(one.numel() for one in parameters if one.requires_grad),
        pretrained=origin is not None,
        loaded_from=origin.name if origin is not None else "",
        new_head=own is not None and bool(own.missing & set(head_names(base))),
        adapter=_adapter(model),
        quantised=getattr(base, "quantization_method", None) is not None,
        outputs=getattr(config, "num_labels", None) if kind in (CLASSIFIER, TOKENS) else None,
        tasks=tuple(tasks) if isinstance(tasks, Mapping) else (),
    )


def kind_of(base: Any) -> str:
    """What a model does, by its class and its configuration."""
    config = getattr(base, "config", None)
    if getattr(config, "tasks", None) and getattr(base, "labels_in_config", False):
        return SEVERAL
    if writes_text(base):
        return SEQ2SEQ if getattr(config, "is_encoder_decoder", False) else CAUSAL
    if classifies_tokens(base):
        return TOKENS
    names = [cls.__name__ for cls in type(base).__mro__]
    return CLASSIFIER if any(f"{what}Classification" in name for what in CLASSIFIERS for name in names) else OTHER


def _adapter(model: Any) -> str:
    configs = getattr(model, "peft_config", None)
    first = next(iter(configs.values()), None) if isinstance(configs, Mapping) else None
    kind = getattr(first, "peft_type", "")
    return str(getattr(kind, "value", kind))
