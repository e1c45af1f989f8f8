"""Every architecture that transformers' `AutoModel` knows, built small."""

from __future__ import annotations

import inspect
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


# Those that `small` builds with transformers 5.23 and no further library; the others are large whatever their config
# says, need timm or the like, or have sizes that go together in their own way.
BUILT = """
    afmoe aimv2_vision_model albert apertus arcee aria_text audio-spectrogram-transformer audioflamingo3_encoder axk1
    axk2 bailing_hybrid bart beam beit bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot
    blenderbot-small blip_2_qformer bloom bros camembert canine chinese_clip_vision_model clip_text_model
    clip_vision_model codegen cohere cohere2 cohere2_moe cohere_compass_vision convbert convnext convnextv2
    cosmos3_edge_vision cpmant ctrl cwm data2vec-text data2vec-vision deberta deberta-v2 decision_transformer
    deepseek_v2 deepseek_v3 deepseek_v4 deit diffllama dinov2 dinov2_with_registers dinov3_vit distilbert doge dots1
    dpr dpt electra embedding_gemma2_text ernie ernie4_5 ernie4_5_moe esm eurobert exaone4 exaone4_5_vision exaone_moe
    falcon falcon_mamba flaubert flex_olmo flint fnet fsmt fun_asr_nano_encoder funnel gemma gemma2 gemma3_text
    gemma3n_audio gemma4_audio gemma4_unified_text gemma4_vision glm glm4 glm4_moe glm4_moe_lite glm4v_moe_text
    glm4v_text glm_image_text glm_image_vision glm_ocr_text glmasr_encoder gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_neox_japanese gpt_oss gptj granite granite_docling_text granite_swa granitemoe granitemoe_swa granitemoeshared
    gte helium higgs_audio_v2 hrm_text hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hunyuan_vl_vision hy_v3
    hyperclovax ibert idefics3_vision ijepa imagegpt inkling2_text inkling_text internlm3 internvl_vision iquestcoder
    jais2 jamba jetmoe jina_embeddings_v3 kimi_k25_vision kimi_linear kolibri1 laguna lasr_encoder layoutlm layoutlmv3
    led lfm2 lfm3 lfm3_vl_vision lightglue lilt llama llama4_text longformer longt5 luke lxmert m2m_100 mamba marian
    markuplm mbart megatron-bert mellum mgp-str mimo_v2_flash minicpm3 minicpm_ocr_vision minicpmv4_7_vision minimax
    minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mistral4 mistral_large4_text mixtral mlcd
    mlcd_vision_model mobilebert mobilenet_v1 mobilenet_v2 modernbert modernbert-decoder molmo2_text moonshine moshi
    moss_transcribe_diarize_audio mpnet mpt mra mt5 muse_glimmer_assistant muse_glimmer_text muse_glimmer_vision
    muse_spark_text muse_spark_vision mvp nanochat nemotron nemotron3_5_transcribe_asr_audio
    nemotron3_diarization_audio nemotron_asr_streaming_encoder nemotron_h nllb-moe nomic_bert nystromformer olmo olmo2
    olmo3 olmo_hybrid olmoe openai-gpt openai_privacy_filter opt parakeet_encoder patchtsmixer patchtst pegasus
    pegasus_x persimmon phi phi3 phimoe pixio pixtral plbart pocket_tts_audio_tokenizer_encoder pp_ocrv5_mobile_rec
    pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec prophetnet qianfan_ocr_vision qwen2 qwen2_5_vl_text
    qwen2_5_vl_vision qwen2_audio_encoder qwen2_moe qwen2_vl_text qwen3 qwen3_5_moe_text qwen3_5_moe_vision
    qwen3_5_text qwen3_5_vision qwen3_moe qwen3_next qwen3_vl_moe_text qwen3_vl_moe_vision qwen3_vl_text
    qwen3_vl_vision qwen4_exp_text qwen4_exp_vision radio recurrent_gemma reformer rembert roberta roberta-
    prelayernorm roc_bert roformer rwkv sam3_lite_text_text_model sam3_vit_model sam_hq_vision_model sam_vision_model
    sapiens2 seed_oss seggpt sew sew-d siglip2_vision_model siglip_vision_model smollm3 smolvlm_vision solar_open
    speech_to_text speecht5 splinter squeezebert stablelm starcoder2 swiftformer switch_transformers t5 tapas timesfm
    timesfm2_5 timesformer tipsv2_text_model tipsv2_vision_model udop ultrabert umt5 vaultgemma video_llama_3_vision
    videomae videoprism_vision_model vilt visual_bert vit vit_mae vit_msn vitdet vivit voxtral_encoder
    voxtral_realtime_encoder wav2vec2-bert whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos yoso
    youtu
"""


class NotBuilt(Exception):
    """The architecture needs another library, another config than these sizes, or is not small."""


def kinds() -> list[str]:
    """The `model_type`s of `AutoModel` that are built small, as far as this version of transformers has them."""
    return [kind for kind in BUILT.split() if kind in MODEL_MAPPING_NAMES and kind in CONFIG_MAPPING]


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
