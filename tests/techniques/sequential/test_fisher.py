"""The Fisher information: against gradients taken row by row by hand, and the exact expectation over labels."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.sequential.fisher import estimate_fisher
from hf_ft_plugins.testing import difference, tiny_dataset, tiny_model

ROWS = 6


def classifier():
    model = tiny_model().double()
    with torch.no_grad():
        # Sure of one class, so that the model's own labels are not those of the data.
        model.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
    return model


def language_model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, **size)).double()


def translator():
    torch.manual_seed(0)
    size = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=12, pad_token_id=0, **size)).double()


def rows_of_a_classifier():
    rows = tiny_dataset(ROWS)
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def rows_of_tokens():
    ids = torch.randint(3, 12, (ROWS, 5), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :2] = -100
    labels[0, 3:] = -100
    labels[1] = -100
    return {"input_ids": ids, "labels": labels}


CASES = {
    "classifier": (classifier, rows_of_a_classifier),
    "language model": (language_model, rows_of_tokens),
    "translator": (translator, rows_of_tokens),
}


def likelihood_by_hand(case, model, row, labels=None):
    """Logits [scored, classes], and the summed loss of `labels`, or of the row's own."""
    logits, own = model(**row).logits, row["labels"]
    if case == "classifier":
        scored, own = logits, own
    elif case == "language model":
        keep = own[0, 1:] != -100
        scored, own = logits[0, :-1][keep], own[0, 1:][keep]
    else:
        keep = own[0] != -100
        scored, own = logits[0][keep], own[0][keep]
    return scored, cross_entropy(scored, own if labels is None else labels, reduction="sum")


def by_hand(case, model, batch, weights=lambda scored: [(1.0, None)]):
    """The mean over rows of squared gradients, weighted over labels."""
    model.eval()
    total = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    for index in range(ROWS):
        row = {name: one[index : index + 1] for name, one in batch.items()}
        if not bool((row["labels"] != -100).any()):
            continue
        with torch.no_grad():
            scored, _ = likelihood_by_hand(case, model, row)
        for weight, labels in weights(scored):
            model.zero_grad()
            likelihood_by_hand(case, model, row, labels)[1].backward()
            for name, one in model.named_parameters():
                if one.grad is not None:
                    total[name] += weight * one.grad.square() / ROWS
    model.zero_grad()
    return total


def largest_error(found, expected):
    scale = max(float(one.max()) for one in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


@pytest.mark.parametrize("case", CASES)
def test_the_empirical_fisher_is_the_mean_of_each_rows_squared_gradient(case):
    make, rows = CASES[case]
    found = estimate_fisher(make(), [rows()], rows=99, kind="empirical")
    assert largest_error(found, by_hand(case, make(), rows())) < 1e-10
    # The control: the square of the batch's mean gradient.
    model = make().eval()
    model(**rows()).loss.backward()
    batch = {name: one.grad.square() for name, one in model.named_parameters() if one.grad is not None}
    assert largest_error({name: found[name] for name in batch}, batch) > 0.1


def test_sampled_labels_give_the_expectation_over_the_models_own_distribution():
    def all_labels(scored):
        return [(float(p), torch.tensor([label])) for label, p in enumerate(scored.softmax(-1)[0])]

    expected = by_hand("classifier", classifier(), rows_of_a_classifier(), all_labels)
    batch = {name: one.repeat(100, *[1] * (one.dim() - 1)) for name, one in rows_of_a_classifier().items()}
    found = estimate_fisher(classifier(), [batch], rows=600, kind="sampled", seed=3)
    norm = sum(float(one.square().sum()) for one in expected.values()) ** 0.5
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected) ** 0.5
    # 600 draws of a class with probability 0.12 are within 11 % of it, as a rule.
    assert apart / norm < 0.2
    # The control: the labels of the data.
    other = by_hand("classifier", classifier(), rows_of_a_classifier())
    assert sum(float((other[name] - expected[name]).square().sum()) for name in expected) ** 0.5 / norm > 0.5


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_seed_alone_however_rows_are_collated(case):
    make, rows = CASES[case]
    one_batch = estimate_fisher(make(), [rows()], rows=ROWS, seed=1)
    torch.rand(5)
    singly = [{name: one[index : index + 1] for name, one in rows().items()} for index in range(ROWS)]
    assert difference(one_batch, estimate_fisher(make(), singly, rows=ROWS, seed=1)) is None
    assert difference(one_batch, estimate_fisher(make(), singly, rows=ROWS, seed=2)) is not None


def test_no_more_rows_are_taken_than_asked_for():
    def endless():
        while True:
            yield rows_of_a_classifier()

    found = estimate_fisher(classifier(), endless(), rows=2, kind="empirical")
    two = {name: one[:2] for name, one in rows_of_a_classifier().items()}
    assert difference(found, estimate_fisher(classifier(), [two], rows=99, kind="empirical")) is None


def test_the_model_and_the_random_state_are_as_before():
    model = tiny_model()
    model.train()
    model.bert.pooler.eval()
    model.classifier.weight.grad = gradient = torch.ones_like(model.classifier.weight)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    state = torch.get_rng_state()
    parameters = dict(model.named_parameters())
    model.bert.embeddings.requires_grad_(False)
    found = estimate_fisher(model, [rows_of_a_classifier()], rows=4, parameters=parameters)
    assert found["bert.embeddings.word_embeddings.weight"].sum() > 0, "frozen ones that are asked for, too"
    assert torch.equal(torch.get_rng_state(), state)
    assert model.classifier.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(one.grad is None for name, one in model.named_parameters() if name != "classifier.weight")
    assert difference({name: one.detach() for name, one in model.named_parameters()}, before) is None
    assert model.training
    assert not model.bert.pooler.training
    assert not any(one.requires_grad for one in model.bert.embeddings.parameters())


def test_it_is_in_32_bits_of_a_model_in_16():
    model = tiny_model().to(torch.bfloat16)
    found = estimate_fisher(model, [rows_of_a_classifier()], rows=4)
    assert {one.dtype for one in found.values()} == {torch.float32}
    exact = estimate_fisher(tiny_model(), [rows_of_a_classifier()], rows=4, kind="empirical")
    rough = estimate_fisher(model, [rows_of_a_classifier()], rows=4, kind="empirical")
    assert largest_error(rough, exact) < 0.1


def test_a_scaled_loss_gives_the_same():
    plain, scaled = (
        estimate_fisher(classifier(), [rows_of_a_classifier()], rows=4, loss_scale=scale) for scale in (1.0, 1024.0)
    )
    assert largest_error(scaled, plain) < 1e-12


def regressor():
    model = tiny_model()
    model.config.problem_type = "regression"
    model.config.num_labels = model.num_labels = 1
    model.classifier = torch.nn.Linear(16, 1)
    return model


def test_a_loss_that_is_not_of_classes_is_refused_for_sampled_and_taken_for_empirical():
    batch = rows_of_a_classifier()
    batch["labels"] = batch["labels"].float()
    with pytest.raises(PluginError, match=r"sequential: fisher=sampled.*Set fisher=empirical"):
        estimate_fisher(regressor(), [batch], rows=4, kind="sampled")
    found = estimate_fisher(regressor(), [batch], rows=4, kind="empirical")
    assert all(one.sum() > 0 for name, one in found.items() if "classifier" in name)


def test_what_cannot_be_estimated_is_refused_with_the_mend():
    batch = rows_of_a_classifier()
    with pytest.raises(PluginError, match=r"sequential: ewc needs rows.*set ewc=0"):
        estimate_fisher(tiny_model(), [], rows=4)
    with pytest.raises(PluginError, match=r"gives none. Keep rows with labels"):
        estimate_fisher(tiny_model(), [{"input_ids": batch["input_ids"]}], rows=4)
    with pytest.raises(PluginError, match=r"cannot be taken apart.*Collate one row"):
        estimate_fisher(tiny_model(), [{**batch, "extra": torch.ones(2)}], rows=4)
    with pytest.raises(OptionError, match=r"fisher='exact'; there are sampled, empirical"):
        estimate_fisher(tiny_model(), [batch], rows=4, kind="exact")
    broken = tiny_model()
    with torch.no_grad():
        broken.bert.pooler.dense.weight[0, 0] = torch.nan
    with pytest.raises(PluginError, match=r"not finite"):
        estimate_fisher(broken, [batch], rows=4, kind="empirical")
