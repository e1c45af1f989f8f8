"""The linear layers of a model's blocks, their matrices, and the routers among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from hf_ft_plugins.models.linear_layers import is_router, matrices_of_blocks


def test_of_an_encoder_all_weights_of_its_blocks_but_norms_and_biases():
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertForSequenceClassification(config)
    matrices = matrices_of_blocks(model)
    assert set(matrices.values()) == {
        name for name, one in model.named_parameters() if ".layer." in name and one.ndim == 2
    }
    assert all(id(model.get_parameter(name)) == found for found, name in matrices.items())
    assert len(matrices) == 2 * 6


def test_those_of_transformers_own_linear_layer_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    assert len(matrices_of_blocks(model)) == 4


def test_under_an_adapter_those_of_the_model_and_of_the_adapter():
    peft = pytest.importorskip("peft")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    names = set(matrices_of_blocks(adapted).values())
    assert "transformer.h.0.attn.c_attn.base_layer.weight" in names
    assert "transformer.h.0.attn.c_attn.lora_A.default.weight" in names


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.gate_proj = nn.Linear(8, 4)
        self.up = nn.Linear(8, 8)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(num_experts=4, num_hidden_layers=2)
        self.layers = nn.ModuleList([Expert() for _ in range(2)])


def test_a_router_is_known_by_its_name_and_its_outputs():
    model = Mixture()
    assert is_router(model, "layers.0.gate", model.layers[0].gate)
    assert not is_router(model, "layers.0.gate_proj", model.layers[0].gate_proj)
    assert not is_router(model, "layers.0.gate", nn.Linear(8, 5))
    assert set(matrices_of_blocks(model).values()) == {
        f"layers.{block}.{name}.weight" for block in range(2) for name in ("gate_proj", "up")
    }


def test_quantised_weights_are_none():
    model = Mixture()
    weight = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.uint8), requires_grad=False)
    model.layers[0].up.weight = weight
    assert id(weight) not in matrices_of_blocks(model)


def test_a_model_without_blocks_has_none():
    assert matrices_of_blocks(nn.Linear(3, 3)) == {}
