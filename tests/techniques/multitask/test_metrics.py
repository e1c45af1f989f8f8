"""Multi-task: the scores, each against a count by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_ft_plugins.techniques.multitask import MultiTaskMetrics, TaskSpec
from hf_ft_plugins.techniques.multitask.metrics import attachment_scores, entity_scores, main_metric, scores_of

BIO = ("B-LOC", "B-PER", "I-PER", "O")


def test_attachment_scores_compare_heads_and_the_part_of_a_relation_before_the_colon():
    gold = ["nsubj", "root", "obl:tmod", "punct"]
    found = ["nsubj:pass", "root", "obj", "punct"]
    scores = attachment_scores(np.array([2, 0, 2, 2]), gold, np.array([2, 0, 2, 3]), found)
    assert scores == {"uas": 0.75, "las": 0.5}
    # A control: whole relations of the same trees compare otherwise.
    assert np.mean([a == b for a, b in zip(gold, found, strict=True)]) != 0.75


def test_a_relation_that_nobody_gave_is_not_held_against_the_parser():
    trees = TaskSpec(kind="dependency", labels=("dep", "root"))
    found = np.array([[[0, 1], [1, 0], [2, 0]]])
    gold = np.array([[[0, 1], [1, -100], [1, -100]]])
    assert scores_of(trees, found, gold) == pytest.approx({"uas": 2 / 3, "las": 2 / 3})
    gold[0, 1, 1] = 1
    assert scores_of(trees, found, gold) == pytest.approx({"uas": 2 / 3, "las": 1 / 3})


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
    assert scores_of(value, np.array([[1.0]]), np.array([2.0])) == {"rmse": 1.0, "pearson": 0.0}
    text = TaskSpec(kind="causal_lm")
    assert scores_of(text, np.array([[5, 6, 0]]), np.array([[4, 5, 7]])) == {"accuracy": 0.5}


def test_f1_and_pearson_are_those_of_the_libraries():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    random = np.random.default_rng(0)
    logits, values = random.normal(size=(60, 4)), random.normal(size=(60, 2))
    gold, targets = random.random((60, 4)) < 0.4, values + random.normal(size=(60, 2))
    classes, named = random.integers(0, 4, 60), TaskSpec(kind="sequence", labels=("a", "b", "c", "d"))
    assert scores_of(named, logits, classes)["macro_f1"] == pytest.approx(
        f1_score(classes, logits.argmax(1), average="macro")
    )
    several = TaskSpec(kind="multi_label", labels=named.labels)
    found = scores_of(several, logits, gold.astype(np.float32))
    assert found == pytest.approx({f"{how}_f1": f1_score(gold, logits > 0, average=how) for how in ("micro", "macro")})
    # One label is no pair of classes: what has none is not a hit.
    alone = scores_of(TaskSpec(kind="multi_label", labels=("a",)), logits[:, :1], gold[:, :1].astype(np.float32))
    assert alone["micro_f1"] == pytest.approx(f1_score(gold[:, 0], logits[:, 0] > 0))
    pair = TaskSpec(kind="regression", labels=("v", "w"))
    together = [np.corrcoef(values[:, target], targets[:, target])[0, 1] for target in range(2)]
    assert scores_of(pair, values, targets)["pearson"] == pytest.approx(np.mean(together))


def test_a_number_that_is_absent_leaves_the_others_of_its_row():
    both = TaskSpec(kind="multi_label", labels=("x", "y"))
    gold = np.array([[1.0, np.nan], [1.0, 1.0]])
    logits = np.array([[2.0, 3.0], [2.0, 1.0]])
    assert scores_of(both, logits, gold) == {"micro_f1": 1.0, "macro_f1": 1.0}
    assert scores_of(both, logits, np.nan_to_num(gold)) != {"micro_f1": 1.0, "macro_f1": 1.0}
    pair = TaskSpec(kind="regression", labels=("v", "w"))
    scores = scores_of(pair, np.array([[1.0, 9.0], [3.0, 2.0], [4.0, 3.0]]), np.array([[1, np.nan], [2, 2], [3, 3]]))
    assert scores == pytest.approx(
        {"rmse": (2 / 5) ** 0.5, "pearson": (1 + np.corrcoef([1, 3, 4], [1, 2, 3])[0, 1]) / 2}
    )


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
