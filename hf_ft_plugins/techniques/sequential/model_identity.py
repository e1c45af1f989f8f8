"""Whether a stage goes on with the model of the stage before: the same kind, labels and vocabulary, and its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ...shards import whole_tensor
from .start_weights import plain_name

# Numbers of each tensor that are kept to recognise it, and how far they may be from what another dtype rounds them to.
KEPT = 4
ROUNDING = 2**-8  # of bfloat16


def identity_of(model: Any, processing_class: Any) -> dict[str, Any]:
    """What has to stay the same from stage to stage, as JSON can hold it.

    Args:
        model: as the trainer holds it, in or out of an adapter.
        processing_class: the trainer's tokenizer or processor; None: its vocabulary is not known.

    Returns:
        `class`, `labels` (names of the classes; None of a model without any), `vocabulary` (rows of the embeddings) and
        `tokens` (a digest of the tokenizer's vocabulary); None is what is not known.
    """
    plain = plain_model(model)
    config = getattr(plain, "config", None)
    labels = getattr(config, "id2label", None)
    embeddings = _embeddings(plain)
    return {
        # FSDP2 makes a class of its own of each.
        "class": type(plain).__name__.removeprefix("FSDP"),
        "labels": None if not labels else [str(labels[key]) for key in sorted(labels, key=int)],
        "vocabulary": None if embeddings is None else int(embeddings.weight.shape[0]),
        "tokens": _tokens(processing_class),
    }


def plain_model(model: Any) -> Any:
    """The model inside of an adapter; else the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _embeddings(model: Any) -> Any:
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if getattr(found, "weight", None) is not None and found.weight.dim() == 2 else None


def _tokens(processing_class: Any) -> str | None:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two `identity_of` is not the same, a line each; what either does not know is not compared."""
    lines = []
    for what in before:
        was, is_now = before[what], now.get(what)
        if was is None or is_now is None or was == is_now:
            continue
        if what == "tokens":
            lines.append("the tokenizer has other tokens, or numbers them differently")
        elif what == "vocabulary":
            lines.append(f"the model's embeddings had {was} rows, and have {is_now}")
        else:
            lines.append(f"the model's {what} was {was}, and is {is_now}")
    return lines


def sample_of(model: Any) -> dict[str, list[float]]:
    """A few numbers of each parameter, by its name without an adapter's wrapping; none of an adapter's own."""
    sample = {}
    for name, parameter in model.named_parameters():
        # Quantised numbers are packed.
        if "lora_" in name or "modules_to_save" in name or not parameter.is_floating_point():
            continue
        tensor = whole_tensor(parameter.detach())
        # All over it: the first row of embeddings may be that of padding, which never moves.
        last = tensor.numel() - 1
        places = sorted({last * number // (KEPT - 1) for number in range(KEPT)}) if last >= 0 else []
        numbers = tensor.flatten()[places].float().tolist()
        sample[plain_name(name).removeprefix("base_model.model.").replace(".base_layer.", ".")] = numbers
    return sample


def starts_from(sample: dict[str, list[float]], earlier: dict[str, list[float]]) -> bool:
    """Whether a model with this `sample_of` holds the weights of an earlier one, as far as both have the parameter.

    A model that has been loaded in half precision holds them.
    """
    common = sample.keys() & earlier.keys()
    if not common:
        return False
    for name in common:
        one, other = torch.tensor(sample[name]), torch.tensor(earlier[name])
        if len(one) != len(other) or not torch.allclose(one, other, rtol=ROUNDING, atol=1e-6):
            return False
    return True
