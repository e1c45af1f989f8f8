"""The calibration of `task` against references, and of the models that it saves."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    TrainerCallback,
)

from hf_ft_plugins.techniques.task import (
    Task,
    calibration,
)
from hf_ft_plugins.testing import VOCABULARY, difference
from tests.techniques.task.runs_of_kinds import rows_of, tiny_trainer


def drawn(kind, size, temperature, seed=0):
    """Logits of a model that is too sure by `temperature`, and labels drawn from what they should be."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(size, 4)) * 2
    if kind == "multi_label":
        return logits * temperature, (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits * temperature, np.array([random.choice(4, p=share) for share in shares])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_a_known_temperature_is_found_and_mends_the_calibration(kind, temperature):
    fit, judge = (drawn(kind, 4000, temperature, seed) for seed in (0, 1))
    found = calibration.calibrate(kind, fit, judge)
    assert found.fitted_temperature == pytest.approx(temperature, rel=0.06)
    assert found.ece < 0.03
    if temperature != 1.0:
        assert found.ece < 0.5 * found.ece_before
        assert found.nll < found.nll_before


def test_a_temperature_that_does_not_help_the_other_half_is_not_used():
    fit, judge = drawn("single_label", 400, 3.0), drawn("single_label", 400, 0.4, seed=1)
    found = calibration.calibrate("single_label", fit, judge)
    assert found.temperature == 1.0
    assert found.nll == found.nll_before
    assert found.fitted_temperature > 2


def test_the_calibration_error_is_the_papers():
    # Two bins: three at 0.6 of which one is right, one at 0.9 that is right.
    logits = np.log(np.array([[0.6, 0.4]] * 3 + [[0.9, 0.1]]))
    labels = np.array([0, 1, 1, 0])
    expected = 3 / 4 * abs(0.6 - 1 / 3) + 1 / 4 * abs(0.9 - 1)
    assert calibration.ece("single_label", logits, labels) == pytest.approx(expected)


def test_halves_are_alike_in_every_class_and_the_same_for_a_seed():
    labels = np.array([0] * 90 + [1] * 10)
    first, second = calibration.halves(100, 5, labels)
    assert sorted([*first, *second]) == list(range(100))
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [45, 5]
    assert np.array_equal(first, calibration.halves(100, 5, labels)[0])
    assert not np.array_equal(first, calibration.halves(100, 6, labels)[0])


def test_thresholds_raise_f1_on_the_other_half_or_stay():
    random = np.random.default_rng(0)

    def half():
        truth = random.random((600, 2)) < 0.2
        # The first label is always given too low a probability.
        return np.where(truth, 1.0, -1.0) + random.normal(size=(600, 2)) * 0.7 - [3, 0], truth.astype(float)

    fit, judge = half(), half()
    first, second = calibration.fit_thresholds("multi_label", fit, judge)
    assert 0.02 < first < 0.2
    assert abs(second - 0.5) < 0.25
    shares, truth = 1 / (1 + np.exp(-judge[0][:, 0])), judge[1][:, 0] > 0.5
    assert calibration.f1(shares > first, truth, both_classes=False) > 0.8
    assert calibration.f1(shares > 0.5, truth, both_classes=False) < 0.2


def overconfident(trainer):
    """Makes the trained head three times too sure, before anything looks at it."""

    class Inflate(TrainerCallback):
        def on_train_end(self, args, state, control, *, model, **kwargs):
            with torch.no_grad():
                for parameter in model.classifier.parameters():
                    parameter.mul_(30)

    trainer.callback_handler.callbacks.insert(0, Inflate())
    return trainer


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "token"])
def test_the_saved_model_is_calibrated_for_everyone_and_checkpoints_are_as_trained(kind, tmp_path):
    def run(name, technique):
        changes = {"kind": kind, "save_strategy": "steps", "save_steps": 14, "eval_strategy": "no"}
        trainer = overconfident(tiny_trainer(tmp_path / name, technique, **changes))
        trainer.train()
        return trainer

    plain, calibrated = run("plain", Task(calibrate=False)), run("calibrated", Task())
    config = calibrated.model.config.hf_ft_task
    assert config["temperature"] > 1.5
    assert config["temperature_in_weights"]
    assert config["nll"] < config["nll_before"]
    assert (config["thresholds"] is not None) == (kind == "multi_label")
    calibrated.save_model(tmp_path / "final")
    loaded = type(calibrated.model).from_pretrained(tmp_path / "final").eval()
    assert loaded.config.hf_ft_task == json.loads(json.dumps(config))
    ids = torch.tensor(rows_of(kind, 6, seed=4)["input_ids"])
    with torch.no_grad():
        expected, given = plain.model.eval()(ids).logits / config["temperature"], loaded(ids).logits
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    assert (given - plain.model(ids).logits).abs().max() > 0.1, "nothing was scaled"
    weights = [type(loaded).from_pretrained(tmp_path / name / "checkpoint-14") for name in ("plain", "calibrated")]
    assert difference(*(dict(model.state_dict()) for model in weights)) is None
    assert not hasattr(weights[1].config, "hf_ft_task")


def test_a_pipeline_gives_the_calibrated_probabilities(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = overconfident(tiny_trainer(tmp_path, Task(), eval_strategy="no"))
    trainer.train()
    inflated = trainer.model.config.hf_ft_task["temperature"]
    trainer.save_model(tmp_path / "final")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")
    classify = pipeline("text-classification", model=str(tmp_path / "final"), tokenizer=wrapped, top_k=None)
    (scores,) = classify(["w3 w20 w1 w9"])
    with torch.no_grad():
        logits = trainer.model.eval()(torch.tensor([[3, 20, 1, 9]])).logits[0] * inflated
    expected = torch.softmax(logits / inflated, dim=0)
    found = {entry["label"]: entry["score"] for entry in scores}
    assert [found[name] for name in ("none", "one", "both")] == pytest.approx(expected.tolist(), rel=1e-4)
    assert max(found.values()) < torch.softmax(logits, dim=0).max() - 0.01


def test_a_small_evaluation_set_is_left_alone_with_a_word(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, Task(), eval_dataset=rows_of("single_label", 30))
    trainer.train()
    assert "30 rows, too few to calibrate" in caplog.text
    assert not hasattr(trainer.model.config, "hf_ft_task")
