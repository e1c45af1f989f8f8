"""What the labels of a run are: the config's word, then features, then a guess; classes' names; rows without labels."""

import copy
import logging
import re

import pytest
import torch
from datasets import ClassLabel, Dataset, IterableDataset, Value
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaForSequenceClassification,
    Wav2Vec2ForSequenceClassification,
)

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.metrics import direction
from hf_ft_plugins.models.class_names import are_placeholders, match
from hf_ft_plugins.models.heads import fit_head, labels_as_numbers
from hf_ft_plugins.models.labels import labels_of, other_labels
from hf_ft_plugins.techniques.task import Task, report
from hf_ft_plugins.techniques.transfer import Transfer
from hf_ft_plugins.testing import LENGTH, VOCABULARY, tiny_dataset, tiny_model, tiny_trainer


def model_of(cls=BertForSequenceClassification, **config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return cls(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes, **config))


def rows_of(labels, feature=None, column="labels"):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (len(labels), LENGTH), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": ids, column: labels})
    return data if feature is None else data.cast_column(column, feature)


def read(labels, feature=None, cls=BertForSequenceClassification, **config):
    found = labels_of(rows_of(labels, feature), "t", model_of(cls, **config))
    return found.kind, found.names


def test_the_configs_problem_type_holds():
    numbers, bits, three = [[1.5, -3.0, 10.0]] * 4, [[0, 1, 1]] * 4, {"num_labels": 3}
    assert read(numbers, problem_type="regression", **three)[0] == "regression"
    assert read(bits, problem_type="regression", **three)[0] == "regression"
    assert read(bits, problem_type="multi_label_classification", **three)[0] == "multi_label"
    assert read([1, 5, 3, 2], problem_type="regression", num_labels=1)[0] == "regression"
    assert read([1, 5, 3, 2], num_labels=1)[0] == "regression"
    assert read([0, 1], ClassLabel(names=["a", "b"]), num_labels=1)[0] == "regression"
    assert read([0.0, 1.0], Value("float32"), problem_type="single_label_classification")[0] == "single_label"
    # The controls: nothing is said, so the features say it.
    assert read([0.5, 1.0], Value("float32"))[0] == "regression"
    assert read([0, 1], Value("int64"))[0] == "single_label"
    assert read([[0.0, 1.0, 1.0]] * 4)[0] == "multi_label"


def test_classes_without_rows_keep_their_outputs():
    names = {"id2label": dict(enumerate("abcd"))}
    assert read([0, 1, 3], **names) == ("single_label", tuple("abcd"))
    assert read([0, 1], num_labels=4)[1] == tuple(f"LABEL_{index}" for index in range(4))
    assert read([0, 1], ClassLabel(names=["x", "y"]), num_labels=3)[1] == ("x", "y", "LABEL_2")
    assert read([[0, -100, 1]], cls=BertForTokenClassification, **names) == ("token", tuple("abcd"))
    # The control: more classes than outputs.
    assert len(read([0, 1, 2], num_labels=2)[1]) == 3


@pytest.mark.parametrize(
    ("labels", "config", "mend"),
    [
        ([1, 2, 5], {}, r"num_labels=6 to keep the numbers, or number them anew.*problem_type='regression'"),
        ([[1.5, 2.5]] * 4, {"num_labels": 2}, "problem_type='regression', num_labels=2"),
        ([[1, 2], [3, 4]], {}, "problem_type='regression'"),
        ([[1], [1, 2]], {"num_labels": 3}, "a list of 3 numbers, 0.0 or 1.0"),
        ([0.5, 1.0], {"problem_type": "single_label_classification"}, "problem_type='regression'"),
        ([0, 1], {"num_labels": 3, "problem_type": "multi_label_classification"}, "a list of 0.0 or 1.0"),
        ([[0.0, 1.0]] * 2, {"problem_type": "single_label_classification"}, "'multi_label_classification'"),
    ],
)
def test_labels_that_cannot_be_what_is_said_are_refused_with_a_mend(labels, config, mend):
    with pytest.raises(PluginError, match=mend):
        read(labels, **config)


@pytest.mark.parametrize(
    ("names", "others", "places"),
    [
        (["neg", "pos"], ["NEGATIVE", "POSITIVE"], [0, 1]),
        (["pos", "neg"], ["NEGATIVE", "POSITIVE"], [1, 0]),
        (["not spam", "spam"], ["Spam", "Not-Spam"], [1, 0]),
        (["ham", "spam"], ["spam", "not spam"], [1, 0]),
        (["fact", "opinion"], ["bad", "good"], [None, None]),
        (["1", "10"], ["10 stars", "1 star"], [1, 0]),
        (["-1", "1"], ["1", "-1"], [1, 0]),
        (["p"], ["positive", "polite"], [None]),
        (["sports", "tech", "politics"], ["travel", "politics", "sports"], [2, None, 1]),
        (["C", "Java", "Go"], ["C++", "Go", "Java"], [None, 2, 1]),
        (["A", "B"], ["A-", "B-"], [None, None]),
        (["1.5", "15"], ["15", "1.5"], [1, 0]),
        (["1.5", "2.5"], ["15", "25"], [None, None]),
        (["Sci/Tech", "World"], ["world", "sci & tech"], [1, 0]),
    ],
)
def test_names_that_mean_the_same_class(names, others, places):
    assert match(names, others) == places


def test_placeholders_are_the_classes_numbers():
    assert are_placeholders(["LABEL_0", "LABEL_1"])
    assert are_placeholders(["0", "1", "2"])
    assert not are_placeholders(["1", "2"])


@pytest.mark.parametrize("technique", [Task(calibrate=False), Transfer(strategy="full", layer_decay=1.0)])
def test_a_trained_head_is_put_in_the_labels_order(technique, tmp_path, caplog):
    model = model_of(id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1})
    before = copy.deepcopy(model.classifier)
    rows = rows_of([0, 1] * 6, ClassLabel(names=["pos", "neg"]))
    trainer = tiny_trainer(tmp_path, technique, model=model, train_dataset=rows, eval_dataset=rows)
    assert torch.equal(trainer.model.classifier.weight, before.weight[[1, 0]])
    assert torch.equal(trainer.model.classifier.bias, before.bias[[1, 0]])
    assert trainer.model.config.id2label == {0: "POSITIVE", 1: "NEGATIVE"}
    told = [record for record in caplog.records if "before 2 (NEGATIVE, POSITIVE)" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    # The control: a head of other classes is made anew.
    other = model_of(id2label={0: "fact", 1: "opinion"})
    assert None in fit_head(other, labels_of(rows, "t", other), "t").rows


def test_more_classes_keep_the_rows_of_those_that_were_there():
    model = model_of(id2label=dict(enumerate(["no", "yes"])))
    before = model.classifier.weight.detach().clone()
    rows = rows_of([0, 1, 2], ClassLabel(names=["yes", "maybe", "no"]))
    report = fit_head(model, labels_of(rows, "t", model), "t")
    assert report.rows == (1, None, 0)
    assert torch.equal(model.classifier.weight[[2, 0]], before)
    assert str(report).startswith("wider head for 3 outputs (yes, maybe, no), before 2 (no, yes)")


def test_classes_of_another_head_keep_their_rows_by_name_alone(caplog):
    model = model_of(id2label=dict(enumerate(["sports", "politics", "travel"])))
    before = model.classifier.weight.detach().clone()
    rows = rows_of([0, 1, 2], ClassLabel(names=["politics", "tech", "sports"]))
    report = fit_head(model, labels_of(rows, "t", model), "t")
    assert report.rows == (1, None, 0)
    assert torch.equal(model.classifier.weight[[0, 2]], before[[1, 0]])
    assert not torch.equal(model.classifier.weight[1], before[2])
    assert model.config.id2label == {0: "politics", 1: "tech", 2: "sports"}
    assert str(report).startswith("head with 2 of the rows before for 3 outputs (politics, tech, sports)")
    # An abbreviation is a guess, and said to be one; the same letters are none.
    for names, level in ((["neg", "pos"], logging.WARNING), (["NEGATIVE", "positive"], logging.INFO)):
        model, rows = model_of(id2label={0: "negative", 1: "positive"}), rows_of([0, 1], ClassLabel(names=names))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            fit_head(model, labels_of(rows, "t", model), "t").log("t")
        assert [record.levelno for record in caplog.records] == [level]
        assert ("taken for the same class: neg = negative" in caplog.text) == (level == logging.WARNING)


@pytest.mark.parametrize("cls", [RobertaForSequenceClassification, Wav2Vec2ForSequenceClassification])
def test_a_hidden_layer_as_wide_as_there_are_classes_is_no_output(cls):
    torch.manual_seed(0)
    names, sizes = [f"c{index}" for index in range(8)], {"hidden_size": 8, "classifier_proj_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": VOCABULARY}
    sizes |= {"conv_dim": [8], "conv_stride": [4], "conv_kernel": [8], "num_feat_extract_layers": 1}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    model = cls(cls.config_class(**sizes, id2label=dict(enumerate(names)))).eval()
    sound = torch.randn(4, 100)
    given = sound if cls is Wav2Vec2ForSequenceClassification else torch.randint(3, VOCABULARY, (4, LENGTH))
    with torch.no_grad():
        before, state = model(given).logits, torch.get_rng_state()
        fit_head(model, labels_of(rows_of([0, 7], ClassLabel(names=names[::-1])), "t", model), "t")
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(model(given).logits, before.flip(-1))
        fit_head(model, labels_of(rows_of([0, 8], ClassLabel(names=["new", *names])), "t", model), "t")
        torch.testing.assert_close(model(given).logits[:, 1:], before)


def test_what_the_script_left_open_of_its_two_maps_is_filled():
    maps = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    for said in ({"id2label": maps[0]}, {"label2id": maps[1]}):
        model = model_of()
        for name, value in said.items():
            setattr(model.config, name, value)
        fit_head(model, labels_of(rows_of([0, 1]), "t", model), "t")
        assert (model.config.id2label, model.config.label2id) == maps


def test_a_head_that_cannot_be_replaced_is_answered_with_a_mend_that_works():
    from peft import LoraConfig, get_peft_model

    rows = rows_of([0, 1, 2], ClassLabel(names=["x", "y", "z"]))
    lora = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    model = get_peft_model(model_of(id2label=dict(enumerate("abc"))), lora)
    with pytest.raises(PluginError, match=re.escape("model.config.id2label = {0: 'x', 1: 'y', 2: 'z'}")):
        fit_head(model, labels_of(rows, "t", model), "t")
    model.config.id2label = {0: "x", 1: "y", 2: "z"}
    assert not fit_head(model, labels_of(rows, "t", model), "t").replaced


def test_a_stream_of_lists_is_read_as_transformers_loss_reads_it(tmp_path):
    rows = rows_of([[0.0, 1.0, float(row % 2)] for row in range(16)])
    for stream in (rows.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(rows.to_list()))):
        model = model_of(num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        with torch.no_grad():
            logits = model.eval()(torch.tensor(rows["input_ids"])).logits
        expected = binary_cross_entropy_with_logits(logits, torch.tensor(rows["labels"]))
        trainer = tiny_trainer(
            tmp_path,
            Task(),
            model=model,
            train_dataset=stream,
            eval_dataset=rows,
            eval_strategy="no",
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=8,
        )
        trainer.train()
        assert model.config.problem_type == "multi_label_classification"
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses == [pytest.approx(float(expected), rel=1e-4)]


def test_the_batchs_labels_get_the_losss_type():
    for problem_type, given, wanted in (
        ("regression", torch.tensor([1, 2]), torch.float32),
        ("multi_label_classification", torch.tensor([[True, False]]), torch.float32),
        ("single_label_classification", torch.tensor([1.0, 0.0]), torch.int64),
        (None, torch.tensor([1, 0]), torch.int64),
    ):
        batch = {"labels": given}
        with labels_as_numbers(model_of(problem_type=problem_type), batch):
            assert batch["labels"].dtype == wanted


def test_models_whose_labels_are_no_outputs_are_told_of_by_what_they_are():
    import transformers

    for name, why in (
        ("BertForMultipleChoice", "positions among the choices"),
        ("BertForQuestionAnswering", "places in the text"),
        ("BertForMaskedLM", "tokens of its vocabulary"),
        ("GPT2LMHeadModel", "tokens of its vocabulary"),
        ("Wav2Vec2ForXVector", "speakers"),
    ):
        cls = getattr(transformers, name)
        with torch.device("meta"):
            model = cls(cls.config_class(num_hidden_layers=1))
        assert why in other_labels(model), name
    assert other_labels(model_of()) is None
    assert other_labels(type("Own", (BertForSequenceClassification,), {})(model_of().config)) is None


def collated(rows, column="species", less=0):
    batch = {"input_ids": torch.tensor([row["input_ids"] for row in rows])}
    return batch | {"labels": torch.tensor([row[column] - less for row in rows])}


@pytest.mark.parametrize("technique", [Task(calibrate=False), Transfer(strategy="full", layer_decay=1.0)])
def test_labels_are_those_that_reach_the_model(technique, tmp_path):
    names = ClassLabel(names=["x", "y", "z"])
    species = rows_of([0, 1, 2] * 4, names, "species")
    letters = rows_of(["x", "y", "z"] * 4, column="letter")
    transformed = letters.with_transform(
        lambda rows: {"input_ids": rows["input_ids"], "labels": ["xyz".index(letter) for letter in rows["letter"]]}
    )
    keep = {"remove_unused_columns": False}
    for data, collator, changes in (
        (species, collated, dict(keep)),
        (species, collated, {"label_names": ["species"]}),
        (transformed, None, dict(keep)),
    ):
        changes |= {"data_collator": collator, "eval_dataset": data, "eval_strategy": "no", "max_steps": 2}
        trainer = tiny_trainer(tmp_path, technique, model=model_of(), train_dataset=data, **changes)
        assert trainer.model.config.num_labels == 3
        trainer.train()
    assert transformed[0]["labels"] == 0


def test_training_rows_without_labels_are_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(
        PluginError, match=r"task: the training rows have no labels.*rename_column\('target', 'labels'\)"
    ):
        tiny_trainer(tmp_path, Task(), model=model_of(), train_dataset=rows_of([0, 1] * 4, column="target"))


@pytest.mark.parametrize("form", ["list", "torch", "stream", "empty"])
def test_evaluation_sets_of_any_form_may_lack_labels(form, tmp_path, caplog):
    rows = rows_of([0, 1] * 6)
    bare = rows.remove_columns("labels")
    given = {
        "list": bare.to_list(),
        "torch": torch.utils.data.Subset(bare, range(12)),
        "stream": bare.to_iterable_dataset(),
        "empty": rows.select([]),
    }[form]
    trainer = tiny_trainer(tmp_path, Task(), model=model_of(), train_dataset=rows, eval_dataset=given)
    trainer.train()
    assert trainer.args.metric_for_best_model is None
    assert "the evaluation data have no labels" in caplog.text


@pytest.mark.parametrize("several", [False, True])
def test_evaluation_and_test_sets_may_lack_labels(several, tmp_path):
    rows = rows_of([0, 1] * 6, Value("int64"))
    bare = rows.remove_columns("labels")
    sets = {"new": bare, "old": rows} if several else bare
    trainer = tiny_trainer(
        tmp_path, Task(), model=model_of(), train_dataset=rows, eval_dataset=sets, save_strategy="no"
    )
    trainer.train()
    assert trainer.args.metric_for_best_model == ("old_macro_f1" if several else None)
    found = trainer.predict(bare)
    assert found.label_ids is None
    assert found.predictions.shape == (12, 2)


class Arguments:
    def __init__(self, metric, greater):
        self.metric_for_best_model, self.greater_is_better = metric, greater


@pytest.mark.parametrize(
    ("metric", "script", "sets", "greater"),
    [
        ("rmse", ("rmse", True), (), False),  # Trainer's default for the name, which says better.
        ("accuracy", ("accuracy", False), (), False),  # Not the default, so the script's word.
        ("error_accuracy", ("error_accuracy", True), ("error", "clean"), True),
        ("eval_loss", ("loss", False), (), False),
        ("macro_f1", (None, None), (), True),
        ("quux", ("quux", True), (), True),
    ],
)
def test_the_direction_of_a_metric(metric, script, sets, greater):
    assert direction(metric, Arguments(*script), sets) is greater


def test_a_reward_trainer_has_no_labels(tmp_path):
    from hf_ft_plugins.testing.examples.behavioral import tiny_setting

    with pytest.raises(PluginError, match=r"RewardTrainer learns from pairs which answer is better.*Leave out task"):
        tiny_trainer(tmp_path, Task(), **tiny_setting("reward"))


@pytest.mark.parametrize("technique", ["task", "transfer"])
def test_maps_of_numbers_to_numbers_are_no_names(technique, tmp_path):
    # As scripts make them of a column of whole numbers.
    model = tiny_model()
    model.config.label2id, model.config.id2label = {0: 0, 1: 1}, {0: 0, 1: 1}
    head = model.classifier.weight.detach().clone()
    data = Dataset.from_list(
        [{"input_ids": row["input_ids"].tolist(), "label": row["labels"]} for row in tiny_dataset()]
    )
    trainer = tiny_trainer(tmp_path, technique, model=model, train_dataset=data, eval_dataset=data)
    assert torch.equal(trainer.model.classifier.weight, head)
    assert trainer.model.config.num_labels == 2


def test_maps_with_numbers_as_texts_name_the_report(tmp_path):
    model = tiny_model()
    # As scripts set them on a loaded config, and JSON would have them.
    model.config.label2id, model.config.id2label = {"no": "0", "yes": "1"}, {"0": "no", "1": "yes"}
    data = rows_of([index % 2 for index in range(40)], ClassLabel(names=["no", "yes"]))
    tiny_trainer(tmp_path, Task(), model=model, train_dataset=data, eval_dataset=data, max_steps=2).train()
    assert (tmp_path / "task" / "report.json").is_file()
    assert report.class_names(model.config) == ["no", "yes"]
