"""The adaptive learning rate: controllers as plain functions, then the callback in real runs."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, lr_scale
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.metrics import greater_is_better
from hf_ft_plugins.techniques.adaptive_lr import nonfinite
from hf_ft_plugins.techniques.adaptive_lr.callback import NonFiniteGradientsError, watched_direction, watched_metric
from hf_ft_plugins.techniques.adaptive_lr.controllers import ControllerState, decide
from hf_ft_plugins.testing import difference, outcome, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.adaptive_lr import EXAMPLE


def actions(trainer):
    told = [entry["adaptive_lr/action"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
    return [action for some in told for action in some.split(", ")]


def steps_of_actions(trainer):
    return [entry["adaptive_lr/step"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]


def follow(options, values, greater=False):
    """Actions and factors that a controller gives for a sequence of values."""
    state, said = ControllerState(), []
    for value in values:
        state, decision = decide(options, state, value, greater=greater, warming_up=False)
        said.append((decision.action, round(state.scale, 6)))
    return said


# ---- controllers ----


def test_plateau_cuts_after_patience_and_stops_after_the_last_cut():
    said = follow(AdaptiveLR(patience=2, max_cuts=2), [3, 2, 2, 2, 2, 2, 2, 2])
    assert [action for action, _ in said] == ["keep", "keep", "keep", "cut", "keep", "cut", "keep", "stop"]
    assert [scale for _, scale in said][3::2] == [0.3, 0.09, 0.09]


def test_plateau_forgets_bad_values_when_the_metric_improves():
    assert {action for action, _ in follow(AdaptiveLR(patience=2), [3, 4, 2, 4, 1, 4, 0])} == {"keep"}


def test_plateau_without_stop_goes_on_after_the_last_cut():
    said = follow(AdaptiveLR(patience=1, max_cuts=1, stop=False), [1, 2, 2, 2])
    assert said == [("keep", 1.0), ("cut", 0.3), ("keep", 0.3), ("keep", 0.3)]


def test_cooldown_lets_values_pass_after_a_cut():
    said = follow(AdaptiveLR(patience=1, cooldown=2, max_cuts=9), [1, 2, 2, 2, 2])
    assert [action for action, _ in said] == ["keep", "cut", "keep", "keep", "cut"]


def test_the_factor_is_never_below_min_scale():
    said = follow(AdaptiveLR(patience=1, max_cuts=9, min_scale=0.05), [1, 2, 2, 2, 2])
    assert [scale for _, scale in said] == [1.0, 0.3, 0.09, 0.05, 0.05]
    assert said[-1][0] == "stop"


def test_greedy_raises_while_improving_and_lowers_while_not_within_its_bounds():
    said = follow(AdaptiveLR(controller="greedy"), [3, 2, 2.5, 2.5, 1])
    assert [action for action, _ in said] == ["raise", "raise", "cut", "cut", "raise"]
    up = follow(AdaptiveLR(controller="greedy", max_scale=1.2), [9, 8, 7, 6])
    assert [scale for _, scale in up] == [round(1 / 0.9, 6), 1.2, 1.2, 1.2]
    down = follow(AdaptiveLR(controller="greedy", min_scale=0.8), [1, 2, 2, 2, 2, 2])
    assert down[-1] == ("keep", 0.8)


def test_a_metric_that_is_better_when_greater_is_not_cut_while_it_rises():
    rising = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {action for action, _ in follow(AdaptiveLR(patience=1), rising, greater=True)} == {"keep"}
    assert "cut" in {action for action, _ in follow(AdaptiveLR(patience=1), rising, greater=False)}


def test_a_value_that_is_not_a_number_never_improves():
    said = follow(AdaptiveLR(patience=2), [math.nan, math.nan])
    assert [action for action, _ in said] == ["keep", "cut"]


def test_nothing_is_cut_during_warm_up_but_the_best_value_counts():
    state = ControllerState()
    for value in (1.0, 2.0, 3.0):
        state, decision = decide(AdaptiveLR(patience=1), state, value, greater=False, warming_up=True)
        assert decision.action == "keep"
    state, decision = decide(AdaptiveLR(patience=1), state, 1.5, greater=False, warming_up=False)
    assert decision.action == "cut"


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_loss", False),
        ("eval_accuracy", True),
        ("eval_f1", True),
        ("eval_wer", False),
        ("perplexity", False),
        ("eval_bleu", True),
        ("eval_dev-set_loss", False),
        ("eval_closset_accuracy", True),
    ],
)
def test_direction_is_inferred_from_the_name(metric, greater):
    assert greater_is_better(metric) is greater


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0},
        {"factor": 1},
        {"patience": 0},
        {"min_delta": -1},
        {"max_cuts": -1},
        {"min_scale": 0},
        {"max_scale": 0.5},
        {"cooldown": -1},
        {"ema_steps": 0},
        {"max_nonfinite_share": 0},
        {"controller": "magic"},
        {"patience": "many"},
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(OptionError, match=f"adaptive-lr: option {name}="):
        AdaptiveLRCallback(**options)


# ---- what it watches ----


def test_the_metric_and_its_direction_come_from_option_arguments_or_name(tmp_path):
    def watched(options, **changes):
        args = tiny_trainer(tmp_path, **changes).args
        metric = watched_metric(options, args)
        return metric, watched_direction(options, args, metric)

    assert watched(AdaptiveLR()) == ("eval_loss", False)
    assert watched(AdaptiveLR(), metric_for_best_model="accuracy") == ("eval_accuracy", True)
    assert watched(AdaptiveLR(), metric_for_best_model="x", greater_is_better=False) == ("eval_x", False)
    assert watched(AdaptiveLR(metric="eval_f1"), metric_for_best_model="loss", greater_is_better=False) == (
        "eval_f1",
        True,
    )
    assert watched(AdaptiveLR(metric="x", greater_is_better=True)) == ("x", True)
    assert watched(AdaptiveLR(), eval_strategy="no") == ("loss", False)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_it_acts_on_the_metric_named_and_says_why(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(metric="accuracy", patience=1, min_delta=1), compute_metrics=accuracy)
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
    trainer = tiny_trainer(tmp_path / "a", AdaptiveLR(metric="eval_hard_loss", **options), eval_dataset=sets)
    trainer.train()
    # Evaluations at 3, 6, 9, 12, 14: the first is the best, each later one cuts until three cuts are made.
    assert actions(trainer) == ["cut", "cut", "cut"]
    with pytest.raises(PluginError, match=r"eval_easy_loss.*eval_hard_loss"):
        tiny_trainer(tmp_path / "b", AdaptiveLR(**options), eval_dataset=sets).train()


def test_a_metric_of_evaluations_without_evaluation_is_refused_before_training(tmp_path):
    with pytest.raises(PluginError, match="eval_strategy='no'"):
        tiny_trainer(tmp_path, AdaptiveLR(metric="eval_loss"), eval_strategy="no")
    with pytest.raises(PluginError, match="nothing to watch"):
        tiny_trainer(tmp_path, AdaptiveLR(), eval_strategy="no", logging_strategy="no")


def test_training_loss_is_watched_where_nothing_is_evaluated(tmp_path):
    options = AdaptiveLR(patience=1, min_delta=1e9, ema_steps=3, max_cuts=2)
    trainer = tiny_trainer(tmp_path, options, eval_strategy="no", max_steps=40)
    trainer.train()
    assert actions(trainer) == ["cut", "cut", "stop"]
    assert steps_of_actions(trainer) == [6, 9, 12]
    assert trainer.state.global_step == 12


def test_an_evaluation_before_training_is_no_decision(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(patience=1, min_delta=1e9, max_cuts=1, stop=False), max_steps=3)
    trainer.evaluate()
    trainer.train()
    assert actions(trainer) == []


def test_decisions_begin_after_the_warm_up(tmp_path):
    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, warmup_steps=7)
    trainer.train()
    assert steps_of_actions(trainer) == [9, 12]


# ---- what it does to the run ----


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
    techniques = () if alone else (AdaptiveLR(**cutting),)
    callbacks = [AdaptiveLRCallback(**cutting), applied] if alone else [applied]
    changes = {"metric_for_best_model": "loss"} if scheduler == "reduce_lr_on_plateau" else {}
    trainer = tiny_trainer(tmp_path, *techniques, callbacks=callbacks, lr_scheduler_type=scheduler, **changes)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == applied.rates
    assert actions(trainer) == ["cut", "cut"]


def test_a_stock_run_that_gets_worse_is_stopped_early(tmp_path):
    technique = AdaptiveLR(patience=1, min_delta=1e9, max_cuts=1)
    trainer = tiny_trainer(tmp_path, technique, max_steps=40, load_best_model_at_end=True, save_steps=3)
    trainer.train()
    assert actions(trainer) == ["cut", "stop"]
    assert trainer.state.global_step == 9
    assert trainer.state.best_model_checkpoint


def test_rollback_returns_to_the_best_weights_and_ends_with_them(tmp_path):
    class Weights(TrainerCallback):
        def __init__(self):
            self.at = {}

        def on_evaluate(self, args, state, control, *, model, **kwargs):
            self.at[state.global_step] = {name: value.clone() for name, value in model.named_parameters()}

    weights = Weights()
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
    from hf_ft_plugins.techniques.adaptive_lr.callback import refuse_arguments

    with pytest.raises(PluginError, match=r"galore_adamw_layerwise.*without layerwise"):
        refuse_arguments(AdaptiveLR(), trainer.args)


def test_rollback_is_refused_under_deepspeed(tmp_path):
    from hf_ft_plugins.techniques.adaptive_lr.callback import refuse_unsupported

    trainer = tiny_trainer(tmp_path)
    trainer.is_deepspeed_enabled = True
    refuse_unsupported(AdaptiveLR(), trainer)
    with pytest.raises(PluginError, match="controller=rollback does not work with DeepSpeed"):
        refuse_unsupported(AdaptiveLR(controller="rollback"), trainer)


# ---- the guard ----


class Poison(TrainerCallback):
    """Puts a NaN into one gradient before the optimizer steps, at the given steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        parameter = next(model.parameters())
        self.handle = None
        if state.global_step in self.steps:
            self.handle = parameter.register_hook(lambda gradient: gradient * math.nan)

    def on_step_end(self, args, state, control, **kwargs):
        if self.handle is not None:
            self.handle.remove()


def all_finite(model):
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_gradients_that_are_not_finite_are_dropped_and_counted(max_grad_norm, tmp_path):
    def train(*techniques, poisoned=(4, 9)):
        trainer = tiny_trainer(
            tmp_path / str(bool(techniques)), *techniques, callbacks=[Poison(poisoned)], max_grad_norm=max_grad_norm
        )
        trainer.train()
        return trainer

    guarded = train(AdaptiveLR(patience=99))
    assert all_finite(guarded.model)
    counts = [e["adaptive_lr/dropped_steps"] for e in guarded.state.log_history if "adaptive_lr/dropped_steps" in e]
    assert counts == [1, 2]
    assert not all_finite(train().model)


def test_a_dropped_step_changes_neither_weights_nor_moments(tmp_path):
    class Snapshots(TrainerCallback):
        def __init__(self):
            self.after = []

        def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
            self.after.append(difference_free_copy(model, optimizer))

    snapshots = Snapshots()
    trainer = tiny_trainer(tmp_path, AdaptiveLR(patience=99), callbacks=[Poison([5]), snapshots])
    trainer.train()
    assert difference(snapshots.after[4], snapshots.after[5]) is None
    assert difference(snapshots.after[5], snapshots.after[6])


def difference_free_copy(model, optimizer):
    import copy

    return copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()["state"]))


def test_after_several_dropped_steps_the_rate_is_cut_once(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(patience=99), callbacks=[Poison([3, 4, 5])])
    trainer.train()
    assert actions(trainer) == ["drop", "drop", "drop", "cut"]
    assert trainer.optimizer.param_groups[0][lr_scale.KEY] == {"adaptive-lr": 0.3}


def test_past_a_share_the_run_ends_with_a_message_and_finite_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(patience=99), callbacks=[Poison(range(2, 99))], max_steps=60)
    with pytest.raises(NonFiniteGradientsError, match=r"max_nonfinite_share=0\.2") as raised:
        trainer.train()
    assert "Lower learning_rate" in str(raised.value)
    assert all_finite(trainer.model)
    assert trainer.state.global_step == 2 + 12


class NaNLoss(TrainerCallback):
    """Makes the model's loss NaN at the given steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        bias = model.classifier.bias
        if state.global_step in self.steps:
            self.kept = bias.detach().clone()
            bias.data.fill_(math.nan)

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if state.global_step in self.steps:
            model.classifier.bias.data.copy_(self.kept)


@pytest.mark.parametrize("alone", [True, False], ids=["stock trainer", "host"])
def test_a_lost_step_is_logged_as_nan_not_as_a_loss_of_zero(alone, tmp_path):
    techniques = () if alone else (AdaptiveLR(patience=99),)
    callbacks = [*([AdaptiveLRCallback(patience=99)] if alone else []), NaNLoss([5])]
    trainer = tiny_trainer(tmp_path, *techniques, callbacks=callbacks)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [step for step, loss in enumerate(losses) if math.isnan(loss)] == [5]
    assert 0.0 not in losses
    assert all_finite(trainer.model)
    stock = tiny_trainer(tmp_path / "stock", callbacks=[NaNLoss([5])])
    stock.train()
    assert 0.0 in [entry["loss"] for entry in stock.state.log_history if "loss" in entry]


def test_without_the_guard_nothing_is_dropped(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(guard=False, patience=99), callbacks=[Poison([5])])
    trainer.train()
    assert "drop" not in actions(trainer)
    assert not all_finite(trainer.model)


def test_on_finite_gradients_the_guard_changes_nothing(tmp_path):
    def trained(folder, **options):
        trainer = tiny_trainer(tmp_path / folder, AdaptiveLR(patience=99, **options))
        trainer.train()
        return outcome(trainer)["weights"]

    assert difference(trained("with", guard=True), trained("without", guard=False)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found_and_no_gradient_is_changed(dtype, bad):
    gradients = [torch.randn(3, 5, dtype=dtype), torch.randn(5, 3, dtype=dtype).t(), torch.randn(7)]
    before = [gradient.clone() for gradient in gradients]
    assert nonfinite.all_finite(gradients)
    assert nonfinite.all_finite([])
    assert all(torch.equal(old, new) for old, new in zip(before, gradients, strict=True))
    for gradient in gradients:
        kept = gradient[0].clone()
        gradient[0] = bad
        assert not nonfinite.all_finite(gradients)
        gradient[0] = kept


def test_a_finite_loss_is_logged_as_it_was_when_only_the_gradients_were_bad(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(patience=99), callbacks=[Poison([5])])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


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
    model.classifier.requires_grad_(False)
    model.register_buffer("constant", torch.ones(1).expand(3))
    options = AdaptiveLR(controller="rollback", patience=1, min_delta=1e9, max_cuts=3, stop=False)
    trainer = tiny_trainer(tmp_path, options, model=model, callbacks=[Unfreezes()])
    trainer.train()
    assert actions(trainer).count("rollback") == 3


# ---- fp16's gradient scaler, on the CPU ----


@pytest.fixture
def fp16():
    """A weight of 1 under SGD with rate 0.1, prepared as Trainer prepares it for fp16; step(gradient) steps it."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = AcceleratedOptimizer(
        torch.optim.SGD([weight], lr=0.1), scaler=torch.amp.GradScaler("cpu", init_scale=4.0)
    )

    def step(gradient):
        optimizer.zero_grad()
        optimizer.scaler.scale(weight * gradient).backward()
        optimizer.step()
        return weight.item()

    return optimizer, step


def test_factors_survive_steps_that_the_scaler_skips(fp16):
    optimizer, step = fp16
    lr_scale.set_scale(optimizer, "test", 0.5)
    assert step(2.0) == pytest.approx(0.9)
    assert step(math.inf) == pytest.approx(0.9)
    assert optimizer.step_was_skipped
    assert step(2.0) == pytest.approx(0.8)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_steps_that_the_scaler_skips_are_counted_but_lower_no_rate(fp16, tmp_path):
    optimizer, step = fp16
    callback = AdaptiveLRCallback()
    trainer = tiny_trainer(tmp_path, max_steps=100, eval_strategy="no")
    state, args, parts = trainer.state, trainer.args, {"optimizer": optimizer, "model": trainer.model}
    state.max_steps = 100

    def train(gradients):
        for gradient in gradients:
            callback.on_step_begin(args, state, trainer.control, **parts)
            callback.on_pre_optimizer_step(args, state, trainer.control, **parts)
            step(gradient)
            state.global_step += 1

    callback.on_train_begin(args, state, trainer.control, **parts)
    # The search for a scale: more skipped steps in a row than a run of finite numbers may have.
    train([math.inf] * 12 + [1.0] * 8)
    assert callback.log_notes["adaptive_lr/dropped_steps"] == 12
    assert callback.log_notes["adaptive_lr/action"] == ", ".join(["drop"] * 12)
    assert state.log_history == []
    assert lr_scale.effective_lrs(optimizer) == [0.1]
    with pytest.raises(NonFiniteGradientsError, match="prefer bf16 to fp16"):
        train([math.inf] * 12)
