"""The technique `task`: losses, sampler and calibration against references, then whole runs of every kind."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    EvalPrediction,
    TrainerCallback,
)

from hf_ft_plugins import AdaptiveLR
from hf_ft_plugins.errors import ConflictError, OptionError, PluginError
from hf_ft_plugins.models.labels import labels_of
from hf_ft_plugins.techniques.task import (
    BalancedSampler,
    BestMetricCallback,
    Task,
    TaskLoss,
    TaskMetrics,
    calibration,
)
from hf_ft_plugins.techniques.task.losses import balanced_weights, frequency_shift
from hf_ft_plugins.techniques.text2text import Text2Text
from hf_ft_plugins.testing import LENGTH, VOCABULARY, check_technique, difference, outcome, resumed, tiny_model
from hf_ft_plugins.testing import tiny_trainer as plain_trainer
from hf_ft_plugins.testing.examples.task import EXAMPLE, tiny_rows

KINDS = ("single_label", "multi_label", "regression", "token")


def rows_of(kind, size, seed=0):
    """`size` rows whose labels of this kind follow from their tokens, mostly."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, (size, LENGTH))
    # One in eight is wrong, so that nothing can be sure.
    high = (tokens >= VOCABULARY // 2) ^ (random.random(tokens.shape) < 1 / 8)
    labels, feature = {
        "single_label": (high[:, :2].sum(axis=1), ClassLabel(names=["none", "one", "both"])),
        "multi_label": (high[:, :3].astype(float), List(Value("float32"), length=3)),
        "regression": (tokens[:, 0] / VOCABULARY, Value("float32")),
        "token": (np.where(np.arange(LENGTH) % 4 == 3, -100, high), List(Value("int64"))),
    }[kind]
    features = {"input_ids": List(Value("int64")), "labels": feature}
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()}, Features(features))


def model_of(kind, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes, **changes)
    return (BertForTokenClassification if kind == "token" else BertForSequenceClassification)(config)


def tiny_trainer(folder, *techniques, kind="single_label", **changes):
    setting = {
        "model": model_of(kind),
        "train_dataset": rows_of(kind, 48),
        "eval_dataset": rows_of(kind, 48, seed=1),
        "save_strategy": "no",
    }
    return plain_trainer(folder, *techniques, **(setting | changes))


def lone(rows, *names):
    """Of rows, the labels only, as a data set with these class names."""
    return Dataset.from_dict({"labels": rows}, Features({"labels": ClassLabel(names=list(names))}))


# ---- whole runs ----


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


# ---- losses ----


def micro_batches(loss, model, rows, accumulation):
    """Gradients of one optimizer step over `rows`, as Trainer cuts and divides it."""
    model.zero_grad()
    count = sum(batch["labels"].ne(-100).sum() for batch in rows)
    for batch in rows:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        loss(model(**inputs), batch["labels"], num_items_in_batch=count).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("imbalance", ["none", "weights", "logit_adjust", "focal"])
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "token"])
def test_the_step_is_the_same_however_it_is_accumulated(kind, imbalance, tmp_path):
    def gradients(accumulation, technique=True):
        seen = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
                seen.setdefault("grad", torch.cat([p.grad.flatten().clone() for p in model.parameters()]))

        trainer = tiny_trainer(
            tmp_path / f"{accumulation}-{technique}",
            *([Task(imbalance=imbalance, calibrate=False)] if technique else []),
            kind=kind,
            model=model_of(
                kind,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                num_labels=2 if kind == "token" else 3,
                problem_type="multi_label_classification" if kind == "multi_label" else None,
            ),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0,
            eval_strategy="no",
            callbacks=[Keep()],
        )
        trainer.train()
        return seen["grad"]

    torch.testing.assert_close(gradients(1), gradients(4), rtol=1e-3, atol=1e-6)
    # The control: stock Trainer's are four times as large.
    if imbalance == "none":
        assert gradients(4, technique=False).norm() > 3 * gradients(1, technique=False).norm()


def test_losses_equal_their_formulas():
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 3))
    labels = np.array([0, 1, 2, 2, 2, -100])
    real = labels[:5]
    counts = np.bincount(real, minlength=3)

    def log_softmax(values):
        return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))

    def given(loss, truth=labels, **more):
        outputs = {"logits": torch.tensor(logits, requires_grad=True)}
        return loss(outputs, torch.tensor(truth), **more).item()

    chosen = log_softmax(logits)[np.arange(5), real]
    weights = 5 / (3 * counts[real])
    assert weights.mean() == pytest.approx(1)
    assert given(TaskLoss("single_label")) == pytest.approx(-chosen.mean())
    assert given(TaskLoss("single_label"), num_items_in_batch=10) == pytest.approx(-chosen.sum() / 10)
    weighted = TaskLoss("single_label", weights=balanced_weights("single_label", counts))
    assert given(weighted) == pytest.approx(-(weights * chosen).mean())
    shifted = log_softmax(logits + 2 * np.log(counts / 5))[np.arange(5), real]
    adjusted = TaskLoss("single_label", shift=frequency_shift("single_label", counts, tau=2))
    assert given(adjusted) == pytest.approx(-shifted.mean())
    focal = TaskLoss("single_label", gamma=2)
    assert given(focal) == pytest.approx(-((1 - np.exp(chosen)) ** 2 * chosen).mean())

    several = random.random((6, 3)) < 0.4
    shares = 1 / (1 + np.exp(-logits))
    right = np.where(several, shares, 1 - shares)
    positive = several.sum(axis=0)
    assert given(TaskLoss("multi_label"), several) == pytest.approx(-np.log(right).mean())
    weights = np.where(several, 6 / (2 * positive), 6 / (2 * (6 - positive)))
    weighted = TaskLoss("multi_label", weights=balanced_weights("multi_label", positive, 6))
    assert given(weighted, several) == pytest.approx(-(weights * np.log(right)).mean(), rel=1e-5)
    assert given(TaskLoss("multi_label", gamma=2), several) == pytest.approx(
        -((1 - right) ** 2 * np.log(right)).mean(), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["single_label", "token"])
def test_only_the_training_loss_changes(kind, tmp_path):
    def eval_loss(*techniques):
        model = model_of(kind, num_labels=2 if kind == "token" else 3)
        return tiny_trainer(tmp_path, *techniques, kind=kind, model=model).evaluate()["eval_loss"]

    assert eval_loss(Task(imbalance="weights")) == pytest.approx(eval_loss(), rel=1e-4)
    assert eval_loss(Task(imbalance="logit_adjust")) == pytest.approx(eval_loss(), rel=1e-4)


# ---- sampler ----


def test_the_sampler_is_balanced_fair_and_a_function_of_seed_and_epoch():
    labels = np.array([0] * 40 + [1] * 4 + [2] * 2)
    sampler = BalancedSampler(labels, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 46
        assert set(np.bincount(labels[order])) <= {15, 16}
        times = np.bincount(order, minlength=46)
        assert times[:40].max() == 1
        assert times[40:44].max() - times[40:44].min() <= 1
        epochs.append(order)
    assert epochs[0] != epochs[1] != epochs[2]
    again = BalancedSampler(labels, seed=3)
    again.set_epoch(1)
    assert list(again) == epochs[1]
    assert list(BalancedSampler(labels, seed=4)) != epochs[0]


def test_the_sampler_reaches_the_model(tmp_path):
    rows = Dataset.from_dict(
        {"input_ids": [[number % VOCABULARY] * LENGTH for number in range(40)], "labels": [0] * 36 + [1] * 4}
    )
    share = []

    class Count(TrainerCallback):
        def on_train_end(self, args, state, control, *, train_dataloader, **kwargs):
            share.append(torch.cat([batch["labels"] for batch in train_dataloader]).float().mean().item())

    for techniques in ([Task(imbalance="sampler")], []):
        tiny_trainer(
            tmp_path, *techniques, train_dataset=rows, model=tiny_model(), callbacks=[Count()], eval_dataset=rows
        ).train()
    assert share == pytest.approx([0.5, 0.1])


# ---- metrics ----


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


# ---- best checkpoint and early stopping ----


def test_the_best_model_by_macro_f1_is_loaded_at_the_end(tmp_path):
    trainer = tiny_trainer(
        tmp_path, Task(early_stopping_patience=None, calibrate=False), save_strategy="steps", save_steps=3, max_steps=12
    )
    trainer.train()
    scores = {e["step"]: e["eval_macro_f1"] for e in trainer.state.log_history if "eval_macro_f1" in e}
    best = max(scores, key=scores.get)
    assert trainer.state.best_global_step == best
    from safetensors.torch import load_file

    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert difference(saved, dict(trainer.model.state_dict())) is None


def settled(tmp_path, technique=None, **changes):
    args = tiny_trainer(tmp_path, technique or Task(), **changes).args
    return args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end


def test_the_metric_and_its_direction_are_settled_when_the_trainer_is_built(tmp_path):
    assert settled(tmp_path) == ("macro_f1", True, False)
    assert settled(tmp_path, save_strategy="steps", save_steps=6) == ("macro_f1", True, True)
    assert settled(tmp_path, save_strategy="steps", save_steps=4) == ("macro_f1", True, False)
    assert settled(tmp_path, save_strategy="steps", save_steps=0.2, eval_steps=0.1) == ("macro_f1", True, True)
    assert settled(tmp_path, kind="regression", model=model_of("regression", num_labels=1)) == ("rmse", False, False)
    # Trainer guesses that greater is better of any metric that is not called a loss.
    assert settled(tmp_path, metric_for_best_model="rmse") == ("rmse", False, False)
    assert settled(tmp_path, metric_for_best_model="distance", greater_is_better=False) == ("distance", False, False)
    assert settled(tmp_path, Task(metric="rmse", greater_is_better=True)) == ("rmse", True, False)
    assert settled(tmp_path, compute_metrics=lambda prediction: {"mine": 1.0}) == ("loss", False, False)
    sets = {"easy": rows_of("single_label", 8, 2), "hard": rows_of("single_label", 8, 3)}
    assert settled(tmp_path, eval_dataset=sets) == ("easy_macro_f1", True, False)
    assert settled(tmp_path, eval_strategy="no") == (None, None, False)


def test_a_wrong_metric_is_refused_at_the_first_evaluation_with_the_right_ones(tmp_path):
    trainer = tiny_trainer(tmp_path, Task(metric="f2"))
    with pytest.raises(PluginError, match=r"task: .*'eval_f2'.*eval_accuracy.*eval_macro_f1.*task:metric="):
        trainer.train()
    assert trainer.state.global_step == 3
    sets = {"easy": rows_of("single_label", 8, 2), "hard": rows_of("single_label", 8, 3)}
    with pytest.raises(PluginError, match=r"eval_easy_macro_f1.*eval_hard_macro_f1"):
        tiny_trainer(tmp_path, Task(metric="macro_f1"), eval_dataset=sets).train()
    tiny_trainer(tmp_path, Task(metric="hard_macro_f1", calibrate=False), eval_dataset=sets, max_steps=3).train()


def from_a_list(values):
    """compute_metrics that gives these values in turn."""
    given = iter(values)
    return lambda prediction: {"score": next(given)}


def test_early_stopping_counts_evaluations_and_its_state_survives_resume(tmp_path):
    values = [0.5, 0.4, 0.6, 0.6, math.nan, 0.9]
    options = {"metric_for_best_model": "score", "max_steps": 20, "eval_steps": 2, "save_steps": 2}
    technique = Task(early_stopping_patience=2, calibrate=False)

    def setting(start=0):
        return {
            "train_dataset": tiny_rows(24),
            "eval_dataset": tiny_rows(40, seed=1),
            "compute_metrics": from_a_list(values[start:]),
        }

    straight = plain_trainer(tmp_path / "a", technique, **options, **setting())
    straight.train()
    assert straight.state.global_step == 10
    # Ended between the fourth evaluation and the fifth, which is the second without improvement.
    starts = iter([0, 4])
    again = resumed(tmp_path / "b", technique, stop_at=9, make_setting=lambda: setting(next(starts)), **options)
    assert difference(outcome(straight), outcome(again)) is None
    once_more = plain_trainer(tmp_path / "a", technique, **options, **setting(5))
    once_more.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert once_more.state.global_step == 10, "a stopped run went on"
    forgetful = BestMetricCallback(2)
    assert forgetful.state_dict() == {"best": None, "bad": 0, "stopped": False}


def test_the_threshold_and_the_direction_count():
    class Control:
        should_training_stop = False

    for greater, values, stopped in (
        (True, [1.0, 1.05, 1.08], True),
        (True, [1.0, 1.2, 1.4], False),
        (False, [1.0, 0.95, 0.92], True),
        (False, [1.0, 0.8, 0.6], False),
    ):
        callback, control = BestMetricCallback(2, threshold=0.1), Control()
        for value in values:
            callback._judge(value, greater, type("State", (), {"global_step": 1}), control)
        assert control.should_training_stop is stopped


def test_it_stops_beside_adaptive_lr_whichever_is_first(tmp_path):
    techniques = [Task(early_stopping_patience=2, calibrate=False), AdaptiveLR(patience=1, min_delta=1e9, max_cuts=0)]
    steps = []
    for number, order in enumerate((techniques, techniques[::-1])):
        trainer = tiny_trainer(
            tmp_path / str(number), *order, compute_metrics=from_a_list([0.5, 0.4, 0.3]), metric_for_best_model="score"
        )
        trainer.train()
        steps.append(trainer.state.global_step)
    assert steps == [6, 6]


# ---- calibration ----


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


# ---- what cannot be done ----


def test_options_out_of_range_are_refused_by_name():
    for options in (
        {"tau": 0},
        {"gamma": 0},
        {"early_stopping_patience": 0},
        {"worst_examples": -1},
        {"imbalance": "x"},
    ):
        with pytest.raises(OptionError, match=f"task: option {next(iter(options))}="):
            Task(**options)


def test_bad_labels_are_refused_with_row_and_mend(tmp_path):
    def refused(match, rows=None, technique=None, **changes):
        with pytest.raises(PluginError, match=match):
            tiny_trainer(tmp_path, technique or Task(), **({"train_dataset": rows} if rows else {}), **changes)

    good = rows_of("single_label", 20)
    refused("all 4 training rows have the label 'one'.*Shuffle", good.filter(lambda row: row["labels"] == 1).take(4))
    names = ClassLabel(names=["none", "one", "both"])
    out = good.cast_column("labels", Value("int64")).map(
        lambda row, i: {"labels": -1 if i == 7 else 0}, with_indices=True
    )
    refused("row 7 has the label -1, and there are 3 classes", out.cast_column("labels", names))
    more = ClassLabel(names=["none", "one", "both", "many"])
    refused(
        "imbalance=weights, and no training row has the label 'many'",
        good.cast_column("labels", Value("int64")).cast_column("labels", more),
        Task(imbalance="weights"),
        eval_dataset=None,
        eval_strategy="no",
    )
    swapped = ClassLabel(names=["both", "one", "none"])
    refused(
        "classes of the eval set .*both, one, none.* are not those of the training set",
        eval_dataset=good.cast_column("labels", Value("int64")).cast_column("labels", swapped),
    )
    nan = rows_of("regression", 8).map(lambda row, i: {"labels": math.nan if i == 3 else 1.0}, with_indices=True)
    refused("row 3 of the training set has the label .*nan", nan)
    ints = Dataset.from_dict({"input_ids": [[1]] * 4, "labels": [[0, 3], [1], [0], [-100]]})
    refused("holds the label 3, and there are 2 classes", ints, model=model_of("token"), kind="token")
    several = ints.cast_column("labels", List(ClassLabel(names=["a", "b", "c", "d"])))
    refused("holds a list of class numbers.*not for token classification.*4 numbers", several)


def test_models_without_labels_of_their_own_are_refused(tmp_path):
    from hf_ft_plugins.testing.examples.text2text import tiny_t5

    with pytest.raises(PluginError, match="a T5ForConditionalGeneration, neither classifies nor regresses"):
        tiny_trainer(tmp_path, Task(), model=tiny_t5())


def test_a_class_with_one_example_is_named(tmp_path, caplog):
    rows = rows_of("single_label", 20)
    labels = [2] + [index % 2 for index in range(19)]
    rows = (
        rows.remove_columns("labels")
        .add_column("labels", labels)
        .cast_column("labels", ClassLabel(names=["none", "one", "both"]))
    )
    tiny_trainer(tmp_path, Task(), train_dataset=rows)
    assert "1 classes have a single example in the training set: both" in caplog.text


def test_features_that_are_not_numbers_are_refused_by_row_and_column(tmp_path):
    rows = rows_of("single_label", 1500)
    vectors = [[0.0, 1.0]] * 1500
    vectors[1203] = [0.0, math.nan]
    rows = rows.add_column("inputs_embeds", vectors)
    with pytest.raises(
        PluginError, match=r"row 1203 of the training set holds NaN or infinity in column 'inputs_embeds'"
    ):
        tiny_trainer(tmp_path, Task(), train_dataset=rows)
    # One that the model never sees does no harm.
    tiny_trainer(tmp_path, Task(), train_dataset=rows.rename_column("inputs_embeds", "notes"))


def test_streamed_data_trains_but_cannot_be_counted(tmp_path):
    rows = rows_of("single_label", 48)
    with pytest.raises(PluginError, match=r"imbalance=weights counts the labels .* is streamed.*focal"):
        tiny_trainer(tmp_path, Task(imbalance="weights"), train_dataset=rows.to_iterable_dataset())
    trainer = tiny_trainer(tmp_path, Task(imbalance="focal"), train_dataset=rows.to_iterable_dataset(), max_steps=3)
    trainer.train()
    assert trainer.model.config.num_labels == 3
    with pytest.raises(PluginError, match=r"imbalance=sampler needs one class a row.*several"):
        tiny_trainer(tmp_path, Task(imbalance="sampler"), kind="multi_label")
    with pytest.raises(PluginError, match="imbalance=focal needs classes"):
        tiny_trainer(tmp_path, Task(imbalance="focal"), kind="regression")


def test_a_loss_of_the_scripts_own_stays_or_is_refused(tmp_path):
    from transformers import Trainer

    class Own(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, compute_loss_func=own, **kwargs)

    def own(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum()

    assert tiny_trainer(tmp_path, Task(), trainer_class=Own).compute_loss_func is own
    assert tiny_trainer(tmp_path, Task(), label_smoothing_factor=0.1).compute_loss_func is None
    for changes in ({"trainer_class": Own}, {"label_smoothing_factor": 0.1}):
        with pytest.raises(
            PluginError, match=r"imbalance=weights changes the loss, and .*(compute_loss_func|smoothing)"
        ):
            tiny_trainer(tmp_path, Task(imbalance="weights"), **changes)
    with pytest.raises(ConflictError, match=r"task trains heads on labels"):
        tiny_trainer(tmp_path, Task(), Text2Text())


def test_a_peft_model_must_train_its_head(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(**options):
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], **options)
        return peft.get_peft_model(model_of("single_label", num_labels=3), config)

    with pytest.raises(PluginError, match=r"head, 'classifier', is frozen.*modules_to_save=\['classifier'\]"):
        tiny_trainer(tmp_path, Task(), model=adapted())
    trainer = tiny_trainer(tmp_path, Task(), model=adapted(modules_to_save=["classifier"]), eval_strategy="no")
    overconfident_head = trainer.model.get_base_model().classifier.modules_to_save["default"]
    with torch.no_grad():
        overconfident_head.weight.mul_(300)
    trainer.train()
    assert trainer.model.get_base_model().config.hf_ft_task["temperature_in_weights"]


def test_labels_of_reads_features_only():
    assert labels_of([{"labels": 1}], "task") is None
    labels = labels_of(lone([0, 1, 1], "a", "b"), "task")
    assert labels.counts().tolist() == [1, 2]
