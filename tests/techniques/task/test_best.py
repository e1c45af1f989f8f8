"""The best checkpoint of `task`, and when a run stops waiting for a better one."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from transformers import Trainer

from hf_ft_plugins import AdaptiveLR, Technique, with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.task import (
    BestMetricCallback,
    Task,
)
from hf_ft_plugins.testing import difference, outcome, resumed
from hf_ft_plugins.testing import tiny_trainer as plain_trainer
from hf_ft_plugins.testing.examples.task import tiny_rows
from tests.techniques.task.runs_of_kinds import model_of, rows_of, tiny_trainer


def test_the_best_model_by_macro_f1_is_loaded_at_the_end(tmp_path):
    trainer = tiny_trainer(
        tmp_path, Task(early_stopping_patience=None, calibrate=False), save_strategy="steps", save_steps=3, max_steps=12
    )
    trainer.train()
    scores = {e["step"]: e["eval_macro_f1"] for e in trainer.state.log_history if "eval_macro_f1" in e}
    best = max(scores, key=scores.get)
    assert trainer.state.best_global_step == best
    from safetensors.torch import load_file

    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert difference(saved, dict(trainer.model.state_dict())) is None


def settled(tmp_path, technique=None, **changes):
    args = tiny_trainer(tmp_path, technique or Task(), **changes).args
    return args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end


def test_the_metric_and_its_direction_are_settled_when_the_trainer_is_built(tmp_path):
    assert settled(tmp_path) == ("macro_f1", True, False)
    assert settled(tmp_path, save_strategy="steps", save_steps=6) == ("macro_f1", True, True)
    assert settled(tmp_path, save_strategy="steps", save_steps=4) == ("macro_f1", True, False)
    assert settled(tmp_path, save_strategy="steps", save_steps=0.2, eval_steps=0.1) == ("macro_f1", True, True)
    assert settled(tmp_path, kind="regression", model=model_of("regression", num_labels=1)) == ("rmse", False, False)
    # Trainer guesses that greater is better of any metric that is not called a loss.
    assert settled(tmp_path, metric_for_best_model="rmse") == ("rmse", False, False)
    assert settled(tmp_path, metric_for_best_model="distance", greater_is_better=False) == ("distance", False, False)
    assert settled(tmp_path, Task(metric="rmse", greater_is_better=True)) == ("rmse", True, False)
    assert settled(tmp_path, compute_metrics=lambda prediction: {"mine": 1.0}) == ("loss", False, False)
    sets = {"easy": rows_of("single_label", 8, 2), "hard": rows_of("single_label", 8, 3)}
    assert settled(tmp_path, eval_dataset=sets) == ("easy_macro_f1", True, False)
    assert settled(tmp_path, eval_strategy="no") == (None, None, False)


@dataclass(frozen=True, kw_only=True)
class RefusesLast(Technique):
    name: ClassVar[str] = "refuses-last"
    summary: ClassVar[str] = "refuses a trainer that is built"

    def ft_trainer(self, trainer):
        raise PluginError(f"refuses-last: metric_for_best_model is {trainer.args.metric_for_best_model}.")


def test_the_arguments_are_the_scripts_again_where_a_later_technique_refuses(tmp_path):
    args = plain_trainer(tmp_path / "stock", save_steps=3).args
    before = dict(vars(args))
    data = {"train_dataset": rows_of("single_label", 24), "eval_dataset": rows_of("single_label", 8)}
    with pytest.raises(PluginError, match="metric_for_best_model is macro_f1"):
        with_plugins(Trainer, "task", RefusesLast())(model=model_of("single_label"), args=args, **data)
    assert vars(args) == before
    with_plugins(Trainer, "task")(model=model_of("single_label"), args=args, **data)
    assert args.metric_for_best_model == "macro_f1"


def test_a_wrong_metric_is_refused_at_the_first_evaluation_with_the_right_ones(tmp_path):
    trainer = tiny_trainer(tmp_path, Task(metric="f2"))
    with pytest.raises(PluginError, match=r"task: .*'eval_f2'.*eval_accuracy.*eval_macro_f1.*task:metric="):
        trainer.train()
    assert trainer.state.global_step == 3
    sets = {"easy": rows_of("single_label", 8, 2), "hard": rows_of("single_label", 8, 3)}
    with pytest.raises(PluginError, match=r"eval_easy_macro_f1.*eval_hard_macro_f1"):
        tiny_trainer(tmp_path, Task(metric="macro_f1"), eval_dataset=sets).train()
    tiny_trainer(tmp_path, Task(metric="hard_macro_f1", calibrate=False), eval_dataset=sets, max_steps=3).train()


def from_a_list(values):
    """compute_metrics that gives these values in turn."""
    given = iter(values)
    return lambda prediction: {"score": next(given)}


def test_early_stopping_counts_evaluations_and_its_state_survives_resume(tmp_path):
    values = [0.5, 0.4, 0.6, 0.6, math.nan, 0.9]
    options = {"metric_for_best_model": "score", "max_steps": 20, "eval_steps": 2, "save_steps": 2}
    technique = Task(early_stopping_patience=2, calibrate=False)

    def setting(start=0):
        return {
            "train_dataset": tiny_rows(24),
            "eval_dataset": tiny_rows(40, seed=1),
            "compute_metrics": from_a_list(values[start:]),
        }

    straight = plain_trainer(tmp_path / "a", technique, **options, **setting())
    straight.train()
    assert straight.state.global_step == 10
    # Ended between the fourth evaluation and the fifth, which is the second without improvement.
    starts = iter([0, 4])
    again = resumed(tmp_path / "b", technique, stop_at=9, make_setting=lambda: setting(next(starts)), **options)
    assert difference(outcome(straight), outcome(again)) is None
    once_more = plain_trainer(tmp_path / "a", technique, **options, **setting(5))
    once_more.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert once_more.state.global_step == 10, "a stopped run went on"
    forgetful = BestMetricCallback(2)
    assert forgetful.state_dict() == {"best": None, "bad": 0, "stopped": False}


def test_the_threshold_and_the_direction_count():
    class Control:
        should_training_stop = False

    for greater, values, stopped in (
        (True, [1.0, 1.05, 1.08], True),
        (True, [1.0, 1.2, 1.4], False),
        (False, [1.0, 0.95, 0.92], True),
        (False, [1.0, 0.8, 0.6], False),
    ):
        callback, control = BestMetricCallback(2, threshold=0.1), Control()
        for value in values:
            callback._judge(value, greater, type("State", (), {"global_step": 1}), control)
        assert control.should_training_stop is stopped


def test_it_stops_beside_adaptive_lr_whichever_is_first(tmp_path):
    techniques = [
        Task(early_stopping_patience=2, calibrate=False),
        AdaptiveLR(controller="plateau", patience=1, min_delta=1e9, max_cuts=0),
    ]
    steps = []
    for number, order in enumerate((techniques, techniques[::-1])):
        trainer = tiny_trainer(
            tmp_path / str(number), *order, compute_metrics=from_a_list([0.5, 0.4, 0.3]), metric_for_best_model="score"
        )
        trainer.train()
        steps.append(trainer.state.global_step)
    assert steps == [6, 6]
