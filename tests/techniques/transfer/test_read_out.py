"""The read-out of a text encoder: a mean over tokens in the model's own weights, and a head in closed form."""

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_ft_plugins import Transfer
from hf_ft_plugins.techniques.transfer import read_out as module
from hf_ft_plugins.techniques.transfer.head_reading import NotCacheable
from hf_ft_plugins.techniques.transfer.read_out import ATTENDED, LINEAR_FROM, PASSED, KeepsReadOut, read_out
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer

VOCABULARY, LENGTH, WIDTH = 60, 12, 32
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
}
DISTIL = {"dim": WIDTH, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(embedding_size=WIDTH, **SIZES)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
}


def model_of(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def rows(count, seed=1):
    """Texts whose label says whether many of their tokens are above 40."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
    ids[:, 0] = 3
    mask = torch.ones_like(ids)
    mask[::2, 9:] = 0
    share = ((ids > 40) & (mask > 0)).sum(1) / mask.sum(1)
    return {"input_ids": ids, "attention_mask": mask, "labels": (share > share.median()).long()}


def batches(data, size=40):
    return [{name: values[start : start + size] for name, values in data.items()} for start in range(0, 200, size)]


def right(model, data):
    with torch.no_grad():
        logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    return float((logits.argmax(-1) == data["labels"]).float().mean())


@pytest.mark.parametrize("name", list(MODELS))
def test_the_head_sees_the_mean_over_tokens_of_the_layer_below(name, tmp_path):
    model, data = model_of(name), rows(200)
    found = read_out(model, batches(data))
    assert found.pooled
    assert found.right > found.right_before
    assert right(model, rows(400, seed=2)) > 0.58
    # The reference, by hand, from the states that the layer below gives.
    given = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"], output_hidden_states=True)
    below, mask = given.hidden_states[-2], data["attention_mask"][..., None].float()
    mean = (below * mask).sum(1) / mask.sum(1)

    def logits_of(vector):
        bend = LINEAR_FROM if name in ("distilbert", "electra") else 0.0
        activation = {"distilbert": functional.relu, "electra": functional.gelu}.get(name, torch.tanh)
        classifier = model.classifier if isinstance(model.classifier, torch.nn.Linear) else model.classifier.out_proj
        return classifier(activation(PASSED * functional.layer_norm(vector, (WIDTH,)) + bend))

    torch.testing.assert_close(given.logits, logits_of(below[:, 0] + ATTENDED * mean), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(given.logits, logits_of(below[:, 0]), rtol=1e-2, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        again(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits, given.logits
    )


def test_what_left_out_examples_get_is_what_a_fit_without_them_gives():
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.arange(12) % 3
    errors, share, _ = module._solved(features, labels, 3)
    # A ridge of the same strength: its unit is the mean squared length of all centred rows.
    centred = (features - features.mean(0)).double()
    strength = module.RIDGE * centred.square().sum(1).mean()
    wanted, expected, hits = functional.one_hot(labels, 3).double(), [], 0
    for out in range(12):
        kept = torch.arange(12) != out
        ones = torch.cat([features.double()[kept], torch.ones(11, 1, dtype=torch.double)], dim=1)
        penalty = strength * torch.eye(6, dtype=torch.double)
        penalty[5, 5] = 0
        weight = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ wanted[kept])
        said = torch.cat([features.double()[out], torch.ones(1, dtype=torch.double)]) @ weight
        expected.append(float((wanted[out] - said).square().sum()))
        hits += int(said.argmax() == labels[out])
    assert errors.tolist() == pytest.approx(expected, rel=1e-6)
    assert share == pytest.approx(hits / 12)


def test_a_read_out_that_does_better_is_kept(monkeypatch):
    model, data = model_of("bert"), rows(200)
    before = {name: weight.clone() for name, weight in model.bert.named_parameters()}
    solved, calls = module._solved, []

    def better_the_first_time(features, labels, classes):
        calls.append(features)
        errors, share, fit = solved(features, labels, classes)
        return (errors - 1 if len(calls) == 1 else errors), share, fit

    monkeypatch.setattr(module, "_solved", better_the_first_time)
    assert not read_out(model, batches(data)).pooled
    assert all(torch.equal(before[name], weight) for name, weight in model.bert.named_parameters())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model, data: model.bert.pooler.requires_grad_(False), "frozen"),
        (lambda model, data: setattr(model.config, "problem_type", "regression"), "problem_type is regression"),
        (lambda model, data: data.update(labels=data["labels"].float()), "not one class a text"),
        (lambda model, data: data.update({name: values[:3] for name, values in data.items()}), "fewer than four"),
        (
            lambda model, data: model.bert.encoder.layer[-1].register_forward_hook(lambda *_: _[2] * 0),
            "mean over tokens",
        ),
    ],
)
def test_what_cannot_be_read_so_stays_and_says_why(change, why):
    model, data = model_of("bert"), rows(200)
    change(model, data)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(KeepsReadOut, match=why):
        read_out(model, [data])
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_a_head_that_knows_the_labels_and_other_models_stay(monkeypatch):
    model, data = model_of("bert"), rows(200)
    read_out(model, batches(data))
    with pytest.raises(KeepsReadOut, match="knows these labels"):
        read_out(model, batches(data))
    monkeypatch.setattr(module, "MOST_EXAMPLES", 199)
    with pytest.raises(KeepsReadOut, match="more than 199 examples"):
        read_out(model_of("bert"), batches(data))
    other = GPT2ForSequenceClassification(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(KeepsReadOut, match="not built as BERT is"):
        read_out(other, batches(data))


def test_data_that_move_are_not_fitted():
    class Moving:
        def __iter__(self):
            return iter(batches(rows(200, seed=int(torch.randint(1000, ())))))

    with pytest.raises(NotCacheable, match="differs from pass to pass"):
        read_out(model_of("bert"), Moving())


def test_by_default_a_run_begins_with_it_and_resumes_exactly(tmp_path, caplog):
    setting = {"save_steps": 1}
    straight = tiny_trainer(tmp_path / "straight", Transfer(), **setting)
    straight.train()
    assert "solved in closed form" in caplog.text
    assert "transfer/left_out_accuracy" in straight.state.log_history[0]
    again = resumed(tmp_path / "resumed", Transfer(), stop_at=5, **setting)
    assert difference(outcome(straight), outcome(again)) is None
    kept = tiny_trainer(tmp_path / "kept", Transfer(read_out="keep"), **setting)
    kept.train()
    assert difference(outcome(straight)["weights"], outcome(kept)["weights"]) is not None
    assert "transfer/probe_loss" in kept.state.log_history[0]
