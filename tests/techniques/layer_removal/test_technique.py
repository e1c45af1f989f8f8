"""Removing layers: architecture by architecture, against what the configuration makes; choosing them; refusals."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
)

from hf_ft_plugins import LayerRemoval
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.layer_removal.quality import measure_quality, repetition
from hf_ft_plugins.techniques.layer_removal.remove import original_layers, remove_layers
from hf_ft_plugins.techniques.layer_removal.score import METHODS, choose_layers, mean_loss, score_layers
from hf_ft_plugins.techniques.layer_removal.stacks import block_stacks
from hf_ft_plugins.techniques.layer_removal.verify import check_structure, verify_model
from hf_ft_plugins.testing.examples.layer_removal import REFUSED, RIGHT, SIZE, SMALL, VOCABULARY, built


@pytest.mark.parametrize("kind", RIGHT)
def test_without_layers_it_generates_is_saved_and_loads_again(kind):
    model = built(kind, RIGHT[kind])
    (stack,) = block_stacks(model).values()
    kept = [stack.layers[place] for place in (0, 2, 3, 5)]
    removal = remove_layers(model, [4, 1])
    assert removal.removed == (1, 4)
    assert list(stack.layers) == kept
    assert original_layers(model.config) == (1, 4)
    verify_model(model)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "llama"])
def test_the_list_of_modules_alone_is_not_enough(kind):
    model = built(kind, RIGHT[kind])
    model.model.layers = nn.ModuleList([model.model.layers[place] for place in (0, 2, 3, 5)])
    with pytest.raises(PluginError, match="places differ"):
        verify_model(model)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_right_is_refused_and_left_as_it_was(kind):
    model = built(kind, REFUSED[kind])
    before, config = list(model.named_parameters()), copy.deepcopy(model.config.to_dict())
    with pytest.raises(PluginError, match="cannot"):
        remove_layers(model, [1, 4])
    assert all(one is other for (_, one), (_, other) in zip(before, model.named_parameters(), strict=True))
    assert model.config.to_dict() == config
    check_structure(model)


def test_layers_put_back_are_the_model_as_it_was():
    model = built("qwen3_moe", RIGHT["qwen3_moe"])
    inputs = torch.arange(12)[None]
    expected, config = model(inputs).logits, copy.deepcopy(model.config.to_dict())
    removal = remove_layers(model, [1, 4])
    assert not torch.equal(model(inputs).logits, expected)
    removal.restore()
    assert torch.equal(model(inputs).logits, expected)
    assert model.config.to_dict() == config
    verify_model(model)


def test_layers_removed_twice_are_counted_in_the_original():
    model = built("llama", SMALL)
    remove_layers(model, [1])
    remove_layers(model, [1, 3])
    assert original_layers(model.config) == (1, 2, 4)
    again = type(model.config).from_dict(model.config.to_dict())
    assert original_layers(again) == (1, 2, 4)
    verify_model(model)


def test_a_removed_layer_is_as_if_it_passed_everything_on():
    model = built("llama", SMALL)
    other = copy.deepcopy(model)
    remove_layers(model, [2])
    with torch.no_grad():
        # What these write to the residual stream is nothing.
        other.model.layers[2].self_attn.o_proj.weight.zero_()
        other.model.layers[2].mlp.down_proj.weight.zero_()
    inputs = torch.arange(20)[None]
    torch.testing.assert_close(model(inputs).logits, other(inputs).logits)


def test_encoders_and_encoder_decoders():
    bert = built("bert", SIZE | {"intermediate_size": 64}, AutoModelForSequenceClassification)
    remove_layers(bert, [2, 3])
    verify_model(bert)
    masked = built("distilbert", {"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 128}, AutoModelForMaskedLM)
    remove_layers(masked, [2, 3])
    verify_model(masked)
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 5, "num_decoder_layers": 4, "num_heads": 4}
    t5 = built("t5", sizes | {"vocab_size": VOCABULARY, "decoder_start_token_id": 0}, AutoModelForSeq2SeqLM)
    remove_layers(t5, [2], side="decoder")
    remove_layers(t5, [1, 3], side="encoder")
    assert (t5.config.num_layers, t5.config.num_decoder_layers) == (3, 3)
    verify_model(t5)
    # Stock T5 cannot generate where its decoder is deeper than its encoder: the cache is as long as the encoder.
    removal = remove_layers(t5, [1], side="encoder")
    with pytest.raises(PluginError, match=r"no longer generates: IndexError.*side=decoder"):
        verify_model(t5)
    removal.restore()
    verify_model(t5)
    with pytest.raises(PluginError, match="relative_attention_bias"):
        remove_layers(t5, [0], side="encoder")
    with pytest.raises(OptionError, match="'encoder', 'decoder'"):
        remove_layers(t5, [1])


@pytest.mark.parametrize("layers", [[], [6], [-1], range(6)])
def test_layers_that_are_not_there_or_all_of_them(layers):
    model = built("llama", SMALL)
    with pytest.raises(OptionError, match="layer-removal"):
        remove_layers(model, layers)
    assert len(model.model.layers) == 6


def test_a_model_without_layers():
    with pytest.raises(PluginError, match="no list of layers"):
        block_stacks(_convolutions())


def _convolutions():
    from transformers import MobileNetV1Config, MobileNetV1Model

    return MobileNetV1Model(MobileNetV1Config(image_size=32, depth_multiplier=0.25))


# ---- choosing ----


@pytest.fixture(scope="module")
def planted():
    """A Llama that has learned to repeat what it reads, with two layers that do nothing, and batches of its data."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(AutoConfig.for_model("llama", **(SMALL | {"num_hidden_layers": 4, "vocab_size": 32})))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def batch():
        half = torch.randint(0, 32, (16, 6), generator=generator)
        rows = torch.cat([half, half], 1)
        return {"input_ids": rows, "labels": rows.masked_fill(torch.arange(12) < 6, -100)}

    for _ in range(250):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) < 1
    idle = copy.deepcopy(model.model.layers[1]), copy.deepcopy(model.model.layers[1])
    for layer in idle:
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=1e-4)
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=1e-4)
    grown = LlamaForCausalLM(AutoConfig.for_model("llama", **(SMALL | {"num_hidden_layers": 6, "vocab_size": 32})))
    grown.load_state_dict(model.state_dict(), strict=False)
    layers = model.model.layers
    grown.model.layers = nn.ModuleList([layers[0], layers[1], *idle, layers[2], layers[3]])
    for number, layer in enumerate(grown.model.layers):
        layer.self_attn.layer_idx = number
    grown.config.num_hidden_layers = 6
    return grown.eval(), [batch() for _ in range(2)]


@pytest.mark.parametrize("method", ["perplexity", "block_influence", "angular"])
def test_idle_layers_are_found(method, planted):
    model, batches = planted
    before = mean_loss(model, batches)
    assert choose_layers(model, batches, 2, method=method) == [2, 3]
    assert len(model.model.layers) == model.config.num_hidden_layers == 6
    assert mean_loss(model, batches) == before, "scoring leaves the model as it was"
    # Controls: the last free layers are not the idle ones, and the model needs them.
    last = choose_layers(model, batches, 2, method="last")
    assert last == [3, 4]
    losses = []
    for layers in ([2, 3], last):
        removal = remove_layers(model, layers)
        losses.append(mean_loss(model, batches))
        removal.restore()
    assert losses[0] == pytest.approx(before, abs=1e-2)
    assert losses[1] > before + 0.1


def test_scores_tell_idle_layers_from_others(planted):
    model, batches = planted
    scores = score_layers(model, batches)
    for name in ("loss", "block_influence"):
        assert len(scores[name]) == 6
        assert set(sorted(range(6), key=lambda layer: scores[name][layer])[:2]) == {2, 3}


def test_padding_does_not_count(planted):
    model, batches = planted
    padded = [
        {
            "input_ids": torch.cat([one["input_ids"], torch.zeros(16, 5, dtype=torch.long)], 1),
            "attention_mask": torch.cat([torch.ones(16, 12), torch.zeros(16, 5)], 1).long(),
            "labels": torch.cat([one["labels"], torch.full((16, 5), -100)], 1),
        }
        for one in batches
    ]
    for name, values in score_layers(model, padded).items():
        assert values == pytest.approx(score_layers(model, batches)[name], rel=1e-4, abs=1e-6)


def test_what_cannot_be_chosen_is_refused(planted):
    model, batches = planted
    assert set(METHODS) == {"perplexity", "block_influence", "angular", "taylor", "last", "random"}
    with pytest.raises(OptionError, match="there are 4 to choose from"):
        choose_layers(model, batches, 5)
    with pytest.raises(OptionError, match="needs batches"):
        choose_layers(model, [], 1)
    with pytest.raises(OptionError, match="method='worst'"):
        choose_layers(model, batches, 1, method="worst")
    assert choose_layers(model, [], 2, method="random", seed=1) == choose_layers(model, [], 2, method="random", seed=1)


# ---- quality ----


def test_repetition_is_the_share_of_what_came_before():
    assert repetition([1, 2, 3, 4, 5, 6, 7, 8]) == 0
    assert repetition([1] * 11) == pytest.approx(7 / 8)
    assert repetition([1, 2, 3]) == 0


def test_quality_tells_a_needed_layer_from_an_idle_one(planted):
    model, batches = planted
    prompts = batches[0]["input_ids"][:, :8]
    original = measure_quality(model, batches, prompts, new_tokens=4)
    assert original.continuations.shape == (16, 4)
    assert original.match(original) == 1
    # It has learned to repeat the first six tokens.
    assert (original.continuations == batches[0]["input_ids"][:, 8:12]).float().mean() > 0.7
    removal = remove_layers(model, [2, 3])
    idle = measure_quality(model, batches, prompts, new_tokens=4)
    removal.restore()
    removal = remove_layers(model, [4])
    needed = measure_quality(model, batches, prompts, new_tokens=4)
    removal.restore()
    assert idle.perplexity == pytest.approx(original.perplexity, rel=0.02)
    assert idle.match(original) > 0.9
    assert needed.perplexity > 1.1 * original.perplexity
    assert needed.match(original) < idle.match(original)


@pytest.mark.parametrize(("side", "gone"), [("", 2), ("decoder", 2), ("encoder", 4)])
def test_the_estimate_of_memory_counts_the_layers_of_the_stack_that_loses_them(side, gone):
    config = T5Config(
        num_layers=8, num_decoder_layers=4, d_model=16, d_kv=8, d_ff=16, num_heads=2, vocab_size=32,
        architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    assert config.num_hidden_layers == 8, "of the encoder, whichever loses layers"
    assert LayerRemoval(fraction=0.5, side=side).memory_effects(config)["removed"] == gone


def test_the_estimate_of_memory_leaves_the_configuration_as_it_is():
    config = LlamaConfig(**SMALL | {"num_hidden_layers": 6})
    before = config.to_dict()
    assert LayerRemoval(fraction=0.5).memory_effects(config)["removed"] == 3
    assert config.to_dict() == before
