"""Weights quantised in place."""

import copy

import pytest
import torch
import transformers

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")


from hf_ft_plugins.errors import OptionError, PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    Peft,
    dequantized,
    find_targets,
    logits_error,
    merge_exactly,
    quantize,
)
from hf_ft_plugins.testing import difference  # noqa: E402
from tests.techniques.peft.small_models import IDS, adapted, learn, logits, small_llama  # noqa: E402


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_blocks_are_quantised_and_head_and_embeddings_kept(kind, name):
    if name == "gpt2":
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=384))
    else:
        model = small_llama()
    whole = copy.deepcopy(model)
    turned = quantize(model, kind)
    assert turned == find_targets(whole).layers
    assert model.is_quantized
    assert torch.equal(model.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    for path in (
        ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
        if name == "llama"
        else ("transformer.h.0.attn.c_attn",)
    ):
        was = whole.get_submodule(path).weight
        now = dequantized(model.get_submodule(path))
        now = now if name == "llama" else now.T
        assert 0 < (now - was).norm() < (0.15 if kind == "nf4" else 0.02) * was.norm()
    with pytest.raises(PluginError, match="quantised already"):
        quantize(model, kind)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_here_equals_loaded_quantised(kind, tmp_path):
    small_llama().save_pretrained(tmp_path)
    settings = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = transformers.BitsAndBytesConfig(**settings, llm_int8_threshold=0.0)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    model = small_llama()
    quantize(model, kind)
    path = "model.layers.1.self_attn.o_proj"
    torch.testing.assert_close(
        dequantized(model.get_submodule(path)), dequantized(loaded.get_submodule(path)), rtol=0, atol=0
    )


def test_gradients_after_an_evaluation_are_those_before(tmp_path):
    def gradients(model):
        model.train()
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    model = adapted(Peft(r=4, quant="nf4"), tmp_path)
    learn(model, steps=1)
    before, trained = gradients(model), logits(model)
    assert difference(before, gradients(model)) is None
    assert logits_error(model, merge_exactly(model), {"input_ids": IDS}) < 1e-5
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(module.support_avx512bf16_for_cpu for module in layers)
    assert torch.equal(logits(model), trained)


def test_a_script_that_quantises_itself_is_held_to_the_same_pairs(tmp_path):
    model = small_llama()
    quantize(model, "nf4")
    with pytest.raises(OptionError, match="method=pissa on quant=nf4"):
        adapted(Peft(method="pissa", r=4), tmp_path, model)
    with pytest.raises(PluginError, match="quantised already"):
        adapted(Peft(r=4, quant="nf4"), tmp_path, model)


def test_without_bitsandbytes_it_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PluginError, match="quant needs bitsandbytes"):
        quantize(small_llama(), "nf4")
