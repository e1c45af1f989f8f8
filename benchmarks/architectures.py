"""Every architecture that transformers' `AutoModel` knows, built small."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

VOCABULARY, WIDTH, HEADS, LAYERS = 99, 32, 4, 2
PARAMETERS = 4_000_000

_SIZES: dict[str, tuple[str, ...]] = {
    "vocab_size": (),
    "hidden_size": ("n_embd", "d_model", "embedding_size", "dim", "emb_dim", "word_embed_proj_dim", "lru_width"),
    "num_hidden_layers": (
        "n_layer",
        "n_layers",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "num_encoder_layers",
        "num_decoder_layers",
    ),
    "num_attention_heads": (
        "n_head",
        "n_heads",
        "num_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
    ),
    "intermediate_size": ("ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_inner"),
    "head_dim": ("d_kv", "d_head", "rotary_dim", "state_size", "mamba_d_state", "mamba_chunk_size", "chunk_size"),
    "num_key_value_heads": ("num_experts_per_tok", "num_hash_functions"),
    "n_group": ("topk_group", "n_shared_experts", "num_qa_layers"),
    "moe_intermediate_size": ("shared_expert_intermediate_size", "entity_vocab_size", "mamba_d_head"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
_VALUES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "head_dim": WIDTH // HEADS,
    "num_key_value_heads": 2,
    "n_group": 1,
    "moe_intermediate_size": 16,
}
_OTHERS: dict[str, Any] = {
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "attention_window": 8,
    "sliding_window": 8,
    "local_radius": 3,
    "entity_emb_size": 8,
    "coordinate_size": 6,
    "shape_size": 4,
    "max_2d_position_embeddings": 64,
    "num_hash_buckets": 64,
    "axial_pos_embds_dim": (16, 16),
    "block_sizes": [1, 1],
    "attention_types": [[["global", "local"], 1]],
    "pronunciation_embed_dim": 8,
    "shape_embed_dim": 8,
    "pronunciation_vocab_size": 20,
    "shape_vocab_size": 20,
}


class NotBuilt(Exception):
    """The architecture needs another library, another config than these sizes, or is not small."""


def kinds() -> Iterator[str]:
    """The `model_type`s of `AutoModel`."""
    return (kind for kind in MODEL_MAPPING_NAMES if kind in CONFIG_MAPPING)


def small(kind: str, positions: int = 40, padding: int = 1, **settings: Any) -> Any:
    """A model of this `model_type` with new weights, in evaluation mode.

    Args:
        positions: what the config is to say, a multiple of 4.
        padding: its `pad_token_id`.
        settings: of the config, before all others.

    Raises:
        NotBuilt: see there.
    """
    cls = CONFIG_MAPPING[kind]
    known = {*inspect.signature(cls.__init__).parameters, *getattr(cls, "attribute_map", {})}
    known.update(name for base in cls.__mro__ for name in getattr(base, "__annotations__", {}))
    values = {**_VALUES, "max_position_embeddings": positions}
    wanted = {name: values[same] for same, names in _SIZES.items() for name in (same, *names)}
    wanted |= {**_OTHERS, "pad_token_id": padding, "axial_pos_shape": (4, positions // 4)}
    if "block_sizes" in known:
        # Funnel counts its layers by blocks.
        del wanted["num_hidden_layers"]
    wanted = {name: value for name, value in wanted.items() if name in known} | settings
    try:
        config = cls(**wanted)
        if isinstance(MODEL_MAPPING_NAMES[kind], tuple):
            config.architectures = [MODEL_MAPPING_NAMES[kind][0]]
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if size > PARAMETERS:
            raise NotBuilt(f"{size:,} parameters")
        torch.manual_seed(0)
        model = AutoModel.from_config(config).float().eval()
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    return model


def takes(model: Any, length: int, **others: Any) -> bool:
    """Whether a row of so many tokens passes, none of them padding."""
    ids = torch.full((1, length), 5)
    if model.config.is_encoder_decoder:
        others = {"decoder_input_ids": ids[:, :2], **others}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **others)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True
