"""The losses and the sampler of `task` against their formulas, and in runs."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    TrainerCallback,
)

from hf_ft_plugins.errors import ConflictError, PluginError
from hf_ft_plugins.techniques.task import (
    BalancedSampler,
    Task,
    TaskLoss,
)
from hf_ft_plugins.techniques.task.losses import balanced_weights, frequency_shift
from hf_ft_plugins.techniques.text2text import Text2Text
from hf_ft_plugins.testing import LENGTH, VOCABULARY, tiny_model
from tests.techniques.task.runs_of_kinds import model_of, tiny_trainer


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
