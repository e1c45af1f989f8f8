"""The record of a run in its `output_dir`: whole after each end, and no part of the run."""

import logging
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainerCallback

from hf_ft_plugins import AdaptiveLR, PluginError, Technique
from hf_ft_plugins.host.alerts import DecisionAlerts
from hf_ft_plugins.host.journal import journal
from hf_ft_plugins.host.run_progress import Progress
from hf_ft_plugins.host.run_record import RECORD_FILE, RunRecord, changed_arguments, command_line, read_record
from hf_ft_plugins.report_sections import Curve, Facts, Grid, Rows
from hf_ft_plugins.testing import tiny_model, tiny_trainer

SECTIONS = [
    Facts("facts", {"a": 1, "b": None}),
    Rows("rows", ("x", "y"), [(1, "two")]),
    Grid("grid", ("a", "b"), ("c",), [[1], [None]], "true", "predicted", note="a note"),
    Curve("curve", [0, 1], {"loss": [2.0, None]}, "removed"),
]


@dataclass(frozen=True, kw_only=True)
class Reporting(Technique):
    name: ClassVar[str] = "reporting"
    summary: ClassVar[str] = "answers ft_report"
    answer: ClassVar[Any] = SECTIONS

    def ft_report(self, trainer: Any) -> Any:
        return self.answer


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    trainer = tiny_trainer(folder, AdaptiveLR(controller="plateau", patience=1, min_delta=1e9), Reporting())
    trainer.train()
    return trainer, read_record(folder)


def test_it_says_what_the_run_was(ended):
    trainer, record = ended
    assert (record["status"], record["why"]) == ("ended", None)
    assert record["step"] == trainer.state.global_step > 0
    assert record["log"] == trainer.state.log_history
    assert [one["name"] for one in record["techniques"]] == ["adaptive-lr", "reporting"]
    assert record["techniques"][0]["options"]["patience"] == 1
    assert record["model"]["parameters"] == sum(weight.numel() for weight in trainer.model.parameters())
    assert record["data"] == {"train": len(trainer.train_dataset), "eval": len(trainer.eval_dataset)}
    assert {"hf-ft-plugins", "torch", "transformers", "python"} <= set(record["versions"])
    assert record["arguments"]["learning_rate"] == trainer.args.learning_rate


def test_its_sections_are_what_the_techniques_answered(ended):
    _, record = ended
    assert [one["kind"] for one in record["sections"]["reporting"]] == ["facts", "rows", "grid", "curve"]
    assert record["sections"]["reporting"][2]["values"] == [[1], [None]]
    (facts,) = record["sections"]["adaptive-lr"]
    assert facts["facts"]["cuts"] > 0


def test_its_points_count_rows_tokens_and_padding(ended):
    trainer, record = ended
    points = record["points"]
    assert [point["step"] for point in points] == sorted({point["step"] for point in points})
    assert points[-1]["rows"] == trainer.state.global_step * trainer.args.train_batch_size * 2
    assert 0 < points[-1]["tokens"] <= points[-1]["slots"]
    assert points[-1]["learning"] == trainer.model.num_parameters(only_trainable=True)


def test_padding_is_that_of_sources_and_targets_and_of_the_parts_that_a_batch_goes_in():
    def batch(sources, targets):
        widest, longest = max(sources), max(targets)
        mask = torch.tensor([[1] * length + [0] * (widest - length) for length in sources])
        labels = torch.tensor([[5] * length + [-100] * (longest - length) for length in targets])
        # What the model makes of the labels has no mask, and is no more of them.
        return {"input_ids": mask, "attention_mask": mask, "labels": labels, "decoder_input_ids": labels}

    progress = Progress()
    whole = batch([2, 2, 6, 6], [1, 1, 3, 3])
    progress.count([whole])
    assert progress.summary()["run/padding_share"] == pytest.approx(1 - 24 / 36)
    progress.count_parts(whole, [batch([2, 2], [1, 1]), batch([6, 6], [3, 3])])
    assert progress.summary()["run/padding_share"] == 0
    classes = {"input_ids": torch.ones(2, 4), "attention_mask": torch.ones(2, 4), "labels": torch.tensor([0, 1])}
    progress.count([classes])
    assert progress.summary()["run/padding_share"] == 0


def test_the_summary_tells_it_to_trackers(ended):
    trainer, _ = ended
    (summary,) = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    assert summary["run/rows_per_second"] > 0
    assert 0 <= summary["run/padding_share"] < 1


def test_metrics_that_train_returns_hold_none_of_it(tmp_path):
    output = tiny_trainer(tmp_path, Reporting(), max_steps=2).train()
    assert not [name for name in output.metrics if name.startswith("run/")]


def test_an_evaluation_after_training_is_in_it(tmp_path):
    trainer = tiny_trainer(tmp_path, Reporting(), max_steps=2)
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    record = read_record(tmp_path)
    assert "test_loss" in record["log"][-1]
    assert record["sections"]["reporting"]


class Raises(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the disk is on fire")


def test_a_run_that_raises_says_so_and_has_no_sections(tmp_path):
    trainer = tiny_trainer(tmp_path, Reporting(), callbacks=[Raises()])
    with pytest.raises(RuntimeError):
        trainer.train()
    record = read_record(tmp_path)
    assert (record["status"], record["why"]) == ("raised", "RuntimeError: the disk is on fire")
    assert record["sections"] == {}


def test_a_killed_run_has_that_of_its_last_checkpoint(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, Reporting(), callbacks=[Raises()], save_steps=2)
    write = RunRecord._write_record

    def until_killed(self, status, why=None):
        if status == "running":
            write(self, status, why)

    monkeypatch.setattr(RunRecord, "_write_record", until_killed)
    with pytest.raises(RuntimeError):
        trainer.train()
    record = read_record(tmp_path)
    assert (record["status"], record["step"]) == ("running", 2)


def test_a_resumed_run_goes_on_with_the_points_before_its_checkpoint(tmp_path):
    first = tiny_trainer(tmp_path, Reporting(), callbacks=[Raises()], save_steps=2)
    with pytest.raises(RuntimeError):
        first.train()
    began = read_record(tmp_path)["began"]
    again = tiny_trainer(tmp_path, Reporting(), save_steps=2)
    again.train(resume_from_checkpoint=True)
    record = read_record(tmp_path)
    steps = [point["step"] for point in record["points"]]
    assert record["began"] == began
    assert steps == sorted(set(steps))
    assert steps[0] <= 2 < steps[-1] == again.state.global_step
    assert record["points"][-1]["rows"] == again.state.global_step * again.args.train_batch_size * 2


def test_a_damaged_record_of_before_does_not_end_a_run(tmp_path):
    first = tiny_trainer(tmp_path, Reporting(), max_steps=4, save_steps=2)
    first.train()
    (tmp_path / RECORD_FILE).write_text('{"format": 1, "format": 2}')
    with pytest.raises(PluginError, match="Remove it"):
        read_record(tmp_path)
    tiny_trainer(tmp_path, Reporting(), save_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read_record(tmp_path)["status"] == "ended"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([{"kind": "facts"}], "answers a dict among its sections"),
        ([Rows("short", ("x", "y"), [(1,)])], "'short' has not the shape"),
        (3, "not iterable"),
    ],
)
def test_an_answer_that_is_no_section_names_the_technique(answer, words, tmp_path, monkeypatch):
    monkeypatch.setattr(Reporting, "answer", answer)
    with pytest.raises((PluginError, TypeError), match=words) as raised:
        tiny_trainer(tmp_path, Reporting(), max_steps=2).train()
    assert "technique reporting" in "".join(raised.value.__notes__)


def test_a_search_writes_none(tmp_path):
    pytest.importorskip("optuna")
    trainer = tiny_trainer(tmp_path, Reporting(), max_steps=2, model_init=lambda: tiny_model())
    trainer.hyperparameter_search(lambda trial: {"learning_rate": 1e-3}, n_trials=1, compute_objective=lambda m: 1.0)
    assert not list(tmp_path.rglob(RECORD_FILE))


def test_secrets_of_a_command_line_are_not_in_it():
    given = ["python", "t.py", "--hub_token", "hf_x", "--api-key=k", "--max_new_tokens", "5", "--tokenizer", "t"]
    shown = command_line(given)
    assert shown == ["python", "t.py", "--hub_token", "(not shown)", "--api-key=(not shown)", *given[5:]]


def test_a_command_is_shown_as_it_is_typed():
    internal = ["--record", "r.json", "--output-subfolder", "with", "--comparison", "abc"]
    given = ["/x/python", "-m", "hf_ft_plugins", "run", *internal, "--with", "peft", "t.py", "--lr", "1"]
    assert command_line(given) == ["hf-ft", "run", "--with", "peft", "t.py", "--lr", "1"]
    assert command_line(["/x/python", "/x/bin/hf-ft", "run", "t.py"]) == ["hf-ft", "run", "t.py"]
    assert command_line(["python", "t.py", "--record", "r"]) == ["python", "t.py", "--record", "r"]


def test_arguments_as_by_default_are_left_out(ended):
    trainer, _ = ended
    changed = changed_arguments(trainer.args)
    assert changed["output_dir"] == trainer.args.output_dir
    assert "adam_beta1" not in changed


def test_steps_that_are_taken_again_replace_their_points(ended):
    trainer, _ = ended
    progress = Progress()
    for step in (1, 2, 3, 2):
        progress.note(step, trainer.model)
    assert [point["step"] for point in progress.points] == [1, 2]


def test_the_journal_keeps_what_came_after():
    kept = journal()
    before = kept.count
    logging.getLogger("hf_ft_plugins.somewhere").warning("%d things", 3)
    assert kept.since(before) == [("warning", "3 things")]
    assert kept.since(kept.count) == []
    assert journal() is kept


class FakeTracker:
    def __init__(self, running=True):
        self.sent = []
        self.context_vars = type("Vars", (), {"current_run": type("Var", (), {"get": lambda self: running or None})()})
        self.AlertLevel = type("Level", (), {"INFO": "info", "WARN": "warn"})

    def alert(self, title, text, level):
        self.sent.append((title, text, level))


@pytest.mark.parametrize("running", [True, False])
def test_decisions_are_alerts_of_trackio(running, tmp_path, monkeypatch):
    tracker = FakeTracker(running)
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    options = {"controller": "plateau", "patience": 1, "min_delta": 1e9, "max_cuts": 1}
    trainer = tiny_trainer(tmp_path, AdaptiveLR(**options), callbacks=[DecisionAlerts()])
    trainer.train()
    told = [(title, level) for title, _, level in tracker.sent]
    assert told == [("adaptive-lr: cut", "info"), ("adaptive-lr: stop", "warn")] * running
    assert all(text.startswith("step ") for _, text, _ in tracker.sent)
