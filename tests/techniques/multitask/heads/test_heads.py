"""Heads and pooling against loops, torch's own losses and sums over all sequences."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, leaky_relu, mse_loss
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask.heads.crf import bio_rule, log_likelihood, viterbi
from hf_ft_plugins.techniques.multitask.heads.pooling import pool_sequence, pool_words
from hf_ft_plugins.techniques.multitask.heads.task_heads import HEADS, count_items, make_head
from hf_ft_plugins.techniques.multitask.heads.trees import maximum_spanning_tree
from hf_ft_plugins.techniques.multitask.tasks import KINDS, WORD_KINDS

torch.set_num_threads(1)
HIDDEN, ROWS, WORDS = 10, 3, 5
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NAN = float("nan")
on_all = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def new_head(kind, **options):
    """A head that is evaluated, with random weights also where new ones are 0."""
    head = make_head(kind, HIDDEN, BIO, **options).train(False)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def example(kind):
    """Features and labels of three rows: one whole, one labelled in part, one not labelled."""
    if kind in ("sequence", "multi_label", "regression"):
        labels = torch.rand(ROWS, len(BIO)).round() if kind == "multi_label" else torch.randn(ROWS, len(BIO))
        labels[1, 1:3], labels[2] = NAN, NAN
        return torch.randn(ROWS, HIDDEN), torch.tensor([2, 4, -100]) if kind == "sequence" else labels
    labels = torch.tensor([[0, 1, 2, 3, 4], [-100, 1, -100, 2, -100], [-100] * WORDS])
    if kind == "dependency":
        heads = torch.tensor([[2, 0, 2, 5, 2], [-100, 0, -100, 2, -100], [-100] * WORDS])
        labels = torch.stack([heads, labels], dim=-1)
    return torch.randn(ROWS, WORDS, HIDDEN), labels


def mask_of(kind):
    """Words that are there, of which row 1 lacks the last."""
    mask = torch.ones(ROWS, WORDS, dtype=torch.bool)
    mask[1, -1] = False
    return mask if kind in (*WORD_KINDS, "causal_lm") else None


# ---- pooling ----


def pooled_by_loop(hidden, word_ids, how, words):
    result = torch.zeros(len(hidden), words, hidden.shape[-1], dtype=hidden.dtype)
    for row in range(len(hidden)):
        for word in range(words):
            own = hidden[row, word_ids[row] == word]
            if len(own):
                result[row, word] = {"first": own[0], "last": own[-1], "mean": own.mean(0)}[how]
    return result


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_words_are_pooled_as_by_a_loop(how):
    word_ids = torch.tensor(
        [[-1, 0, 0, 0, 1, 2, -1], [-1, -1, -1, 0, 2, 2, 5], [-1, -1, -1, -1, -1, -1, -1], [0, 1, 2, 3, 3, 4, 4]]
    )
    hidden = torch.randn(4, 7, HIDDEN, dtype=torch.float64, requires_grad=True)
    found, expected = pool_words(hidden, word_ids, how, 4), pooled_by_loop(hidden, word_ids, how, 4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((pooled * weights).sum(), hidden)[0] for pooled in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    others = [pooled_by_loop(hidden, word_ids, other, 4) for other in ("first", "last", "mean") if other != how]
    assert not any(torch.allclose(found, other) for other in others), "the control tells the three apart"
    assert pool_words(hidden.bfloat16(), word_ids, how, 4).dtype is torch.bfloat16
    assert pool_words(hidden, word_ids, how, 0).shape == (4, 0, HIDDEN)
    if how != "mean":
        assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_sequences_are_pooled_on_either_side_of_their_padding(how):
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    hidden = torch.randn(4, 5, HIDDEN)
    expected = pooled_by_loop(hidden, mask - 1, how, 1)[:, 0]
    hidden[mask == 0] = NAN
    for given in (mask, mask.bool()):
        torch.testing.assert_close(pool_sequence(hidden, given, how), expected)
    with pytest.raises(PluginError, match="not by 'max'"):
        pool_words(hidden, mask - 1, "max", 1)


# ---- the chain ----


def chain_by_enumeration(emissions, transitions, start, end):
    """All label sequences of one sentence with their scores, for others not to be found."""
    words, classes = emissions.shape
    sequences = torch.tensor(list(itertools.product(range(classes), repeat=words)))
    scores = start[sequences[:, 0]] + end[sequences[:, -1]] + emissions[torch.arange(words), sequences].sum(1)
    if words > 1:
        scores = scores + transitions[sequences[:, :-1], sequences[:, 1:]].sum(1)
    return sequences, scores


def chain(classes=4, lengths=(4, 1, 3, 4)):
    emissions = torch.randn(len(lengths), max(lengths), classes, dtype=torch.float64) * 2
    chain_scores = [torch.randn(*size, dtype=torch.float64) for size in ((classes, classes), (classes,), (classes,))]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return emissions.requires_grad_(), mask, [scores.requires_grad_() for scores in chain_scores]


def test_the_likelihood_of_whole_and_partial_labels_is_that_of_all_sequences():
    emissions, mask, scores = chain()
    labels = torch.tensor([[0, 3, 1, 2], [2, -100, -100, -100], [-100, 1, -100, -100], [1, -100, -100, 0]])
    found = log_likelihood(emissions, labels, mask, *scores)
    expected = []
    for row, length in enumerate(mask.sum(1).tolist()):
        sequences, totals = chain_by_enumeration(emissions[row, :length], *scores)
        agrees = ((sequences == labels[row, :length]) | (labels[row, :length] == -100)).all(1)
        expected.append(totals[agrees].logsumexp(0) - totals.logsumexp(0))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-10)
    given = [emissions, *scores]
    gradients = [torch.autograd.grad(total.sum(), given) for total in (found, torch.stack(expected))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    guessed = log_likelihood(emissions, labels.clamp(min=0), mask, *scores)
    assert torch.allclose(guessed[:2], found[:2]), "where no label of a word is missing"
    assert (guessed[2:] < found[2:] - 0.1).all(), "the control, one label for the missing ones, is less likely"


def test_the_best_labels_are_those_of_all_sequences():
    emissions, mask, (transitions, start, end) = chain(classes=5, lengths=(4, 1, 3, 4, 4, 2))
    follows, first = (torch.from_numpy(rule) for rule in bio_rule(BIO))
    bound = transitions.masked_fill(~follows, -torch.inf), start.masked_fill(~first, -torch.inf), end
    differ = 0
    for scores in ((transitions, start, end), bound):
        found = viterbi(emissions, mask, *scores)
        for row, length in enumerate(mask.sum(1).tolist()):
            sequences, totals = chain_by_enumeration(emissions[row, :length], *scores)
            assert torch.equal(found[row, :length], sequences[totals.argmax()])
            differ += not torch.equal(found[row, :length], emissions[row, :length].argmax(1))
    assert differ > 4, "the control, each word alone, finds others"


def test_only_spans_that_begin_are_decoded():
    follows, first = bio_rule(("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC"))
    assert first.tolist() == [True, True, False, True, False, True], "I-MISC has no B-MISC: IOB1"
    assert follows[:, 2].tolist() == [False, True, True, False, False, False]
    assert follows[:, 4].tolist() == [False, False, False, True, True, False]
    assert follows[:, [0, 1, 3, 5]].all()
    broken = {}
    for constrain in (True, False):
        torch.manual_seed(0)
        head = new_head("crf", constrain=constrain)
        mask = torch.rand(40, 12) < 0.8
        found = head.decode(head(torch.randn(40, 12, HIDDEN)), mask)
        assert torch.equal(found == -100, ~mask)
        sentences = [[BIO[label] for label in row[row != -100]] for row in found]
        broken[constrain] = sum(
            label.startswith("I-") and before not in (label, f"B-{label[2:]}")
            for sentence in sentences
            for before, label in itertools.pairwise(["O", *sentence])
        )
    assert broken[True] == 0
    assert broken[False] > 20, "the control breaks the rule"


# ---- the parser ----


def test_parser_scores_are_those_of_a_loop():
    head = new_head("dependency", arc_dim=6, label_dim=4)
    features, _ = example("dependency")
    scores, scorer = head(features), head.scorer
    heads = torch.randint(WORDS + 1, (ROWS, WORDS))
    relations = scorer.label_scores(scores, heads)
    one = torch.ones(1)
    for row in range(ROWS):
        candidates = [scorer.root, *features[row]]
        for word in range(WORDS):
            for number, candidate in enumerate(candidates):
                dependent = torch.cat([leaky_relu(scorer.arc_dependent(features[row, word]), 0.1), one])
                governor = leaky_relu(scorer.arc_head(candidate), 0.1)
                expected = dependent @ scorer.arc_weight @ governor
                torch.testing.assert_close(scores["arcs"][row, word, number], expected, rtol=1e-4, atol=1e-4)
            dependent = torch.cat([leaky_relu(scorer.label_dependent(features[row, word]), 0.1), one])
            governor = torch.cat([leaky_relu(scorer.label_head(candidates[heads[row, word]]), 0.1), one])
            expected = torch.stack([dependent @ weight @ governor for weight in scorer.label_weight])
            torch.testing.assert_close(relations[row, word], expected, rtol=1e-4, atol=1e-4)


def test_a_parse_is_the_best_tree_with_the_best_relations():
    head = new_head("dependency")
    features = torch.randn(20, WORDS, HIDDEN)
    mask = torch.rand(20, WORDS) < 0.8
    scores = head(features)
    parsed = head.decode(scores, mask)
    assert torch.equal(parsed == -100, ~mask[..., None].expand_as(parsed))
    relations = head.scorer.label_scores(scores, parsed[..., 0].clamp(min=0)).argmax(-1)
    assert torch.equal(parsed[..., 1], relations.masked_fill(~mask, -100))
    for row in range(20):
        words = mask[row].nonzero()[:, 0]
        columns = torch.cat([torch.zeros(1, dtype=torch.long), words + 1])
        if len(words):
            tree = maximum_spanning_tree(scores["arcs"][row][words][:, columns].detach().numpy())
            assert torch.equal(parsed[row, words, 0], columns[torch.from_numpy(tree)])
    greedy = scores["arcs"].argmax(-1).masked_fill(~mask, -100)
    assert not torch.equal(parsed[..., 0], greedy), "the control, each word's best head, makes no trees"


class Sizes(TorchDispatchMode):
    """The most elements of any tensor made."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor):
                self.most = max(self.most, made.numel())
        return result


def test_relations_of_all_pairs_of_words_are_never_scored():
    rows, words, relations = 2, 60, 8
    head = make_head("dependency", HIDDEN, range(relations), arc_dim=8, label_dim=8)
    features = torch.randn(rows, words, HIDDEN)
    labels = torch.stack([torch.randint(words + 1, (rows, words)), torch.randint(relations, (rows, words))], -1)
    with Sizes() as sizes:
        scores = head(features)
        head.loss_sum(scores, labels)[0].backward()
        head.decode(scores, torch.ones(rows, words, dtype=torch.bool))
    assert rows * words * words <= sizes.most < rows * words * words * relations / 2


@pytest.mark.parametrize("kind", ["crf", "dependency"])
def test_new_weights_learn(kind):
    features, labels = example(kind)
    features, labels = features[:1], labels[:1]
    head = make_head(kind, HIDDEN, BIO, **({} if kind == "crf" else {"dropout": 0.0}))
    labels = torch.tensor([[0, 1, 2, 3, 4]]) if kind == "crf" else labels
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = head.loss_sum(head(features), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    assert torch.equal(head.decode(head(features), torch.ones(1, WORDS, dtype=torch.bool)), labels)


def test_dropout_is_the_same_for_all_words_of_a_row():
    scorer = make_head("dependency", HIDDEN, BIO, dropout=0.5).scorer.train()
    dropped = scorer(torch.randn(ROWS, WORDS, HIDDEN))["label_head"] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])


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
