"""The biaffine parser against loops."""

import pytest
import torch
from torch.nn.functional import leaky_relu
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ft_plugins.techniques.multitask.heads.task_heads import make_head
from hf_ft_plugins.techniques.multitask.heads.trees import maximum_spanning_tree
from tests.techniques.multitask.heads.small_heads import BIO, HIDDEN, ROWS, WORDS, example, new_head


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
