"""peft: the right layers, every method on every kind of weights, exact merges, and what Trainer leaves out."""

import copy
import json
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import PeftModel, get_peft_model  # noqa: E402

from hf_ft_plugins import lr_scale, with_plugins  # noqa: E402
from hf_ft_plugins.errors import OptionError, PluginError  # noqa: E402
from hf_ft_plugins.host.adapter import with_adapter  # noqa: E402
from hf_ft_plugins.techniques.behavioral.tiny import tiny_llama, tiny_setting, tiny_tokenizer  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    AdaLoraCallback,
    Peft,
    configuration,
    dequantized,
    find_targets,
    known_methods,
    logits_error,
    loraplus,
    make_config,
    merge_exactly,
    quantize,
    verified_merge,
)
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_model, tiny_trainer  # noqa: E402

IDS = torch.randint(3, 380, (4, 24), generator=torch.Generator().manual_seed(1))
KINDS = (None, "int8", "nf4")
# Of the adapter's effect on the logits: int8 rounds activations, which a merged model does not.
CLOSE = {None: 1e-3, "nf4": 1e-3, "int8": 0.5}
NEEDED = {
    **{method: {"num_virtual_tokens": 4} for method in ("prompt_tuning", "p_tuning", "prefix_tuning")},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "trainable_tokens": {"token_indices": [3, 4]},
}


def small_llama(**changes):
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_llama(**(size | changes))


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **changes)


def adapted(technique, folder, model=None):
    model = small_llama() if model is None else model
    return with_adapter(model, technique.ft_adapter(model, arguments(folder)), 0, "peft")


def learn(model, steps=5):
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=5e-3)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights


def logits(model):
    model.train(False)
    with torch.no_grad():
        return model(input_ids=IDS).logits[:, -IDS.shape[1] :]


# ---- targets ----

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


# ---- methods ----


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


# ---- quantised weights ----


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


# ---- merging and export ----


def test_merged_from_nf4_is_what_was_trained_and_pefts_own_merge_is_not(tmp_path):
    model = adapted(Peft(r=8, quant="nf4"), tmp_path)
    learn(model)
    trained, batch = logits(model), {"input_ids": IDS}
    ours = logits_error(model, merge_exactly(model), batch)
    control = float((logits(copy.deepcopy(model).merge_and_unload()) - trained).norm() / trained.norm())
    assert ours < 1e-5
    assert control > 1e-2


def test_merging_equals_pefts_own_where_nothing_is_quantised(tmp_path):
    model = adapted(Peft(method="dora", r=8), tmp_path)
    learn(model)
    reference = copy.deepcopy(model).merge_and_unload()
    assert difference(dict(merge_exactly(model).state_dict()), dict(reference.state_dict())) is None


def test_a_merge_that_is_not_what_was_trained_is_not_saved(tmp_path, monkeypatch):
    from hf_ft_plugins.techniques.peft import merge

    model = adapted(Peft(r=8, quant="nf4"), tmp_path)
    learn(model)
    monkeypatch.setattr(merge, "merge_exactly", lambda model: copy.deepcopy(model).merge_and_unload())
    with pytest.raises(PluginError, match="logits differ by"):
        verified_merge(model, {"input_ids": IDS}, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def exported(folder, **options):
    setting = {"model": small_llama(), "train_dataset": texts(), "eval_strategy": "no", "save_strategy": "no"}
    trainer = tiny_trainer(folder, Peft(export="both", **options), **setting)
    trainer.train()
    return trainer


def texts():
    return [{"input_ids": row, "labels": row} for row in IDS.repeat(6, 1)]


@pytest.mark.parametrize("method", ["lora", "pissa", "olora", "adalora", "vera"])
def test_what_is_exported_is_what_was_trained(method, tmp_path):
    trainer = exported(tmp_path, method=method, **({} if method == "vera" else {"r": 4}))
    trained = logits(trainer.model)
    # On the base as it was before PiSSA took a part of it.
    adapter = PeftModel.from_pretrained(small_llama(), tmp_path / "adapter")
    assert (
        difference(dict(adapter.get_base_model().lm_head.state_dict()), dict(small_llama().lm_head.state_dict()))
        is None
    )
    torch.testing.assert_close(logits(adapter), trained, rtol=1e-4, atol=1e-4)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    if method in ("pissa", "olora"):
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["init_lora_weights"]) == (8, True)
        own = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
        assert not torch.equal(own, small_llama().model.layers[0].self_attn.q_proj.weight), (
            "there is nothing to convert"
        )


def test_training_goes_on_from_an_adapter_and_not_on_another_base(tmp_path):
    trainer = exported(tmp_path / "first", r=4)
    trained = logits(trainer.model)
    again = Peft(adapter=str(tmp_path / "first" / "adapter"))
    setting = {"train_dataset": texts(), "eval_strategy": "no"}
    went_on = tiny_trainer(tmp_path / "second", again, model=small_llama(), **setting)
    assert torch.equal(logits(went_on.model), trained)
    went_on.train()
    assert not torch.equal(logits(went_on.model), trained)
    with pytest.raises(PluginError, match="was trained on another model"):
        tiny_trainer(tmp_path / "third", again, model=small_llama(seed=1), **setting)
    with pytest.raises(PluginError, match="was trained on another model"):
        tiny_trainer(tmp_path / "third", again, model=small_llama(hidden_size=32), **setting)
    with pytest.raises(PluginError, match="holds no adapter_config"):
        tiny_trainer(tmp_path / "third", Peft(adapter=str(tmp_path)), model=small_llama(), **setting)


# ---- LoRA+ and AdaLoRA ----


def test_loraplus_changes_the_rate_of_b_alone(tmp_path):
    model = adapted(Peft(r=4), tmp_path)
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for ratio in (16.0, None):
        for weight in learning.values():
            weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD(list(learning.values()), lr=1e-3)
        if ratio is not None:
            loraplus(optimizer, model, ratio)
        before = {name: weight.detach().clone() for name, weight in learning.items()}
        optimizer.step()
        for name, weight in learning.items():
            rate = 1e-3 * (ratio if ratio is not None and "lora_B" in name else 1.0)
            torch.testing.assert_close(before[name] - weight.detach(), torch.full_like(weight, rate))


def test_the_method_loraplus_does_so_in_trainer_and_the_schedule_multiplies_it(tmp_path):
    trainer = tiny_trainer(tmp_path, "peft:method=loraplus,r=4", max_steps=4)
    trainer.train()
    rates = {
        name: rate
        for group, rate in zip(trainer.optimizer.param_groups, lr_scale.effective_lrs(trainer.optimizer), strict=True)
        for name, weight in trainer.model.named_parameters()
        if any(weight is one for one in group["params"])
    }
    assert all(group["params"] for group in trainer.optimizer.param_groups)
    plain = {rate for name, rate in rates.items() if "lora_B" not in name}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16 * rate for rate in plain}


def adalora_run(folder, *techniques, **changes):
    trainer = tiny_trainer(folder, *techniques, max_steps=20, eval_strategy="no", save_steps=100, **changes)
    trainer.train()
    values = {name: int((weight != 0).sum()) for name, weight in trainer.model.named_parameters() if "lora_E" in name}
    return trainer, values


def test_adalora_moves_ranks_to_its_budget_and_the_stock_trainer_does_not(tmp_path):
    trainer, ranks = adalora_run(tmp_path / "ours", Peft(method="adalora", r=4))
    assert sum(ranks.values()) == 4 * len(ranks)
    assert len(set(ranks.values())) > 1, "every layer has as many"
    config = peft.AdaLoraConfig(
        target_r=4, init_r=6, total_step=20, target_modules=list(find_targets(tiny_model()).modules)
    )
    stock, untouched = adalora_run(tmp_path / "stock", model=get_peft_model(tiny_model(), config))
    assert set(untouched.values()) == {6}
    for folder, one in (("ours", trainer), ("stock", stock)):
        one.model.save_pretrained(tmp_path / folder / "adapter")
    ours, theirs = (
        peft.load_peft_weights(str(tmp_path / folder / "adapter"), device="cpu") for folder in ("ours", "stock")
    )
    assert sum(tensor.numel() for tensor in ours.values()) < sum(tensor.numel() for tensor in theirs.values())


def test_the_callback_alone_does_so_in_a_stock_trainer(tmp_path):
    config = peft.AdaLoraConfig(
        target_r=4, init_r=6, total_step=20, target_modules=list(find_targets(tiny_model()).modules)
    )
    model = get_peft_model(tiny_model(), config)
    _, ranks = adalora_run(tmp_path, model=model, callbacks=[AdaLoraCallback()])
    assert sum(ranks.values()) == 4 * len(ranks)


def test_too_short_a_run_for_adalora_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, Peft(method="adalora", r=4), max_steps=1)
    with pytest.raises(PluginError, match="Train for longer"):
        trainer.train()


def test_eva_begins_along_the_inputs_and_lora_does_not(tmp_path):
    def explained(method):
        trainer = tiny_trainer(tmp_path / method, Peft(method=method, r=4), model=small_llama(), train_dataset=texts())
        layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
        seen = []
        hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(0, 1)))
        logits(trainer.model)
        hook.remove()
        basis = torch.linalg.qr(layer.lora_A["default"].weight.detach().T)[0]
        return float((seen[0] @ basis).norm() ** 2 / seen[0].norm() ** 2) / basis.shape[1]

    assert explained("eva") > 3 * explained("lora")


# ---- the run ----

RESUMED = {
    "lora": {"r": 4},
    "dropout": {"r": 4, "dropout": 0.1},
    "adalora": {"method": "adalora", "r": 4},
    "nf4": {"r": 4, "quant": "nf4"},
    "int8": {"r": 4, "quant": "int8"},
    "pissa": {"method": "pissa", "r": 4},
    "eva": {"method": "eva", "r": 4},
    "loraplus": {"method": "loraplus", "r": 4},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop_at", [2, 9])
def test_resumed_run_equals_uninterrupted_run(name, stop_at, tmp_path):
    technique = Peft(**RESUMED[name])
    straight = tiny_trainer(tmp_path / "straight", technique)
    straight.train()
    again = resumed(tmp_path / "resumed", technique, stop_at=stop_at)
    assert difference(outcome(straight), outcome(again)) is None


def test_adalora_resumes_otherwise_without_its_scores(tmp_path, monkeypatch):
    technique = Peft(method="adalora", r=4)
    straight = tiny_trainer(tmp_path / "straight", technique)
    straight.train()
    monkeypatch.setattr(AdaLoraCallback, "load_state_dict", lambda self, state: None)
    again = resumed(tmp_path / "resumed", technique, stop_at=4)
    assert difference(outcome(straight)["weights"], outcome(again)["weights"]) is not None


def test_model_init_gives_a_new_adapter_for_each_run(tmp_path):
    trainer = tiny_trainer(tmp_path, Peft(r=4, quant="nf4"), model_init=lambda: tiny_model())
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert isinstance(trainer.model, PeftModel)
    assert trainer.model_wrapped is trainer.model
    assert trainer.callback_handler.model is trainer.model
    weights = outcome(trainer)["weights"]
    trainer.train()
    assert difference(weights, outcome(trainer)["weights"]) is None


def test_what_trainer_read_from_the_model_is_what_it_would_have_read(tmp_path):
    hosted = tiny_trainer(tmp_path, Peft(r=4))
    stock = Trainer(
        model=with_adapter(tiny_model(), hosted.model.peft_config["default"], 0, ""), args=arguments(tmp_path)
    )
    for one in (hosted, stock):
        one._set_signature_columns_if_needed()
    for name in ("label_names", "can_return_loss", "model_accepts_loss_kwargs", "_signature_columns"):
        assert getattr(hosted, name) == getattr(stock, name)


def test_a_script_with_adapters_of_its_own_is_refused(tmp_path):
    model = get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(PluginError, match="has adapters already"):
        tiny_trainer(tmp_path, Peft(), model=model)


def test_an_optimizer_made_before_the_adapter_is_refused(tmp_path):
    model = tiny_model()
    before = (torch.optim.AdamW(model.parameters(), lr=1e-3), None)
    # Control: without the technique they are taken.
    with_plugins(Trainer)(model, arguments(tmp_path), optimizers=before)
    with pytest.raises(PluginError, match=r"optimizers=\(AdamW.*none of the adapter's"):
        with_plugins(Trainer, Peft())(model, arguments(tmp_path), optimizers=before)


@pytest.mark.parametrize("options", [{"method": "eva"}, {"export": "merged"}])
def test_a_stream_that_does_not_know_its_columns(options, tmp_path):
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()} for row in texts()]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    setting = {"model": small_llama(), "train_dataset": stream, "eval_strategy": "no", "max_steps": 4}
    trainer = tiny_trainer(tmp_path, Peft(r=4, **options), **setting)
    trainer.train()
    assert trainer.state.global_step == 4


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = []
    for on in (False, True):
        setting = {
            "model": small_llama(),
            "train_dataset": texts(),
            "eval_strategy": "no",
            "gradient_checkpointing": on,
        }
        trainer = tiny_trainer(tmp_path / str(on), Peft(r=4, quant="nf4"), **setting)
        trainer.train()
        runs.append(outcome(trainer)["weights"])
    assert difference(*runs) is None


# ---- TRL ----


def preferences(folder, *techniques, **changes):
    return tiny_trainer(folder, *techniques, **tiny_setting("dpo", eval_strategy="no", save_strategy="no", **changes))


def test_dpo_takes_the_model_under_the_adapter_for_its_reference(tmp_path):
    pytest.importorskip("trl")
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ours = preferences(tmp_path / "ours", Peft(r=4), model=model, ref_model=None)
    assert ours.ref_model is None
    ours.train()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapter = with_adapter(model, Peft(r=4).ft_adapter(model, ours.args), ours.args.seed, "")
    explicit = preferences(
        tmp_path / "explicit",
        model=adapter,
        ref_model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
    )
    explicit.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, explicit)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    with pytest.raises(PluginError, match="method=pissa changes the weights under the adapter"):
        preferences(tmp_path / "pissa", Peft(method="pissa", r=4), model=small_llama(), ref_model=None)


def test_sft_trains_the_same_adapter_as_with_peft_config(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [{"text": f"say {word}, then {word} again"} for word in ("red", "blue", "sun")] * 8
    )

    def train(name, *techniques, **changes):
        setting = {
            "trainer_class": trl.SFTTrainer,
            "args_class": trl.SFTConfig,
            "model": small_llama(),
            "train_dataset": rows,
            "eval_dataset": None,
            "eval_strategy": "no",
            "processing_class": tiny_tokenizer(),
            "max_length": 32,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        trainer = tiny_trainer(tmp_path / name, *techniques, **(setting | changes))
        trainer.train()
        return trainer

    ours = train("ours", Peft(r=4, export="merged"))
    model = small_llama()
    theirs = train("theirs", model=with_adapter(model, Peft(r=4).ft_adapter(model, ours.args), ours.args.seed, ""))
    assert difference(outcome(ours)["weights"], outcome(theirs)["weights"]) is None
    merged = transformers.AutoModelForCausalLM.from_pretrained(Path(ours.args.output_dir) / "merged")
    expected = merge_exactly(ours.model)
    assert difference(dict(merged.state_dict()), dict(expected.state_dict())) is None
