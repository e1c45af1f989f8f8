"""Multi-task: the scores, each against a count by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_ft_plugins.techniques.multitask import MultiTaskMetrics, TaskSpec
from hf_ft_plugins.techniques.multitask.metrics import attachment_scores, entity_scores, main_metric, scores_of

pytest.importorskip("sklearn")
BIO = ("B-LOC", "B-PER", "I-PER", "O")


def test_attachment_scores_compare_heads_and_the_part_of_a_relation_before_the_colon():
    gold = ["nsubj", "root", "obl:tmod", "punct"]
    found = ["nsubj:pass", "root", "obj", "punct"]
    scores = attachment_scores(np.array([2, 0, 2, 2]), gold, np.array([2, 0, 2, 3]), found)
    assert scores == {"uas": 0.75, "las": 0.5}


def test_entities_count_whole():
    pytest.importorskip("seqeval")
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-PER"]]
    # One entity right, one cut short, one missed, one too many.
    found = [["B-PER", "O", "O"], ["B-LOC", "B-LOC", "O"]]
    assert entity_scores(gold, found) == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})


def test_words_without_a_label_do_not_count_and_words_without_a_prediction_are_wrong():
    tags = TaskSpec(kind="token", labels=("A", "B"))
    labels = np.array([[0, 1, -100], [1, 1, 1]])
    assert scores_of(tags, np.array([[0, 1], [1, -100]]), labels) == {"accuracy": 3 / 5}
    pytest.importorskip("seqeval")
    entities = TaskSpec(kind="crf", labels=BIO)
    scores = scores_of(entities, np.array([[1, -100]]), np.array([[1, 2]]))
    assert scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    trees = TaskSpec(kind="dependency", labels=("dep", "root"))
    gold = np.array([[[0, 1], [1, 0]]])
    assert scores_of(trees, np.array([[[0, 1]]]), gold) == {"uas": 0.5, "las": 0.5}


def test_rows_without_a_label_are_left_out_of_every_kind():
    mood = TaskSpec(kind="sequence", labels=("x", "y"))
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert scores_of(mood, logits, np.array([0, 0, -100]))["accuracy"] == 0.5
    both = TaskSpec(kind="multi_label", labels=("x", "y"))
    gold = np.array([[1.0, 0.0], [np.nan, np.nan]])
    assert scores_of(both, np.array([[2.0, -1.0], [9.0, 9.0]]), gold)["micro_f1"] == 1.0
    value = TaskSpec(kind="regression", labels=("v",))
    scores = scores_of(value, np.array([[1.0], [3.0], [7.0]]), np.array([1.0, 2.0, np.nan]))
    assert scores == pytest.approx({"rmse": 0.5**0.5, "pearson": 1.0})
    assert scores_of(value, np.array([[1.0]]), np.array([np.nan])) is None
    text = TaskSpec(kind="causal_lm")
    assert scores_of(text, np.array([[5, 6, 0]]), np.array([[4, 5, 7]])) == {"accuracy": 0.5}


def test_one_score_is_the_mean_of_each_tasks_own_and_says_what_it_leaves_out(caplog):
    tasks = {
        "tag": TaskSpec(kind="token", labels=("A", "B")),
        "parse": TaskSpec(kind="dependency", labels=("dep", "root")),
        "mood": TaskSpec(kind="sequence", labels=("x", "y")),
        "other": TaskSpec(kind="token", labels=("A",)),
    }
    evaluated = SimpleNamespace(
        predictions={
            "tag": np.array([[0, 1]]),
            "parse": np.array([[[0, 1], [1, 0]]]),
            "mood": np.array([[0.0, 1.0]]),
            "other": np.array([[0, 0]]),
        },
        label_ids={
            "tag": np.array([[0, 0]]),
            "parse": np.array([[[0, 1], [1, 1]]]),
            "mood": np.array([-100]),
        },
    )
    scores = MultiTaskMetrics(tasks)(evaluated)
    assert scores == {
        "tag_accuracy": 0.5,
        "parse_uas": 1.0,
        "parse_las": 0.5,
        "multitask_score": 0.5,
    }
    assert "no label for task 'mood'" in caplog.text
    assert {main_metric(spec) for spec in tasks.values()} == {"accuracy", "las"}
    assert main_metric(TaskSpec(kind="crf", labels=BIO)) == "f1"
