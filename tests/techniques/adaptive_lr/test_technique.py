"""The adaptive learning rate in real runs: what it watches, and what it does to the run."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.adaptive_lr.best_weights import copy_weights, restore_weights
from hf_ft_plugins.techniques.adaptive_lr.settings import WatchSettings
from hf_ft_plugins.techniques.adaptive_lr.watched_metric import watched_direction, watched_metric
from hf_ft_plugins.testing import difference, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.adaptive_lr import EXAMPLE
from tests.techniques.adaptive_lr.logged_actions import actions, steps_of_actions


def test_the_metric_and_its_direction_come_from_option_arguments_or_name(tmp_path):
    def watched(settings, **changes):
        args = tiny_trainer(tmp_path, **changes).args
        metric = watched_metric(settings, args)
        return metric, watched_direction(settings, args, metric)

    assert watched(WatchSettings()) == ("eval_loss", False)
    assert watched(WatchSettings(), metric_for_best_model="accuracy") == ("eval_accuracy", True)
    assert watched(WatchSettings(), metric_for_best_model="x", greater_is_better=False) == ("eval_x", False)
    assert watched(WatchSettings(metric="eval_f1"), metric_for_best_model="loss", greater_is_better=False) == (
        "eval_f1",
        True,
    )
    assert watched(WatchSettings(metric="x", greater_is_better=True)) == ("x", True)
    assert watched(WatchSettings(), eval_strategy="no") == ("loss", False)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_it_acts_on_the_metric_named_and_says_why(tmp_path):
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", metric="accuracy", patience=1, min_delta=1), compute_metrics=accuracy
    )
    trainer.train()
    reasons = [e["adaptive_lr/reason"] for e in trainer.state.log_history if "adaptive_lr/reason" in e]
    assert reasons
    assert all(reason.startswith("accuracy: ") for reason in reasons)


def test_a_metric_that_never_appears_is_refused_with_the_keys_that_did(tmp_path):
    with pytest.raises(PluginError, match=r"metric='f1' is not among .*eval_accuracy, eval_loss"):
        tiny_trainer(tmp_path, AdaptiveLR(metric="f1"), compute_metrics=accuracy).train()


def test_several_evaluation_sets_are_watched_by_key(tmp_path):
    sets = {"easy": tiny_dataset(8, seed=2), "hard": tiny_dataset(8, seed=3)}
    options = {"patience": 1, "min_delta": 1e9, "stop": False}
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", metric="eval_hard_loss", **options), eval_dataset=sets
    )
    trainer.train()
    # Evaluations at 3, 6, 9, 12, 14: the first is the best, each later one cuts until three cuts are made.
    assert actions(trainer) == ["cut", "cut", "cut"]


def test_a_metric_of_evaluations_without_evaluation_is_refused_before_training(tmp_path):
    with pytest.raises(PluginError, match="eval_strategy='no'"):
        tiny_trainer(tmp_path, AdaptiveLR(metric="eval_loss"), eval_strategy="no")
    with pytest.raises(PluginError, match="nothing to watch"):
        tiny_trainer(tmp_path, AdaptiveLR(), eval_strategy="no", logging_strategy="no")


def test_training_loss_is_watched_where_nothing_is_evaluated(tmp_path):
    options = AdaptiveLR(controller="plateau", patience=1, min_delta=1e9, ema_steps=3, max_cuts=2)
    trainer = tiny_trainer(tmp_path, options, eval_strategy="no", max_steps=40)
    trainer.train()
    assert actions(trainer) == ["cut", "cut", "stop"]
    assert steps_of_actions(trainer) == [6, 9, 12]
    assert trainer.state.global_step == 12


def test_by_default_the_rate_climbs_and_the_run_ends_with_the_best_weights(tmp_path):
    kept = {}

    class Keeps(TrainerCallback):
        def on_evaluate(self, args, state, control, *, model, metrics, **kwargs):
            kept[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}

    # Better at 3 and 6, worse from 9 on.
    values = iter([0.1, 0.2, 0.1, 0.1, 0.1])
    metrics = {"compute_metrics": lambda prediction: {"accuracy": next(values)}}
    trainer = tiny_trainer(tmp_path, AdaptiveLR(metric="accuracy"), callbacks=[Keeps()], **metrics)
    trainer.train()
    assert actions(trainer) == ["raise", "rollback", "rollback", "stop", "restore"]
    after = trainer.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in kept[6].items())
    assert not all(torch.equal(weight, after[name]) for name, weight in kept[14].items())


@pytest.mark.parametrize(("values", "said"), [([0.5, 0.5, 0.5, 0.5, 0.5], True), ([0.5, 0.5, 0.5, 0.5, 0.6], False)])
def test_a_run_in_which_nothing_was_learned_and_so_decided_is_told_so(values, said, tmp_path, caplog):
    left = iter(values)
    metrics = {"compute_metrics": lambda prediction: {"accuracy": next(left)}}
    tiny_trainer(tmp_path, AdaptiveLR(metric="accuracy"), **metrics).train()
    assert ("accuracy never was 2 % better than its first value, so nothing was decided" in caplog.text) is said


def test_a_cut_of_climb_goes_on_from_a_mean_of_the_best_weights_and_the_latest(tmp_path):
    seen = {}

    class Sees(TrainerCallback):
        def on_step_end(self, args, state, control, *, model, **kwargs):
            seen[state.global_step] = copied(model)

        def on_evaluate(self, args, state, control, *, model, **kwargs):
            # Ours decides first.
            seen["after", state.global_step] = copied(model)

    def copied(model):
        return {name: weight.clone() for name, weight in model.named_parameters()}

    values = iter([0.1, 0.3, 0.2, 0.0, 0.0])
    metrics = {"compute_metrics": lambda prediction: {"accuracy": next(values)}}
    trainer = tiny_trainer(tmp_path, AdaptiveLR(metric="accuracy"), callbacks=[Sees()], **metrics)
    trainer.train()
    for name, weight in seen["after", 9].items():
        torch.testing.assert_close(weight, 0.7 * seen[6][name] + 0.3 * seen[9][name], rtol=1e-6, atol=1e-7)
    assert difference(seen["after", 9], seen[6])
    # The second is worse than the first evaluation was.
    assert difference(seen["after", 12], seen[6]) is None
    notes = [entry for entry in trainer.state.log_history if "adaptive_lr/share_of_latest_weights" in entry]
    assert [note["adaptive_lr/share_of_latest_weights"] for note in notes] == [0.3]


def test_what_batch_norm_counts_is_put_back_whole():
    norm = torch.nn.BatchNorm1d(2)
    norm(torch.randn(4, 2))
    best = copy_weights(norm)
    norm(torch.randn(4, 2) * 3)
    latest = copy_weights(norm)
    assert restore_weights(norm, best, 0.25) == 0.25
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_var, 0.75 * best["running_var"] + 0.25 * latest["running_var"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_mixed_but_put_back(bad):
    norm = torch.nn.BatchNorm1d(2)
    norm(torch.randn(4, 2))
    best = copy_weights(norm)
    norm(torch.full((4, 2), bad))
    assert restore_weights(norm, best, 0.25) == 0.0
    assert all(torch.equal(buffer, best[name]) for name, buffer in norm.named_buffers())


@pytest.mark.parametrize("saved", [True, False])
def test_the_best_weights_are_left_to_trainer_where_it_has_a_best_checkpoint(saved, tmp_path):
    values = iter([0.1, 0.3, 0.1, 0.1, 0.1])
    changes = {"compute_metrics": lambda prediction: {"accuracy": next(values)}, "load_best_model_at_end": True}
    changes |= {"save_steps": 3} if saved else {"save_strategy": "no", "eval_strategy": "no", "eval_dataset": None}
    trainer = tiny_trainer(tmp_path, AdaptiveLR(metric="accuracy", hold_out=None if saved else 0.2), **changes)
    trainer.train()
    assert (actions(trainer)[-1] == "restore") is not saved


@pytest.mark.parametrize(
    ("changes", "ahead"),
    [
        ({"eval_steps": 6}, 2),
        ({"eval_steps": 0.5}, 2),
        ({"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}, 2),
        ({"eval_strategy": "no"}, 0),
        ({"warmup_steps": 8}, 2),
        ({}, None),
        ({"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, None),
    ],
)
def test_a_run_that_gives_too_few_values_is_told_so(changes, ahead, tmp_path, caplog):
    tiny_trainer(tmp_path, AdaptiveLR(), **changes).train()
    said = [line for line in caplog.text.splitlines() if "too few for it to help" in line]
    assert len(said) == (ahead is not None)
    assert ahead is None or f"{ahead} values of" in said[0]


def test_an_evaluation_before_training_is_no_decision(tmp_path):
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", patience=1, min_delta=1e9, max_cuts=1, stop=False), max_steps=3
    )
    trainer.evaluate()
    trainer.train()
    assert actions(trainer) == []


@pytest.mark.parametrize(("warmup_steps", "decided"), [(7, [9, 12]), (6, [6, 9])])
def test_decisions_begin_after_the_warm_up(warmup_steps, decided, tmp_path):
    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, warmup_steps=warmup_steps)
    trainer.train()
    assert steps_of_actions(trainer) == decided


class AppliedRates(TrainerCallback):
    """What the optimizer was stepped with, read inside the step."""

    def __init__(self):
        self.rates = []

    def on_train_begin(self, args, state, control, *, optimizer, **kwargs):
        inner = lr_scale.innermost(optimizer)
        inner.register_step_pre_hook(lambda *_: self.rates.append(inner.param_groups[0]["lr"]))


@pytest.mark.parametrize("alone", [True, False], ids=["stock trainer", "host"])
@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant", "reduce_lr_on_plateau"])
def test_the_logged_rate_is_the_applied_rate(scheduler, alone, tmp_path):
    applied, cutting = AppliedRates(), {"patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
    techniques = () if alone else (AdaptiveLR(controller="plateau", **cutting),)
    callbacks = [AdaptiveLRCallback(controller="plateau", **cutting), applied] if alone else [applied]
    changes = {"metric_for_best_model": "loss"} if scheduler == "reduce_lr_on_plateau" else {}
    trainer = tiny_trainer(tmp_path, *techniques, callbacks=callbacks, lr_scheduler_type=scheduler, **changes)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == applied.rates
    assert actions(trainer) == ["cut", "cut"]


def test_a_stock_run_that_gets_worse_is_stopped_early(tmp_path):
    technique = AdaptiveLR(controller="plateau", patience=1, min_delta=1e9, max_cuts=1)
    trainer = tiny_trainer(tmp_path, technique, max_steps=40, load_best_model_at_end=True, save_steps=3)
    trainer.train()
    assert actions(trainer) == ["cut", "stop"]
    assert trainer.state.global_step == 9
    assert trainer.state.best_model_checkpoint


class WeightsAtEvaluations(TrainerCallback):
    """The parameters after what was decided at each evaluation, by step."""

    def __init__(self):
        self.at = {}

    def on_evaluate(self, args, state, control, *, model, **kwargs):
        self.at[state.global_step] = {name: value.clone() for name, value in model.named_parameters()}


def test_rollback_returns_to_the_best_weights_and_ends_with_them(tmp_path):
    weights = WeightsAtEvaluations()
    technique = AdaptiveLR(controller="rollback", patience=2, min_delta=1e9, max_cuts=1, stop=False)
    trainer = tiny_trainer(tmp_path, technique, callbacks=[weights])
    trainer.train()
    # Ours decides first, so the watcher sees the weights after the decision: those of step 3 are back at step 9.
    assert difference(weights.at[9], weights.at[3]) is None
    assert difference(weights.at[6], weights.at[3])
    assert difference(dict(trainer.model.named_parameters()), weights.at[3]) is None
    assert actions(trainer) == ["rollback", "restore"]


def test_peft_rollback_keeps_only_the_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    technique = AdaptiveLR(controller="rollback", patience=1, min_delta=1e9, max_cuts=1, stop=False)
    trainer = tiny_trainer(tmp_path, technique, model=model)
    trainer.train()
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, AdaptiveLRCallback)]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    assert set(callback.state_dict()["best_weights"]) == trainable | buffers
    assert len(trainable) < 10
    assert EXAMPLE.acted(technique, trainer)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_accumulation_steps": 1}, {"max_grad_norm": 0.0}])
def test_it_works_under_other_settings(changes, tmp_path):
    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, **changes)
    trainer.train()
    assert EXAMPLE.acted(EXAMPLE.technique, trainer)


def test_it_works_beside_early_stopping(tmp_path):
    callbacks = [EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)]
    trainer = tiny_trainer(
        tmp_path, EXAMPLE.technique, callbacks=callbacks, load_best_model_at_end=True, save_steps=3, max_steps=60
    )
    trainer.train()
    assert trainer.state.global_step < 60


class Prodigy(torch.optim.AdamW):
    """Stands for the optimizer of that name."""


def test_an_optimizer_that_tunes_itself_is_left_alone_with_a_warning(tmp_path, caplog):
    model = tiny_model()
    optimizer = Prodigy(model.parameters(), lr=1e-3)

    def with_optimizer(trainer_class):
        class WithOptimizer(trainer_class):
            def __init__(self, **kwargs):
                super().__init__(optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)), **kwargs)

        return WithOptimizer

    from transformers import Trainer

    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, trainer_class=with_optimizer(Trainer), model=model)
    trainer.train()
    assert actions(trainer) == []
    assert "Prodigy adapts the learning rate itself" in caplog.text


def test_an_optimizer_that_steps_inside_backward_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.args.optim = "galore_adamw_layerwise"
    from hf_ft_plugins.techniques.adaptive_lr.unsupported import refuse_arguments

    with pytest.raises(PluginError, match=r"galore_adamw_layerwise.*without layerwise"):
        refuse_arguments(WatchSettings(), trainer.args)


def test_rollback_is_refused_under_deepspeed(tmp_path):
    from hf_ft_plugins.techniques.adaptive_lr.unsupported import refuse_unsupported

    trainer = tiny_trainer(tmp_path)
    trainer.is_deepspeed_enabled = True
    refuse_unsupported("plateau", WatchSettings(), trainer)
    with pytest.raises(PluginError, match="controller=rollback does not work with DeepSpeed"):
        refuse_unsupported("rollback", WatchSettings(), trainer)


def test_evaluations_under_another_prefix_are_the_scripts_own(tmp_path):
    class OnTrainingSet(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer.evaluate(trainer.train_dataset, metric_key_prefix="train")

    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, callbacks=[OnTrainingSet()])
    trainer.train()
    assert "cut" in actions(trainer)


def test_rollback_survives_layers_that_begin_to_train_and_buffers_that_cannot_be_written(tmp_path):
    class Unfreezes(TrainerCallback):
        def on_step_begin(self, args, state, control, *, model, **kwargs):
            model.classifier.requires_grad_(state.global_step >= 7)

    model = tiny_model()
    model.register_buffer("constant", torch.ones(1).expand(3))
    options = AdaptiveLR(controller="rollback", patience=1, min_delta=1e9, max_cuts=3, stop=False)
    weights = WeightsAtEvaluations()
    trainer = tiny_trainer(tmp_path, options, model=model, callbacks=[Unfreezes(), weights])
    trainer.train()
    assert actions(trainer).count("rollback") == 3
    # It trains from step 7 on, so the values at step 9 are the first that a later rollback can return to.
    assert torch.equal(weights.at[12]["classifier.weight"], weights.at[9]["classifier.weight"])
    assert not torch.equal(weights.at[9]["classifier.weight"], weights.at[6]["classifier.weight"])
