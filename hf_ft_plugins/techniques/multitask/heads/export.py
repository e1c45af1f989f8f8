"""One task of a `MultiTaskModel` as a plain model, which everything that loads an `AutoModelFor...` can use."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from ....errors import PluginError
from ....models.heads import backbone_of, output_layers
from ..tasks import NAME

CLASSES = {
    "sequence": (AutoModelForSequenceClassification, "single_label_classification"),
    "multi_label": (AutoModelForSequenceClassification, "multi_label_classification"),
    "regression": (AutoModelForSequenceClassification, "regression"),
    "token": (AutoModelForTokenClassification, None),
    "causal_lm": (AutoModelForCausalLM, None),
}
PROBE_TOKENS = 6
CLOSE = 1e-4


def exported(model: Any, task: str) -> PreTrainedModel:
    """The encoder with one task's head, as a plain `AutoModelFor...` with the same outputs.

    Both are compared on a few tokens. A token task's model has an output for each token; a word's is that of its
    first.

    Raises:
        PluginError: no such task, no plain class for its kind or its encoder, or one that computes something else.
    """
    specs = model.specs
    if task not in specs:
        raise PluginError(
            f"{NAME}: there is no task {task!r} to export; the tasks are {', '.join(specs)}.", code="option-value"
        )
    spec = specs[task]
    if spec.kind not in CLASSES:
        raise PluginError(
            f"{NAME}: task {task!r} is of kind {spec.kind!r}, for which transformers has no class. Save the whole "
            "model, and load it with MultiTaskModel.from_pretrained.",
            code="model-unsuited",
        )
    if spec.kind == "token" and model.config.word_pooling != "first":
        raise PluginError(
            f"{NAME}: task {task!r} reads words by word_pooling={model.config.word_pooling!r}, and a plain model reads "
            "tokens. Train with word_pooling='first' to export it.",
            code="model-unsuited",
        )
    auto, problem_type = CLASSES[spec.kind]
    config = type(model.encoder.config).from_dict(model.encoder.config.to_dict())
    if spec.labels:
        config.id2label = dict(enumerate(spec.labels))
        config.label2id = {label: number for number, label in enumerate(spec.labels)}
    config.problem_type = problem_type
    try:
        plain = auto.from_config(config)
    except ValueError as error:
        raise _refusal(task, f"transformers has no {auto.__name__} of a {type(config).__name__}") from error
    # A plain class may leave out the encoder's pooler, and the head says whether that matters.
    backbone_of(plain).load_state_dict(model.encoder.state_dict(), strict=False)
    head = model.heads[task].linear
    width = plain.get_output_embeddings().out_features if spec.kind == "causal_lm" else len(spec.labels)
    layers = _language_head(plain) if spec.kind == "causal_lm" else output_layers(plain, width)
    if len(layers) != 1 or plain.get_submodule(layers[0]).weight.shape != head.weight.shape:
        raise _refusal(task, f"the head of a {type(plain).__name__} is not one linear layer of its size")
    layer = plain.get_submodule(layers[0])
    if (layer.bias is None) != (head.bias is None):
        raise _refusal(task, f"the head of a {type(plain).__name__} has {'no' if layer.bias is None else 'a'} bias")
    if spec.kind == "causal_lm":
        plain.config.tie_word_embeddings = False
        layer.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    layer.load_state_dict({name: tensor.detach() for name, tensor in head.state_dict().items()})
    plain = plain.to(device=model.device, dtype=model.dtype).eval()
    off = _difference(model, plain, task, spec.kind)
    if off > CLOSE:
        raise _refusal(
            task, f"a {type(plain).__name__} does more between encoder and head: its outputs are {off:.2g} off"
        )
    return plain


def _language_head(plain: Any) -> list[str]:
    layer = plain.get_output_embeddings()
    return [path for path, module in plain.named_modules() if module is layer]


def _refusal(task: str, why: str) -> PluginError:
    return PluginError(
        f"{NAME}: task {task!r} cannot be a plain model: {why}. Save the whole model, and load it with "
        "MultiTaskModel.from_pretrained.",
        code="model-unsuited",
    )


@torch.no_grad()
def _difference(model: Any, plain: Any, task: str, kind: str) -> float:
    training = model.training
    model.eval()
    ids = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None]
    encoded = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    specs = model.specs
    words = torch.arange(PROBE_TOKENS, device=model.device)[None]
    features = model._features(encoded, [task], specs, torch.ones_like(ids), words, None)
    ours = model.heads[task](features[task])
    theirs = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
