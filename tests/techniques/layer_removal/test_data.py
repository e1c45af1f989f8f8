"""Data as people bring them: rows without labels, inputs that are no ids, other labels, lazy transforms."""

import json
import math

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.models.inputs import decoder_inputs
from hf_ft_plugins.techniques.layer_removal import distilling, remove_layers
from hf_ft_plugins.techniques.layer_removal.gate import REPORT
from hf_ft_plugins.techniques.layer_removal.score import gives_loss, mean_loss, score_layers
from hf_ft_plugins.techniques.layer_removal.smallest_model import smallest
from hf_ft_plugins.techniques.layer_removal.stacks import block_stacks
from hf_ft_plugins.techniques.layer_removal.trial_inputs import trial_inputs
from hf_ft_plugins.testing import tiny_trainer

IDS = torch.randint(3, 90, (4, 20), generator=torch.Generator().manual_seed(1))
TECHNIQUE = "layer-removal:number=1,max_degradation=none,max_repetition=none"


def model_of(name, kind):
    return smallest(getattr(transformers, name), CONFIG_MAPPING[kind])


def rows_of(model, labels):
    name, inputs = model.main_input_name, trial_inputs(model)
    return [{name: inputs[name][at % 2], "labels": torch.tensor(labels)} for at in range(4)]


WITHOUT_IDS = {
    "images": ("ViTForImageClassification", "vit", 1),
    "sound": ("Wav2Vec2ForSequenceClassification", "wav2vec2", 1),
    "letters of sound": ("Wav2Vec2ForCTC", "wav2vec2", [5, 6, 7]),
    "words of sound": ("WhisperForConditionalGeneration", "whisper", [5, 6, 7]),
    "other words of sound": ("Speech2TextForConditionalGeneration", "speech_to_text", [5, 6, 7]),
}


@pytest.mark.parametrize("options", ["", ",distill=1"])
@pytest.mark.parametrize("what", WITHOUT_IDS)
def test_models_that_read_no_ids(what, options, tmp_path):
    name, kind, labels = WITHOUT_IDS[what]
    if options and what == "letters of sound":
        pytest.skip("a loss of alignments has no distribution by label")
    model = model_of(name, kind)
    rows = rows_of(model, labels)
    trainer = tiny_trainer(
        tmp_path,
        TECHNIQUE + options,
        model=model,
        train_dataset=rows,
        eval_dataset=rows,
        max_steps=1,
        eval_strategy="no",
    )
    trainer.train()
    (stack,) = [one for side, one in block_stacks(trainer.model).items() if side != "encoder"]
    assert len(stack.layers) == 5
    report = json.loads((tmp_path / REPORT).read_text())
    loss = trainer.evaluate()["eval_loss"]
    if loss > 700:
        # A sum over a whole row of sound: there is nothing that it could be compared by.
        assert "healed" not in report
        assert "nothing was compared" in report["said"]
    else:
        assert report["healed"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)


def test_a_data_set_that_is_transformed_when_it_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")

    def lazily(rows):
        ids = torch.tensor(rows["numbers"])
        return {"input_ids": ids, "labels": ids}

    data = datasets.Dataset.from_dict({"numbers": IDS.tolist()})
    data.set_transform(lazily)
    model = model_of("LlamaForCausalLM", "llama")
    setting = {"train_dataset": data, "eval_dataset": data, "remove_unused_columns": False, "max_steps": 1}
    trainer = tiny_trainer(tmp_path, TECHNIQUE, model=model, **setting)
    assert len(trainer.model.model.layers) == 5
    trainer.train()
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["chosen_by"] == "perplexity"
    assert report["healed"]["perplexity"] == pytest.approx(math.exp(trainer.evaluate()["eval_loss"]), rel=1e-3)


def test_answers_in_a_text_are_labels_too(tmp_path):
    rows = [{"input_ids": row, "start_positions": 1, "end_positions": 3} for row in IDS]
    model = model_of("BertForQuestionAnswering", "bert")
    trainer = tiny_trainer(tmp_path, TECHNIQUE, model=model, train_dataset=rows, eval_dataset=rows, max_steps=1)
    trainer.train()
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["healed"]["perplexity"] == pytest.approx(math.exp(trainer.evaluate()["eval_loss"]), rel=1e-3)


def test_batches_without_labels_do_not_count():
    model = model_of("LlamaForCausalLM", "llama")
    whole, none = {"input_ids": IDS, "labels": IDS}, {"input_ids": IDS.flip(1)}
    ignored = none | {"labels": torch.full_like(IDS, -100)}
    alone = mean_loss(model, [whole])
    with torch.no_grad():
        assert alone == pytest.approx(float(model(**whole).loss), rel=1e-6)
    assert mean_loss(model, [none, whole, ignored]) == alone
    assert math.isnan(mean_loss(model, [none, ignored]))
    assert gives_loss(model, [none, whole])
    assert not gives_loss(model, [none, ignored])
    # The control: with labels they count.
    assert mean_loss(model, [whole, none | {"labels": IDS.flip(1)}]) != pytest.approx(alone, rel=1e-6)


def test_a_collator_that_gives_no_labels_leaves_the_choice_to_the_states(tmp_path):
    model = model_of("LlamaForCausalLM", "llama")
    rows = [{"input_ids": row} for row in IDS]

    def collate(features):
        return {"input_ids": torch.stack([one["input_ids"] for one in features])}

    trainer = tiny_trainer(
        tmp_path,
        TECHNIQUE,
        model=model,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        eval_strategy="no",
    )
    assert len(trainer.model.model.layers) == 5


@pytest.mark.parametrize(
    ("name", "kind"), [("MBartForConditionalGeneration", "mbart"), ("M2M100ForConditionalGeneration", "m2m_100")]
)
def test_the_original_begins_as_the_model_does(name, kind):
    """A model distilled from itself loses nothing, whatever its decoder begins with."""
    model, labels = model_of(name, kind), IDS[:, :6].clone()
    labels[0, 4:] = -100
    plain = float(model(input_ids=IDS, labels=labels).loss)
    with distilling(model, model_of(name, kind), 3.0):
        assert float(model(input_ids=IDS, labels=labels).loss) == pytest.approx(plain, rel=1e-5)
    # The control: with another beginning it would.
    begins = decoder_inputs(model, labels, "test").clone()
    begins[:, 0] = 50
    with distilling(model, model_of(name, kind), 3.0):
        out = model(input_ids=IDS, labels=labels, decoder_input_ids=begins)
    assert float(out.loss) != pytest.approx(plain, rel=1e-5)


def test_smoothed_labels_are_kept_from_distillation(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    with pytest.raises(PluginError, match=r"label_smoothing_factor=0\.1.*Set either to 0"):
        tiny_trainer(
            tmp_path,
            TECHNIQUE + ",distill=1",
            model=model_of("LlamaForCausalLM", "llama"),
            train_dataset=rows,
            eval_dataset=rows,
            label_smoothing_factor=0.1,
        )


def test_rwkv_is_as_it_was_after_it_was_evaluated():
    """It divides weights by what follows from layers' numbers while it is evaluated."""
    torch.manual_seed(0)
    config = transformers.RwkvConfig(vocab_size=99, hidden_size=32, num_hidden_layers=6, rescale_every=2)
    model = transformers.RwkvForCausalLM(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(input_ids=IDS)
    removal = remove_layers(model, [1])
    model(input_ids=IDS)
    removal.restore()
    model(input_ids=IDS)
    model.train(True)(input_ids=IDS)
    found = model.state_dict()
    assert all(torch.equal(found[name], before[name]) for name in before)


def _small(name, **settings):
    cls = getattr(transformers, name)
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    torch.manual_seed(0)
    return cls(cls.config_class(**sizes, num_attention_heads=2, **settings)).eval()


@pytest.mark.parametrize("what", ["choices", "sound"])
def test_padding_counts_in_no_model(what):
    """What stands in the padding changes no score, also where a mask has another shape than the states."""
    if what == "choices":
        model, name = _small("BertForMultipleChoice"), "input_ids"
        given = torch.randint(3, 90, (2, 3, 10), generator=torch.Generator().manual_seed(0))
        other = given.clone()
        other[..., 6:] = 5
        real = torch.ones_like(given)
        real[..., 6:] = 0
        wanted = score_layers(model, [{name: given[..., :6]}])["block_influence"]
    else:
        model = model_of("Wav2Vec2ForSequenceClassification", "wav2vec2").eval()
        name = model.main_input_name
        given = trial_inputs(model)[name]
        half = given.shape[1] // 2
        real = torch.ones_like(given, dtype=torch.long)
        real[:, half:] = 0
        given = given * real
        other = given
        wanted = score_layers(model, [{name: given[:, :half]}])["block_influence"]
    for values in (given, other):
        found = score_layers(model, [{name: values, "attention_mask": real}])["block_influence"]
        assert found == pytest.approx(wanted, rel=0.02, abs=1e-3 if what == "sound" else 1e-7)
    # The control: with the padding they are others.
    assert score_layers(model, [{name: other}])["block_influence"] != pytest.approx(wanted, rel=1e-3, abs=1e-8)


def test_batches_that_are_no_call_of_the_model(tmp_path, caplog):
    """A script with a loss of its own: layers that are named go, and to choose some is refused."""

    class Pairs(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            good, bad = (model(input_ids=inputs[side]).logits.mean() for side in ("good", "bad"))
            return bad - good

    def collate(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"good": ids, "bad": ids.flip(1)}

    rows = [{"input_ids": row} for row in IDS]
    settings = {"data_collator": collate, "train_dataset": rows, "eval_dataset": rows, "trainer_class": Pairs}
    settings |= {"remove_unused_columns": False, "eval_strategy": "no", "max_steps": 1}
    model = model_of("LlamaForCausalLM", "llama")
    with pytest.raises(
        PluginError, match=r"nothing that it takes\) raises ValueError .*layers=\.\.\., or say method=last"
    ):
        tiny_trainer(tmp_path, TECHNIQUE, model=model, **settings)
    assert len(model.model.layers) == 6
    for mend in ("layer-removal:layers=2", TECHNIQUE + ",method=last"):
        trainer = tiny_trainer(tmp_path, mend, model=model_of("LlamaForCausalLM", "llama"), **settings)
        trainer.train()
        assert len(trainer.model.model.layers) == 5
    assert "nothing can be compared" in caplog.text


def test_a_loss_without_labels_is_not_distilled(tmp_path):
    rows = [{"input_ids": row, "start_positions": 1, "end_positions": 3} for row in IDS]
    model = model_of("BertForQuestionAnswering", "bert")
    with pytest.raises(PluginError, match=r"start_positions, end_positions.* is without labels. Set distill=0"):
        tiny_trainer(tmp_path, TECHNIQUE + ",distill=1", model=model, train_dataset=rows, eval_dataset=rows)


def test_a_trainer_that_cannot_be_built_leaves_no_files(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    given = {"train_dataset": rows, "eval_dataset": rows}
    technique = "layer-removal:number=1,on_fail=restore,max_degradation=99,max_repetition=1"
    model = model_of("LlamaForCausalLM", "llama")
    with pytest.raises(PluginError):
        tiny_trainer(tmp_path, technique + ",distill=1", model=model, label_smoothing_factor=0.1, **given)
    assert not list(tmp_path.rglob("*"))
    trainer = tiny_trainer(tmp_path, technique, model=model, max_steps=1, **given)
    assert not list(tmp_path.rglob("*curve*"))
    trainer.train()
    assert {one.name for one in tmp_path.glob("*curve*")} == {"layer_removal_curve.json", "layer_removal_curve.png"}
