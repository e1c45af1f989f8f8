"""`layer-removal` on the kit's classifier; and small models of many architectures to take layers from."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ...host.stash import stash_of
from ...models.inputs import bare
from ...techniques.layer_removal import LayerRemoval
from ..example import Example

VOCABULARY = 128
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": VOCABULARY}
SMALL: dict[str, Any] = {**SIZE, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0}
HEADS: dict[str, Any] = {**SMALL, "head_dim": 8}
GPT: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 6,
    "n_head": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK: dict[str, Any] = {
    **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 3, "moe_intermediate_size": 16},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"num_experts_per_tok": 2, "num_key_value_heads": 4},
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
RIGHT: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 6, "n_head": 4, "vocab_size": VOCABULARY},
    "deepseek_v3": SMALL | DEEPSEEK,
    "gemma2": HEADS,
    "gemma3_text": HEADS,
    "gpt2": GPT,
    "gpt_neo": {
        **{"hidden_size": 32, "num_layers": 6, "num_heads": 4, "vocab_size": VOCABULARY},
        **{"attention_types": [[["global", "local"], 3]], "bos_token_id": 1, "eos_token_id": 1},
    },
    "gpt_neox": SMALL,
    "gpt_oss": HEADS | {"num_local_experts": 4},
    "granite": SMALL,
    "llama": SMALL,
    "llama4_text": HEADS | {"num_local_experts": 4, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 6, "vocab_size": VOCABULARY, "state_size": 4},
    "mistral": SMALL,
    "mixtral": SMALL | {"num_local_experts": 4},
    "olmo2": SMALL,
    "olmo3": SMALL,
    "opt": SIZE | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "phi3": SMALL,
    "qwen2": SMALL,
    "qwen3": HEADS,
    "qwen3_moe": HEADS | EXPERTS | {"mlp_only_layers": [1], "decoder_sparse_step": 2},
    "qwen3_next": HEADS | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 16},
    "smollm3": SMALL | {"bos_token_id": 1, "eos_token_id": 2},
}
REFUSED: dict[str, dict[str, Any]] = {
    "jamba": SMALL
    | {"num_experts": 4, "use_mamba_kernels": False, "mamba_d_state": 4}
    | {"attn_layer_period": 3, "attn_layer_offset": 1},
    "gpt2": GPT | {"scale_attn_by_inverse_layer_idx": True},
}


def built(kind: str, settings: dict[str, Any], auto: Any = AutoModelForCausalLM) -> Any:
    """A model of six layers or so with small random weights, always the same."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    return model.eval()


def acted(technique: LayerRemoval, trainer: Any) -> bool:
    """The configuration says what is gone, and the model is what it says."""
    from ...techniques.layer_removal.stacks import find_stack
    from ...techniques.layer_removal.surgery import SURGERY

    surgery = stash_of(trainer).get(SURGERY)
    if surgery is None:
        return False
    stack = find_stack(bare(trainer.model), surgery.side)
    return len(stack.layers) == surgery.depth - len(surgery.removed)


EXAMPLE = Example(
    LayerRemoval(number=1, protect_first=0, protect_last=0, max_degradation=None, max_repetition=None), acted
)
