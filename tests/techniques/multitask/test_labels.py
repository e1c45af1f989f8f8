"""Label columns in the forms that people have them: each right, or refused with a mend before training."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import Trainer

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask import (
    MultiTaskCollator,
    MultiTaskModel,
    TaskSpec,
    multitask_dataset,
    with_labels,
)
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.multitask import (
    TASKS,
    tiny_moods,
    tiny_multitask_model,
    tiny_setting,
    tiny_tagged,
    tiny_tokenizer,
)

NAN = math.nan


def read(spec: TaskSpec, values, feature=None, training=True):
    """The names of the labels, and the labels of all rows as a batch has them."""
    rows = {"text": ["the cat"] * len(values), "y": values}
    features = Features({"text": Value("string"), "y": feature}) if feature is not None else None
    data = Dataset.from_dict(rows, features=features)
    tasks = with_labels({"y": spec}, data)
    rows = multitask_dataset(data, tasks, need_all=training)
    batch = MultiTaskCollator(tiny_tokenizer(), tasks, training=training)([rows[place] for place in range(len(rows))])
    return tasks["y"].labels, batch["labels"]["y"].tolist()


ONE = TaskSpec(kind="sequence")
SEVERAL = TaskSpec(kind="multi_label")
NUMBER = TaskSpec(kind="regression")
AB, BA, ABC = (ClassLabel(names=list(names)) for names in ("ab", "ba", "abc"))

RIGHT = {
    "texts": (ONE, ["b", "a", None], None, ("a", "b"), [1, 0, -100]),
    "an order that was given": (TaskSpec(kind="sequence", labels=("b", "a")), ["b", "a"], None, ("b", "a"), [0, 1]),
    "a class without rows": (
        TaskSpec(kind="sequence", labels=("a", "b", "c")),
        ["a", "c"],
        None,
        ("a", "b", "c"),
        [0, 2],
    ),
    "ClassLabel": (ONE, [1, 0, 0], BA, ("b", "a"), [1, 0, 0]),
    "ClassLabel in another order than given": (
        TaskSpec(kind="sequence", labels=("a", "b")),
        [1, 0, 0],
        BA,
        ("a", "b"),
        [0, 1, 1],
    ),
    "ClassLabel of fewer than given": (
        TaskSpec(kind="sequence", labels=("c", "b", "a")),
        [0, 1],
        AB,
        ("c", "b", "a"),
        [2, 1],
    ),
    "numbers with gaps": (ONE, [0, 3], None, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), [0, 3]),
    "numbers and names given": (
        TaskSpec(kind="sequence", labels=("x", "y", "z")),
        [2, 0],
        None,
        ("x", "y", "z"),
        [2, 0],
    ),
    "numbers for names": (TaskSpec(kind="sequence", labels=(0, 1)), [1, 0], None, ("0", "1"), [1, 0]),
    "-100 for none": (ONE, [1, -100], None, ("LABEL_0", "LABEL_1"), [1, -100]),
    "booleans": (ONE, [True, False], None, ("LABEL_0", "LABEL_1"), [1, 0]),
    "whole fractions, as pandas has them beside none": (
        ONE,
        [1.0, NAN, 0.0],
        None,
        ("LABEL_0", "LABEL_1"),
        [1, -100, 0],
    ),
    "regression on a number": (NUMBER, [0.5, 2.0], None, ("LABEL_0",), [[0.5], [2.0]]),
    "regression on whole numbers": (NUMBER, [4, 0], None, ("LABEL_0",), [[4.0], [0.0]]),
    "regression on several": (
        NUMBER,
        [[0.5, -1.0], [7.0, 2.0]],
        None,
        ("LABEL_0", "LABEL_1"),
        [[0.5, -1.0], [7.0, 2.0]],
    ),
    "regression on a ClassLabel": (NUMBER, [1, 0], AB, ("LABEL_0",), [[1.0], [0.0]]),
    "multi_label as a vector": (SEVERAL, [[0, 1], [1, 1]], None, ("LABEL_0", "LABEL_1"), [[0.0, 1.0], [1.0, 1.0]]),
    "multi_label as chances": (SEVERAL, [[0.25, 1.0]], None, ("LABEL_0", "LABEL_1"), [[0.25, 1.0]]),
    "multi_label as names": (
        SEVERAL,
        [["b"], [], ["a", "c"]],
        None,
        ("a", "b", "c"),
        [[0.0, 1.0, 0.0], [0.0] * 3, [1.0, 0.0, 1.0]],
    ),
    "multi_label as names in an order": (
        TaskSpec(kind="multi_label", labels=("b", "a")),
        [["b"], ["a", "b"]],
        None,
        ("b", "a"),
        [[1.0, 0.0], [1.0, 1.0]],
    ),
    "multi_label as ClassLabels": (
        SEVERAL,
        [[2], [0, 1], []],
        Sequence(ABC),
        ("a", "b", "c"),
        [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0] * 3],
    ),
    "multi_label as two ClassLabels, each 0 or 1": (
        SEVERAL,
        [[0, 1], [1]],
        Sequence(AB),
        ("a", "b"),
        [[1.0, 1.0], [0.0, 1.0]],
    ),
}


@pytest.mark.parametrize("form", RIGHT)
def test_a_column_is_read_as_it_is_meant(form):
    spec, values, feature, names, expected = RIGHT[form]
    assert read(spec, values, feature) == (names, expected)


REFUSED = {
    "fractions as classes": (ONE, [0.5, 1.0], r"0\.5.*kind='regression'"),
    "classes below 0": (ONE, [-1, 1], r"-1.*Make the column texts"),
    "codes": (ONE, [3, 90_000], r"90000.*Make the column texts"),
    "a list where one class stands": (TaskSpec(kind="sequence", labels=("a", "b")), [["a"]], r"kind='multi_label'"),
    "another spelling": (TaskSpec(kind="sequence", labels=("neg", "pos")), ["NEG"], r"'NEG'.*does not know"),
    "a number beyond the names": (TaskSpec(kind="sequence", labels=("a", "b")), [2], r"Use 0 to 1"),
    "a fraction beyond training": (TaskSpec(kind="sequence", labels=("a", "b")), [0.5], r"kind='regression'"),
    "no number": (NUMBER, ["n/a"], r"1 finite number\b.*give it None"),
    "not finite": (NUMBER, [0.5, NAN], r"1 finite number"),
    "as many as before": (NUMBER, [[1.0, 2.0], [1.0]], r"2 finite numbers"),
    "numbers of classes": (SEVERAL, [[0, 2], [1]], r"a list of names, or 2 numbers from 0 to 1"),
    "one name in a text": (SEVERAL, ["a"], r"a list of names"),
    "nothing": (ONE, [None, None], r"holds no label"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_label_is_refused_with_a_mend(form):
    spec, values, message = REFUSED[form]
    with pytest.raises(PluginError, match=message):
        read(spec, values)


def test_specs_that_cannot_be():
    with pytest.raises(PluginError, match=r"labels=\('1', '2', '3'\)"):
        TaskSpec(kind="sequence", labels=(1, 2, 3))
    with pytest.raises(PluginError, match="twice"):
        TaskSpec(kind="sequence", labels=("a", "b", "a"))
    with pytest.raises(PluginError, match="make a task of each other"):
        TaskSpec(kind="sequence", columns=("first", "second"))
    assert TaskSpec(kind="sequence", columns="label").columns == ("label",)


def test_texts_and_numbers_in_one_column_are_refused():
    rows = [{"text": "the", "y": "a"}, {"text": "cat", "y": 1}]
    with pytest.raises(PluginError, match="one or the other"):
        with_labels({"y": ONE}, rows)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_one_column_for_each_number(kind):
    rows = [{"text": "the", "rude": 1, "mad": 0}, {"text": "cat", "rude": 0.5, "mad": 1}]
    tasks = with_labels({"y": TaskSpec(kind=kind, columns=("rude", "mad"))}, rows)
    assert tasks["y"].labels == ("rude", "mad")
    batch = MultiTaskCollator(tiny_tokenizer(), tasks)([multitask_dataset(rows, tasks)[place] for place in (0, 1)])
    assert batch["labels"]["y"].tolist() == [[1.0, 0.0], [0.5, 1.0]]


def test_words_have_their_classes_by_name_too():
    rows = {"tokens": [["the", "cat"], ["old", "Rome"]], "tag": [[1, 0], [1, 1]]}
    features = Features({"tokens": Sequence(Value("string")), "tag": Sequence(ClassLabel(names=["N", "D"]))})
    tasks = {"tag": TaskSpec(kind="token", labels=("D", "N", "V"))}
    data = multitask_dataset(Dataset.from_dict(rows, features=features), tasks)
    labels = MultiTaskCollator(tiny_tokenizer(), tasks)([data[0], data[1]])["labels"]["tag"]
    assert labels.tolist() == [[0, 1], [0, 0]]


def test_data_sets_of_the_same_classes_in_another_order_are_one_task():
    halves = {
        name: Dataset.from_dict({"text": ["the"], "y": [0]}, features=Features({"text": Value("string"), "y": feature}))
        for name, feature in (("first", AB), ("second", BA))
    }
    tasks = with_labels({"y": ONE}, halves)
    data = multitask_dataset(halves, tasks)
    labels = MultiTaskCollator(tiny_tokenizer(), tasks)([data[0], data[1]])["labels"]["y"].tolist()
    assert [tasks["y"].labels[label] for label in labels] == ["a", "b"]
    with pytest.raises(PluginError, match="differently"):
        with_labels({"y": ONE}, halves["first"], halves["second"].cast_column("y", ClassLabel(names=["x", "y"])))


FORMATS = {
    "numpy": lambda data: data.with_format("numpy"),
    "torch": lambda data: data.with_format("torch"),
    "pandas": lambda data: data.with_format("pandas"),
    "some columns": lambda data: data.with_format("torch", columns=["tokens", "tag", "head", "deprel"]),
    "transform": lambda data: data.rename_column("tag", "raw").with_transform(
        lambda rows: {name: rows[name] for name in ("tokens", "head", "deprel")} | {"tag": rows["raw"]}
    ),
}


@pytest.mark.parametrize("how", FORMATS)
def test_a_data_set_in_another_format_gives_the_same_batches(how):
    plain = Dataset.from_list([row | {"other": "x"} for row in tiny_tagged(8)])
    tasks = {name: TASKS[name] for name in ("tag", "parse")}
    assert with_labels({"tag": TaskSpec(kind="token")}, FORMATS[how](plain))["tag"].labels == tasks["tag"].labels
    collator = MultiTaskCollator(tiny_tokenizer(), tasks)
    expected, batch = (
        collator([data[place] for place in range(8)])
        for data in (multitask_dataset(plain, tasks), multitask_dataset(FORMATS[how](plain), tasks))
    )
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert all(torch.equal(batch["labels"][name], labels) for name, labels in expected["labels"].items())


def test_a_column_that_a_format_leaves_out_teaches_nothing():
    data = Dataset.from_list(tiny_tagged(4)).with_format("torch", columns=["tokens", "tag"])
    assert multitask_dataset(data, {name: TASKS[name] for name in ("tag", "parse")}, need_all=False).taught() == (
        "tag",
    )


def without_labels(rows):
    return [{"tokens": row["tokens"]} for row in rows]


def test_test_data_without_labels_are_predicted_row_by_row(tmp_path, caplog):
    setting = tiny_setting() | {"eval_dataset": Dataset.from_list(without_labels(tiny_tagged(7)))}
    with caplog.at_level(logging.WARNING):
        trainer = tiny_trainer(tmp_path, "multitask", **setting, eval_strategy="no")
    assert "predicted, and not scored" in caplog.text
    assert "eval_runtime" in trainer.evaluate()
    rows = [*without_labels(tiny_tagged(7)), {"tokens": []}]
    found = trainer.predict(Dataset.from_list(rows)).predictions
    for place, row in enumerate(rows):
        assert ((found["tag"][place] >= 0).sum() if len(row["tokens"]) else 0) == len(row["tokens"])
    assert len(found["mood"]) == len(rows)
    with pytest.raises(PluginError, match="metric_for_best_model"):
        tiny_trainer(tmp_path, "multitask", **setting, metric_for_best_model="multitask_score")


def test_hidden_labels_of_a_test_set_are_no_class(tmp_path):
    trainer = tiny_trainer(tmp_path, "multitask", **tiny_setting())
    rows = Dataset.from_list([{"tokens": row["tokens"], "mood": -1} for row in tiny_moods(5)])
    assert len(trainer.predict(rows).predictions["mood"]) == 5
    # The control: in training they are a mistake.
    with pytest.raises(PluginError, match="has the label -1"):
        multitask_dataset(rows, {"mood": TASKS["mood"]})


def test_data_given_later_are_read_by_their_own_class_names(tmp_path):
    trainer = tiny_trainer(tmp_path, "multitask", **tiny_setting())
    texts = Dataset.from_list(tiny_moods(12, seed=3))
    numbers = texts.cast_column("mood", ClassLabel(names=["sad", "glad"]))
    expected, found = (trainer.evaluate(data) for data in (texts, numbers))
    assert found["eval_loss"] == expected["eval_loss"]
    assert trainer.eval_collator.declared == {}
    # The control: the numbers as the task's own are other labels.
    other = trainer.evaluate(
        texts.cast_column("mood", ClassLabel(names=["glad", "sad"])).cast_column("mood", Value("int64"))
    )
    assert other["eval_loss"] == expected["eval_loss"]
    swapped = trainer.evaluate(numbers.cast_column("mood", Value("int64")))
    assert swapped["eval_loss"] != expected["eval_loss"]


@pytest.mark.parametrize("label", [b"glad", {"mood": "glad"}])
def test_what_is_neither_text_nor_number_is_no_class(label):
    rows = [{"text": "the cat", "mood": label}] * 2
    with pytest.raises(PluginError, match="Make the column texts"):
        with_labels({"mood": TaskSpec(kind="sequence")}, rows)
    with pytest.raises(PluginError, match=r"Make it a text|one class is to stand"):
        multitask_dataset(rows, {"mood": TASKS["mood"]})


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_tokens_and_their_words_may_be_arrays(make):
    row = {"input_ids": [1, 5, 6, 2], "attention_mask": [1, 1, 1, 1], "word_ids": [-1, 0, 1, -1], "tag": [0, 1]}
    collator = MultiTaskCollator(tiny_tokenizer(), {"tag": TaskSpec(kind="token", labels=("A", "B"))})
    expected, found = collator([row]), collator([{name: make(values) for name, values in row.items()}])
    for name in ("input_ids", "attention_mask", "word_ids"):
        assert torch.equal(found[name], expected[name])
    assert torch.equal(found["labels"]["tag"], expected["labels"]["tag"])


def test_predictions_keep_the_order_of_rows_where_training_was_to_group_them(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = tiny_trainer(tmp_path, "multitask", **tiny_setting(), train_sampling_strategy="group_by_length")
        trainer.train()
    assert "train_sampling_strategy='group_by_length' has no effect" in caplog.text
    sizes = [3, 1, 5, 2, 4]
    found = trainer.predict(Dataset.from_list([{"tokens": ["cat"] * size} for size in sizes])).predictions["tag"]
    assert (found >= 0).sum(1).tolist() == sizes


def test_streams_and_parts_of_data_are_evaluated_row_by_row(tmp_path):
    setting = tiny_setting()
    moods = Dataset.from_list(tiny_moods(12, seed=3))
    trainer = tiny_trainer(tmp_path, "multitask", **setting | {"eval_dataset": moods})
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(moods.to_iterable_dataset())["eval_loss"] == pytest.approx(expected)
    whole = torch.utils.data.Subset(trainer.eval_dataset, range(12))
    assert trainer.evaluate(whole)["eval_loss"] == pytest.approx(expected)
    half = torch.utils.data.Subset(trainer.eval_dataset, range(6))
    assert trainer.evaluate(half)["eval_loss"] != pytest.approx(expected)
    stream = {"eval_dataset": moods.to_iterable_dataset()}
    assert tiny_trainer(tmp_path, "multitask", **tiny_setting() | stream).evaluate()["eval_loss"] > 0


def test_label_names_of_the_arguments_do_not_keep_labels_from_evaluation(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = tiny_trainer(tmp_path, "multitask", **tiny_setting(), label_names=["tag"])
    assert "label_names=['tag'] is set to" in caplog.text
    assert "eval_loss" in trainer.evaluate()


class Full(RuntimeError):
    """What torch says when a GPU is full."""


@pytest.mark.parametrize("balance", ["sum", "dwa"])
def test_batches_follow_the_batch_size_that_fits(balance, tmp_path, monkeypatch):
    """Reference: a run with this batch size from the start, and no dropout, which draws random numbers."""
    # It collects Python's garbage before each attempt.
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)
    seen: list[int] = []

    class Small(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 5:
                raise Full("CUDA out of memory. Tried to allocate")
            seen.append(len(inputs["input_ids"]))
            return super().training_step(model, inputs, *args, **kwargs)

    def losses(**changes):
        setting = tiny_setting()
        for module in setting["model"].modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        settings = {"gradient_accumulation_steps": 1, "max_steps": -1, "num_train_epochs": 2, "eval_strategy": "no"}
        # Trainer's own schedule stays that of the first attempt.
        settings |= {"save_strategy": "no", "lr_scheduler_type": "constant"} | changes
        host = with_plugins(Small, f"multitask:balance={balance}")
        trainer = tiny_trainer(tmp_path, trainer_class=host, **setting, **settings)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = losses(per_device_train_batch_size=5)
    seen.clear()
    assert losses(per_device_train_batch_size=7, auto_find_batch_size=True) == expected
    assert max(seen) == 5


def test_a_second_run_of_one_trainer_does_not_go_on_where_the_first_ended(tmp_path):
    trainer = tiny_trainer(tmp_path, "multitask:mix=progress,update_every=4", **tiny_setting())
    counts = []
    for _ in range(2):
        trainer.train()
        callback = next(own for own in trainer.callback_handler.callbacks if type(own).__name__ == "MultiTaskCallback")
        counts.append((callback._micro_steps, callback._rows_seen))
    assert counts[0] == counts[1]


def test_regression_on_what_the_script_says_is_no_classifier():
    data = Dataset.from_dict({"text": ["the cat", "a dog"], "stars": [5, 1]})
    encoder = tiny_multitask_model(("mood",)).encoder
    model = MultiTaskModel.from_encoder(encoder, {"stars": NUMBER}, data)
    rows = multitask_dataset(data, model.specs)
    batch = MultiTaskCollator(tiny_tokenizer(), model)([rows[0], rows[1]])
    output = model.eval()(**batch)
    assert output.loss.item() == pytest.approx(
        float(np.mean((output.predictions["stars"].detach().numpy().reshape(-1) - [5, 1]) ** 2)), rel=1e-5
    )
