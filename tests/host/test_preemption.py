"""A checkpoint at SIGTERM (`enable_jit_checkpoint`) is whole, and a run goes on from it as if nothing had been."""

import pytest
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import AdaptiveLR, with_plugins
from hf_ft_plugins.host.manifest import UNFINISHED_MARKER, damage
from hf_ft_plugins.testing import difference, outcome, tiny_trainer

CUTTING = {"patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}


class Sigterm(TrainerCallback):
    """As if the signal had come, and its time of grace had gone by, at one event of one step."""

    def __init__(self, event, step):
        self.event, self.step = event, step

    def set_trainer(self, trainer):
        self.trainer = trainer

    def _came(self, state):
        if state.global_step == self.step:
            for callback in self.trainer.callback_handler.callbacks:
                if hasattr(callback, "jit_manager"):
                    callback.jit_manager.is_checkpoint_requested = True

    def on_step_begin(self, args, state, control, **kwargs):
        if self.event == "on_step_begin":
            self._came(state)

    def on_substep_end(self, args, state, control, **kwargs):
        if self.event == "on_substep_end":
            self._came(state)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.event == "on_optimizer_step":
            self._came(state)


def preempted(folder, event, step, *techniques, **changes):
    callback = Sigterm(event, step)
    settings = {"enable_jit_checkpoint": True, "save_strategy": "no", **changes}
    trainer = tiny_trainer(folder, *techniques, callbacks=[callback], **settings)
    # The stock callback comes before the script's; the signal is to find it at the script's place or before.
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, callbacks.pop(callbacks.index(callback)))
    callback.set_trainer(trainer)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    trainer = tiny_trainer(
        tmp_path_factory.mktemp("straight"), AdaptiveLR(controller="plateau", **CUTTING), save_strategy="no"
    )
    trainer.train()
    return outcome(trainer)


# Evaluations, and so cuts, come at steps 3, 6, 9 and 12; an epoch ends at 6.
@pytest.mark.parametrize("event", ["on_step_begin", "on_substep_end", "on_optimizer_step"])
@pytest.mark.parametrize("step", [4, 5, 8])
def test_a_run_that_was_told_to_end_resumes_bit_equal(event, step, straight, tmp_path):
    stopped = preempted(tmp_path, event, step, AdaptiveLR(controller="plateau", **CUTTING))
    assert stopped.state.global_step == step + 1
    (folder,) = tmp_path.glob("checkpoint-*")
    assert damage(folder) is None
    assert not (folder / UNFINISHED_MARKER).exists()
    again = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", **CUTTING), save_strategy="no")
    again.train(resume_from_checkpoint=True)
    assert difference(straight, outcome(again)) is None


def test_control_stocks_own_checkpoint_in_the_middle_of_a_step_does_not(tmp_path):
    straight = tiny_trainer(tmp_path / "straight", save_strategy="no")
    straight.train()
    preempted(tmp_path / "run", "on_substep_end", 4, trainer_class=Trainer)
    again = tiny_trainer(tmp_path / "run", save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert difference(outcome(straight)["weights"], outcome(again)["weights"])


def test_a_checkpoint_with_trainers_marker_is_unfinished(tmp_path):
    tiny_trainer(tmp_path, trainer_class=with_plugins(Trainer), max_steps=4).train()
    (tmp_path / "checkpoint-4" / UNFINISHED_MARKER).write_text("Checkpoint started at step 4 and in progress...")
    assert damage(tmp_path / "checkpoint-4") == "its save was cut off"
    again = tiny_trainer(tmp_path, trainer_class=with_plugins(Trainer), max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "damaged-checkpoint-4").is_dir()
    assert again.state.global_step == 6


@pytest.mark.parametrize("step", [3, 5])
def test_an_epoch_s_end_is_the_run_s_own_and_not_the_one_that_the_signal_makes(step, tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 4}
    straight = tiny_trainer(tmp_path / "straight", AdaptiveLR(controller="plateau", **CUTTING), **settings)
    straight.train()
    stopped = preempted(
        tmp_path / "run", "on_step_begin", step, AdaptiveLR(controller="plateau", **CUTTING), **settings
    )
    evaluated = [entry["step"] for entry in stopped.state.log_history if "eval_loss" in entry]
    # Step 6 ends an epoch, and step 4 does not.
    assert evaluated == ([6] if step == 5 else [])
    again = tiny_trainer(tmp_path / "run", AdaptiveLR(controller="plateau", **CUTTING), **settings)
    again.train(resume_from_checkpoint=True)
    assert difference(outcome(straight), outcome(again)) is None


def test_a_second_training_of_the_same_trainer_is_told_nothing(tmp_path):
    trainer = preempted(tmp_path, "on_step_begin", 4, AdaptiveLR(controller="plateau", **CUTTING))
    assert trainer.preempted
    assert trainer.state.global_step == 5
    trainer.callback_handler.callbacks.pop(0)
    trainer.train()
    assert not trainer.preempted
    assert trainer.state.global_step == 14
