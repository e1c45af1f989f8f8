"""Every method of peft on every kind of weights, and the options that are refused."""

import copy

import pytest
import torch

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import PeftModel  # noqa: E402

from hf_ft_plugins.errors import OptionError, PluginError  # noqa: E402
from hf_ft_plugins.host.adapter import with_adapter  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    Peft,
    configuration,
    known_methods,
    merge_exactly,
    quantize,
)
from hf_ft_plugins.testing import difference  # noqa: E402
from tests.techniques.peft.small_models import adapted, arguments, learn, logits, small_llama  # noqa: E402

KINDS = (None, "int8", "nf4")

# Of the adapter's effect on the logits: int8 rounds activations, which a merged model does not.
CLOSE = {None: 1e-3, "nf4": 1e-3, "int8": 0.5}

NEEDED = {
    **{method: {"num_virtual_tokens": 4} for method in ("prompt_tuning", "p_tuning", "prefix_tuning")},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "trainable_tokens": {"token_indices": [3, 4]},
}


@pytest.mark.slow
@pytest.mark.parametrize("quant", KINDS, ids=str)
@pytest.mark.parametrize("method", sorted(known_methods.KNOWN))
def test_a_method_trains_saves_reloads_and_merges_or_is_refused(method, quant, tmp_path):
    has_rank = (
        "r" in known_methods.fields_of(known_methods.config_class(method)) and method not in configuration.OWN_RANK
    )
    options = {"method": method, "quant": quant, "r": 8 if has_rank else None, "config": NEEDED.get(method, {})}
    if method in known_methods.UNFIT or (quant and method not in known_methods.FITS[quant]):
        with pytest.raises(OptionError, match=f"method={method}"):
            Peft(**options)
        return
    base = small_llama()
    if quant:
        quantize(base, quant)
    before = logits(base)
    model = adapted(Peft(**options), tmp_path)
    if method not in known_methods.PROMPTS:
        # Of vblora and unilora, the beginning is a small random change.
        assert (logits(model) - before).norm() <= 0.02 * before.norm()
    learn(model)
    trained = logits(model)
    effect = float((trained - before).norm())
    assert effect > 1e-3 * before.norm(), "the adapter has learned nothing"
    model.save_pretrained(tmp_path)
    fresh = small_llama()
    if quant:
        quantize(fresh, quant)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, tmp_path)), trained)
    if method in known_methods.UNMERGEABLE:
        with pytest.raises(OptionError, match="cannot be merged"):
            Peft(**options, export="merged")
        with pytest.raises(PluginError, match="cannot be merged"):
            merge_exactly(model)
        return
    if method == "beft":
        with pytest.raises(PluginError, match="has no bias"):
            merge_exactly(model)
        return
    merged = merge_exactly(model)
    assert float((logits(merged) - trained).norm()) <= CLOSE[quant] * effect
    assert torch.equal(logits(model), trained), "merging has changed the trained model"
    assert type(merged) is type(base)


def test_the_string_reaches_every_field_of_the_methods_configuration(tmp_path):
    from hf_ft_plugins.registry import resolve

    technique = resolve("peft:method=vera,r=8,config=d_initial:0.5+projection_prng_key:3")
    config = technique.ft_adapter(small_llama(), arguments(tmp_path))
    assert (config.r, config.d_initial, config.projection_prng_key) == (8, 0.5, 3)
    assert technique == Peft(method="vera", r=8, config={"d_initial": 0.5, "projection_prng_key": 3})
    assert resolve(str(technique)) == technique


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "dorra"}, "there is no method 'dorra'. Did you mean 'dora'"),
        ({"method": "pissa", "quant": "nf4"}, "method=pissa on quant=nf4 .* goes with lora"),
        ({"method": "dora", "quant": "int8"}, "method=dora with quant=nf4"),
        ({"method": "lily", "export": "merged"}, "cannot be merged"),
        ({"method": "poly"}, "needs task_ids"),
        ({"method": "vera", "loraplus_ratio": 4.0}, "it is for lora"),
        ({"config": ("no colon",)}, "write config=key:value"),
        ({"r": 0}, "1 or more"),
        ({"exclude": ("q_proj",), "targets": ("k_proj",)}, "goes with targets=auto"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_loaded(options, said):
    with pytest.raises(OptionError, match=said):
        Peft(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("q_prj",)}, "targets=q_prj fits no layer of a LlamaForCausalLM. Did you mean .*q_proj"),
        ({"exclude": ("self_attn.q_prj",)}, "exclude=self_attn.q_prj fits none"),
        ({"r": 33}, r"r=33 is above the size of model.layers.0.self_attn.k_proj, 64 inputs and 32 outputs"),
        ({"method": "ia3", "r": 4}, "method=ia3 has no rank"),
        ({"method": "ia3", "alpha": 4}, "method=ia3 has no alpha"),
        ({"config": {"lora_dropuot": 0.1}}, "has no option 'lora_dropuot'. Did you mean 'lora_dropout'"),
        ({"config": {"r": 4}}, "say r=... instead"),
        ({"method": "adalora", "config": {"tinit": 5}}, "budgeting phase"),
    ],
)
def test_what_does_not_fit_the_model_is_said_with_its_mend(options, said, tmp_path):
    with pytest.raises(PluginError, match=said):
        adapted(Peft(**options), tmp_path)


def test_the_same_seed_gives_the_same_beginning_and_leaves_the_random_state(tmp_path):
    state = torch.get_rng_state()
    base = small_llama()
    config = Peft(r=4).ft_adapter(base, arguments(tmp_path))
    torch.set_rng_state(state)
    first = with_adapter(base, config, 5, "peft")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    second = with_adapter(small_llama(), copy.deepcopy(config), 5, "peft")
    assert difference(dict(first.state_dict()), dict(second.state_dict())) is None


@pytest.mark.parametrize("saved", [(), ("lm_head",), ("embed_tokens",)])
def test_tied_embeddings_stay_tied(saved, tmp_path):
    base = small_llama(tie_word_embeddings=True)
    model = adapted(Peft(r=4, modules_to_save=saved), tmp_path, base)
    learn(model)
    trained = logits(model)
    merged = merge_exactly(model)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
