"""Heads of all kinds against torch's own losses, and what they have in common."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask.heads.crf import bio_rule
from hf_ft_plugins.techniques.multitask.heads.pooling import pool_sequence, pool_words
from hf_ft_plugins.techniques.multitask.heads.task_heads import HEADS, count_items, make_head
from hf_ft_plugins.techniques.multitask.tasks import KINDS, WORD_KINDS
from tests.techniques.multitask.heads.small_heads import (
    BIO,
    HIDDEN,
    NAN,
    ROWS,
    WORDS,
    chain_by_enumeration,
    example,
    mask_of,
    new_head,
)

on_all = pytest.mark.parametrize("kind", KINDS)


# ---- losses ----


def expected_loss(kind, head, scores, labels):
    """The summed loss by torch's own functions, item by item, and the number of items."""
    if kind == "sequence":
        return cross_entropy(scores, labels, ignore_index=-100, reduction="sum"), 2
    if kind in ("multi_label", "regression"):
        loss = binary_cross_entropy_with_logits if kind == "multi_label" else mse_loss
        known = [~torch.isnan(row) for row in labels[:2]]
        return sum(loss(scores[row][known[row]], labels[row][known[row]]) for row in range(2)), 2
    if kind == "token":
        return cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum"), 7
    if kind == "crf":
        weights = (head.chain.transitions, head.chain.start, head.chain.end)
        total = 0.0
        for row, length in ((0, 5), (1, 4)):
            sequences, totals = chain_by_enumeration(scores[row, :length], *weights)
            agrees = ((sequences == labels[row, :length]) | (labels[row, :length] == -100)).all(1)
            total = total + totals.logsumexp(0) - totals[agrees].logsumexp(0)
        return total, 7
    if kind == "dependency":
        relations = head.scorer.label_scores(scores, labels[..., 0].clamp(min=0))
        total = 0.0
        for row, length in ((0, 5), (1, 4)):  # heads up to the last labelled word
            for word in range(length):
                if labels[row, word, 0] != -100:
                    total = total + cross_entropy(scores["arcs"][row, word, : length + 1], labels[row, word, 0])
                    total = total + cross_entropy(relations[row, word], labels[row, word, 1])
        return total, 7
    return cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"), 6


@on_all
def test_losses_are_sums_of_torchs_own_with_their_items(kind):
    head = new_head(kind)
    features, labels = example(kind)
    features.requires_grad_()
    scores = head(features)
    loss, items = head.loss_sum(scores, labels)
    expected, number = expected_loss(kind, head, scores, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert items.item() == count_items(kind, labels).item() == number
    assert (loss.dtype, items.dtype, loss.shape, items.shape) == (torch.float32, torch.int64, (), ())
    gradients = [torch.autograd.grad(value, features, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    shifted, _ = head.loss_sum(scores, labels.roll(1, 0))
    assert abs(loss - shifted) > 1e-2, "the control, labels of other rows, has another loss"


def test_a_tree_may_have_its_head_after_the_last_label():
    head = new_head("dependency")
    labels = torch.full((1, WORDS, 2), -100)
    labels[0, 0] = torch.tensor([4, 1])
    scores = head(torch.randn(1, WORDS, HIDDEN))
    expected = cross_entropy(scores["arcs"][0, 0, :5], torch.tensor(4))
    expected = expected + cross_entropy(
        head.scorer.label_scores(scores, labels[..., 0].clamp(min=0))[0, 0], labels[0, 0, 1]
    )
    torch.testing.assert_close(head.loss_sum(scores, labels)[0], expected)


def test_a_regression_of_one_number_takes_a_number_a_row():
    head = make_head("regression", HIDDEN, ["score"])
    features, labels = torch.randn(4, HIDDEN), torch.tensor([1.0, NAN, 3.0, 4.0])
    loss, items = head.loss_sum(head(features), labels)
    present = [0, 2, 3]
    torch.testing.assert_close(loss, mse_loss(head(features)[present, 0], labels[present], reduction="sum"))
    assert items == 3
    with pytest.raises(PluginError, match=r"the labels have the shape \(4, 2\), and the head predicts \(4, 1\)"):
        head.loss_sum(head(features), torch.zeros(4, 2))


def padded(kind, features, labels, mask):
    """A row more, and two words or tokens more in each."""
    absent = NAN if labels.is_floating_point() else -100
    more = 2 if features.ndim == 3 else 0
    size = (ROWS + 1, *labels.shape[1:]) if not more else (ROWS + 1, WORDS + more, *labels.shape[2:])
    wide = torch.full(size, absent, dtype=labels.dtype)
    wide[tuple(slice(length) for length in labels.shape)] = labels
    wider = torch.randn(ROWS + 1, *((WORDS + more,) if more else ()), HIDDEN) * 9
    wider[tuple(slice(length) for length in features.shape)] = features
    if mask is not None:
        mask = torch.nn.functional.pad(mask, (0, more, 0, 1))
    return wider, wide, mask


@on_all
def test_padding_changes_no_loss_and_no_prediction(kind):
    head, mask = new_head(kind), mask_of(kind)
    features, labels = example(kind)
    wide_features, wide_labels, wide_mask = padded(kind, features, labels, mask)
    scores, wide_scores = head(features), head(wide_features)
    loss, items = head.loss_sum(scores, labels)
    wide_loss, wide_items = head.loss_sum(wide_scores, wide_labels)
    torch.testing.assert_close(wide_loss, loss, rtol=1e-6, atol=1e-6)
    assert items == wide_items == count_items(kind, wide_labels)
    found, wide = head.decode(scores, mask), head.decode(wide_scores, wide_mask)
    inside = tuple(slice(length) for length in found.shape)
    torch.testing.assert_close(wide[inside], found, rtol=1e-6, atol=1e-6)
    if mask is not None:
        assert (wide[~wide_mask] == -100).all()
        assert (found[mask] >= 0).all()
        changed = wide_features.clone()
        changed[:ROWS, :WORDS] += 1
        assert abs(head.loss_sum(head(changed), wide_labels)[0] - loss) > 1e-3, "the control: what is no padding counts"


@on_all
def test_no_items_are_a_loss_of_0_that_can_be_differentiated(kind):
    head = new_head(kind)
    features, labels = example(kind)
    nothing = labels.new_full(labels.shape, NAN if labels.is_floating_point() else -100)
    cases = [(features, nothing), (features[:0], labels[:0])]
    if kind in WORD_KINDS:
        cases.append((features[:, :0], labels[:, :0]))
    for given, absent in cases:
        loss, items = head.loss_sum(head(given.requires_grad_()), absent)
        assert (loss.item(), items.item(), count_items(kind, absent).item()) == (0.0, 0, 0)
        gradients = torch.autograd.grad(loss, [given, *head.parameters()], allow_unused=True)
        assert gradients[0] is not None
        assert all((gradient == 0).all() for gradient in gradients if gradient is not None)
        mask = mask_of(kind)
        head.decode(head(given), None if mask is None else mask[: len(given), : given.shape[1]])


@on_all
def test_losses_of_bfloat16_features_are_float32(kind):
    features, labels = example(kind)
    head, mask = new_head(kind), mask_of(kind)
    exact, _ = head.loss_sum(head(features), labels)
    rounded = new_head(kind).to(torch.bfloat16)
    rounded.load_state_dict(head.state_dict())
    losses = {
        "bfloat16 features": head.loss_sum(head(features.bfloat16()), labels)[0],
        "bfloat16 weights": rounded.loss_sum(rounded(features.bfloat16()), labels)[0],
    }
    with torch.autocast("cpu", torch.bfloat16):
        losses["autocast"] = head.loss_sum(head(features), labels)[0]
        losses["autocast, bfloat16 features"] = head.loss_sum(head(features.bfloat16()), labels)[0]
        head.decode(head(features), mask)
    for case, loss in losses.items():
        assert loss.dtype is torch.float32, case
        torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1, msg=case)
        loss.backward()


@on_all
def test_nothing_waits_for_the_device(kind):
    """With tensors that have no values whatever reads one fails."""
    with FakeTensorMode() as fake:
        features, labels = (fake.from_tensor(tensor) for tensor in example(kind))
        head = make_head(kind, HIDDEN, BIO)
        count_items(kind, labels)
        loss, _ = head.loss_sum(head(features), labels)
        loss.backward()
        ids = torch.zeros(ROWS, 9, dtype=torch.int64)
        for how in ("first", "last", "mean"):
            hidden = torch.empty(ROWS, 9, HIDDEN, requires_grad=True)
            (pool_words(hidden, ids, how, WORDS).sum() + pool_sequence(hidden, ids, how).sum()).backward()
        for control in (lambda: labels[labels == 0], lambda: int(labels.sum())):
            with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
                control()


# ---- what is made ----


def test_every_kind_of_task_has_a_head():
    assert tuple(HEADS) == KINDS


@on_all
def test_new_weights_follow_the_global_seed_and_their_papers(kind):
    def reset(module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(make_head(kind, 400, range(400) if kind == "causal_lm" else [f"{number}" for number in range(400)]))
    for parameter in made[1].parameters():
        torch.nn.init.constant_(parameter, 7.0)
    # As a model does for what its checkpoint lacks: modules first, and then what holds them.
    made[1].apply(reset)
    for head in made:
        weights = dict(head.named_parameters())
        assert not any(weight.any() for name, weight in weights.items() if "bias" in name or "chain" in name)
        if kind == "dependency":
            network = head.scorer.arc_head.weight
            torch.testing.assert_close(network @ network.T, torch.eye(256), rtol=0, atol=1e-5)
            assert not head.scorer.label_weight.any()
            assert head.scorer.root.std().item() == pytest.approx(1, rel=0.2)
        else:
            assert head.linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    same, other = (next(make.parameters()) for make in (made[0], made[2]))
    torch.manual_seed(3)
    again = make_head(kind, 400, range(400) if kind == "causal_lm" else [f"{number}" for number in range(400)])
    assert torch.equal(same, next(again.parameters()))
    assert not torch.equal(same, other)


@on_all
def test_heads_are_made_in_any_type_on_any_device(kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for device in ("cpu", "meta"):
            with torch.device(device):
                made = make_head(kind, HIDDEN, BIO)
            assert {(weight.dtype, weight.device.type) for weight in made.parameters()} == {(torch.bfloat16, device)}
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("kind", "labels", "options", "said"),
    [
        ("tokens", BIO, {}, "no head of kind 'tokens'. Did you mean 'token'\\? Kinds: sequence, multi_label, reg"),
        ("token", (), {}, "a head of kind 'token' has no labels"),
        (
            "dependency",
            BIO,
            {"arc_dims": 3},
            "no option 'arc_dims'. Did you mean 'arc_dim'\\? Its options are: arc_dim",
        ),
        ("token", BIO, {"arc_dim": 3}, "Its options are: \\(none\\)"),
        ("dependency", BIO, {"label_dim": 0}, "label_dim=0, dropout=0.33: the widths must be 1 or more"),
        ("dependency", BIO, {"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_a_head_that_cannot_be_made_is_explained(kind, labels, options, said):
    with pytest.raises(PluginError, match=said):
        make_head(kind, HIDDEN, labels, **options)


def test_the_rule_does_not_hold_a_head_to_its_labels_order():
    follows, _ = bio_rule(BIO)
    backwards, _ = bio_rule(BIO[::-1])
    assert np.array_equal(follows, backwards[::-1, ::-1])
