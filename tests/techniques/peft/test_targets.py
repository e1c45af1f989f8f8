"""Which layers get an adapter."""

import pytest
import torch
import transformers

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import get_peft_model  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    Peft,
    find_targets,
    make_config,
)
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from tests.techniques.peft.small_models import adapted, learn  # noqa: E402

EVERYTHING = {
    "BertForSequenceClassification": {"query", "key", "value", "output.dense", "intermediate.dense"},
    "DebertaV2ForSequenceClassification": {
        "query_proj",
        "key_proj",
        "value_proj",
        "output.dense",
        "intermediate.dense",
    },
    "ModernBertForSequenceClassification": {"Wqkv", "Wo", "Wi"},
    "GPT2LMHeadModel": {"c_attn", "c_proj", "c_fc"},
    "LlamaForCausalLM": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "Phi3ForCausalLM": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "GPTNeoXForCausalLM": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "OPTForCausalLM": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "ViTForImageClassification": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
    "T5ForConditionalGeneration": {"q", "k", "v", "o", "wi", "wo"},
    "BartForConditionalGeneration": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}


def on_meta(name, **changes):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(cls.config_class(**changes))


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_linear_layer_of_the_blocks_is_found_and_nothing_else(name):
    model = on_meta(name)
    targets = find_targets(model)
    assert set(targets.modules) == EVERYTHING[name]
    assert targets.coverage > 0.99
    reached = {path for path, _ in model.named_modules() for end in targets.modules if f".{path}".endswith(f".{end}")}
    inside = {path for path in reached if path.startswith(targets.stacks)}
    assert len(inside) == len(reached) == targets.layers


def test_of_several_modalities_the_text_is_adapted():
    model = on_meta("LlavaForConditionalGeneration")
    targets = find_targets(model)
    assert targets.stacks == ("model.language_model.layers",)
    config = make_config("lora", model, targets)
    reached = [path for path, module in get_peft_model(model, config).named_modules() if hasattr(module, "lora_A")]
    assert len(reached) == targets.layers
    assert all("language_model" in path for path in reached)


@pytest.mark.parametrize("name", ["GptOssForCausalLM", "Qwen3MoeForCausalLM", "MixtralForCausalLM"])
def test_fused_experts_must_be_asked_for(name):
    model = on_meta(name, num_hidden_layers=2)
    with pytest.raises(PluginError, match=r"hold \d\.\d% of its blocks' parameters.*moe=experts"):
        find_targets(model)
    assert find_targets(model, moe="attention").coverage < 0.1
    targets = find_targets(model, moe="experts")
    assert targets.parameters == ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
    assert targets.coverage > 0.99
    assert not any("router" in end or end.endswith("gate") for end in (*targets.modules, *targets.parameters))


def test_fused_experts_learn(tmp_path):
    size = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 384}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**size, **experts))
    model = adapted(Peft(r=4, moe="experts"), tmp_path, model)
    weights = learn(model, steps=2)
    assert any("experts" in name for name, weight in model.named_parameters() if weight.requires_grad)
    assert all(weight.isfinite().all() for weight in weights)


def test_a_model_without_linear_layers_is_told_what_it_has():
    with pytest.raises(PluginError, match=r"no linear layer is found .* targets=.*convolution"):
        find_targets(on_meta("ResNetForImageClassification"))


def test_the_whole_head_of_a_classifier_is_trained(tmp_path):
    trainer = tiny_trainer(tmp_path, Peft(r=4))
    learning = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    whole = {name.rpartition(".modules_to_save.")[2] for name in learning if "modules_to_save" in name}
    assert whole == {"default.weight", "default.bias"}
    assert all("lora_" in name or "modules_to_save" in name for name in learning)


def test_a_new_head_of_another_technique_is_trained_with_the_adapter(tmp_path):
    datasets = pytest.importorskip("datasets")
    three = datasets.Dataset.from_list(
        [{"input_ids": [index, 1, 2, 3], "attention_mask": [1] * 4, "label": index % 3} for index in range(24)]
    ).cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    for order in (["task", Peft(r=4)], [Peft(r=4), "task"]):
        trainer = tiny_trainer(tmp_path, *order, train_dataset=three, eval_dataset=three, max_steps=2)
        head = trainer.model.get_base_model().classifier
        before = head.modules_to_save["default"].weight.detach().clone()
        assert before.shape[0] == 3
        trainer.train()
        assert not torch.equal(before, head.modules_to_save["default"].weight)
