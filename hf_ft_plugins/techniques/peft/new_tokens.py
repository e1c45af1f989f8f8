"""Tokens that a script has added to the vocabulary of a pretrained model: an adapter leaves their rows as they began.

The embeddings and the output layer are frozen under an adapter. Rows of tokens that the model was never trained with
then stay random, and what is written with these tokens stays noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ... import mends
from ...errors import OptionError
from ...models.embeddings import input_embeddings, output_embeddings, token_embeddings
from .layers import NAME, shortest_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Numbers of tokens that a message lists.
SHOWN = 8


def new_tokens(model: PreTrainedModel) -> list[int]:
    """Rows of the embeddings beyond those that the model was made with; [] where there are none, or none is known.

    The evidence is the configuration on disk that the model names; where it names none, the size that the model's
    inner parts still remember, which `resize_token_embeddings` leaves as it was. (Rows that only pad the
    vocabulary were there before, and count as known.)
    """
    table = token_embeddings(model)
    if table is None:
        return []
    rows = int(table.weight.shape[0])
    stored = _stored_size(model)
    if stored is None:
        inside = (vars(part).get("vocab_size") for part in model.modules() if part is not model)
        known = [size for size in inside if isinstance(size, int)]
        stored = max(known) if known else None
    return list(range(stored, rows)) if stored is not None and 0 < stored < rows else []


def layers_of_tokens(model: PreTrainedModel) -> dict[str, Any]:
    """The layers with a row a token, by the shortest name that fits each alone: the embeddings, a decoder's of its
    own, and an output layer that is not tied to the first.
    """
    table, output = token_embeddings(model), output_embeddings(model)
    layers = [layer for layer in (table, _table_of_decoder(model, table), output) if layer is not None]
    if output is not None and table is not None and getattr(output, "weight", None) is table.weight:
        layers = [table]
    return {shortest_names(model, [_path_of(model, layer)])[0]: layer for layer in layers}


def _table_of_decoder(model: PreTrainedModel, table: Any) -> Any:
    """Of an encoder-decoder with two vocabularies the second one's table; None where the two halves share one."""
    if not getattr(model.config, "is_encoder_decoder", False) or not hasattr(model, "get_decoder"):
        return None
    own = token_embeddings(model.get_decoder())
    return None if own is None or table is None or own.weight is table.weight else own


def _path_of(model: PreTrainedModel, layer: Any) -> str:
    """Where the layer hangs; of several places (Marian's resized table has three) the one that the model itself asks
    for its embeddings, since peft puts what it wraps into one place, and looks for it there.
    """
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is layer]
    for path in paths if len(paths) > 1 else ():
        parent, _, name = path.rpartition(".")
        modules, other = model.get_submodule(parent)._modules, torch.nn.Embedding(1, 1)
        modules[name] = other
        try:
            if input_embeddings(model) is other:
                return path
        finally:
            modules[name] = layer
    return paths[0]


def trainable_rows(
    model: PreTrainedModel, tokens: list[int], method: str, fields: Mapping[str, Any], whole: Iterable[str]
) -> dict[str, list[int]]:
    """`trainable_token_indices` for these tokens: in each layer that has a row a token and is not trained whole.

    Raises:
        OptionError: the method cannot train single rows.
    """
    layers = layers_of_tokens(model)
    there = {name: [one for one in tokens if one < len(layers[name].weight)] for name in frozen_layers(model, whole)}
    # Where a decoder has a vocabulary of its own, tokens of the encoder's are none of the output layer's.
    left = {name: rows for name, rows in there.items() if rows}
    if left and "trainable_token_indices" not in fields:
        raise OptionError(
            f"{NAME}: option new_tokens=train is not for method={method}, which trains no single rows. Use "
            f"method=lora, or modules_to_save={'+'.join(left)}.",
            code="option-combination",
            mend=[mends.set_option(NAME, "method", "lora"), mends.set_option(NAME, "modules_to_save", list(left))],
        )
    return left


def frozen_layers(model: PreTrainedModel, whole: Iterable[str]) -> list[str]:
    """Names of the layers with a row a token that neither an adapter nor a whole copy reaches."""
    reached = tuple(whole)
    paths = {id(module): path for path, module in model.named_modules()}
    return [
        name
        for name, layer in layers_of_tokens(model).items()
        if not any(paths[id(layer)] == one or paths[id(layer)].endswith(f".{one}") for one in reached)
    ]


def warning_of(model: PreTrainedModel, tokens: list[int], layers: list[str]) -> str:
    """What to say of new tokens whose rows stay as they are."""
    shown = ", ".join(map(str, tokens[:SHOWN])) + (", ..." if len(tokens) > SHOWN else "")
    return (
        f"{NAME}: {len(tokens)} tokens ({shown}) were added to a {type(model).__name__}, and their rows of "
        f"{' and '.join(layers)} are frozen: they stay as they were initialised. Train them: new_tokens=train."
    )


def _stored_size(model: PreTrainedModel) -> int | None:
    name = getattr(model, "name_or_path", None)
    if not name:
        return None
    # Not there, or no network: nothing is known.
    with contextlib.suppress(OSError, ValueError):
        stored = type(model.config).from_pretrained(name, local_files_only=True)
        return getattr(stored.get_text_config(), "vocab_size", None)
    return None
