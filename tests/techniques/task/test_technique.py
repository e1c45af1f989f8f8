"""The technique `task` in whole runs of every kind, with its metrics and its report."""

import json
import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from transformers import (
    EvalPrediction,
)

from hf_ft_plugins.models.labels import labels_of
from hf_ft_plugins.techniques.task import (
    Task,
    TaskMetrics,
)
from hf_ft_plugins.testing import check_technique, difference, outcome, resumed
from hf_ft_plugins.testing import tiny_trainer as plain_trainer
from hf_ft_plugins.testing.examples.task import EXAMPLE, tiny_rows
from tests.techniques.task.runs_of_kinds import KINDS, rows_of, tiny_trainer


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_with_its_head_metrics_and_report(kind, tmp_path):
    trainer = tiny_trainer(tmp_path, Task(early_stopping_patience=None), kind=kind)
    trainer.train()
    config = trainer.model.config
    assert config.num_labels == {"single_label": 3, "multi_label": 3, "regression": 1, "token": 2}[kind]
    if kind == "single_label":
        assert list(config.id2label.values()) == ["none", "one", "both"]
    assert kind == "token" or config.problem_type.startswith(kind)
    expected = {
        "single_label": {"accuracy", "macro_f1", "mcc", "auc"},
        "multi_label": {"micro_f1", "macro_f1", "average_precision", "auc"},
        "regression": {"rmse", "mae", "r2", "pearson", "spearman"},
        "token": {"accuracy", "macro_f1", "mcc"},
    }[kind]
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert {f"eval_{name}" for name in expected} <= set(evaluated)
    report = json.loads((tmp_path / "task" / "report.json").read_text())
    assert set(report["metrics"]) == expected
    assert all(map(math.isfinite, report["metrics"].values()))
    drawn = {path.name for path in (tmp_path / "task").glob("*.png")}
    assert drawn == {"confusion.png"} | ({"reliability.png"} if kind != "regression" else set())
    worst = [json.loads(line) for line in (tmp_path / "task" / "worst.jsonl").read_text().splitlines()]
    assert len(worst) == 48
    assert [entry["loss"] for entry in worst] == sorted((entry["loss"] for entry in worst), reverse=True)
    if kind != "regression":
        assert sum(entry["examples"] for entry in report["per_class"]) == {"token": 36 * 8}.get(
            kind,
            int(np.sum([np.ravel(row) for row in rows_of(kind, 48, 1)["labels"]])) if kind == "multi_label" else 48,
        )


def test_it_keeps_the_contract(tmp_path):
    check_technique(EXAMPLE, tmp_path)


@pytest.mark.parametrize("imbalance", ["sampler", "logit_adjust", "focal"])
def test_a_resumed_run_equals_the_uninterrupted_one(imbalance, tmp_path):
    def setting():
        return {"train_dataset": tiny_rows(24), "eval_dataset": tiny_rows(40, seed=1)}

    technique = Task(imbalance=imbalance, early_stopping_patience=None)
    straight = plain_trainer(tmp_path / "a", technique, **setting())
    straight.train()
    again = resumed(tmp_path / "b", technique, make_setting=setting)
    assert difference(outcome(straight), outcome(again)) is None
    other = plain_trainer(tmp_path / "c", Task(early_stopping_patience=None), **setting())
    other.train()
    assert difference(outcome(straight)["weights"], outcome(other)["weights"]) is not None


def test_metrics_are_scikit_learns_and_padding_does_not_count():
    logits = np.array([[[2.0, 1], [1, 2], [-100, -100]], [[0, 1], [-100, -100], [-100, -100]]])
    labels = np.array([[0, 0, -100], [1, -100, -100]])
    found = TaskMetrics("token")(EvalPrediction(logits, labels))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx(2 / 3)
    found = TaskMetrics("regression")(EvalPrediction(np.array([[1.0], [2], [4]]), np.array([1.0, 2, 3])))
    assert found["rmse"] == pytest.approx(math.sqrt(1 / 3))
    assert found["spearman"] == pytest.approx(1)
    found = TaskMetrics("single_label")(EvalPrediction((np.array([[0.0, 1], [2, 1]]), None), np.array([1, 1])))
    assert found["accuracy"] == 0.5
    assert math.isnan(found["auc"])


def test_rows_and_texts_of_the_worst_examples_are_those_of_the_data(tmp_path):
    rows = rows_of("single_label", 60, seed=1)
    rows = rows.add_column("text", [f"row {number}" for number in range(60)])
    trainer = tiny_trainer(
        tmp_path, Task(worst_examples=5), eval_dataset=rows, train_sampling_strategy="group_by_length"
    )
    trainer.train()
    worst = [json.loads(line) for line in (tmp_path / "task" / "worst.jsonl").read_text().splitlines()]
    assert len(worst) == 5
    for entry in worst:
        assert entry["text"] == f"row {entry['index']}"
        assert entry["label"] == ["none", "one", "both"][rows[entry["index"]]["labels"]]
        assert entry["probability"] == pytest.approx(math.exp(-entry["loss"]))


def lone(rows, *names):
    """Of rows, the labels only, as a data set with these class names."""
    return Dataset.from_dict({"labels": rows}, Features({"labels": ClassLabel(names=list(names))}))


def test_labels_of_reads_features_only():
    assert labels_of([{"labels": 1}], "task") is None
    labels = labels_of(lone([0, 1, 1], "a", "b"), "task")
    assert labels.counts().tolist() == [1, 2]
