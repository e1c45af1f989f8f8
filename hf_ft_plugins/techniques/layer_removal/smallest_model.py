"""A small model of any class of transformers, with random weights: what its configuration calls its sizes is tried."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch

from .trial_inputs import forward, trial_inputs

DEPTH = 6
_HEADS: tuple[str, ...] = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_HEADS += ("encoder_num_attention_heads", "decoder_num_attention_heads")
_HEADS += ("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads", "mamba_n_heads")
_WIDTHS: tuple[str, ...] = (
    "hidden_size",
    "n_embd",
    "d_model",
    "dim",
    "emb_dim",
    "embedding_size",
    "word_embed_proj_dim",
    "lru_width",
)
_WIDTHS += ("encoder_hidden_dim", "decoder_hidden_size", "projection_dim", "image_size", "max_source_positions")
_WIDER: tuple[str, ...] = (
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "hidden_dim",
    "n_inner",
)
_WIDER += ("decoder_intermediate_size", "intermediate_size_mlp")
_EIGHTS: tuple[str, ...] = (
    "d_kv",
    "state_size",
    "mamba_d_state",
    "mamba_chunk_size",
    "chunk_size",
    "sliding_window",
    "patch_size",
)
_EIGHTS += ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim")
_EIGHTS += ("attention_window", "block_size", "local_attention", "head_dim")
_SIXTEENS: tuple[str, ...] = (
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
    "mamba_d_head",
)
_SIXTEENS += ("num_mel_bins", "input_feat_per_channel", "conv_channels", "feature_size", "feature_projection_input_dim")
_SIXTEENS += ("num_conv_pos_embeddings", "codevector_dim", "proj_codevector_dim")
_TWOS: tuple[str, ...] = (
    "num_key_value_heads",
    "num_experts_per_tok",
    "linear_num_key_heads",
    "num_feat_extract_layers",
)
_TWOS += ("num_conv_pos_embedding_groups", "tubelet_size", "expand", "eos_token_id")
_ONES: tuple[str, ...] = (
    "n_shared_experts",
    "n_group",
    "topk_group",
    "mamba_n_groups",
    "bos_token_id",
    "decoder_start_token_id",
)
_DEPTHS: tuple[str, ...] = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
_DEPTHS += ("num_encoder_layers", "num_decoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers")
SIZES: dict[str, Any] = {
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_WIDTHS, 32),
    **dict.fromkeys(_WIDER, 48),
    **dict.fromkeys(_EIGHTS, 8),
    **dict.fromkeys(_SIXTEENS, 16),
    **dict.fromkeys(_TWOS, 2),
    **dict.fromkeys(_ONES, 1),
    **dict.fromkeys(_DEPTHS, DEPTH),
    **{"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4, "num_frames": 4, "time_step_rank": 4},
    **{"vocab_size": 99, "pad_token_id": 0, "n_positions": 64, "rotary_dim": 4, "hidden_size_per_layer_input": 0},
    **{"max_position_embeddings": 64, "max_target_positions": 64, "attention_type": "original_full"},
    **{"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)},
}
# Left out one after the other where a configuration refuses the whole and names no field.
DOUBTFUL = ("head_dim", "num_key_value_heads", "qk_rope_head_dim", "conv_kernel", "vocab_size", "pad_token_id")


def smallest(model_class: Any, config_class: Any) -> Any:
    """The model, float32, always the same.

    Raises:
        ValueError: it has more than 30 million weights, or does not run with any of the sizes that are tried.
    """
    tried: Exception | None = None
    # Latent attention has as many keys as queries; windows over an image need a large one.
    others: list[dict[str, int | None]] = [{}, {"num_key_value_heads": 4}, {"head_dim": None}]
    others.append({"image_size": None, "patch_size": None})
    for other in others:
        config = small_config(config_class, other)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in model_class(copy.deepcopy(config)).parameters())
        if size > 30_000_000:
            raise ValueError(f"{model_class.__name__} has {size:,} weights at its smallest.")
        torch.manual_seed(0)
        model = model_class(config).float().eval()
        try:
            with torch.no_grad():
                forward(model, trial_inputs(model))
        except Exception as error:
            tried = error
            continue
        return model
    raise ValueError(f"{model_class.__name__} does not run at its smallest: {tried}") from tried


def small_config(config_class: Any, other: dict[str, int | None] | None = None) -> Any:
    """A configuration with the sizes above, but for `other` ones (None: its own), and for those that it refuses."""
    settings, left_out = _settings(config_class), list(DOUBTFUL)
    changed = {name: size for name, size in (other or {}).items() if name in settings}
    settings = {name: size for name, size in {**settings, **changed}.items() if size is not None}
    while True:
        try:
            return config_class(**settings)
        except Exception as error:
            named = [name for name in re.findall(r"\w+", str(error)) if name in settings]
            name = next(iter([*named, *(name for name in left_out if name in settings)]), None)
            if name is None:
                raise
            del settings[name]


def _settings(config_class: Any, depth: int = 0) -> dict[str, Any]:
    known = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    for base in config_class.__mro__:
        known |= set(vars(base).get("__annotations__", {}))
    aliases = config_class.attribute_map
    settings = {name: size for name, size in SIZES.items() if name in known and aliases.get(name) not in SIZES}
    for name, part in (config_class.sub_configs or {}).items():
        if depth < 3 and inspect.isclass(part) and hasattr(part, "model_type") and part.model_type:
            settings[name] = _settings(part, depth + 1)
    return settings
