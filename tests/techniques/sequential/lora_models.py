"""A small language model with a LoRA of which both matrices differ from 0, and rows for it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "down_proj"]


def base_model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, initializer_range=0.3, **size))


def adapted(seed=0, targets=TARGETS, model=None, **changes):
    model = base_model() if model is None else model
    torch.manual_seed(seed)
    settings = {"r": 2, "lora_alpha": 3, "target_modules": targets, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(model, peft.LoraConfig(**settings | changes))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_B" in name:
                one.normal_(std=0.3)
    return model


def batch(rows=4):
    ids = torch.randint(3, 12, (rows, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}
