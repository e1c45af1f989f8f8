"""What the adaptive learning rate watches in scripts with several evaluation sets or an evaluation of their own."""

import pytest
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_dataset, tiny_trainer

SETS = {"clean": tiny_dataset(8, seed=2), "error": tiny_dataset(8, seed=3)}
CUTTING = {"patience": 1, "min_delta": 1e9, "stop": False}


def told(trainer):
    return [
        (entry["adaptive_lr/step"], entry["adaptive_lr/action"])
        for entry in trainer.state.log_history
        if "adaptive_lr/action" in entry
    ]


def from_a_list(key, values, sets=1):
    """`compute_metrics` that gives under `key` one value for each round of evaluations."""
    calls = []

    def compute(prediction):
        calls.append(key)
        return {key: values[(len(calls) - 1) // sets]}

    return compute


def decided(folder, technique, key, values, sets, **changes):
    metrics = from_a_list(key, values, len(sets or [0]))
    data = {"eval_dataset": sets} if sets else {}
    trainer = tiny_trainer(folder, technique, compute_metrics=metrics, **data, **changes)
    trainer.train()
    return told(trainer)


RISING, FALLING = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("technique", "key", "improving", "sets", "changes"),
    [
        ("adaptive-lr:controller=plateau,patience=1,metric=eval_error_accuracy", "accuracy", RISING, SETS, {}),
        ("adaptive-lr:controller=plateau,patience=1,metric=clean_accuracy", "accuracy", RISING, SETS, {}),
        (
            "adaptive-lr:controller=plateau,patience=1",
            "accuracy",
            RISING,
            SETS,
            {"metric_for_best_model": "error_accuracy"},
        ),
        ("adaptive-lr:controller=plateau,patience=1,metric=eval_error_mape", "mape", FALLING, SETS, {}),
        ("adaptive-lr:controller=plateau,patience=1,metric=bits_per_byte", "bits_per_byte", FALLING, None, {}),
        ("adaptive-lr:controller=plateau,patience=1", "ter", FALLING, None, {"metric_for_best_model": "ter"}),
        ("adaptive-lr:controller=plateau,patience=1", "thing", RISING, None, {"metric_for_best_model": "thing"}),
        ("adaptive-lr:controller=plateau,patience=1,metric=thing,greater_is_better=false", "thing", FALLING, None, {}),
    ],
)
def test_an_improving_run_is_left_alone_and_the_same_values_backwards_are_cut(
    technique, key, improving, sets, changes, tmp_path
):
    assert decided(tmp_path / "better", technique, key, improving, sets, **changes) == []
    # One decision a round: values at 3, 6, 9, 12, 14; the first is the best.
    worse = decided(tmp_path / "worse", technique, key, improving[::-1], sets, **changes)
    assert worse == [(6, "cut"), (9, "cut"), (12, "cut"), (14, "stop")]


@pytest.mark.parametrize("alone", [True, False])
def test_a_direction_that_nobody_can_tell_is_asked_for_before_training(alone, tmp_path):
    expected = pytest.raises(PluginError, match=r"metric='eval_thing'.*adaptive-lr:greater_is_better=true \(or false\)")
    if alone:
        trainer = tiny_trainer(tmp_path, callbacks=[AdaptiveLRCallback(metric="eval_thing")])
        with expected:
            trainer.train()
    else:
        with expected:
            tiny_trainer(tmp_path, "adaptive-lr:metric=eval_thing")


def test_trainer_s_blind_default_is_not_followed_and_said(tmp_path, caplog):
    tiny_trainer(tmp_path, "adaptive-lr", metric_for_best_model="mape")
    assert "eval_mape counts as better when lower" in caplog.text
    caplog.clear()
    tiny_trainer(tmp_path, "adaptive-lr", metric_for_best_model="mape", greater_is_better=False)
    assert "counts as" not in caplog.text


class Losses(TrainerCallback):
    """What each set's evaluation gave, by step."""

    def __init__(self):
        self.found = {}

    def on_evaluate(self, args, state, control, *, metrics, **kwargs):
        losses = {key: value for key, value in metrics.items() if key.endswith("_loss")}
        self.found.setdefault(state.global_step, {}).update(losses)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("technique", [{}, {"metric": "eval_loss"}])
def test_of_several_sets_nobody_named_the_mean_is_watched(technique, alone, tmp_path, caplog):
    losses, options = Losses(), technique | CUTTING
    techniques = () if alone else (AdaptiveLR(controller="plateau", **options),)
    callbacks = [losses, *([AdaptiveLRCallback(controller="plateau", **options)] if alone else [])]
    trainer = tiny_trainer(tmp_path, *techniques, eval_dataset=SETS, callbacks=callbacks)
    trainer.train()
    assert caplog.text.count("the mean of eval_clean_loss, eval_error_loss is watched") == 1
    # Alone, a callback sees at the first evaluations which sets there are.
    first = 6 if alone else 3
    assert [step for step, _ in told(trainer)] == ([9, 12, 14] if alone else [6, 9, 12])
    reason = next(entry["adaptive_lr/reason"] for entry in trainer.state.log_history if "adaptive_lr/reason" in entry)
    mean = [sum(losses.found[step].values()) / 2 for step in (first + 3, first)]
    assert f"{mean[0]:.6g} is no better than {mean[1]:.6g}" in reason


def test_a_set_that_does_not_give_the_metric_is_left_out_of_the_mean(tmp_path):
    without_labels = [{"input_ids": row["input_ids"]} for row in SETS["error"]]
    for sets in ({"clean": SETS["clean"], "bare": without_labels}, {"bare": without_labels, "clean": SETS["clean"]}):
        trainer = tiny_trainer(
            tmp_path / next(iter(sets)), AdaptiveLR(controller="plateau", **CUTTING), eval_dataset=sets
        )
        trainer.train()
        assert told(trainer) == [(6, "cut"), (9, "cut"), (12, "cut")]


@pytest.mark.parametrize("alone", [False, True])
def test_a_run_that_watches_a_mean_resumes_exactly(alone, tmp_path):
    setting = {"eval_dataset": SETS, "save_steps": 1}
    techniques = () if alone else (AdaptiveLR(controller="plateau", **CUTTING),)

    def more():
        return {"callbacks": [AdaptiveLRCallback(controller="plateau", **CUTTING)]} if alone else {}

    straight = tiny_trainer(tmp_path / "straight", *techniques, **setting, **more())
    straight.train()
    again = resumed(tmp_path / "resumed", *techniques, stop_at=7, **setting, **more())
    assert difference(outcome(straight), outcome(again)) is None


class OwnEvaluation(Trainer):
    """Gives what its script computes, and no loss."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_exact_match": 1.0}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class MeanOverSets(Trainer):
    def evaluate(self, eval_dataset=None, **kwargs):
        if isinstance(eval_dataset or self.eval_dataset, dict):
            each = [super(MeanOverSets, self).evaluate(data, **kwargs) for data in self.eval_dataset.values()]
            return {"eval_loss": sum(one["eval_loss"] for one in each) / len(each)}
        return super().evaluate(eval_dataset, **kwargs)


@pytest.mark.parametrize("alone", [True, False])
def test_an_evaluation_without_the_loss_leaves_the_training_loss_to_watch(alone, tmp_path, caplog):
    options = CUTTING | {"ema_steps": 3, "max_cuts": 2}
    techniques = () if alone else (AdaptiveLR(controller="plateau", **options),)
    callbacks = [AdaptiveLRCallback(controller="plateau", **options)] if alone else []
    trainer = tiny_trainer(tmp_path, *techniques, trainer_class=OwnEvaluation, callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == 14
    assert caplog.text.count("nobody named a metric, and the evaluation gives no eval_loss") == 1
    assert "eval_exact_match" in caplog.text
    # The first evaluation is at 3; a mean over three steps is the first value.
    assert told(trainer) == [(9, "cut"), (12, "cut")]


def test_a_named_metric_that_is_absent_stays_an_error(tmp_path):
    for changes in ({"technique": "adaptive-lr:metric=f1"}, {"metric_for_best_model": "f1"}):
        technique = changes.pop("technique", "adaptive-lr")
        with pytest.raises((PluginError, KeyError), match="f1"):
            tiny_trainer(tmp_path, technique, trainer_class=OwnEvaluation, **changes).train()


@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_run_that_fell_back_resumes_exactly(stop_at, tmp_path):
    setting = {"trainer_class": OwnEvaluation, "save_steps": 1}
    technique = AdaptiveLR(controller="plateau", **CUTTING | {"ema_steps": 3, "max_cuts": 2})
    straight = tiny_trainer(tmp_path / "straight", technique, **setting)
    straight.train()
    again = resumed(tmp_path / "resumed", technique, stop_at=stop_at, **setting)
    assert difference(outcome(straight), outcome(again)) is None


def test_a_script_that_means_its_sets_keeps_its_eval_loss(tmp_path):
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", **CUTTING), trainer_class=MeanOverSets, eval_dataset=SETS
    )
    trainer.train()
    assert told(trainer) == [(6, "cut"), (9, "cut"), (12, "cut")]


def test_a_second_evaluation_at_one_step_is_the_script_s_own(tmp_path):
    class EvaluatesMore(TrainerCallback):
        busy = False

        def on_evaluate(self, args, state, control, **kwargs):
            if not self.busy:
                self.busy = True
                trainer.evaluate(SETS["error"])
                self.busy = False

    trainer = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", **CUTTING), callbacks=[EvaluatesMore()])
    trainer.train()
    assert told(trainer) == [(6, "cut"), (9, "cut"), (12, "cut")]


def test_evaluations_by_hand_of_other_data_decide_nothing(tmp_path):
    class ByHand(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            # Not at 3, 6, ...: for Trainer it would be the evaluation that is due.
            if state.global_step in (4, 7):
                self.trainer.evaluate(tiny_dataset(6, seed=9))

    steps = []
    for name, callbacks in (("plain", []), ("by hand", [ByHand()])):
        options = {"patience": 1, "min_delta": 1e9, "max_cuts": 9, "stop": False}
        trainer = tiny_trainer(tmp_path / name, AdaptiveLR(controller="plateau", **options), callbacks=callbacks)
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train()
        # Values differ in their last digits, since each evaluation draws a random number; the steps do not.
        steps.append([step for step, _ in told(trainer)])
    # Trainer evaluates at 3, 6, ... and at the end; the first value is the best.
    assert steps == [[6, 9, 12, 14]] * 2
