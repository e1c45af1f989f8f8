"""Elastic weight consolidation of what a LoRA adds to a layer, against the same of the layer's own weight."""

import pytest
import torch

pytest.importorskip("peft")

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.adapter_fisher import (
    AdapterEWC,
    delta_name,
    estimate_adapter_fisher,
)
from hf_ft_plugins.techniques.sequential.fisher import estimate_fisher
from hf_ft_plugins.techniques.sequential.lora_layers import lora_layers
from hf_ft_plugins.techniques.sequential.start_weights import moving_parameters
from tests.techniques.sequential.lora_models import adapted, base_model, batch, peft


def layers_of(model):
    return lora_layers(model, "ewc=1")


@pytest.mark.parametrize("kind", ["sampled", "empirical"])
def test_the_fisher_of_what_is_added_is_that_of_the_layers_own_weight(kind):
    model = adapted().double()
    layers = layers_of(model)
    found = estimate_adapter_fisher(model, layers, [batch()], rows=4, kind=kind, seed=3)
    assert set(found) == {delta_name(layer) for layer in layers}
    own = {delta_name(layer): layer.module.get_base_layer().weight for layer in layers}
    expected = estimate_fisher(model, [batch()], rows=4, kind=kind, seed=3, parameters=own)
    for name, one in expected.items():
        assert torch.allclose(found[name], one, rtol=1e-10, atol=1e-14)
        assert one.max() > 1e-3


def test_a_layer_that_is_called_twice_has_the_square_of_the_sum():
    model = adapted()
    inner = model.get_base_model().model
    inner.layers[1] = inner.layers[0]
    model.double()
    layers = layers_of(model)
    assert len(layers) == 2
    found = estimate_adapter_fisher(model, layers, [batch()], rows=4, kind="empirical")
    own = {delta_name(layer): layer.module.get_base_layer().weight for layer in layers}
    for name, one in estimate_fisher(model, [batch()], rows=4, kind="empirical", parameters=own).items():
        assert torch.allclose(found[name], one, rtol=1e-10, atol=1e-14)


def test_what_learns_beside_the_adapter_has_its_own():
    model = adapted(modules_to_save=["lm_head"]).double()
    found = estimate_adapter_fisher(model, layers_of(model), [batch()], rows=4)
    (head,) = (name for name in found if "lm_head" in name)
    expected = estimate_fisher(model, [batch()], rows=4)
    assert torch.allclose(found[head], expected[head], rtol=1e-10, atol=1e-14)
    assert not any(".lora_" in name for name in found)


def test_a_transposed_weight_is_met_the_right_way_round():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    model = adapted(model=gpt2, targets=["c_attn"], fan_in_fan_out=True).double()
    layers = layers_of(model)
    found = estimate_adapter_fisher(model, layers, [batch()], rows=4, kind="empirical")
    own = {delta_name(layer): layer.module.get_base_layer().weight for layer in layers}
    for name, one in estimate_fisher(model, [batch()], rows=4, kind="empirical", parameters=own).items():
        assert torch.allclose(found[name], one.T, rtol=1e-10, atol=1e-14)


def test_the_gradient_and_the_value_are_those_of_the_penalty():
    model = adapted().double()
    layers = layers_of(model)
    named = moving_parameters(model)
    fisher = estimate_adapter_fisher(model, layers, [batch()], rows=4)
    start = {name: one.detach().clone() for name, one in moving_parameters(adapted(seed=1).double()).items()}
    penalty = AdapterEWC(0.7, layers, start, fisher)
    for one in named.values():
        one.grad = torch.ones_like(one)
    penalty.add_gradients(named)
    added = {name: one.grad - 1 for name, one in named.items()}
    value = torch.zeros((), dtype=torch.float64)
    for layer in layers:
        delta = 1.5 * (named[layer.b] @ named[layer.a] - start[layer.b] @ start[layer.a])
        value = value + 0.7 / 2 * (fisher[delta_name(layer)] * delta.square()).sum()
    for name, expected in zip(named, torch.autograd.grad(value, list(named.values())), strict=True):
        assert torch.allclose(added[name], expected, rtol=0, atol=1e-12), name
        assert expected.abs().max() > 1e-6
    assert penalty.value(named) == pytest.approx(value.item(), rel=1e-12)


def test_nothing_is_pulled_where_other_matrices_add_the_same():
    model = adapted().double()
    layers, named = layers_of(model), moving_parameters(model)
    fisher = estimate_adapter_fisher(model, layers, [batch()], rows=4)
    start = {name: one.detach() * (2 if "lora_A" in name else 0.5) for name, one in named.items()}
    assert AdapterEWC(0.7, layers, start, fisher).value(named) < 1e-20


def test_in_16_bits_it_is_near_that_in_32():
    rough, exact = adapted().to(torch.bfloat16), adapted()
    found, expected = (
        estimate_adapter_fisher(model, layers_of(model), [batch()], rows=4, kind="empirical")
        for model in (rough, exact)
    )
    for name, one in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - one).norm() < 0.1 * one.norm()


def test_the_layers_own_weights_may_be_quantised():
    pytest.importorskip("bitsandbytes")
    from hf_ft_plugins.techniques.peft.quantization import dequantized, is_quantized, quantize

    base, same = base_model(), base_model()
    assert quantize(base, "nf4")
    for name, module in base.named_modules():
        if is_quantized(module):
            same.get_submodule(name).weight.data = dequantized(module).float()
    quantised, plain = adapted(model=base), adapted(model=same)
    assert {type(layer.module).__name__ for layer in layers_of(quantised)} == {"Linear4bit"}
    found, expected = (
        estimate_adapter_fisher(model, layers_of(model), [batch()], rows=4, kind="empirical")
        for model in (quantised, plain)
    )
    for name, one in expected.items():
        assert (found[name] - one).norm() < 1e-3 * one.norm()


def test_other_adapters_are_refused_by_name():
    for config, found in {
        "method ia3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        "variant use_dora": peft.LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"),
        "method adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM"),
    }.items():
        with pytest.raises(PluginError, match=rf"sequential: ewc=1 .*{config}.*replay"):
            layers_of(peft.get_peft_model(base_model(), found))
    with pytest.raises(PluginError, match=r"embed_tokens is on a Embedding. Leave it out of target_modules"):
        layers_of(adapted(targets=["q_proj", "embed_tokens"]))
    frozen = adapted().requires_grad_(False)
    with pytest.raises(PluginError, match=r"no layer of this model has a LoRA that learns"):
        layers_of(frozen)
