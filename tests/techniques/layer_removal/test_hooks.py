"""layer-removal in a run: the choice, healing, the gate, the curve, resume, and the company of other techniques."""

import copy
import json
import math

import pytest
import torch
import transformers
from transformers import Trainer

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.techniques.layer_removal import (
    LayerRemoval,
    choose_layers,
    distilling,
    measure_curve,
    remove_layers,
    save_curve,
)
from hf_ft_plugins.techniques.layer_removal.distill import divergence
from hf_ft_plugins.techniques.layer_removal.gate import REPORT
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

IDS = torch.randint(3, 380, (4, 24), generator=torch.Generator().manual_seed(1))


def llama(layers=5, seed=0):
    return tiny_llama(seed=seed, num_hidden_layers=layers)


def texts(rows=6):
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in IDS.repeat(rows, 1)]


def language_trainer(folder, *techniques, **changes):
    setting = {"model": llama(), "train_dataset": texts(), "eval_dataset": texts(2)[:6]} | changes
    return tiny_trainer(folder, *techniques, **setting)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


# ---- the choice ----


@pytest.mark.parametrize(
    ("options", "left"),
    [({}, 4), ({"fraction": 0.4}, 3), ({"number": 2}, 3), ({"layers": (1, 3)}, 3), ({"method": "angular"}, 4)],
)
def test_as_many_layers_go_as_is_said(options, left, tmp_path):
    trainer = language_trainer(tmp_path, LayerRemoval(**options))
    assert len(trainer.model.model.layers) == left
    assert trainer.model.config.num_hidden_layers == left
    if "layers" in options:
        whole = llama()
        assert torch.equal(trainer.model.model.layers[1].mlp.up_proj.weight, whole.model.layers[2].mlp.up_proj.weight)


def test_the_training_data_choose_and_the_random_state_is_left(tmp_path):
    model = llama()
    with torch.no_grad():
        # A layer that does nothing.
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    language_trainer(tmp_path, model=model)
    before = torch.get_rng_state()
    trainer = language_trainer(tmp_path, LayerRemoval(number=1, method="block_influence", distill=1.0), model=model)
    assert trainer.model.config.removed_layers == {"": [2]}
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fraction": 0.3, "number": 2}, "say one of fraction, number"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"number": 0}, "1 or more"),
        ({"method": "magic"}, "there are auto, perplexity"),
        ({"max_degradation": -1.0}, "0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(OptionError, match=said):
        LayerRemoval(**options)


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"layers": (0, 2)}, {}, r"layers=0\+2 holds \[0\], which protect_first=1"),
        ({"layers": (4,)}, {}, r"holds \[4\]"),
        ({"layers": (9,)}, {}, "has layers 0 to 4"),
        ({"number": 4}, {}, "there are 3 to choose from"),
        ({"fraction": 0.9}, {}, "there are 3 to choose from"),
        ({}, {"train_dataset": None}, "no training data to choose by"),
    ],
)
def test_what_the_model_or_the_data_forbid_is_said(options, changes, said, tmp_path):
    with pytest.raises(PluginError, match=said):
        language_trainer(tmp_path, LayerRemoval(**options), **changes)


def test_without_labels_the_loss_is_not_asked_for(tmp_path):
    unlabelled = [{"input_ids": row["input_ids"]} for row in texts()]
    trainer = language_trainer(tmp_path, "layer-removal:number=1", train_dataset=unlabelled)
    assert len(trainer.model.model.layers) == 4
    with pytest.raises(PluginError, match="needs batches with labels"):
        language_trainer(tmp_path, "layer-removal:number=1,method=taylor", train_dataset=unlabelled)


def test_a_model_that_lost_layers_before_is_left_as_it_is(tmp_path, caplog):
    trainer = language_trainer(tmp_path / "first", "layer-removal:number=1")
    trainer.save_model(tmp_path / "small")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with caplog.at_level("INFO"):
        again = language_trainer(tmp_path / "second", "layer-removal:number=1", model=small)
    assert len(again.model.model.layers) == 4
    assert "already; it is left as it is" in caplog.text
    again.train()


def test_taylor_finds_the_layer_that_does_nothing_and_leaves_no_gradients():
    model = llama()
    with torch.no_grad():
        for weight in model.model.layers[3].parameters():
            weight.zero_()
    model.model.embed_tokens.weight.requires_grad_(False)
    assert choose_layers(model, [{"input_ids": IDS, "labels": IDS}], 1, method="taylor") == [3]
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.model.embed_tokens.weight.requires_grad


# ---- distillation ----


@pytest.mark.parametrize("items", [None, 40])
def test_the_divergence_is_that_of_the_scored_tokens(items):
    model, original = llama(), llama(seed=1)
    labels = IDS.clone()
    labels[:, :7] = -100
    batch = {"input_ids": IDS, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    plain = model(**batch).loss
    with distilling(model, original, 0.7):
        loss = model(**batch).loss
    ours, theirs = (one(input_ids=IDS).logits.log_softmax(-1) for one in (model, original))
    total = 0.0
    for row in range(len(IDS)):
        for place in range(6, IDS.shape[1] - 1):
            total = total + (theirs[row, place].exp() * (theirs[row, place] - ours[row, place])).sum()
    scored = len(IDS) * (IDS.shape[1] - 7)
    torch.testing.assert_close(loss, plain + 0.7 * total / (items or scored), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(**batch).loss, plain)
    with distilling(model, original, 0.7), torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, plain)


def test_of_a_classifier_every_row_counts():
    logits, target = torch.randn(3, 4), torch.randn(3, 4)
    kl = (target.softmax(-1) * (target.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(divergence(logits, target, torch.tensor([0, 1, 2]), shifted=False), kl)


def test_distillation_brings_the_model_nearer_to_the_original(tmp_path):
    def distance(weight):
        trainer = language_trainer(
            tmp_path / str(weight), LayerRemoval(layers=(2,), distill=weight, max_degradation=None), eval_strategy="no"
        )
        trainer.train()
        return float((logits(trainer.model) - logits(llama())).norm())

    assert distance(4.0) < 0.9 * distance(0.0)


def test_accumulation_leaves_the_distilled_loss_as_one_large_batch(tmp_path):
    def train(name, **changes):
        technique = LayerRemoval(layers=(2,), distill=1.0, max_degradation=None)
        small = {"eval_strategy": "no", "max_steps": 3, "weight_decay": 0.0, "optim": "sgd", "learning_rate": 0.1}
        trainer = language_trainer(tmp_path / name, technique, **(small | changes))
        trainer.train()
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    whole = train("whole", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    parts = train("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, train("other", per_device_train_batch_size=2, gradient_accumulation_steps=1))


def test_a_trainer_whose_loss_is_not_the_models_is_refused():
    model = llama()
    with distilling(model, llama(), 1.0), pytest.raises(PluginError, match="needs a model called with labels"):
        model(input_ids=IDS)


# ---- the gate ----


def test_the_report_tells_before_and_after(tmp_path):
    trainer = language_trainer(tmp_path, "layer-removal:number=2")
    trainer.train()
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["layers_before"] == 5
    assert len(report["removed"]) == 2
    assert report["chosen_by"] == "perplexity"
    assert not report["failed"]
    assert report["healed"]["perplexity"] < report["before_healing"]["perplexity"]
    assert report["original"]["match"] == 1
    trained = trainer.evaluate()["eval_loss"]
    assert report["healed"]["perplexity"] == pytest.approx(math.exp(trained), rel=1e-3)
    points = json.loads((tmp_path / "layer_removal_curve.json").read_text())
    assert [point["removed"] for point in points] == [0, 1, 2]
    assert points[2]["perplexity"] == pytest.approx(report["before_healing"]["perplexity"], rel=1e-5)
    assert (tmp_path / "layer_removal_curve.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def learned():
    """A model that knows the texts, so that the loss of a layer is felt."""
    torch.set_num_threads(1)
    model = llama().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# Of training there is next to none.
UNHEALED = {"learning_rate": 1e-9, "eval_strategy": "no"}


@pytest.mark.parametrize("others", [[], ["peft:r=4,quant=nf4"]], ids=str)
def test_a_gate_that_fails_puts_the_original_back_and_ends_the_run(others, learned, tmp_path):
    if others:
        pytest.importorskip("bitsandbytes")
    technique = LayerRemoval(number=2, max_degradation=0.01)
    trainer = language_trainer(tmp_path, technique, *others, model=copy.deepcopy(learned), **UNHEALED)
    with pytest.raises(PluginError, match=r"held-out perplexity is .* max_degradation=0\.01.*original again"):
        trainer.train()
    assert torch.equal(logits(trainer.model), logits(learned))
    assert trainer.model.config.num_hidden_layers == 5
    assert json.loads((tmp_path / REPORT).read_text())["failed"]
    assert (tmp_path / "layer_removal_curve.png").exists()


def test_a_gate_may_only_warn(learned, tmp_path, caplog):
    technique = LayerRemoval(number=2, max_degradation=0.01, on_fail="warn")
    trainer = language_trainer(tmp_path, technique, model=copy.deepcopy(learned), **UNHEALED)
    trainer.train()
    assert "held-out perplexity is" in caplog.text
    assert len(trainer.model.model.layers) == 3


def test_without_evaluation_data_it_is_said_that_nothing_was_compared(tmp_path, caplog):
    trainer = language_trainer(tmp_path, "layer-removal:number=1", eval_dataset=None, eval_strategy="no")
    assert "nothing is compared" in caplog.text
    trainer.train()
    assert "nothing was compared" in json.loads((tmp_path / REPORT).read_text())["said"]


def test_the_curve_has_a_point_for_every_number(tmp_path):
    model = llama()
    before = logits(model)
    batches = [{"input_ids": IDS, "labels": IDS}]
    for method in ("perplexity", "angular", "last"):
        points = measure_curve(model, batches, most=3, method=method, prompts=IDS[:, :8])
        assert [len(point["layers"]) for point in points] == [0, 1, 2, 3]
        assert points[2]["layers"] == choose_layers(model, batches, 2, method=method)
        removal = remove_layers(model, points[3]["layers"])
        assert model(input_ids=IDS, labels=IDS).loss.item() == pytest.approx(points[3]["loss"], rel=1e-5)
        removal.restore()
        assert points[0]["match"] == 1
    assert torch.equal(logits(model), before)
    assert save_curve(points, tmp_path / "new").stat().st_size > 10_000


# ---- the run ----


@pytest.mark.parametrize("options", ["number=1", "number=1,distill=0.5"])
@pytest.mark.parametrize("stop_at", [2, 9])
def test_resumed_run_equals_uninterrupted_run(options, stop_at, tmp_path):
    technique = resolve(f"layer-removal:{options},max_degradation=none")
    setting = {"train_dataset": texts(), "eval_dataset": texts(1)}
    straight = tiny_trainer(tmp_path / "straight", technique, model=llama(), **setting)
    straight.train()
    again = resumed(
        tmp_path / "resumed", technique, stop_at=stop_at, make_setting=lambda: {"model": llama()}, **setting
    )
    assert difference(outcome(straight), outcome(again)) is None


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    def idle(layer):
        model = llama()
        with torch.no_grad():
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
        return model

    technique = "layer-removal:number=1,method=block_influence"
    language_trainer(tmp_path, technique, model=idle(1)).train()
    other = language_trainer(tmp_path, technique, model=idle(2))
    with pytest.raises(PluginError, match=r"is without layers \[1\].*layers=1"):
        other.train(resume_from_checkpoint=True)


def test_each_model_of_model_init_loses_its_layers(tmp_path):
    trainer = language_trainer(tmp_path, "layer-removal:number=1", model=None, model_init=lambda: llama())
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert len(trainer.model.model.layers) == 4
    assert json.loads((tmp_path / REPORT).read_text())["healed"]


def test_an_adapter_heals(tmp_path):
    pytest.importorskip("peft")
    for order in (["layer-removal:number=2", "peft:r=4"], ["peft:r=4", "layer-removal:number=2"]):
        trainer = language_trainer(tmp_path, *order, learning_rate=1e-2)
        inner = trainer.model.get_base_model().model.layers
        frozen = inner[0].mlp.up_proj.base_layer.weight.clone()
        trainer.train()
        assert len(inner) == 3
        assert torch.equal(frozen, inner[0].mlp.up_proj.base_layer.weight)
        report = json.loads((tmp_path / REPORT).read_text())
        assert report["healed"]["perplexity"] < report["before_healing"]["perplexity"]


def test_encoders_lose_layers_by_how_little_they_do(tmp_path):
    technique = LayerRemoval(number=1, protect_first=0, protect_last=0)
    model = tiny_model()
    layers = model.config.num_hidden_layers
    trainer = tiny_trainer(tmp_path, technique, model=model)
    trainer.train()
    assert len(trainer.model.bert.encoder.layer) == trainer.model.config.num_hidden_layers == layers - 1
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["chosen_by"] == "block_influence"
    assert report["healed"]["perplexity"] == pytest.approx(math.exp(trainer.evaluate()["eval_loss"]), rel=1e-4)


@pytest.mark.parametrize("side", ["", "encoder", "decoder"])
def test_of_an_encoder_decoder_the_decoder_loses_them_unless_it_is_said(side, tmp_path):
    size = {"d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 384, "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**size, **heads))
    trainer = language_trainer(tmp_path, LayerRemoval(number=2, side=side, distill=0.5), model=model)
    trainer.train()
    parts = {"encoder": trainer.model.model.encoder.layers, "decoder": trainer.model.model.decoder.layers}
    assert len(parts[side or "decoder"]) == 2
    assert len(parts["decoder" if side == "encoder" else "encoder"]) == 4


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_through_trls_trainer(distill, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": f"say {word}, then {word} again"} for word in ("red", "blue")] * 8)
    trainer = language_trainer(
        tmp_path,
        LayerRemoval(number=2, distill=distill),
        trainer_class=trl.SFTTrainer,
        args_class=trl.SFTConfig,
        train_dataset=rows,
        eval_dataset=rows.select(range(4)),
        processing_class=tiny_tokenizer(),
        max_length=32,
        bf16=False,
        gradient_checkpointing=False,
    )
    if distill:
        with pytest.raises(PluginError, match=r"TRL's trainers do not\. Set distill=0"):
            trainer.train()
        return
    trainer.train()
    assert len(trainer.model.model.layers) == 3
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["chosen_by"] == "perplexity"
    assert report["healed"]["perplexity"] < report["original"]["perplexity"]


def test_a_stock_trainer_heals_by_the_parts_alone(tmp_path):
    model = llama()
    remove_layers(model, choose_layers(model, [{"input_ids": IDS, "labels": IDS}], 2))
    trainer = tiny_trainer(tmp_path, model=model, train_dataset=texts(), eval_dataset=texts(1))
    assert type(trainer) is Trainer
    trainer.train()
    log = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert log[-1] < log[0]
