"""Weights and flip probabilities of rows, against losses computed by hand."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import logsigmoid

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral.model_forward import gated  # noqa: E402
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_preferences,
    tiny_setting,
)
from tests.techniques.behavioral.trainers import (  # noqa: E402
    EXTRAS,
    SAME,
    a_batch,
    assert_same_gradients,
    built,
    loss_and_gradients,
    pair_scores,
)

# ---- weights ----


@pytest.mark.parametrize(
    "loss_type",
    [
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down"),
        *("discopop", "sigmoid_norm", "sigmoid+nca_pair"),
    ],
)
def test_weights_scale_each_pairs_own_gradient(loss_type, tmp_path):
    settings = {"loss_type": loss_type.split("+"), "label_smoothing": 0.1}
    ours = built(tmp_path / "a", "behavioral:noise=off", **settings)
    stock = built(tmp_path / "b", **settings)
    batch = a_batch(ours)
    weights = batch["behavior_weight"]
    loss, gradients = loss_and_gradients(ours, batch)
    expected = Counter()
    for pair, weight in enumerate(weights.tolist()):
        alone = {name: batch[name][[pair, pair + len(weights)]] for name in batch if name not in EXTRAS}
        for name, gradient in loss_and_gradients(stock, alone)[1].items():
            expected[name] = expected[name] + weight * gradient / len(weights)
    assert_same_gradients(gradients, dict(expected))
    whole, unweighted = loss_and_gradients(stock, {name: batch[name] for name in batch if name not in EXTRAS})
    torch.testing.assert_close(loss, whole, **SAME)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, unweighted)


def test_weights_scale_the_tokens_of_dpos_sft_loss(tmp_path):
    trainer = built(tmp_path, "behavioral:noise=off", loss_type=["sft"])
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    ours, _ = pair_scores(trainer, batch)
    tokens = batch["completion_mask"][:4, 1:].sum()
    (-(batch["behavior_weight"] * ours[:4]).sum() / tokens).backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_weights_scale_each_rows_own_gradient_in_kto(loss_type, tmp_path):
    trainer = built(tmp_path, "behavioral", contract="kto", loss_type=loss_type)
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    ours, reference = pair_scores(trainer, batch)
    ratios, kl = ours - reference, torch.zeros(())
    if loss_type == "kto":
        mismatched = {name.removeprefix("KL_"): value for name, value in batch.items() if name.startswith("KL_")}
        with torch.no_grad():
            there, before = pair_scores(trainer, mismatched)
            kl = (there - before).mean().clamp(min=0)
    beta, label = trainer.beta, batch["label"]
    if loss_type == "kto":
        losses = torch.where(label, 1 - torch.sigmoid(beta * (ratios - kl)), 1 - torch.sigmoid(beta * (kl - ratios)))
    else:
        losses = torch.where(label, 1 - torch.sigmoid(beta * ratios), torch.sigmoid(beta * ratios))
    trainer.model.zero_grad()
    (batch["behavior_weight"] * losses).mean().backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


def test_weights_scale_each_pairs_own_gradient_in_reward_models(tmp_path):
    trainer = built(tmp_path, "behavioral", contract="reward")
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    scores = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    chosen, rejected = scores.chunk(2)
    (-batch["behavior_weight"] * logsigmoid(chosen - rejected)).mean().backward()
    expected = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_weights_scale_the_tokens_of_sft(loss_type, tmp_path):
    rows = [{"prompt": "say a", "completion": " a" * (1 + row), "behavior_weight": 0.5 + row} for row in range(8)]
    setting = tiny_setting("dpo", max_length=64, per_device_train_batch_size=4, eval_strategy="no")
    setting |= {"trainer_class": trl.SFTTrainer, "args_class": trl.SFTConfig, "loss_type": loss_type}
    setting |= {"train_dataset": Dataset.from_list(rows), "eval_dataset": None}
    setting.pop("ref_model")
    trainer = tiny_trainer(tmp_path, "behavioral", **setting)
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    labels = batch["labels"][:, 1:]
    logits = trainer.model(**inputs).logits[:, :-1].log_softmax(-1)
    tokens = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * (labels != -100)
    losses = -tokens * (tokens.exp().detach() if loss_type == "dft" else 1)
    ((batch["behavior_weight"][:, None] * losses).sum() / (labels != -100).sum()).backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


def test_gated_values_keep_their_value():
    values = torch.randn(4, 3, requires_grad=True)
    out = gated(values, torch.tensor([2.0, 0.0]))
    assert torch.equal(out, values)
    out.sum().backward()
    assert values.grad.tolist() == [[2.0] * 3, [0.0] * 3] * 2


# ---- flip probabilities ----


@pytest.mark.parametrize("noise", ["robust", "cdpo"])
def test_each_pair_has_its_own_flip_probability(noise, tmp_path):
    trainer = built(tmp_path, f"behavioral:noise={noise},weights=false")
    batch = a_batch(trainer)
    assert "behavior_weight" not in batch
    loss, gradients = loss_and_gradients(trainer, batch)
    eps = batch["behavior_eps"]
    assert len(set(eps.tolist())) > 1
    ours, reference = pair_scores(trainer, batch)
    ratios = ours - reference
    z = trainer.beta * (ratios[:4] - ratios[4:])
    if noise == "robust":
        losses = (-(1 - eps) * logsigmoid(z) + eps * logsigmoid(-z)) / (1 - 2 * eps)
    else:
        losses = -(1 - eps) * logsigmoid(z) - eps * logsigmoid(-z)
    trainer.model.zero_grad()
    losses.mean().backward()
    torch.testing.assert_close(loss, losses.mean().detach(), **SAME)
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})
    assert trainer.label_smoothing == 0.0, "put back after each batch"
    one_rate = loss_and_gradients(trainer, {name: batch[name] for name in batch if name != "behavior_eps"})[1]
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, one_rate)


def test_flip_probabilities_need_a_loss_that_has_them(tmp_path, caplog):
    trainer = built(tmp_path, "behavioral", loss_type=["ipo"])
    assert trainer.loss_types == ["ipo"]
    assert "loss_type=ipo has no flip probabilities" in caplog.text
    with pytest.raises(PluginError, match="loss_type is ipo"):
        built(tmp_path, "behavioral:noise=robust", loss_type=["ipo"])


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_a_loss_without_a_loss_of_its_own_for_each_row_is_refused(loss_type, tmp_path):
    with pytest.raises(PluginError, match=f"loss_type={loss_type} compares rows"):
        built(tmp_path, "behavioral", loss_type=[loss_type])
    built(tmp_path, "behavioral:weights=false,noise=off", loss_type=[loss_type])


@pytest.mark.parametrize(
    ("column", "value"), [("behavior_weight", -1.0), ("behavior_eps", 0.5), ("behavior_eps", None)]
)
def test_numbers_out_of_range_are_refused(column, value, tmp_path):
    rows = tiny_preferences(4).to_list()
    rows[2][column] = value
    trainer = built(tmp_path, "behavioral", train_dataset=Dataset.from_list(rows))
    with pytest.raises(PluginError, match=column):
        a_batch(trainer)
