"""The metrics, bins, thresholds and worst examples of `task` by hand, on a few numbers each."""

import math

import numpy as np
import pytest

from hf_ft_plugins.techniques.task import BestMetricCallback, calibration, report
from hf_ft_plugins.techniques.task.losses import frequency_shift
from hf_ft_plugins.techniques.task.metrics import evaluate, per_class


def logit(share):
    return np.log(share) - np.log1p(-np.asarray(share))


def test_several_labels_are_given_at_probability_one_half():
    logits = np.array([[0.3, -1.0], [-0.3, 2.0], [0.2, -2.0], [-1.0, -0.1]])
    labels = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    found = evaluate("multi_label", logits, labels)
    # Three of four labels are given, and no other.
    assert found["micro_f1"] == pytest.approx(2 * 3 / (3 + 4))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["auc"] == 1.0


def test_the_auc_of_three_classes_is_the_mean_of_each_against_the_rest():
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]))
    labels = np.array([0, 1, 2, 0])
    # Of the pairs (0, rest): all four in order; (1, rest): three of three; (2, rest): three of three.
    assert evaluate("single_label", logits, labels)["auc"] == 1.0
    # Now the second class comes last among all.
    assert evaluate("single_label", logits[:, [0, 2, 1]], labels)["auc"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


def test_each_label_is_counted_at_its_threshold():
    logits = logit([[0.4, 0.6], [0.2, 0.9]])
    labels = np.array([[1.0, 0], [0, 1]])
    first, second = per_class("multi_label", logits, labels, ["a", "b"], (0.3, 0.7))
    assert (first["f1"], second["f1"]) == (1.0, 1.0)
    first, second = per_class("multi_label", logits, labels, ["a", "b"])
    assert (first["recall"], second["precision"]) == (0.0, 0.5)


def test_bins_are_a_fifteenth_wide():
    shares = np.array([[0.95], [0.9], [0.87], [0.5], [0.01]])
    table = calibration.reliability("multi_label", logit(shares), np.ones((5, 1)))
    assert np.flatnonzero(table["count"]).tolist() == [0, 7, 13, 14]
    assert table["count"][13] == 2
    assert table["sure"][13] == pytest.approx(0.885)


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    shares, truth = np.array([0.1, 0.2, 0.3, 0.4, 0.9]), np.array([0, 1, 0, 0, 1]) > 0
    scores = [calibration.f1(shares > cut, truth, both_classes=False) for cut in (0.15, 0.65)]
    assert scores == [pytest.approx(2 / 3)] * 2
    assert calibration.best_threshold(shares, truth, both_classes=False) == pytest.approx(0.65)


def test_a_threshold_that_is_no_better_on_the_other_half_stays_one_half():
    fit = logit(np.array([[0.1], [0.2], [0.8], [0.85]])), np.array([[0.0], [0], [0], [1]])
    same = logit(np.array([[0.1], [0.2], [0.9], [0.95]])), np.array([[0.0], [0], [1], [1]])
    better = logit(np.array([[0.1], [0.2], [0.8], [0.95]])), np.array([[0.0], [0], [0], [1]])
    assert calibration.fit_thresholds("multi_label", fit, same) == (0.5,)
    assert calibration.fit_thresholds("multi_label", fit, better) == (pytest.approx(0.825),)


def test_a_change_of_just_the_threshold_is_no_improvement():
    class Control:
        should_training_stop = False

    state = type("State", (), {"global_step": 1})
    for gain, stopped in ((0.5, True), (0.75, False)):
        callback, control = BestMetricCallback(1, threshold=0.5), Control()
        for value in (1.0, 1.0 + gain):
            callback._judge(value, True, state, control)
        assert control.should_training_stop is stopped


def test_the_worst_examples_of_several_labels_are_those_of_the_least_probable_truth():
    shares, labels = np.array([[0.9, 0.2], [0.3, 0.1]]), np.array([[1.0, 0], [1, 0]])
    found = report.Findings("multi_label", ["a", "b"], logit(shares), labels, None, None)
    worst, best = report.worst_examples(found, None, 2)
    assert (worst["index"], worst["label"], worst["prediction"]) == (1, ["a"], [])
    assert worst["probability"] == pytest.approx(0.3)
    assert worst["loss"] == pytest.approx(-(math.log(0.3) + math.log(0.9)) / 2)
    assert best["probability"] == pytest.approx(0.8)


def test_the_shift_of_several_labels_is_the_log_odds_of_each():
    found = frequency_shift("multi_label", np.array([1, 2, 3]), tau=2.0, rows=4)
    assert found == pytest.approx([2 * math.log(1 / 3), 0.0, 2 * math.log(3)])
