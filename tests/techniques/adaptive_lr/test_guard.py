"""The guard against gradients that are not finite, without and with fp16's gradient scaler."""

import math

import pytest
import torch
from transformers import TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, lr_scale
from hf_ft_plugins.techniques.adaptive_lr import nonfinite
from hf_ft_plugins.techniques.adaptive_lr.nonfinite import NonFiniteGradientsError
from hf_ft_plugins.testing import difference, outcome, tiny_trainer
from tests.techniques.adaptive_lr.logged_actions import actions


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

    guarded = train(AdaptiveLR(controller="plateau", patience=99))
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
    trainer = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", patience=99), callbacks=[Poison([5]), snapshots])
    trainer.train()
    assert difference(snapshots.after[4], snapshots.after[5]) is None
    assert difference(snapshots.after[5], snapshots.after[6])


def difference_free_copy(model, optimizer):
    import copy

    return copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()["state"]))


def test_after_several_dropped_steps_the_rate_is_cut_once(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", patience=99), callbacks=[Poison([3, 4, 5])])
    trainer.train()
    assert actions(trainer) == ["drop", "drop", "drop", "cut"]
    assert trainer.optimizer.param_groups[0][lr_scale.KEY] == {"adaptive-lr": 0.3}


def test_steps_dropped_before_a_cut_do_not_cut_again(tmp_path):
    options = AdaptiveLR(controller="plateau", patience=99, max_nonfinite_share=0.9)
    trainer = tiny_trainer(tmp_path, options, callbacks=[Poison(range(3, 9))])
    trainer.train()
    assert actions(trainer) == ["drop", "drop", "drop", "cut"] * 2


def test_past_a_share_the_run_ends_with_a_message_and_finite_weights(tmp_path):
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", patience=99), callbacks=[Poison(range(2, 99))], max_steps=60
    )
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
    techniques = () if alone else (AdaptiveLR(controller="plateau", patience=99),)
    callbacks = [*([AdaptiveLRCallback(controller="plateau", patience=99)] if alone else []), NaNLoss([5])]
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
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", guard=False, patience=99), callbacks=[Poison([5])]
    )
    trainer.train()
    assert "drop" not in actions(trainer)
    assert not all_finite(trainer.model)


def test_where_the_step_is_within_the_backward_pass_the_guard_says_that_it_does_not_act(tmp_path, monkeypatch, caplog):
    from hf_ft_plugins.techniques.adaptive_lr import callback

    monkeypatch.setattr(callback, "steps_within_backward", lambda: True)
    tiny_trainer(tmp_path, "adaptive-lr:controller=plateau").train()
    assert "the guard does not act: DeepSpeed steps before a callback sees the gradients" in caplog.text
    caplog.clear()
    tiny_trainer(tmp_path, "adaptive-lr:controller=plateau,guard=false").train()
    assert "the guard does not act" not in caplog.text


def test_on_finite_gradients_the_guard_changes_nothing(tmp_path):
    def trained(folder, **options):
        trainer = tiny_trainer(tmp_path / folder, AdaptiveLR(controller="plateau", patience=99, **options))
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
    trainer = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", patience=99), callbacks=[Poison([5])])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


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
