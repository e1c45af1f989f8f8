"""The estimate of mixtures of experts, whose weights are multiplied in groups, in any type of numbers."""

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import TrainingArguments

from hf_ft_plugins.memory.estimate import estimate_memory
from hf_ft_plugins.memory.grouped_products import GroupedProducts

SIZE = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 0},
}
FINE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
GROUPS = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 8}
MIXTURES = {
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 16, **FINE},
    "Qwen3Moe": {"num_experts": 4, **FINE},
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": {**FINE, **LATENT, **GROUPS},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def args(tmp_path):
    return TrainingArguments(str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to="none")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_in_float32_holds_its_weights_and_their_gradients(tmp_path, name):
    config = getattr(transformers, f"{name}Config")(**SIZE | MIXTURES[name])
    model_class = getattr(transformers, f"{name}ForCausalLM")
    found = estimate_memory(config, args(tmp_path), length=16, model_class=model_class)
    assert found.weights >= found.weights_only
    assert found.optimizer >= 2 * found.weights_only
    assert found.activations > 0


def product(dtype):
    rows = torch.ones(8, 16, dtype=dtype, requires_grad=True)
    experts = torch.ones(3, 24, 16, dtype=dtype, requires_grad=True)
    ends = torch.tensor([2, 5, 8], dtype=torch.int32)
    result = torch.nn.functional.grouped_mm(rows, experts.transpose(-2, -1), offs=ends)
    (result * 1.0).sum().backward()
    return [(tuple(one.shape), one.dtype) for one in (result, rows.grad, experts.grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_without_numbers_has_the_shapes_and_types_of_one_with_numbers(dtype):
    with FakeTensorMode(), GroupedProducts():
        found = product(dtype)
    assert found == product(dtype)


def test_control_torch_alone_refuses_a_product_in_float32_without_numbers():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="Expected inputs of BF16 type"):
        product(torch.float32)
