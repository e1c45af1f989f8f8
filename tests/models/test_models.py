"""A model that an error leaves as it was, whatever was being done to it and wherever it stopped."""

import contextlib
import copy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, Qwen3Config

from hf_ft_plugins.models.unchanged import evaluating, remembered, unchanged_on_error
from hf_ft_plugins.techniques.layer_removal.remove import remove_layers
from hf_ft_plugins.techniques.peft import quantize

SIZE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}
IDS = torch.arange(12)[None]


class Stop(BaseException):
    """No `Exception`, as Ctrl-C is none."""


def causal():
    torch.manual_seed(0)
    changes = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    return AutoModelForCausalLM.from_config(Qwen3Config(**SIZE, **changes)).eval()


def classifier():
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**SIZE)).eval()


def adapted():
    return get_peft_model(causal(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()


def quantised(kind):
    model = causal()
    quantize(model, kind)
    return model


def described(model):
    """What the model is, module by module, in words of this file."""
    told = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {
            key: copy.copy(value) if isinstance(value, (list, dict, set)) else value
            for key, value in vars(module).items()
            if not key.startswith("_")
        }
        hooks = [list(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        told[name] = (id(module), type(module), list(vars(module)), list(module._modules), plain, hooks)
    for name, weight in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        told[name + " (tensor)"] = (id(weight), weight.data_ptr(), weight.dtype, weight.requires_grad, weight.grad)
    configs = [getattr(model, name) for name in ("config", "generation_config") if hasattr(model, name)]
    told["config"] = [(id(one), copy.deepcopy(one.to_dict())) for one in configs]
    with torch.no_grad():
        told["logits"] = model(IDS).logits.tolist()
    return told


def new_head(model):
    model.classifier = nn.Linear(64, 3)
    model.num_labels = 3
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.label2id["LABEL_0"] = 7


def fewer_layers(model):
    remove_layers(model, [1, 2], check=False)


def adapter(model):
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))


def lists(model):
    model.config.layer_types.append("full_attention")
    model.config.architectures = ["Other"]
    model.config.extra = {"a": [1]}
    model.generation_config.max_length = 3
    model.generation_config.eos_token_id = [1, 2]


def in_place(model):
    model.train(True)
    model.requires_grad_(False)
    model(IDS)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    model.model.layers[1].forward = lambda hidden, **_: hidden
    model.lm_head.weight = nn.Parameter(torch.zeros(64, 64))
    model.model.layers.append(nn.Identity())
    model.model.register_buffer("more", torch.zeros(1), persistent=False)
    parametrizations.weight_norm(model.model.layers[2].mlp.up_proj)
    model.to(torch.bfloat16)


def gradients(model):
    model.requires_grad_(True)
    model.get_input_embeddings().weight.grad = torch.ones(64, 64)


CHANGES = {
    "a new head": (classifier, new_head),
    "fewer layers": (causal, fewer_layers),
    "an adapter": (causal, adapter),
    "fewer layers, quantised": (lambda: quantised("nf4"), fewer_layers),
    "an adapter on int8": (lambda: quantised("int8"), adapter),
    "lists": (causal, lists),
    "in place": (causal, in_place),
    "a second adapter": (adapted, lambda model: model.add_adapter("b", LoraConfig(target_modules=["v_proj"]))),
    "gradients": (classifier, gradients),
    "nf4": (causal, lambda model: quantize(model, "nf4")),
    "int8": (causal, lambda model: quantize(model, "int8")),
}


def stopped(model, change, error):
    with unchanged_on_error(model):
        change(model)
        raise error


def stopping_at(monkeypatch, write):
    """Modules and configurations raise at the n-th attribute that is written to them; how often they were."""
    written = [0]

    def counting(plain):
        def counted(self, name, value):
            written[0] += 1
            if written[0] == write:
                raise Stop
            plain(self, name, value)

        return counted

    for owner in (nn.Module, type(causal().config)):
        monkeypatch.setattr(owner, "__setattr__", counting(owner.__setattr__))
    return written


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_is_as_it_was_wherever_the_change_stops(what, monkeypatch):
    build, change = CHANGES[what]
    model = build()
    model(IDS)
    before = described(model)
    other = build()
    with monkeypatch.context() as patched:
        written = stopping_at(patched, None)
        with contextlib.suppress(Exception):
            change(other)
    assert described(other) != before, "the control: without the block it is another"
    writes = written[0]
    # The first, the last, and some between; the last one of all is after the whole change.
    for stop in sorted({1, 2, 3, writes // 3, writes // 2, 2 * writes // 3, writes - 1, writes, writes + 1}):
        with monkeypatch.context() as patched:
            stopping_at(patched, stop)
            with pytest.raises(Stop):
                stopped(model, change, Stop)
        assert described(model) == before, stop
    if build is causal:
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_goes_well_stays():
    model = classifier()
    with unchanged_on_error(model):
        new_head(model)
    assert model.num_labels == model.classifier.out_features == len(model.config.id2label) == 3


def test_values_written_in_place_stay():
    model = classifier()
    with torch.no_grad(), pytest.raises(ValueError, match="stop"):
        stopped(model, lambda model: model.classifier.bias.fill_(5), ValueError("stop"))
    assert model.classifier.bias.tolist() == [5, 5]


def test_a_model_of_another_make():
    @dataclass
    class Size:
        depth: int
        kinds: list

    class Settings:
        def __init__(self):
            self.size = Size(2, ["a", "b"])

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = Settings()
            self.blocks = [nn.Linear(2, 2), nn.Linear(2, 2)]
            self.own = self

    def change(model):
        model.blocks.pop()
        model.config.size.depth = 1
        model.config.size.kinds.remove("a")
        blocks[0].weight.requires_grad_(False)
        blocks[1].bias.data = torch.zeros(5, dtype=torch.half)

    model = Own()
    blocks = list(model.blocks)
    with pytest.raises(KeyboardInterrupt):
        stopped(model, change, KeyboardInterrupt)
    assert model.blocks == blocks
    assert model.config.size == Size(2, ["a", "b"])
    assert blocks[0].weight.requires_grad
    assert blocks[1].bias.shape == (2,)


def test_one_change_alone_is_taken_back():
    model = classifier()
    before, head = described(model), model.classifier
    changed = remembered(model)
    new_head(model)
    take_back = changed()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.config.extra = "later"
    take_back()
    assert model.classifier is head
    assert model.config.extra == "later"
    assert not model.bert.encoder.layer[0].attention.self.query.weight.requires_grad
    model.bert.encoder.layer[0].requires_grad_(True)
    del model.config.extra
    assert described(model) == before


def test_parts_that_are_evaluated_stay_so():
    model = classifier().train(True)
    model.bert.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert set(modes.values()) == {True, False}
