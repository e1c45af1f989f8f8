"""peft on models of every input, tied heads, new tokens; what is exported, and what is undone."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

from hf_ft_plugins import with_plugins  # noqa: E402
from hf_ft_plugins.errors import OptionError, PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import Peft, merge, merge_exactly, quantization, quantize  # noqa: E402
from hf_ft_plugins.techniques.peft.new_tokens import layers_of_tokens, trainable_rows  # noqa: E402
from hf_ft_plugins.techniques.peft.tasks import task_of  # noqa: E402
from hf_ft_plugins.techniques.transfer.layers import layer_groups  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_llama  # noqa: E402

DRAW = torch.Generator().manual_seed(3)
IDS = [torch.randint(3, 300, (8,), generator=DRAW) for _ in range(8)]
TEXTS = [{"input_ids": ids, "labels": ids} for ids in IDS]
SOUNDS = [{"input_features": torch.randn(8, 32, generator=DRAW), "labels": ids % 60} for ids in IDS]
PICTURES = [{"pixel_values": torch.randn(3, 16, 16, generator=DRAW), "labels": i % 2} for i in range(8)]
STACKS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDTHS = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64, "decoder_start_token_id": 2}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def made(name, **settings):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**settings))


def whisper():
    sound = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 24, "pad_token_id": 1}
    return made("WhisperForConditionalGeneration", **STACKS, **WIDTHS, **sound, suppress_tokens=None)


def vit():
    return made("ViTForImageClassification", **SMALL, image_size=16, patch_size=8)


def gpt2():
    return made("GPT2LMHeadModel", vocab_size=384, n_positions=32, n_embd=16, n_layer=2, n_head=2)


def run(folder, model, rows, callbacks=None, **options):
    settings = {"per_device_train_batch_size": 4, "learning_rate": 2e-2, "report_to": "none", "save_strategy": "no"}
    args = TrainingArguments(str(folder), max_steps=3, use_cpu=True, disable_tqdm=True, **settings)
    host = with_plugins(Trainer, Peft(**({"r": 4} | options)))
    trainer = host(model=model, args=args, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    return trainer


def logits(model, rows):
    batch = transformers.default_data_collator(rows)
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return model.eval()(**batch).logits


def off(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("make", "rows"), [(whisper, SOUNDS), (vit, PICTURES)], ids=["whisper", "vit"])
def test_what_takes_no_tokens_trains_and_leaves_what_it_learned(make, rows, tmp_path):
    base = make()
    trained = logits(run(tmp_path, make(), rows, export="both").model, rows)
    assert off(logits(base, rows), trained) > 1e-4
    assert off(logits(PeftModel.from_pretrained(make(), tmp_path / "adapter"), rows), trained) < 1e-5
    assert off(logits(type(base).from_pretrained(tmp_path / "merged"), rows), trained) < 1e-5


def test_the_task_is_told_where_the_model_takes_what_peft_then_hands_it():
    told = {model: task_of(model) for model in (whisper(), vit(), gpt2(), tiny_llama())}
    assert list(told.values()) == [None, None, "CAUSAL_LM", "CAUSAL_LM"]
    # Control: told the task that its name says, Whisper is handed token ids.
    wrong = get_peft_model(whisper(), LoraConfig(target_modules=["q_proj"], task_type="SEQ_2_SEQ_LM"))
    with pytest.raises(TypeError, match="input_ids"):
        wrong(**transformers.default_data_collator(SOUNDS))
    with pytest.raises(OptionError, match=r"no way into a .*input is input_features.*method=lora"):
        Peft(method="prompt_tuning", config={"num_virtual_tokens": 2}).ft_adapter(whisper(), SimpleNamespace(bf16=0))


@pytest.mark.parametrize("targets", [("lm_head",), ("wte",)])
def test_the_layer_tied_to_the_adapted_one_keeps_its_weight(targets, tmp_path):
    trainer = run(tmp_path, gpt2(), TEXTS, targets=("c_attn", *targets), export="both")
    trained = logits(trainer.model, TEXTS)
    assert off(logits(type(gpt2()).from_pretrained(tmp_path / "merged"), TEXTS), trained) < 1e-5
    assert off(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "adapter"), TEXTS), trained) < 1e-5
    control = copy.deepcopy(trainer.model).merge_and_unload()
    assert off(logits(control, TEXTS), trained) > 1e-2


def test_tied_adapters_are_merged_into_tied_layers(tmp_path):
    trainer = run(tmp_path, tiny_llama(tie_word_embeddings=True), TEXTS, targets=("lm_head",))
    merged = merge_exactly(trainer.model)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert off(logits(merged, TEXTS), logits(trainer.model, TEXTS)) < 1e-5
    with pytest.raises(OptionError, match="which another layer shares"):
        run(tmp_path, tiny_llama(tie_word_embeddings=True), TEXTS, method="pissa", targets=("lm_head",))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_trained_if_asked_and_told_if_not(tied, tmp_path, caplog):
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    size = tiny_llama().config.vocab_size
    # In the middle: what the last token says is scored by nobody.
    new = torch.tensor([size])
    rows = [{"input_ids": ids, "labels": ids} for ids in (torch.cat([one[:4], new, one[4:]]) for one in IDS)]
    for new_tokens in ("train", "warn"):
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(size + 1)
        base = copy.deepcopy(model)
        with caplog.at_level(logging.WARNING):
            trainer = run(tmp_path / new_tokens, model, rows, new_tokens=new_tokens, export="both")
        merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / new_tokens / "merged")
        assert off(logits(merged, rows), logits(trainer.model, rows)) < 1e-5
        for layer in ("get_input_embeddings", "get_output_embeddings"):
            moved = (getattr(merged, layer)().weight - getattr(base, layer)().weight).abs().amax(dim=1)
            assert float(moved[:size].max()) == 0
            assert bool(moved[size] > 0) == (new_tokens == "train")
        said = "1 tokens (384) were added" in caplog.text and "new_tokens=train" in caplog.text
        assert said == (new_tokens == "warn")


def test_a_base_that_is_not_the_named_one_is_saved_beside_the_adapter(tmp_path, caplog):
    tiny_llama().save_pretrained(tmp_path / "named")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "named")
    run(tmp_path / "same", model, TEXTS, export="adapter")
    assert not (tmp_path / "same" / "base").exists()
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "named")
    del model.model.layers[0]
    model.config.num_hidden_layers -= 1
    model.model.layers[0].self_attn.layer_idx = 0
    trainer = run(tmp_path / "other", model, TEXTS, export="adapter")
    assert "is saved in" in caplog.text
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "other" / "adapter")
    assert off(logits(again, TEXTS), logits(trainer.model, TEXTS)) < 1e-5


def test_a_failed_comparison_keeps_the_adapter_and_the_older_export(tmp_path, monkeypatch):
    run(tmp_path, tiny_llama(), TEXTS, export="merged")
    assert not (tmp_path / "adapter-unmerged").exists()
    older = (tmp_path / "merged" / "model.safetensors").read_bytes()
    for fails in (lambda model: tiny_llama(seed=1), lambda model: {}["no such key"]):
        monkeypatch.setattr(merge, "merge_exactly", fails)
        with pytest.raises(PluginError, match="the adapter that was trained is in"):
            run(tmp_path, tiny_llama(), TEXTS, export="merged")
        assert (tmp_path / "merged" / "model.safetensors").read_bytes() == older
        kept = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter-unmerged")
        assert off(logits(kept, TEXTS), logits(tiny_llama(), TEXTS)) > 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter-unmerged", "hf_ft_run.json", "merged"]


def test_a_merge_that_could_not_be_compared_is_refused_before_training(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    host = with_plugins(Trainer, Peft(r=4, export="merged"))
    with pytest.raises(PluginError, match=r"no batch of the training data.*export=adapter"):
        host(vit(), args, train_dataset=PICTURES, data_collator=lambda rows: {"pictures": torch.zeros(2, 3, 4, 4)})
    # Control: with the model's own names it is built.
    host(vit(), args, train_dataset=PICTURES)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_model_that_could_not_be_quantised_to_the_end_is_as_it_was(kind, monkeypatch):
    model, turned = tiny_llama(), []
    before = {name: (id(part), type(part)) for name, part in model.named_modules()}
    wanted, real = logits(model, TEXTS), quantization._quantized

    def fails(*arguments):
        turned.append(1)
        if len(turned) == 4:
            raise MemoryError("no room")
        return real(*arguments)

    monkeypatch.setattr(quantization, "_quantized", fails)
    with pytest.raises(MemoryError):
        quantize(model, kind)
    assert {name: (id(part), type(part)) for name, part in model.named_modules()} == before
    assert torch.equal(logits(model, TEXTS), wanted)
    assert not hasattr(model.config, "quantization_config")


def test_a_model_that_peft_fails_on_is_as_it_was(tmp_path):
    model = tiny_llama()
    before = {name: id(weight) for name, weight in model.named_parameters()}
    with pytest.raises(PluginError, match="cannot put"):
        run(tmp_path, model, TEXTS, quant="nf4", config={"bias": "nonsense"})
    assert {name: id(weight) for name, weight in model.named_parameters()} == before
    assert all(weight.requires_grad for weight in model.parameters())


def test_another_quantisation_is_named_and_not_merged(tmp_path):
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(PluginError, match=r"is quantised by gptq. Use export=adapter"):
        run(tmp_path, model, TEXTS, export="merged")
    assert Path(run(tmp_path, tiny_llama(), TEXTS, export="merged").args.output_dir, "merged").is_dir()


@pytest.mark.parametrize(
    ("name", "settings", "stem"),
    [
        ("BartForConditionalGeneration", {**STACKS, **WIDTHS, "pad_token_id": 1}, "layernorm_embedding"),
        ("MBartForConditionalGeneration", {**STACKS, **WIDTHS, "pad_token_id": 1}, "layernorm_embedding"),
        ("RobertaForSequenceClassification", {**SMALL, "vocab_size": 64}, "embeddings"),
        ("ViTForImageClassification", {**SMALL, "image_size": 16, "patch_size": 8}, "embeddings"),
    ],
)
def test_the_norm_of_the_embeddings_belongs_to_the_stem_and_that_of_the_blocks_to_the_last(name, settings, stem):
    first, *blocks = (group for group in layer_groups(made(name, **settings)) if group.name != "head")
    assert any(path.endswith(stem) for path in first.modules)
    inside = {path.rpartition(".")[2] for group in blocks for path in group.modules}
    assert inside == {"0", "1"} | {"MBart": {"layer_norm"}, "ViT": {"layernorm"}}.get(name.partition("For")[0], set())


def test_new_rows_of_a_table_that_hangs_in_several_places_are_trained(tmp_path):
    """Marian reads its resized table where the encoder has it, and not where it comes first in the model."""
    settings = WIDTHS | STACKS | {"pad_token_id": 0, "eos_token_id": 1}
    made("MarianMTModel", **settings).save_pretrained(tmp_path / "base")
    model = transformers.MarianMTModel.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(65)
    base = copy.deepcopy(model)
    rows = [{"input_ids": ids, "labels": ids} for ids in (torch.cat([one[:4] % 64, torch.tensor([64])]) for one in IDS)]
    trainer = run(tmp_path / "run", model, rows, new_tokens="train", export="both")
    merged = transformers.MarianMTModel.from_pretrained(tmp_path / "run" / "merged")
    assert off(logits(merged, rows), logits(trainer.model, rows)) < 1e-5
    moved = (merged.get_input_embeddings().weight - base.get_input_embeddings().weight).abs().amax(dim=1)
    assert float(moved[64]) > 0
    assert float(moved[:64].max()) == 0


def test_rows_that_the_output_layer_does_not_have_are_left_out():
    """Marian with a vocabulary of each half: only the encoder's has grown."""
    settings = (
        WIDTHS | STACKS | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 64, "pad_token_id": 0}
    )
    model = made("MarianMTModel", **settings)
    model.resize_token_embeddings(65)
    fields = {"trainable_token_indices": None}
    assert trainable_rows(model, [64], "lora", fields, ()) == {"encoder.embed_tokens": [64]}
    model.resize_decoder_token_embeddings(65)
    both = {name: [64] for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
    assert trainable_rows(model, [64], "lora", fields, ()) == both


def test_the_text_part_of_a_model_that_names_no_embeddings_has_new_tokens():
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = part | {"image_size": 16, "patch_size": 8}
    model = made("CLIPModel", text_config=part | {"vocab_size": 64}, vision_config=vision)
    model.text_model.resize_token_embeddings(66)
    table = model.text_model.embeddings.token_embedding
    assert layers_of_tokens(model) == {"token_embedding": table}
    assert table.weight.shape[0] == 66


def test_a_head_may_be_narrower_than_the_rank(tmp_path):
    """As in stock peft; of a layer of the blocks, and of a method that needs the room, it is refused."""
    settings = SMALL | {"vocab_size": 300, "num_labels": 2}
    model, rows = (
        made("BertForSequenceClassification", **settings),
        [{"input_ids": IDS[0], "labels": i % 2} for i in (0, 1)],
    )
    trainer = run(tmp_path, copy.deepcopy(model), rows, targets=("query", "classifier"), r=4, export="both")
    merged = type(model).from_pretrained(tmp_path / "merged")
    assert off(logits(merged, rows), logits(trainer.model, rows)) < 1e-5
    assert not torch.equal(merged.classifier.weight, model.classifier.weight)
    with pytest.raises(OptionError, match="r=4 is above the size of classifier"):
        run(tmp_path, model, rows, method="pissa", targets=("query", "classifier"), r=4)
    with pytest.raises(OptionError, match="r=99 is above the size of bert"):
        run(tmp_path, model, rows, targets=("query",), r=99)


def test_an_adapter_that_the_script_has_merged_is_verified(tmp_path):
    class Merges(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            model.merge_adapter()

    base = tiny_llama()
    trainer = run(tmp_path, copy.deepcopy(base), TEXTS, export="both", callbacks=[Merges()])
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert off(logits(again, TEXTS), logits(trainer.model, TEXTS)) < 1e-5


def test_a_decoder_is_not_given_classes_for_tokens():
    from hf_ft_plugins.techniques.peft.model_outputs import _decoder_ids

    torch.manual_seed(0)
    sizes = {"d_model": 16, "vocab_size": 40, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    heads = {"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = transformers.BartForSequenceClassification(transformers.BartConfig(**sizes, **heads))
    assert _decoder_ids(model, torch.tensor([0, 1, 1])) is None
    assert _decoder_ids(model, torch.tensor([[0.5, 1.0]])) is None
    # The control: tokens are moved by one.
    model = transformers.BartForConditionalGeneration(model.config)
    assert _decoder_ids(model, torch.tensor([[5, 6, 7]])).tolist() == [[model.config.decoder_start_token_id, 5, 6]]
