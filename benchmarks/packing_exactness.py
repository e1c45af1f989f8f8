"""How far the loss and gradients of packed rows are from those of the padded batch, in float64 and without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ft_plugins.techniques.text2text import TextPairCollator, pack_aware

PAIRS, LONGEST, VOCABULARY = 48, 24, 384
BOTH = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
BART = {"d_model": 16, "dropout": 0.0, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **BOTH}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "T5": (T5ForConditionalGeneration, T5Config, T5),
    "BART": (BartForConditionalGeneration, BartConfig, BART),
    "Marian": (MarianMTModel, MarianConfig, {"decoder_vocab_size": VOCABULARY, **BART}),
    "Llama": (LlamaForCausalLM, LlamaConfig, LLAMA),
}
Measured = tuple[torch.Tensor, torch.Tensor]


def differences() -> Iterator[tuple[str, float, float]]:
    """For each model and attention: its name, the largest relative difference, and that of a control that leaks."""
    for name in MODELS:
        # Llama's eager attention computes its softmax in float32.
        for attention in ("sdpa",) if name == "Llama" else ("eager", "sdpa"):
            yield f"{name}, {attention}", *_differences(name, attention)


def _differences(name: str, attention: str) -> tuple[float, float]:
    model_class, config_class, size = MODELS[name]
    torch.manual_seed(0)
    causal = model_class is LlamaForCausalLM
    start = {} if causal else {"decoder_start_token_id": 0}
    config = config_class(vocab_size=VOCABULARY, attn_implementation=attention, pad_token_id=0, **start, **size)
    model = model_class(config).double()
    for parameter in model.parameters():
        # Weights as large as trained ones, so that what leaks shows.
        if parameter.requires_grad and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    draw = np.random.default_rng(0)
    pairs = [
        {"input_ids": draw.integers(3, VOCABULARY, s).tolist(), "labels": draw.integers(3, VOCABULARY, t).tolist()}
        for s, t in draw.integers(1, LONGEST + 1, (PAIRS, 2))
    ]
    collators = [
        TextPairCollator(ByT5Tokenizer(), model if causal else pack_aware(model), packing=packing)
        for packing in ("none", "flatten" if causal else "pairs")
    ]
    padded, packed = (collate(pairs) for collate in collators)
    expected = _measured(model, padded, causal)
    leaky = {key: value for key, value in packed.items() if not key.endswith(("segment_ids", "position_ids"))}
    leaky["attention_mask"] = (packed["input_ids"] if causal else packed["encoder_segment_ids"]).clamp(max=1)
    return _distance(_measured(model, packed, causal), expected), _distance(_measured(model, leaky, causal), expected)


def _measured(model: Any, batch: dict[str, Any], causal: bool) -> Measured:
    """The mean loss of the real tokens and all gradients, as one vector."""
    model.zero_grad()
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    labels = batch["labels"]
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _distance(first: Measured, second: Measured) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))
