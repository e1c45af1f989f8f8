"""Architectures as people bring them: each is right without layers or refused as it was, wherever an error comes."""

import contextlib
import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.layer_removal import (
    choose_layers,
    measure_curve,
    remove_layers,
    score_layers,
    verify_model,
)
from hf_ft_plugins.techniques.layer_removal import remove as removing
from hf_ft_plugins.techniques.layer_removal import verify as verifying
from hf_ft_plugins.techniques.layer_removal.smallest_model import smallest
from hf_ft_plugins.techniques.layer_removal.stacks import block_stacks
from hf_ft_plugins.techniques.layer_removal.trial_inputs import forward, main_output, trial_inputs
from hf_ft_plugins.techniques.peft import quantize
from hf_ft_plugins.testing.examples.layer_removal import REFUSED as TINY_REFUSED
from hf_ft_plugins.testing.examples.layer_removal import built

IDS = torch.arange(3, 15).repeat(2, 1)


def model_of(name, kind):
    return smallest(getattr(transformers, name), CONFIG_MAPPING[kind])


def output(model, inputs):
    with torch.no_grad():
        return main_output(forward(model, inputs))


def passing(model, side, layers):
    """The whole model, in which these layers give back what they are given."""
    for number in layers:
        layer = block_stacks(model)[side].layers[number]

        def passed(states, *more, plain=layer.forward, **settings):
            out = plain(states, *more, **settings)
            return (states, *out[1:]) if isinstance(out, tuple) else states

        layer.forward = passed
    return model


def told(model):
    """All that an error must leave as it was."""
    weights = [(name, id(weight), weight.requires_grad) for name, weight in model.named_parameters()]
    numbers = [(name, vars(module).get("layer_idx"), module.training) for name, module in model.named_modules()]
    return repr(model), copy.deepcopy(model.config.to_dict()), weights, numbers


RIGHT = {
    "decoder of BART": ("BartForCausalLM", "bart", ""),
    "decoder of Marian": ("MarianForCausalLM", "marian", ""),
    "settings by layer": ("Gemma4ForCausalLM", "gemma4_text", ""),
    "LED's decoder": ("LEDForConditionalGeneration", "led", "decoder"),
    "LED's encoder": ("LEDForConditionalGeneration", "led", "encoder"),
    "images": ("ViTForImageClassification", "vit", ""),
    "named stages": ("BeitForImageClassification", "beit", ""),
    "sound": ("Wav2Vec2ForCTC", "wav2vec2", ""),
    "Whisper's encoder": ("WhisperForConditionalGeneration", "whisper", "encoder"),
    "Whisper's decoder": ("WhisperForConditionalGeneration", "whisper", "decoder"),
    "an encoder alone": ("WhisperForAudioClassification", "whisper", "encoder"),
    "a tower that is all": ("CLIPForImageClassification", "clip", ""),
    "two configurations": ("T5GemmaForConditionalGeneration", "t5gemma", "decoder"),
    "kinds that are gone": ("Lfm3ForCausalLM", "lfm3", ""),
}


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_as_if_the_layers_passed_everything_on(what):
    name, kind, side = RIGHT[what]
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    whole = model_of(name, kind)
    inputs = trial_inputs(whole)
    model = model_of(name, kind)
    removal = remove_layers(model, [1, 4], side=side)
    found = output(model, inputs)
    torch.testing.assert_close(found, output(passing(model_of(name, kind), side, [1, 4]), inputs))
    # The control: without others it is another.
    other = output(passing(model_of(name, kind), side, [2, 4]), inputs)
    assert not torch.allclose(found, other, rtol=1e-3, atol=1e-5) or what == "LED's encoder"
    removal.restore()
    assert torch.equal(output(model, inputs), output(whole, inputs))
    assert model.config.to_dict() == whole.config.to_dict()
    removal = remove_layers(model, [1, 4], side=side)
    verify_model(model, inputs=inputs)
    assert len(removal.stack.layers) == 4


REFUSED = {
    "stages": ("SwinForImageClassification", "swin", "list of stages"),
    "numbers in the forward pass": (
        "DiffLlamaForCausalLM",
        "diffllama",
        r"lambda_init.*layers=4\+5 with protect_last=0",
    ),
    "one layer for all": ("AlbertForMaskedLM", "albert", "no list of layers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_as_it_was_and_the_mend_works(what):
    name, kind, reason = REFUSED[what]
    model = model_of(name, kind)
    before = told(model)
    with pytest.raises(PluginError, match=reason):
        remove_layers(model, [1, 4] if what != "stages" else [1])
    assert told(model) == before
    if "protect_last" in reason:
        remove_layers(model, [4, 5])
        verify_model(model)


def test_kinds_of_layers_that_follow_from_numbers_go_from_the_end():
    model = built("jamba", TINY_REFUSED["jamba"])
    with pytest.raises(PluginError, match=r"places differ.*layers=4\+5 with protect_last=0"):
        remove_layers(model, [1, 4])
    remove_layers(model, [4, 5])
    verify_model(model)


def test_blocks_that_are_spread_over_several_lists():
    whole = model_of("XLMWithLMHeadModel", "xlm")
    model = model_of("XLMWithLMHeadModel", "xlm")
    remove_layers(model, [1, 4])
    verify_model(model)
    # By hand: the weights of the others under new numbers.
    numbers = {old: new for new, old in enumerate((0, 2, 3, 5))}
    expected = {}
    for key, value in whole.state_dict().items():
        parts = key.split(".")
        place = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        if place is None or int(parts[place]) in numbers:
            parts[place or 0] = str(numbers[int(parts[place])]) if place is not None else parts[0]
            expected[".".join(parts)] = value
    found = model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)


# ---- what the whole model fails ----


def test_what_the_whole_model_fails_is_not_held_against_the_removal(caplog):
    model = model_of("XLMRobertaXLForCausalLM", "xlm-roberta-xl")
    with pytest.raises(PluginError, match="generates otherwise with a cache"):
        verify_model(model, input_ids=IDS)
    removal = remove_layers(model, [1, 4])
    with caplog.at_level("WARNING"):
        verify_model(model, input_ids=IDS)
    assert "no fault of the removal" in caplog.text
    assert len(block_stacks(model)[""].layers) == 4
    del removal
    # The control: nobody holds the layers any more, so nothing is known of the whole.
    with pytest.raises(PluginError, match="generates otherwise"):
        verify_model(model, input_ids=IDS)


def test_what_only_the_smaller_model_fails_is_refused(monkeypatch):
    model = model_of("LlamaForCausalLM", "llama")
    removal = remove_layers(model, [1])
    plain = type(model).forward

    def failing(self, *args, **kwargs):
        if self.config.num_hidden_layers < 6:
            raise IndexError("no such layer")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", failing)
    with pytest.raises(PluginError, match="no longer generates: IndexError: no such layer"):
        verify_model(model)
    assert removal.removed == (1,)
    assert len(model.model.layers) == 5


# ---- quantised ----


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_loses_layers(kind):
    pytest.importorskip("bitsandbytes")

    def quantised():
        model = model_of("Qwen2ForCausalLM", "qwen2")
        quantize(model, kind)
        return model

    model = quantised()
    weights = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    remove_layers(model, [1, 4])
    assert [layer.self_attn.q_proj.weight for layer in model.model.layers] == [weights[at] for at in (0, 2, 3, 5)]
    torch.testing.assert_close(
        output(model, {"input_ids": IDS}), output(passing(quantised(), "", [1, 4]), {"input_ids": IDS})
    )
    verifying.check_structure(model)


class PackedLinear(nn.Module):
    """As GPTQ's: the weight is no parameter."""

    def __init__(self, plain):
        super().__init__()
        self.in_features, self.out_features, self.bits = plain.in_features, plain.out_features, 4
        self.register_buffer("qweight", plain.weight.detach().half())
        self.bias = plain.bias

    def forward(self, given):
        return nn.functional.linear(given, self.qweight.to(given.dtype), self.bias)


def test_layers_that_are_packed_otherwise():
    model = model_of("LlamaForCausalLM", "llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4, "dynamic": {"model.layers.4.mlp": {}}}
    model.config.quantization_config["modules_to_not_convert"] = ["model.layers.1", "model.layers.5.mlp", "lm_head"]
    model.is_quantized = True
    for layer in model.model.layers:
        layer.mlp.up_proj = PackedLinear(layer.mlp.up_proj)
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.1": 0, "model.layers.5": 0}
    remove_layers(model, [1])
    verifying.check_structure(model)
    # What is known of single layers is known by their new numbers.
    assert model.config.quantization_config["dynamic"] == {"model.layers.3.mlp": {}}
    assert model.config.quantization_config["modules_to_not_convert"] == ["model.layers.4.mlp", "lm_head"]
    assert model.hf_device_map == {"model.embed_tokens": 0, "model.layers.4": 0}
    # The control: a layer of another size is no packed one.
    model.model.layers[0].mlp.up_proj.out_features = 7
    with pytest.raises(PluginError, match="places differ"):
        verifying.check_structure(model)


# ---- an error in the middle ----

STEPS = {
    "the configuration": (removing, "edit_config"),
    "what is remembered": (removing, "remember_removed"),
    "paths": (removing, "rename_paths"),
    "numbers": (removing, "_number"),
    "the comparison": (removing, "new_differences"),
    "rates": (removing, "_spread_drop_paths"),
}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("step", STEPS)
def test_an_error_at_any_step_leaves_the_model_as_it_was(step, error, monkeypatch):
    model = model_of("Qwen3MoeForCausalLM", "qwen3_moe")
    model.model.layers[0].train(True)
    before, expected = told(model), output(model, {"input_ids": IDS})
    owner, name = STEPS[step]
    plain = getattr(owner, name)

    def failing(*args):
        plain(*args)
        raise error("in the middle")

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises((error, PluginError)) as raised:
        remove_layers(model, [1, 4])
    assert (
        isinstance(raised.value, PluginError)
        or step not in ("the configuration", "numbers")
        or error is KeyboardInterrupt
    )
    assert told(model) == before
    assert torch.equal(output(model, {"input_ids": IDS}), expected)


@pytest.mark.parametrize("method", ["perplexity", "block_influence", "angular", "taylor"])
def test_an_error_while_layers_are_chosen_leaves_the_model_as_it_was(method, monkeypatch):
    model = model_of("LlamaForCausalLM", "llama")
    model.model.embed_tokens.train(True)
    model.lm_head.requires_grad_(False)
    before = told(model)
    plain, calls = type(model).forward, [0]

    def failing(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] == 2:
            raise MemoryError
        return plain(self, *args, **kwargs)

    batches = [{"input_ids": IDS, "labels": IDS}] * 2
    monkeypatch.setattr(type(model), "forward", failing)
    for run in (
        lambda: choose_layers(model, batches, 2, method=method),
        lambda: score_layers(model, batches),
        lambda: measure_curve(model, batches, most=2, method="last"),
        lambda: verify_model(model),
    ):
        calls[0] = 0
        with contextlib.suppress(PluginError), pytest.raises(MemoryError):
            run()
        assert told(model) == before
        assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.model.layers)


def test_a_side_that_is_not_there():
    with pytest.raises(OptionError, match="side='decoder'"):
        remove_layers(model_of("WhisperForAudioClassification", "whisper"), [1], side="decoder")


def test_a_mode_of_its_own_of_each_module_is_kept():
    model = model_of("LlamaForCausalLM", "llama").train(True)
    model.model.embed_tokens.eval()
    before = told(model)
    choose_layers(model, [{"input_ids": IDS, "labels": IDS}], 1)
    assert told(model) == before
