"""Small models of every input that transformers knows, with rows that train them; for the situations of `peft`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_ENCODER_DECODER = {
    **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
}
TEXT = {**SMALL, "vocab_size": 64, "max_position_embeddings": 40}
PICTURE = {**SMALL, "image_size": 16, "patch_size": 8}
SOUND = {
    **{**SMALL, "vocab_size": 20, "conv_dim": (8, 8), "conv_kernel": (8, 4), "conv_stride": (4, 4)},
    **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    **{"classifier_proj_size": 8, "mask_time_prob": 0.0, "num_labels": 3, "layerdrop": 0.0},
}
SERIES = {"prediction_length": 4, "context_length": 8}


@dataclass(frozen=True)
class Family:
    """A class of transformers, its settings, and one row of its data; `draw` makes the row's random numbers."""

    settings: dict[str, Any]
    row: Callable[[torch.Generator], dict[str, Any]]

    def model(self, name: str) -> Any:
        cls = getattr(transformers, name)
        torch.manual_seed(0)
        return cls(cls.config_class(**self.settings))


def _ids(draw: torch.Generator, length: int = 8, most: int = 64) -> torch.Tensor:
    return torch.randint(4, most, (length,), generator=draw)


def _class(draw: torch.Generator, classes: int = 2) -> torch.Tensor:
    return torch.randint(classes, (), generator=draw)


def _picture(draw: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 16, 16, generator=draw)


def _wave(draw: torch.Generator) -> torch.Tensor:
    return torch.randn(400, generator=draw)


def _series(draw: torch.Generator, past: int) -> dict[str, Any]:
    return {
        "past_values": torch.rand(past, generator=draw),
        "past_time_features": torch.rand(past, 1, generator=draw),
        "past_observed_mask": torch.ones(past),
        "future_values": torch.rand(4, generator=draw),
        "future_time_features": torch.rand(4, 1, generator=draw),
    }


def _clip(draw: torch.Generator) -> dict[str, Any]:
    return {"input_ids": _ids(draw), "pixel_values": _picture(draw), "return_loss": True}


FAMILIES = {
    "BertForSequenceClassification": Family(TEXT, lambda d: {"input_ids": _ids(d), "labels": _class(d)}),
    "BertForTokenClassification": Family(TEXT, lambda d: {"input_ids": _ids(d), "labels": _ids(d) % 2}),
    "BertForQuestionAnswering": Family(
        TEXT, lambda d: {"input_ids": _ids(d), "start_positions": _class(d, 8), "end_positions": _class(d, 8)}
    ),
    "BertForMultipleChoice": Family(
        TEXT, lambda d: {"input_ids": torch.stack([_ids(d), _ids(d)]), "labels": _class(d)}
    ),
    "BertForMaskedLM": Family(TEXT, lambda d: {"input_ids": _ids(d), "labels": _ids(d)}),
    "GPT2LMHeadModel": Family(
        {"vocab_size": 64, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0},
        lambda d: {"input_ids": _ids(d), "labels": _ids(d)},
    ),
    "LlamaForCausalLM": Family(TEXT, lambda d: {"input_ids": _ids(d), "labels": _ids(d)}),
    "MptForCausalLM": Family(
        {"vocab_size": 64, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 40},
        lambda d: {"input_ids": _ids(d), "labels": _ids(d)},
    ),
    "T5ForConditionalGeneration": Family(
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        | {"decoder_start_token_id": 0, "pad_token_id": 0},
        lambda d: {"input_ids": _ids(d), "labels": _ids(d)},
    ),
    "BartForConditionalGeneration": Family(
        SMALL_ENCODER_DECODER | {"vocab_size": 64, "forced_eos_token_id": 2},
        lambda d: {"input_ids": _ids(d), "labels": _ids(d)},
    ),
    "M2M100ForConditionalGeneration": Family(
        SMALL_ENCODER_DECODER | {"vocab_size": 64}, lambda d: {"input_ids": _ids(d), "labels": _ids(d)}
    ),
    "WhisperForConditionalGeneration": Family(
        SMALL_ENCODER_DECODER
        | {"vocab_size": 64, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 24}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
        lambda d: {"input_features": torch.randn(8, 32, generator=d), "labels": _ids(d)},
    ),
    "WhisperForAudioClassification": Family(
        SMALL_ENCODER_DECODER
        | {"vocab_size": 64, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 24}
        | {"suppress_tokens": None, "begin_suppress_tokens": None, "classifier_proj_size": 8},
        lambda d: {"input_features": torch.randn(8, 32, generator=d), "labels": _class(d)},
    ),
    "Speech2TextForConditionalGeneration": Family(
        SMALL_ENCODER_DECODER
        | {"vocab_size": 64, "input_feat_per_channel": 8, "input_channels": 1, "max_source_positions": 64}
        | {"max_target_positions": 24, "conv_channels": 16, "conv_kernel_sizes": (3, 3), "num_conv_layers": 2},
        lambda d: {"input_features": torch.randn(32, 8, generator=d), "labels": _ids(d)},
    ),
    "Wav2Vec2ForCTC": Family(SOUND, lambda d: {"input_values": _wave(d), "labels": _ids(d, 3, 20)}),
    "Wav2Vec2ForSequenceClassification": Family(SOUND, lambda d: {"input_values": _wave(d), "labels": _class(d)}),
    "HubertForSequenceClassification": Family(SOUND, lambda d: {"input_values": _wave(d), "labels": _class(d)}),
    "WavLMForCTC": Family(SOUND, lambda d: {"input_values": _wave(d), "labels": _ids(d, 3, 20)}),
    "ASTForAudioClassification": Family(
        SMALL | {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        lambda d: {"input_values": torch.randn(32, 16, generator=d), "labels": _class(d)},
    ),
    "ViTForImageClassification": Family(PICTURE, lambda d: {"pixel_values": _picture(d), "labels": _class(d)}),
    "ViTMAEForPreTraining": Family(
        PICTURE
        | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        | {"decoder_intermediate_size": 32},
        lambda d: {"pixel_values": _picture(d)},
    ),
    "Dinov2ForImageClassification": Family(PICTURE, lambda d: {"pixel_values": _picture(d), "labels": _class(d)}),
    "SwinForImageClassification": Family(
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2},
        lambda d: {"pixel_values": _picture(d), "labels": _class(d)},
    ),
    "BeitForSemanticSegmentation": Family(
        PICTURE | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1], "auxiliary_channels": 8},
        lambda d: {"pixel_values": _picture(d), "labels": torch.randint(2, (16, 16), generator=d)},
    ),
    "CLIPModel": Family(
        {"text_config": TEXT | {"eos_token_id": 2}, "vision_config": PICTURE, "projection_dim": 8}, _clip
    ),
    "SiglipModel": Family({"text_config": TEXT | {"projection_size": 16}, "vision_config": PICTURE}, _clip),
    "CLIPForImageClassification": Family(
        {"text_config": TEXT, "vision_config": PICTURE, "projection_dim": 8},
        lambda d: {"pixel_values": _picture(d), "labels": _class(d)},
    ),
    "BlipForConditionalGeneration": Family(
        {"text_config": TEXT | {"encoder_hidden_size": 16, "bos_token_id": 0, "sep_token_id": 2}}
        | {"vision_config": PICTURE},
        lambda d: {"pixel_values": _picture(d), "input_ids": _ids(d), "labels": _ids(d)},
    ),
    "GitForCausalLM": Family(
        TEXT | {"vision_config": PICTURE},
        lambda d: {"pixel_values": _picture(d), "input_ids": _ids(d), "labels": _ids(d)},
    ),
    "ViltForImagesAndTextClassification": Family(
        TEXT | {"image_size": 16, "patch_size": 8, "num_images": 1, "modality_type_vocab_size": 3},
        lambda d: {"input_ids": _ids(d), "pixel_values": _picture(d)[None], "labels": _class(d)},
    ),
    "LayoutLMForTokenClassification": Family(
        TEXT, lambda d: {"input_ids": _ids(d), "bbox": torch.tensor([[1, 2, 3, 4]] * 8), "labels": _ids(d) % 2}
    ),
    "Pix2StructForConditionalGeneration": Family(
        {
            "text_config": {"vocab_size": 64, "hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
            | {"decoder_start_token_id": 0, "pad_token_id": 0},
            "vision_config": {"hidden_size": 16, "patch_embed_hidden_size": 12, "d_ff": 32, "d_kv": 8, "seq_len": 16}
            | {"num_hidden_layers": 2, "num_attention_heads": 2},
        },
        lambda d: {"flattened_patches": torch.rand(4, 14, generator=d), "labels": _ids(d)},
    ),
    "PerceiverForSequenceClassification": Family(
        {"vocab_size": 64, "max_position_embeddings": 40, "num_latents": 4, "d_latents": 16, "d_model": 16}
        | {"num_blocks": 1, "num_self_attends_per_block": 2, "num_self_attention_heads": 2}
        | {"num_cross_attention_heads": 2},
        lambda d: {"inputs": _ids(d), "attention_mask": torch.ones(8), "labels": _class(d)},
    ),
    "TimeSeriesTransformerForPrediction": Family(
        SMALL_ENCODER_DECODER | SERIES | {"num_time_features": 1, "lags_sequence": [1, 2]},
        lambda d: _series(d, 10),
    ),
    "PatchTSTForPrediction": Family(
        {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4}
        | {"d_model": 16, "num_attention_heads": 2, "ffn_dim": 32, "num_hidden_layers": 2, "random_mask_ratio": 0.4},
        lambda d: {
            "past_values": torch.rand(16, 2, generator=d),
            "future_values": torch.rand(4, 2, generator=d),
        },
    ),
}


def vision_encoder_decoder() -> Any:
    """A ViT that a GPT-2 describes, and the row that trains it."""
    vision = transformers.ViTConfig(**PICTURE)
    text = transformers.GPT2Config(
        **{"vocab_size": 64, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0},
        **{"add_cross_attention": True, "is_decoder": True},
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id = config.pad_token_id = 0
    torch.manual_seed(0)
    return transformers.VisionEncoderDecoderModel(config)
