"""What `task` refuses, and what it warns of."""

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.task import (
    Task,
)
from tests.techniques.task.runs_of_kinds import model_of, rows_of, tiny_trainer


def test_options_out_of_range_are_refused_by_name():
    for options in (
        {"tau": 0},
        {"gamma": 0},
        {"early_stopping_patience": 0},
        {"worst_examples": -1},
        {"imbalance": "x"},
    ):
        with pytest.raises(OptionError, match=f"task: option {next(iter(options))}="):
            Task(**options)


def test_bad_labels_are_refused_with_row_and_mend(tmp_path):
    def refused(match, rows=None, technique=None, **changes):
        with pytest.raises(PluginError, match=match):
            tiny_trainer(tmp_path, technique or Task(), **({"train_dataset": rows} if rows else {}), **changes)

    good = rows_of("single_label", 20)
    refused("all 4 training rows have the label 'one'.*Shuffle", good.filter(lambda row: row["labels"] == 1).take(4))
    names = ClassLabel(names=["none", "one", "both"])
    out = good.cast_column("labels", Value("int64")).map(
        lambda row, i: {"labels": -1 if i == 7 else 0}, with_indices=True
    )
    refused("row 7 has the label -1, and there are 3 classes", out.cast_column("labels", names))
    more = ClassLabel(names=["none", "one", "both", "many"])
    refused(
        "imbalance=weights, and no training row has the label 'many'",
        good.cast_column("labels", Value("int64")).cast_column("labels", more),
        Task(imbalance="weights"),
        eval_dataset=None,
        eval_strategy="no",
    )
    swapped = ClassLabel(names=["both", "one", "none"])
    refused(
        "classes of the eval set .*both, one, none.* are not those of the training set",
        eval_dataset=good.cast_column("labels", Value("int64")).cast_column("labels", swapped),
    )
    nan = rows_of("regression", 8).map(lambda row, i: {"labels": math.nan if i == 3 else 1.0}, with_indices=True)
    refused("row 3 of the training set has the label .*nan", nan)
    ints = Dataset.from_dict({"input_ids": [[1]] * 4, "labels": [[0, 3], [1], [0], [-100]]})
    refused("holds the label 3, and there are 2 classes", ints, model=model_of("token"), kind="token")
    several = ints.cast_column("labels", List(ClassLabel(names=["a", "b", "c", "d"])))
    refused("holds a list of class numbers.*not for token classification.*4 numbers", several)


def test_models_without_labels_of_their_own_are_refused(tmp_path):
    from hf_ft_plugins.testing.examples.text2text import tiny_t5

    with pytest.raises(PluginError, match="a T5ForConditionalGeneration, neither classifies nor regresses"):
        tiny_trainer(tmp_path, Task(), model=tiny_t5())


def test_a_class_with_one_example_is_named(tmp_path, caplog):
    rows = rows_of("single_label", 20)
    labels = [2] + [index % 2 for index in range(19)]
    rows = (
        rows.remove_columns("labels")
        .add_column("labels", labels)
        .cast_column("labels", ClassLabel(names=["none", "one", "both"]))
    )
    tiny_trainer(tmp_path, Task(), train_dataset=rows)
    assert "1 classes have a single example in the training set: both" in caplog.text


def test_features_that_are_not_numbers_are_refused_by_row_and_column(tmp_path):
    rows = rows_of("single_label", 1500)
    vectors = [[0.0, 1.0]] * 1500
    vectors[1203] = [0.0, math.nan]
    rows = rows.add_column("inputs_embeds", vectors)
    with pytest.raises(
        PluginError, match=r"row 1203 of the training set holds NaN or infinity in column 'inputs_embeds'"
    ):
        tiny_trainer(tmp_path, Task(), train_dataset=rows)
    # One that the model never sees does no harm.
    tiny_trainer(tmp_path, Task(), train_dataset=rows.rename_column("inputs_embeds", "notes"))


def test_streamed_data_trains_but_cannot_be_counted(tmp_path):
    rows = rows_of("single_label", 48)
    with pytest.raises(PluginError, match=r"imbalance=weights counts the labels .* is streamed.*focal"):
        tiny_trainer(tmp_path, Task(imbalance="weights"), train_dataset=rows.to_iterable_dataset())
    trainer = tiny_trainer(tmp_path, Task(imbalance="focal"), train_dataset=rows.to_iterable_dataset(), max_steps=3)
    trainer.train()
    assert trainer.model.config.num_labels == 3
    with pytest.raises(PluginError, match=r"imbalance=sampler needs one class a row.*several"):
        tiny_trainer(tmp_path, Task(imbalance="sampler"), kind="multi_label")
    with pytest.raises(PluginError, match="imbalance=focal needs classes"):
        tiny_trainer(tmp_path, Task(imbalance="focal"), kind="regression")


def test_a_peft_model_must_train_its_head(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(**options):
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], **options)
        return peft.get_peft_model(model_of("single_label", num_labels=3), config)

    with pytest.raises(PluginError, match=r"head, 'classifier', is frozen.*modules_to_save=\['classifier'\]"):
        tiny_trainer(tmp_path, Task(), model=adapted())
    trainer = tiny_trainer(tmp_path, Task(), model=adapted(modules_to_save=["classifier"]), eval_strategy="no")
    overconfident_head = trainer.model.get_base_model().classifier.modules_to_save["default"]
    with torch.no_grad():
        overconfident_head.weight.mul_(300)
    trainer.train()
    assert trainer.model.get_base_model().config.hf_ft_task["temperature_in_weights"]
