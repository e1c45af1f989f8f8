"""What techniques tell rides along in what a stock run logs anyway: no entry more, through the script's own `log()`."""

import pytest
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback
from hf_ft_plugins.host.log_notes import add_note, log_into_last_entry
from hf_ft_plugins.host.trainer import with_plugins
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer

CUTTING = {"controller": "plateau", "patience": 1, "min_delta": 1e9, "max_cuts": 2}


class OwnLog(Trainer):
    def __init__(self, *args, **kwargs):
        self.seen = []
        super().__init__(*args, **kwargs)

    def log(self, logs, *args, **kwargs):
        self.seen.append(dict(logs))
        super().log(logs, *args, **kwargs)


class Tracker(TrainerCallback):
    def __init__(self):
        self.seen, self.metrics = [], []

    def on_log(self, args, state, control, logs, **kwargs):
        self.seen.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(dict(metrics))


def run(folder, alone=False, options=CUTTING, **changes):
    tracker = Tracker()
    techniques = () if alone or options is None else (AdaptiveLR(**options),)
    callbacks = [AdaptiveLRCallback(**options), tracker] if alone else [tracker]
    trainer = tiny_trainer(folder, *techniques, trainer_class=OwnLog, callbacks=callbacks, **changes)
    return trainer, tracker, trainer.train()


def kinds(history):
    return ["train_runtime" in entry or "eval_loss" in entry or "loss" in entry for entry in history]


@pytest.mark.parametrize("alone", [True, False], ids=["stock trainer", "host"])
@pytest.mark.parametrize("logging_steps", [1, 5, 100])
def test_the_history_holds_what_stock_s_does_and_every_decision(alone, logging_steps, tmp_path):
    trainer, tracker, output = run(tmp_path / "ours", alone, logging_steps=logging_steps)
    stock = tiny_trainer(
        tmp_path / "stock", logging_steps=logging_steps, max_steps=trainer.state.global_step, trainer_class=OwnLog
    )
    stock.train()
    ours, theirs = trainer.state.log_history, stock.state.log_history
    shape = [[key for key in entry if not key.startswith(("adaptive_lr/", "run/"))] for entry in ours]
    assert [sorted(entry) for entry in shape] == [sorted(entry) for entry in theirs]
    assert all(kinds(ours))
    told = [entry for entry in ours if "adaptive_lr/action" in entry]
    assert ", ".join(entry["adaptive_lr/action"] for entry in told) == "cut, cut, stop"
    assert told[-1]["adaptive_lr/step"] == 12
    assert told[-1]["adaptive_lr/scale"] == pytest.approx(0.09)
    # Trackers saw it; so did the script's own log, under the host. Metrics stay metrics.
    assert [logs["adaptive_lr/action"] for logs in tracker.seen if "adaptive_lr/action" in logs] == [
        entry["adaptive_lr/action"] for entry in told
    ]
    if not alone:
        assert [logs for logs in trainer.seen if "adaptive_lr/reason" in logs]
    assert not [key for key in output.metrics if key.startswith("adaptive_lr/")]
    if not alone:
        assert not [key for metrics in tracker.metrics for key in metrics if key.startswith("adaptive_lr/")]


def test_several_decisions_before_one_entry_are_all_told(tmp_path):
    trainer, _, _ = run(tmp_path, logging_steps=100, options={**CUTTING, "stop": False})
    # Evaluations at 3, 6, 9, ...: what 6 decides stands in 9's, what 9 decides in 12's.
    told = {entry["step"]: entry for entry in trainer.state.log_history if "adaptive_lr/action" in entry}
    assert {step: entry["adaptive_lr/step"] for step, entry in told.items()} == {9: 6, 12: 9}
    notes = {}
    for step in (6, 9, 12):
        add_note(notes, {"x/action": "cut", "x/reason": f"worse at {step}", "x/count": step, "x/step": step})
    assert notes == {
        "x/action": "cut, cut, cut",
        "x/reason": "step 6: worse at 6; step 9: worse at 9; step 12: worse at 12",
        "x/count": 12,
        "x/step": 12,
    }


@pytest.mark.parametrize("logging_steps", [1, 7])
def test_what_is_pending_at_a_checkpoint_is_told_after_it(logging_steps, tmp_path):
    technique, setting = (
        AdaptiveLR(**CUTTING, stop=False),
        {"save_steps": 3, "logging_steps": logging_steps},
    )
    straight = tiny_trainer(tmp_path / "straight", technique, **setting)
    straight.train()
    again = resumed(tmp_path / "resumed", technique, stop_at=7, **setting)
    first, second = outcome(straight), outcome(again)
    if logging_steps > 1:
        # Trainer forgets the losses since its last log.
        for entry in first["log"] + second["log"]:
            entry.pop("loss", None)
    assert difference(first, second) is None
    assert any("adaptive_lr/action" in entry for entry in second["log"])


def test_rollback_s_last_word_stands_in_the_summary(tmp_path):
    options = {"controller": "rollback", "patience": 2, "min_delta": 1e9, "max_cuts": 1, "stop": False}
    trainer, tracker, output = run(tmp_path, options=options)
    assert "train_runtime" in trainer.state.log_history[-1]
    assert trainer.state.log_history[-1]["adaptive_lr/action"] == "restore"
    assert any(logs.get("adaptive_lr/action") == "restore" for logs in tracker.seen)
    assert "adaptive_lr/action" not in output.metrics


def test_what_is_known_late_joins_the_last_entry_and_leaves_other_notes_waiting(tmp_path):
    trainer, tracker, _ = run(tmp_path, options=None)
    hosted = tiny_trainer(tmp_path / "hosted", AdaptiveLR(), trainer_class=with_plugins(OwnLog), callbacks=[tracker])
    hosted.train()
    (part,) = hosted.ft_stash.parts.values()
    add_note(part.log_notes, {"adaptive_lr/action": "cut"})
    for one in (trainer, hosted):
        entries = len(one.state.log_history)
        log_into_last_entry(one, {"task/temperature": 1.5})
        assert len(one.state.log_history) == entries
        assert one.state.log_history[-1]["task/temperature"] == 1.5
        assert "train_runtime" in one.state.log_history[-1]
        assert "task/temperature" in one.seen[-1]
        assert "task/temperature" in tracker.seen[-1]
    assert part.log_notes == {"adaptive_lr/action": "cut"}


def test_what_scripts_do_to_numbers_leaves_texts_as_they_are(tmp_path):
    class Rounds(Trainer):
        def log(self, logs, *args, **kwargs):
            super().log({key: round(value, 4) for key, value in logs.items()}, *args, **kwargs)

    class Formats(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            self.line = {key: (f"{value:.4f}", f"{value:>9.3g}", float(value)) for key, value in logs.items()}

    for techniques, callbacks in (
        ([AdaptiveLR(**CUTTING)], []),
        ([], [AdaptiveLRCallback(**CUTTING)]),
    ):
        trainer = tiny_trainer(tmp_path, *techniques, trainer_class=Rounds, callbacks=[*callbacks, Formats()])
        trainer.train()
        told = [entry["adaptive_lr/action"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
        assert ", ".join(told) == "cut, cut, stop"
    # Control: a bare text is not to be rounded.
    with pytest.raises(TypeError):
        round("cut", 4)
