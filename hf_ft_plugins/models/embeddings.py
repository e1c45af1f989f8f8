"""A model's embeddings and the output layer that may be tied to them; of a model without tokens, none."""

from __future__ import annotations

from typing import Any

import torch

from .text_part import text_part


def input_embeddings(model: Any) -> torch.nn.Module | None:
    """The layer that embeds token ids, or what transformers takes for it; None where there is none."""
    return _asked(model, "get_input_embeddings")


def output_embeddings(model: Any) -> torch.nn.Module | None:
    """The output layer over the vocabulary; None where there is none."""
    return _asked(model, "get_output_embeddings")


def token_embeddings(model: Any) -> torch.nn.Embedding | None:
    """The table of the tokens, [tokens, width], under an adapter or not; None for a model of pictures or sound."""
    layer: Any = input_embeddings(model) or input_embeddings(text_part(model))
    # What peft wraps whole, by rows, and with an adapter.
    for inside in ("original_module", "base_layer"):
        layer = getattr(layer, inside, layer)
    return layer if isinstance(layer, torch.nn.Embedding) else None


def tied_layers(model: Any) -> dict[str, list[str]]:
    """Parameters that several modules share: by the first one's path in the model, the paths of all."""
    shared: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            shared.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    return {paths[0]: paths for paths in shared.values() if len(paths) > 1}


def _asked(model: Any, method: str) -> Any:
    if not hasattr(model, method):
        return None
    try:
        layer = getattr(model, method)()
        # Perceiver answers with its latents, which are no layer.
        return layer if isinstance(layer, torch.nn.Module) else None
    except NotImplementedError:
        # transformers' way to say that this architecture has none.
        return None
