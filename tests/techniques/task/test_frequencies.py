"""For which class frequencies a model answers: the shift against Bayes' rule, in the weights, and what is refused."""

import numpy as np
import pytest
import torch

from hf_ft_plugins import PluginError
from hf_ft_plugins.techniques.task import Task, calibration
from hf_ft_plugins.techniques.task.frequencies import Trained, direction, rows_at, shares_of, shift
from tests.techniques.task.runs_of_kinds import rows_of, tiny_trainer

COUNTS = np.array([1800, 150, 50])


def drawn(size, seed):
    """Logits of a model for equal classes, twice too sure, and labels of which the first class is the most frequent."""
    random = np.random.default_rng(seed)
    prior = COUNTS / COUNTS.sum()
    labels = random.choice(3, size, p=prior)
    # Normal features around a mean of each class: the log likelihoods are the balanced logits.
    means = np.eye(3) * 2.5
    features = means[labels] + random.normal(size=(size, 3))
    logits = -((features[:, None] - means) ** 2).sum(axis=2) / 2
    return 2.0 * logits, labels


def test_a_balanced_model_is_moved_to_the_evaluation_frequencies():
    fit, judge = drawn(6000, 0), drawn(6000, 1)
    found = calibration.calibrate("single_label", fit, judge, trained=Trained(COUNTS, 0.0))
    true = shift(np.full(3, 1 / 3), shares_of(COUNTS))
    assert found.shift == pytest.approx(true.tolist(), rel=0.1)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.ece < 0.01
    right = (found.applied(judge[0]).argmax(axis=1) == judge[1]).mean()
    assert right > (judge[0].argmax(axis=1) == judge[1]).mean() + 0.01
    # Control: a temperature alone cannot say that a class is rare.
    assert calibration.calibrate("single_label", fit, judge).ece > 2 * found.ece


@pytest.mark.parametrize("asked", ["equal", "0.2/0.3/0.5"])
def test_answers_are_those_of_the_frequencies_that_were_asked_for(asked):
    fit, judge = drawn(6000, 0), drawn(6000, 1)
    found = calibration.calibrate("single_label", fit, judge, frequencies=asked, trained=Trained(COUNTS, 0.0))
    target = np.full(3, 1 / 3) if asked == "equal" else np.array([0.2, 0.3, 0.5])
    # Bayes' rule on the model of which the logits are made.
    wanted = calibration.probabilities("single_label", judge[0] / 2 + np.log(target))
    given = calibration.probabilities("single_label", found.applied(judge[0]))
    assert np.abs(wanted - given).mean() < 0.01
    assert found.ece < 0.03


def test_rows_at_other_frequencies_are_the_most_there_are():
    labels = np.array([0] * 90 + [1] * 10 + [2] * 20)
    assert np.bincount(labels[rows_at(labels, np.array([0.5, 0.25, 0.25]))]).tolist() == [20, 10, 10]
    assert len(rows_at(np.array([0, 0, 1]), np.full(3, 1 / 3))) == 0


def test_a_plain_model_is_left_alone_where_the_frequencies_are_alike():
    alike, other = COUNTS // 10, COUNTS[::-1] // 10
    assert direction(alike, Trained(COUNTS)) is None
    assert direction(alike, None) is None
    assert direction(other, Trained(COUNTS)) == pytest.approx(shift(shares_of(COUNTS), shares_of(other)))
    assert direction(alike, Trained(COUNTS, 0.0)) == pytest.approx(shift(np.full(3, 1 / 3), shares_of(alike)))


def test_the_shift_is_in_the_weights_of_the_model_that_is_saved(tmp_path):
    def run(name, technique):
        trainer = tiny_trainer(tmp_path / name, technique, eval_strategy="no")
        trainer.train()
        return trainer

    plain = run("plain", Task(calibrate=False, imbalance="logit_adjust"))
    moved = run("moved", Task(imbalance="logit_adjust", frequencies="0.6/0.3/0.1"))
    config = moved.model.config.hf_ft_task
    assert config["frequencies"] == "0.6/0.3/0.1"
    assert config["temperature_in_weights"]
    moved.save_model(tmp_path / "final")
    loaded = type(moved.model).from_pretrained(tmp_path / "final").eval()
    ids = torch.tensor(rows_of("single_label", 6, seed=4)["input_ids"])
    with torch.no_grad():
        expected = plain.model.eval()(ids).logits / config["temperature"] + torch.tensor(config["shift"])
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_it_is_for_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    tiny_trainer(tmp_path, Task(imbalance="weights"))
    assert "the answers are moved to the evaluation set's frequencies" in caplog.text
    caplog.clear()
    tiny_trainer(tmp_path, Task(imbalance="weights", frequencies="equal"))
    assert "are moved" not in caplog.text


@pytest.mark.parametrize("option", ["seldom", "0.5", "1/0", "0.5/-1", "nan/1"])
def test_frequencies_that_are_none_are_refused(option):
    with pytest.raises(PluginError, match="frequencies"):
        Task(frequencies=option)


@pytest.mark.parametrize(
    ("kind", "option", "said"),
    [
        ("single_label", "0.5/0.5", "has 2 shares, and the model 3 classes"),
        ("multi_label", "equal", "the model is of kind multi_label"),
        ("regression", "training", "the model is of kind regression"),
    ],
)
def test_frequencies_that_do_not_fit_the_model_are_refused(kind, option, said, tmp_path):
    with pytest.raises(PluginError, match=said):
        tiny_trainer(tmp_path, Task(frequencies=option), kind=kind)


def test_training_frequencies_that_nobody_knows_are_refused(tmp_path):
    stream = rows_of("single_label", 48).to_iterable_dataset()
    with pytest.raises(PluginError, match="nothing says how frequent"):
        tiny_trainer(tmp_path, Task(frequencies="training"), train_dataset=stream)
