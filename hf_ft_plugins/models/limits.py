"""How many tokens a model takes in a row."""

from __future__ import annotations

import re
import sys
from typing import Any

from torch import Tensor

from .inputs import bare, main_input_name

# What models call a table with a vector for each position; those of pictures and of relations are named otherwise.
TABLE = re.compile(
    r"((text_|char_)?positions?_(embed|embedding|embeddings|embeds_layer)|embed_positions|wpe|pos_encoding)"
)
# Parts that read something else than the main text.
OTHER = re.compile(r"vision|visual|image|pixel|audio|speech|entit")
# No length is the limit of a table that grows.
GROWS = -1
# Where forward passes make the table anew, as long as the config says, or check the config's number.
IN_CONFIG = {"mpt": "max_seq_len", "reformer": "max_position_embeddings"}


def longest_input(model: Any) -> int | None:
    """The largest number of tokens in a row of the model's main text input; None if there is no limit.

    It is read from the table of position embeddings, since configurations count differently: RoBERTa's has 514 for 512
    tokens, because positions start after the padding's, and BART's table has two rows more than its configuration says.
    If there is no table, or positions beyond it take its last row, the limit is the configuration's length in training
    (rotary and relative positions): the model runs on longer rows, but was not trained on them. There is no limit for
    tables that grow (M2M100, XGLM, FSMT), ALiBi, and relative positions without such a number (T5, XLNet).

    Args:
        model: bare, with a head, under PEFT, or a `MultiTaskModel`; of an encoder-decoder the encoder counts.
    """
    virtual = _virtual_tokens(model)
    model = bare(model)
    if main_input_name(model) != "input_ids":
        return None
    # Of a `MultiTaskModel`, the encoder's.
    config = model.base_model.config.get_text_config(encoder=True)
    stack = model.get_encoder() if config.is_encoder_decoder else model
    limit = _table_limit(stack, config)
    if limit is None:
        limit = _declared_limit(config)
    return None if limit is None or limit == GROWS else max(1, limit - virtual)


def _virtual_tokens(model: Any) -> int:
    """The number of positions of a row that PEFT's prompts take."""
    own = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    return int(getattr(own, "num_virtual_tokens", None) or 0)


def _declared_limit(config: Any) -> int | None:
    """The configuration's number of positions; None for XLNet's -1 and for ALiBi."""
    declared = getattr(config, "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 and not getattr(config, "alibi", False) else None


def _table_limit(stack: Any, config: Any) -> int | None:
    kind = getattr(config, "model_type", None)
    if kind in IN_CONFIG:
        return int(getattr(config, IN_CONFIG[kind]))
    for path, owner in stack.named_modules():
        if OTHER.search(path):
            continue
        tables = {**owner._modules, **owner._parameters, **owner._buffers}
        for name, table in tables.items():
            if table is not None and TABLE.fullmatch(name):
                limit = _rows_free(owner, _unwrapped(table), config)
                if limit is not None:
                    return limit
    return None


def _unwrapped(table: Any) -> Any:
    """The table under PEFT's layer, if there is one."""
    for name in ("base_layer", "original_module"):
        table = getattr(table, name, table)
    return table


def _rows_free(owner: Any, table: Any, config: Any) -> int | None:
    """The rows of a table from the first token's on; None if it is no table, or positions beyond it are no error."""
    places = getattr(owner, "position_ids", None)
    given = places.shape[-1] if isinstance(places, Tensor) else None
    if hasattr(table, "make_weights") or hasattr(table, "make_weight"):
        return given or GROWS
    # ProphetNet and TAPAS give all tokens beyond the table its last row.
    if hasattr(table, "max_length") or getattr(config, "reset_position_index_per_cell", False):
        return None
    rows = _rows(table)
    if rows is None:
        return None
    if hasattr(table, "offset"):
        rows -= int(table.offset)
    elif getattr(table, "padding_idx", None) is not None and _counts_from_padding(owner):
        return rows - int(table.padding_idx) - 1
    if hasattr(owner, "_pad_to_window_size"):
        # LED's padding has places of its own.
        windows = config.attention_window
        window = max(windows) if isinstance(windows, (list, tuple)) else windows
        rows -= rows % window
    return min(rows, given or rows)


def _rows(table: Any) -> int | None:
    # A sharded weight has another shape than the table.
    if hasattr(table, "num_embeddings"):
        return int(table.num_embeddings)
    weights = [found for found in (table, *getattr(table, "_parameters", {}).values()) if isinstance(found, Tensor)]
    return int(weights[0].shape[-2]) if weights and weights[0].dim() > 1 else None


def _counts_from_padding(owner: Any) -> bool:
    """Whether the model numbers only tokens that are not padding, from the padding's position on."""
    counts = "create_position_ids_from_input_ids"
    homes = (sys.modules.get(cls.__module__) for cls in type(owner).__mro__)
    return hasattr(owner, counts) or any(hasattr(home, counts) for home in homes)
