"""A run stopped at any step and resumed equals the run never stopped; a damaged checkpoint is named, never used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, lr_scale, with_plugins
from hf_ft_plugins.errors import CheckpointError, PluginError
from hf_ft_plugins.host.manifest import MANIFEST_FILE, STATE_FILE, damage
from hf_ft_plugins.host.state import RESUME_VARIABLE, back_to, describe, read_state, refuse_changes, write_state
from hf_ft_plugins.testing import LogEverything, difference, outcome, resumed, tiny_trainer

CUTTING = {"patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
STOPPING = {"patience": 1, "min_delta": 1e9, "max_cuts": 1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    def run(controller):
        if controller not in runs:
            trainer = tiny_trainer(tmp_path_factory.mktemp(controller), AdaptiveLR(controller=controller, **CUTTING))
            trainer.train()
            runs[controller] = outcome(trainer)
        return runs[controller]

    runs = {}
    return run


# Saves come at even steps, evaluations (and so cuts and rollbacks) at 3, 6, 9, 12, 14.
@pytest.mark.parametrize("stop_at", [2, 4, 5, 6, 7, 9, 12, 13])
def test_stopped_at_any_step_the_rest_is_bit_equal(stop_at, straight, tmp_path):
    technique = AdaptiveLR(controller="rollback", **CUTTING)
    again = resumed(tmp_path, technique, stop_at=stop_at)
    assert difference(straight("rollback"), outcome(again)) is None


def test_control_without_its_state_the_resumed_run_differs(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(AdaptiveLRCallback, "load_state_dict", lambda self, state: None)
    again = resumed(tmp_path, AdaptiveLR(controller="rollback", **CUTTING), stop_at=7)
    assert difference(straight("rollback"), outcome(again))


@pytest.mark.parametrize("controller", ["climb", "plateau", "greedy", "rollback"])
@pytest.mark.parametrize("stop_at", [5, 9])
def test_the_callback_alone_resumes_in_a_stock_trainer(controller, stop_at, straight, tmp_path):
    def alone(folder, *more):
        callbacks = [AdaptiveLRCallback(controller=controller, **CUTTING), *more]
        return tiny_trainer(folder, callbacks=callbacks)

    uninterrupted = alone(tmp_path / "straight")
    uninterrupted.train()
    # The same work as under the host; only the decisions' log entries stand elsewhere in the log.
    assert difference(straight(controller)["weights"], outcome(uninterrupted)["weights"]) is None

    from hf_ft_plugins.testing import InterruptAt, Interruption

    with pytest.raises(Interruption):
        alone(tmp_path / "again", InterruptAt(stop_at)).train()
    again = alone(tmp_path / "again")
    again.train(resume_from_checkpoint=True)
    assert difference(outcome(uninterrupted), outcome(again)) is None


def test_rollback_alone_refuses_to_resume_without_its_best_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[AdaptiveLRCallback(controller="rollback", **CUTTING)])
    trainer.train()
    (tmp_path / "checkpoint-8" / "hf_ft_adaptive_lr_best.safetensors").unlink()
    again = tiny_trainer(tmp_path, callbacks=[AdaptiveLRCallback(controller="rollback", **CUTTING)])
    with pytest.raises(PluginError, match="the best weights of the interrupted run are not at"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_a_run_that_was_told_to_stop_does_not_go_on_when_resumed(tmp_path):
    changes = {"eval_steps": 2, "max_steps": 20}
    trainer = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", **STOPPING), **changes)
    trainer.train()
    stopped = outcome(trainer)
    assert stopped["steps"] == 6
    again = tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", **STOPPING), **changes)
    again.train(resume_from_checkpoint=True)
    assert difference(stopped, outcome(again)) is None


def test_a_finished_run_does_not_take_one_more_step_when_resumed(tmp_path):
    def finish(trainer_class, folder):
        trainer = tiny_trainer(folder, trainer_class=trainer_class)
        trainer.train()
        again = tiny_trainer(folder, trainer_class=trainer_class)
        again.train(resume_from_checkpoint=True)
        return again.state.global_step

    assert finish(with_plugins(Trainer), tmp_path / "host") == 14
    assert finish(Trainer, tmp_path / "stock") == 15


def interrupted(folder):
    """Checkpoints 2 to 8 of a run that was cut off, and the outcome of the run that was not."""
    whole = tiny_trainer(folder / "whole", AdaptiveLR(controller="plateau", **CUTTING))
    whole.train()
    run = folder / "run"
    shutil.copytree(folder / "whole", run)
    for step in (10, 12, 14):
        shutil.rmtree(run / f"checkpoint-{step}")
    return run, outcome(whole)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    return interrupted(tmp_path_factory.mktemp("interrupted"))


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", STATE_FILE]


@pytest.mark.parametrize(
    ("file", "harm", "word"),
    [(file, lambda path: path.unlink(), "is missing") for file in FILES]
    + [("model.safetensors", flip_a_bit, "has changed"), ("optimizer.pt", flip_a_bit, "has changed")]
    + [("optimizer.pt", truncate, "bytes instead of"), (MANIFEST_FILE, lambda path: path.unlink(), "no manifest")]
    + [(MANIFEST_FILE, truncate, "cannot be read")],
)
def test_a_damaged_checkpoint_is_named_passed_over_and_the_run_still_ends_equal(
    file, harm, word, cut_off, tmp_path, caplog
):
    whole_run, expected = cut_off
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    harm(run / "checkpoint-8" / file)
    trainer = tiny_trainer(run, AdaptiveLR(controller="plateau", **CUTTING))
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-8" in caplog.text
    assert word in caplog.text
    assert (run / "damaged-checkpoint-8").is_dir()
    assert difference(expected, outcome(trainer)) is None


def test_a_damaged_checkpoint_that_is_named_is_refused(cut_off, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(cut_off[0], run)
    flip_a_bit(run / "checkpoint-8" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-8 cannot be resumed: model.safetensors has changed"):
        tiny_trainer(run, AdaptiveLR(controller="plateau", **CUTTING)).train(
            resume_from_checkpoint=str(run / "checkpoint-8")
        )


def test_resuming_where_nothing_is_whole_says_what_was_found(tmp_path):
    with pytest.raises(CheckpointError, match="It holds none at all"):
        tiny_trainer(tmp_path, AdaptiveLR()).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-2: there is no trainer_state\.json in it"):
        tiny_trainer(tmp_path, AdaptiveLR()).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"nowhere cannot be resumed: there is no trainer_state\.json in it"):
        tiny_trainer(tmp_path, AdaptiveLR()).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_newer_checkpoint_of_a_stock_run_is_refused_not_renamed(tmp_path):
    hosted = {"trainer_class": with_plugins(Trainer, AdaptiveLR(controller="plateau", **CUTTING)), "save_steps": 2}
    tiny_trainer(tmp_path, max_steps=4, **hosted).train()
    tiny_trainer(tmp_path, max_steps=8, save_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(
        CheckpointError, match=r"(?s)checkpoint-8 was made with other.*\+ adaptive-lr \(only in this run"
    ):
        tiny_trainer(tmp_path, max_steps=10, **hosted).train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("*checkpoint-*")} >= {"checkpoint-4", "checkpoint-6", "checkpoint-8"}


def test_what_the_scripts_own_class_and_callbacks_change_in_a_checkpoint_belongs_to_it(tmp_path):
    class Their(Trainer):
        def _save_checkpoint(self, model, trial):
            super()._save_checkpoint(model, trial)
            config = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}", "config.json")
            config.write_text(config.read_text() + " ")

    class Adds(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            Path(args.output_dir, f"checkpoint-{state.global_step}", "notes.txt").write_text("theirs")

    host = with_plugins(Their, AdaptiveLR(controller="plateau", **CUTTING))
    tiny_trainer(tmp_path, trainer_class=host, callbacks=[Adds()]).train()
    folders = sorted(tmp_path.glob("checkpoint-*"))
    assert [damage(folder) for folder in folders] == [None] * len(folders)
    assert "notes.txt" in (folders[0] / MANIFEST_FILE).read_text()


def test_the_evaluation_at_the_start_of_a_resumed_run_decides_nothing(tmp_path):
    settings = {"eval_on_start": True}
    straight = tiny_trainer(tmp_path / "straight", AdaptiveLR(controller="plateau", **CUTTING), **settings)
    straight.train()
    again = resumed(tmp_path / "resumed", AdaptiveLR(controller="plateau", **CUTTING), **settings)
    assert difference(outcome(straight)["weights"], outcome(again)["weights"]) is None
    # The log holds one evaluation more, as it does in stock Trainer.
    decided = [[e for e in t.state.log_history if "adaptive_lr/action" in e] for t in (straight, again)]
    assert decided[0] == decided[1]


def test_factors_of_techniques_that_are_gone_are_forgotten(tmp_path, monkeypatch):
    tiny_trainer(tmp_path, AdaptiveLR(controller="plateau", **CUTTING), max_steps=8).train()
    monkeypatch.setenv("HF_FT_ALLOW_CHANGED_PLUGINS", "1")
    again = tiny_trainer(tmp_path, trainer_class=with_plugins(Trainer), max_steps=10)
    again.train(resume_from_checkpoint=True)
    assert lr_scale.effective_lrs(again.optimizer) == [group["lr"] for group in again.optimizer.param_groups]


@pytest.mark.parametrize(
    ("techniques", "lines"),
    [
        ([], ["- adaptive-lr (only in the checkpoint)"]),
        ([AdaptiveLR(controller="plateau", **CUTTING), LogEverything()], ["+ log-everything (only in this run)"]),
        ([AdaptiveLR(controller="plateau", **{**CUTTING, "patience": 3})], ["! adaptive-lr: patience was 1, is 3"]),
    ],
)
def test_a_checkpoint_of_other_techniques_is_refused_with_a_diff(techniques, lines, cut_off, monkeypatch):
    run, _ = cut_off
    before = sorted(path.name for path in run.iterdir())
    trainer = tiny_trainer(run, *techniques, trainer_class=with_plugins(Trainer))
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        trainer.train(resume_from_checkpoint=True)
    assert all(line in str(refused.value) for line in lines)
    assert "--allow-changed-plugins" in str(refused.value)
    assert sorted(path.name for path in run.iterdir()) == before
    assert difference(weights, trainer.model.state_dict()) is None


def test_changed_techniques_are_allowed_when_the_user_says_so(cut_off, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_FT_ALLOW_CHANGED_PLUGINS", "1")
    run = tmp_path / "run"
    shutil.copytree(cut_off[0], run)
    trainer = tiny_trainer(run, AdaptiveLR(controller="plateau", **{**CUTTING, "patience": 3}))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 14


def test_the_state_file_says_names_versions_and_options(cut_off):
    content = json.loads((cut_off[0] / "checkpoint-8" / STATE_FILE).read_text())
    (technique,) = content["techniques"]
    assert technique["name"] == "adaptive-lr"
    assert technique["distribution"] == "hf-ft-plugins"
    assert technique["options"]["patience"] == 1


def test_old_checkpoints_are_rotated_only_after_the_new_one_is_whole(tmp_path):
    class Watching(Trainer):
        whole_at_rotation = []

        def _rotating(self):
            folders = sorted(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
            self.whole_at_rotation.append(damage(folders[-1]))

    import transformers.trainer as module

    rotate = module.rotate_checkpoints
    trainer = tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", **CUTTING), trainer_class=Watching, save_total_limit=1
    )

    def watched(*args, **kwargs):
        trainer._rotating()
        return rotate(*args, **kwargs)

    module.rotate_checkpoints = watched
    try:
        trainer.train()
    finally:
        module.rotate_checkpoints = rotate
    assert Watching.whole_at_rotation == [None] * 7
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-14"]


def test_states_with_tensors_come_back_equal(tmp_path):
    state = {"part/A": {"numbers": [1, 2.5, None, "x"], "deep": {"tensor": torch.arange(4)}, "flag": True}}
    write_state(tmp_path, [AdaptiveLR()], state)
    assert difference(read_state(tmp_path)["states"], state) is None


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": {1, 2}}])
def test_a_state_that_a_checkpoint_cannot_keep_is_refused_before_anything_is_written(value, tmp_path):
    with pytest.raises(PluginError, match="part/A"):
        write_state(tmp_path, [AdaptiveLR()], {"part/A": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("event", ["on_step_end", "on_log", "on_epoch_end", "on_train_end"])
def test_what_a_callback_changes_later_belongs_to_the_checkpoint(event, tmp_path):
    def change(self, args, state, control, **kwargs):
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            if (folder / "trainer_state.json").is_file():
                config = folder / "config.json"
                config.write_text(config.read_text() + " ")
                (folder / "training_args.bin").unlink(missing_ok=True)

    callback = type("Changes", (TrainerCallback,), {event: change})()
    tiny_trainer(
        tmp_path, AdaptiveLR(controller="plateau", **CUTTING), callbacks=[callback], max_steps=6, save_steps=3
    ).train()
    assert [damage(tmp_path / f"checkpoint-{step}") for step in (3, 6)] == [None, None]
    # Control: what is changed after the run is damage.
    (tmp_path / "checkpoint-6" / "config.json").write_text("{}")
    assert damage(tmp_path / "checkpoint-6")


def test_a_class_that_saves_in_a_way_of_its_own_is_told_of_no_damage(tmp_path):
    class Own(Trainer):
        whole = False

        def _save_checkpoint(self, model, trial):
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter.bin").write_bytes(b"theirs")
            if self.whole:
                (folder / "trainer_state.json").write_text("{}")

    tiny_trainer(tmp_path / "part", AdaptiveLR(controller="plateau", **CUTTING), trainer_class=Own, max_steps=2).train()
    assert [file.name for file in (tmp_path / "part" / "checkpoint-2").iterdir()] == ["adapter.bin"]
    Own.whole = True
    tiny_trainer(
        tmp_path / "whole", AdaptiveLR(controller="plateau", **CUTTING), trainer_class=Own, max_steps=2
    ).train()
    assert damage(tmp_path / "whole" / "checkpoint-2") is None
    assert (tmp_path / "whole" / "checkpoint-2" / "hf_ft_plugins.json").is_file()


@pytest.mark.parametrize("wanted", [None, False])
def test_told_to_resume_a_script_that_does_not_ask_goes_on_where_it_can(wanted, straight, tmp_path, monkeypatch):
    monkeypatch.setenv(RESUME_VARIABLE, "1")
    # There is nothing yet to go on from.
    afresh = tiny_trainer(tmp_path, AdaptiveLR(controller="rollback", **CUTTING))
    afresh.train(resume_from_checkpoint=wanted)
    assert difference(straight("rollback"), outcome(afresh)) is None
    for step in (14, 12, 10):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    began = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            began.append(state.global_step)

    again = tiny_trainer(tmp_path, AdaptiveLR(controller="rollback", **CUTTING), callbacks=[Note()])
    again.train(resume_from_checkpoint=wanted)
    assert began == [8]
    assert difference(straight("rollback"), outcome(again)) is None
    monkeypatch.delenv(RESUME_VARIABLE)
    control = tiny_trainer(tmp_path, AdaptiveLR(controller="rollback", **CUTTING), callbacks=[Note()])
    control.train(resume_from_checkpoint=wanted)
    assert began == [8, 0]


def test_an_option_that_has_come_since_a_checkpoint_was_made_does_not_refuse_it(tmp_path):
    technique = AdaptiveLR(patience=3)
    (described,) = describe([technique])
    del described["options"]["cooldown"]
    before = {"techniques": [described]}
    refuse_changes(tmp_path, before, [technique])
    with pytest.raises(CheckpointError, match="! adaptive-lr: cooldown was 0, is 2"):
        refuse_changes(tmp_path, before, [AdaptiveLR(patience=3, cooldown=2)])
    assert [str(step) for step in back_to(before, [technique])] == []
