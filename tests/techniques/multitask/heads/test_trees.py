"""Maximum spanning trees against all trees there are, and the errors of trees that are none."""

import itertools
import time

import numpy as np
import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask.heads.trees import maximum_spanning_tree, maximum_spanning_trees, tree_error


def is_tree(heads):
    """Whether from each word one comes to the root, which has one child."""
    for word in range(1, len(heads) + 1):
        node, steps = word, 0
        while node and steps <= len(heads):
            node, steps = heads[node - 1], steps + 1
        if node:
            return False
    return list(heads).count(0) == 1


ALL_TREES = {
    words: np.array([heads for heads in itertools.product(range(words + 1), repeat=words) if is_tree(heads)])
    for words in range(1, 6)
}


def total(scores, heads):
    return scores[np.arange(len(scores)), heads].sum(-1)


def best_total(scores):
    return total(scores, ALL_TREES[len(scores)]).max()


def random_scores(kind, words, random):
    if kind == "random":
        return random.normal(size=(words, words + 1))
    if kind == "tied":
        return random.integers(0, 3, size=(words, words + 1)).astype(float)
    scores = random.normal(size=(words, words + 1))  # every word prefers the root
    scores[:, 0] += 5
    return scores


def as_hard_as_can_be(words):
    """Every merged cycle is at once in another one, up to the whole sentence."""
    scores = np.zeros((words, words + 1))
    for word in range(1, words + 1):
        scores[word - 1, 1:word] = -np.arange(word, 1, -1) * 10.0
        scores[word - 1, word + 1 :] = -np.arange(1, words - word + 1) * 1000.0 * word
    scores[0, 2:] = np.arange(words - 1, 0, -1)
    scores[:, 0] = -1e7
    return scores


@pytest.mark.parametrize("kind", ["random", "tied", "many roots"])
def test_no_tree_is_better(kind):
    random = np.random.default_rng(0)
    greedy_fails = 0
    for words in range(1, 6):
        for _ in range(150 if words < 5 else 60):
            scores = random_scores(kind, words, random)
            own = np.arange(words)
            scores[own, own + 1] = 1e6  # not read
            heads = maximum_spanning_tree(scores)
            assert is_tree(heads)
            assert total(scores, heads) == pytest.approx(best_total(scores), abs=1e-9)
            scores[own, own + 1] = -np.inf
            greedy_fails += not is_tree(scores.argmax(1))
    assert greedy_fails > 100, "the control: the best heads one by one are no tree"


def best_by_root(scores):
    """The best tree's score by another implementation: one search without root for each word as the root's child."""
    networkx = pytest.importorskip("networkx")
    words = len(scores)
    found = []
    for top in range(words):
        graph = networkx.DiGraph()
        arcs = [(head, word) for head in range(words) for word in range(words) if word not in (head, top)]
        graph.add_weighted_edges_from([(head, word, scores[word, head + 1]) for head, word in arcs])
        tree = networkx.maximum_spanning_arborescence(graph)
        found.append(scores[top, 0] + tree.size("weight"))
    return max(found)


@pytest.mark.parametrize("kind", ["random", "tied", "many roots", "hard"])
def test_no_tree_of_a_longer_sentence_is_better(kind):
    scores = as_hard_as_can_be(14) if kind == "hard" else random_scores(kind, 14, np.random.default_rng(0))
    heads = maximum_spanning_tree(scores)
    assert is_tree(heads)
    assert total(scores, heads) == pytest.approx(best_by_root(scores), rel=1e-12)


def test_one_root_costs_no_precision():
    scores = np.array([[1e12, 0.0, 1.0], [1e12, 1.0 + 1e-9, 0.0]])
    assert maximum_spanning_tree(scores).tolist() == [0, 1]
    large = scores.copy()
    large[:, 0] -= 1 + 2 * 1e12
    assert large[0, 0] + large[1, 1] == large[1, 0] + large[0, 2], "the control: a large constant drowns it"


def test_one_tree_of_a_long_sentence_is_quick():
    random = np.random.default_rng(0)
    hardest = as_hard_as_can_be(40)
    for scores in (hardest, random.normal(size=(40, 41)), random_scores("many roots", 40, random)):
        maximum_spanning_tree(scores)
        durations = []
        for _ in range(5):
            begin = time.perf_counter()
            heads = maximum_spanning_tree(scores)
            durations.append(time.perf_counter() - begin)
        assert is_tree(heads)
        assert min(durations) < 0.03, durations


def test_a_batch_is_its_sentences():
    """Words that are missing, at the end or within, are heads of none."""
    random = np.random.default_rng(1)
    scores = random.normal(size=(60, 7, 8))
    scores[:30, np.arange(7), np.arange(7)] += 4  # mostly chains, which need no search
    mask = random.random((60, 7)) < 0.7
    mask[0], mask[1] = False, True
    heads = maximum_spanning_trees(scores, mask)
    assert (heads[~mask] == -100).all()
    for row, present, found in zip(scores, mask, heads, strict=True):
        words = np.flatnonzero(present)
        if len(words):
            columns = np.concatenate([[0], words + 1])
            expected = columns[maximum_spanning_tree(row[np.ix_(words, columns)])]
            assert found[words].tolist() == expected.tolist()
    scores[~mask] = np.nan
    np.moveaxis(scores, 2, 1)[:, 1:][~mask] = np.inf
    assert (maximum_spanning_trees(scores, mask) == heads).all()


def test_scores_without_a_tree_are_refused():
    with pytest.raises(PluginError, match="without words has no tree"):
        maximum_spanning_tree(np.zeros((0, 1)))
    with pytest.raises(PluginError, match="the model has diverged"):
        maximum_spanning_tree(np.array([[0.0, 0.0, np.nan], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ([2, 0, 2], None),
        ([0], None),
        ([], "no words"),
        ([4, 0, 0, 3, 3, 3, 0], "3 roots (words 2, 3 and 7)"),
        ([2, 1, 0, 0], "2 roots (words 3 and 4)"),
        ([2, 1], "no root"),
        ([0, 5, 1, 2, 4], "a cycle of words 2, 4, 5"),
        ([0, 1, 1, 19], "word 4 has head 19 of 4 words"),
        ([0, -1], "word 2 has head -1 of 2 words"),
        ([0, 2], "a word is its own head (word 2)"),
    ],
)
def test_what_is_wrong_with_a_tree_is_said(heads, said):
    assert tree_error(heads) == said


def test_what_has_no_error_is_a_tree():
    for words in range(1, 6):
        every = itertools.product(range(words + 1), repeat=words)
        assert [heads for heads in every if tree_error(heads) is None] == [tuple(tree) for tree in ALL_TREES[words]]
