"""Rows that are held out where the script evaluates nothing: which, when they are evaluated, and what then happens."""

import copy
import logging

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset
from transformers import Trainer

from hf_ft_plugins import AdaptiveLR
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.adaptive_lr import held_out
from hf_ft_plugins.techniques.adaptive_lr.held_out import in_two, steps_between
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_dataset, tiny_trainer
from hf_ft_plugins.testing.examples.multitask import EXAMPLE as MULTITASK
from hf_ft_plugins.testing.examples.multitask import tiny_moods, tiny_tagged
from tests.techniques.adaptive_lr.logged_actions import actions

UNEVALUATED = {"eval_dataset": None, "eval_strategy": "no"}


@pytest.mark.parametrize(
    "dataset",
    [
        list(range(40)),
        datasets.Dataset.from_dict({"x": list(range(40))}),
        TensorDataset(torch.arange(40)),
    ],
)
def test_each_row_is_in_one_part_and_the_order_stays(dataset):
    def numbers(part):
        return [row["x"] if isinstance(row, dict) else int(row[0] if isinstance(row, tuple) else row) for row in part]

    kept, held = map(numbers, in_two(dataset, 0.2, seed=1))
    assert len(held) == 8
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert sorted(kept + held) == list(range(40))
    assert numbers(in_two(dataset, 0.2, seed=1)[1]) == held
    assert numbers(in_two(dataset, 0.2, seed=2)[1]) != held


def test_of_several_data_sets_each_is_cut_in_two():
    kept, held = in_two({"a": list(range(10)), "b": list(range(4))}, 0.25, seed=0)
    assert {name: (len(kept[name]), len(held[name])) for name in kept} == {"a": (8, 2), "b": (3, 1)}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_dataset())


@pytest.mark.parametrize(
    ("dataset", "share", "message"),
    [
        (Stream(), 0.5, "hold_out=0.5 takes rows by their position, and the training data are a stream"),
        ([1, 2], 0.1, "hold_out=0.1 of the 2 training rows is 0, and both parts need one"),
        ({"a": [1] * 9, "b": [1]}, 0.2, "hold_out=0.2 of the 1 training rows of 'b' is 0"),
        ([1, 2], 0.9, "hold_out=0.9 of the 2 training rows is 2, and both parts need one"),
    ],
)
def test_data_that_cannot_be_cut_in_two_are_refused(dataset, share, message):
    with pytest.raises(PluginError, match=message):
        in_two(dataset, share, seed=0)


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_that_leaves_one_part_empty_is_refused(share):
    with pytest.raises(OptionError, match="adaptive-lr: option hold_out="):
        AdaptiveLR(hold_out=share)


@pytest.mark.parametrize(
    ("rows", "steps", "every"),
    [
        (60, 600, 20),  # a thirtieth of the run
        (1000, 800, 42),  # a quarter of the training: 1000 / 3 / 0.25 rows, in batches of 32
        (1, 10, 1),
    ],
)
def test_evaluations_take_little_of_the_training(rows, steps, every, tmp_path):
    args = tiny_trainer(tmp_path, per_device_train_batch_size=16, gradient_accumulation_steps=2).args
    assert steps_between(args, steps, rows) == every


def test_held_out_rows_steer_a_run_that_evaluates_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_ft_plugins")
    rows = tiny_dataset(32)
    trainer = tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), train_dataset=rows, max_steps=40, **UNEVALUATED)
    trainer.train()
    assert len(trainer.train_dataset) == 24
    assert len(trainer.eval_dataset) == 8
    assert trainer.args.eval_strategy == "no"
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[:3] == [3, 6, 9]
    assert "raise" in actions(trainer)
    assert actions(trainer)[-1] == "restore"
    assert "8 rows are held out, and evaluated every 3 steps" in caplog.text


def test_the_last_step_is_evaluated_too(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25, controller="greedy"), **UNEVALUATED)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("stop_at", [3, 5, 8, 12])
def test_a_resumed_run_holds_out_the_same_rows(stop_at, tmp_path):
    technique = AdaptiveLR(hold_out=0.25)
    straight = tiny_trainer(tmp_path / "straight", technique, **UNEVALUATED)
    straight.train()
    again = resumed(tmp_path / "again", technique, stop_at=stop_at, **UNEVALUATED)
    assert difference(outcome(straight), outcome(again)) is None


def test_control_with_other_rows_held_out_the_resumed_run_differs(tmp_path, monkeypatch):
    technique = AdaptiveLR(hold_out=0.25)
    straight = tiny_trainer(tmp_path / "straight", technique, **UNEVALUATED)
    straight.train()
    draws, seeds = np.random.default_rng, iter([0, 1])
    monkeypatch.setattr(held_out.np.random, "default_rng", lambda seed: draws(next(seeds)))
    again = resumed(tmp_path / "again", technique, stop_at=8, **UNEVALUATED)
    assert difference(outcome(straight), outcome(again))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "hold_out does nothing: the script has an eval_dataset."),
        ({"eval_strategy": "no"}, "an eval_dataset, which eval_strategy='no' never evaluates: set it."),
    ],
)
def test_a_script_with_evaluation_data_keeps_its_rows_and_is_told_so(changes, message, tmp_path, caplog):
    rows = tiny_dataset()
    trainer = tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), train_dataset=rows, **changes)
    assert trainer.train_dataset is rows
    assert message in caplog.text


def test_a_dataset_dict_stays_one_and_a_data_set_keeps_its_attributes():
    class Weighted(torch.utils.data.Dataset):
        class_weights = (1, 2)

        def __len__(self):
            return 10

        def __getitem__(self, position):
            return position

    kept, held = in_two(Weighted(), 0.2, seed=0)
    assert (kept.class_weights, copy.copy(kept)[0], len(held)) == ((1, 2), kept[0], 2)
    assert not hasattr(kept, "features")
    both = datasets.DatasetDict({"a": datasets.Dataset.from_dict({"x": list(range(10))})})
    assert [type(part) for part in in_two(both, 0.2, seed=0)] == [datasets.DatasetDict] * 2


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_data_that_the_script_sets_later_are_refused(name, tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), **UNEVALUATED)
    setattr(trainer, name, tiny_dataset())
    with pytest.raises(PluginError, match=rf"hold_out=0.25 took rows .* the script has set trainer.{name} since"):
        trainer.train()


def test_training_data_that_come_after_the_trainer_is_built_are_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), train_dataset=None, **UNEVALUATED)
    trainer.train_dataset = tiny_dataset()
    with pytest.raises(PluginError, match="it was built without training data"):
        trainer.train()


def test_a_part_that_fills_no_batch_is_refused_where_such_batches_are_left_out(tmp_path):
    with pytest.raises(PluginError, match="a part has 6 rows, and dataloader_drop_last=True leaves out"):
        tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), dataloader_drop_last=True, **UNEVALUATED)


def test_a_trainer_that_samples_its_own_completions_is_refused(tmp_path):
    class Sampling(Trainer):
        num_generations = 4

    with pytest.raises(PluginError, match="that of a Sampling, which samples the completions itself"):
        tiny_trainer(tmp_path, AdaptiveLR(hold_out=0.25), trainer_class=Sampling, **UNEVALUATED)


def test_where_the_training_loss_is_asked_for_nothing_is_held_out(tmp_path):
    technique = AdaptiveLR(hold_out=0.25, metric="loss")
    assert technique.idle_options() == {"hold_out": "the training loss is watched"}
    rows = tiny_dataset()
    assert tiny_trainer(tmp_path, technique, train_dataset=rows, **UNEVALUATED).train_dataset is rows


def test_where_nothing_is_evaluated_the_log_says_what_would_help(tmp_path, caplog):
    tiny_trainer(tmp_path, AdaptiveLR(), **UNEVALUATED).train()
    assert (
        "it will hardly help. Evaluate while training, or keep some training rows for that: hold_out=0.2" in caplog.text
    )


def test_several_tasks_are_each_held_out_and_their_mean_is_watched(tmp_path):
    setting = MULTITASK.setting() | {"train_dataset": {"trees": tiny_tagged(), "moods": tiny_moods()}} | UNEVALUATED
    del setting["data_collator"]
    trainer = tiny_trainer(tmp_path, MULTITASK.technique, AdaptiveLR(hold_out=0.25), **setting)
    trainer.train()
    assert set(trainer.eval_dataset) == {"trees", "moods"}
    assert any("eval_moods_loss" in entry for entry in trainer.state.log_history)
    assert "raise" in actions(trainer)


def test_joined_tasks_are_not_cut_in_two_and_the_message_says_by_what(tmp_path):
    with pytest.raises(
        PluginError, match=r"the train data are a part \(PartByHoldOut\) of a TaggedConcat.* as a mapping"
    ):
        tiny_trainer(tmp_path, MULTITASK.technique, AdaptiveLR(hold_out=0.25), **MULTITASK.setting() | UNEVALUATED)
