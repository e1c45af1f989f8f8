"""Dependency trees: the best one for given scores, and what is wrong with one that is none.

A tree over words 1 to W gives each word a head: another word, or 0 for the root, which exactly one word has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....errors import PluginError
from ..tasks import ABSENT, NAME


def maximum_spanning_tree(scores: np.ndarray) -> np.ndarray:
    """The tree with the highest sum of scores, among those with one child of the root.

    Args:
        scores: float [W, W + 1], finite; row w - 1 is word w, column 0 the root and column h word h as its head. A
            word's score for itself is not read.

    Returns:
        int64 [W], the heads; of several best trees, one of them.

    Raises:
        PluginError: no words, or a score that is not finite.
    """
    if len(scores) == 0:
        raise PluginError(f"{NAME}: a sentence without words has no tree. Leave it out.", code="data-rows")
    return maximum_spanning_trees(scores[None], np.ones((1, len(scores)), dtype=bool))[0]


def maximum_spanning_trees(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The best tree of every sentence in a batch.

    Where the best head of each word, taken alone, already makes a tree, it is the best tree; this is decided for the
    whole batch at once. The other sentences are solved one by one (see `_edmonds`).

    Args:
        scores: float [B, W, W + 1], as in `maximum_spanning_tree`.
        mask: bool [B, W], which words there are; others are no heads, and may stand anywhere.

    Returns:
        int64 [B, W], the heads; -100 where `mask` is False.

    Raises:
        PluginError: a score that is read is not finite.
    """
    rows, words = mask.shape
    scores, mask = np.asarray(scores, dtype=np.float64), np.asarray(mask, dtype=bool)
    candidates = np.concatenate([np.ones((rows, 1), dtype=bool), mask], axis=1)
    read = mask[:, :, None] & candidates[:, None, :]
    read[:, np.arange(words), np.arange(1, words + 1)] = False
    if not np.isfinite(scores[read]).all():
        raise PluginError(
            f"{NAME}: a parser's scores are not finite, so that it predicts no tree: the model has diverged. Train it "
            "with a lower learning rate.",
            code="not-finite",
        )
    heads = np.where(read, scores, -np.inf).argmax(-1)
    for row in np.flatnonzero(~_are_trees(heads, mask)):
        present = np.flatnonzero(mask[row])
        columns = np.concatenate([[0], present + 1])
        heads[row, present] = columns[_edmonds(scores[row][np.ix_(present, columns)])]
    return np.where(mask, heads, ABSENT)


def _are_trees(heads: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """bool [B]: whether the heads [B, W] of the words of `mask` make a tree with one root, or there are no words."""
    ancestors = np.pad(np.where(mask, heads, 0), ((0, 0), (1, 0)))
    for _ in range(heads.shape[1].bit_length()):  # each time twice as far up
        ancestors = np.take_along_axis(ancestors, ancestors, axis=1)
    roots = ((heads == 0) & mask).sum(1)
    return (ancestors == 0).all(1) & (roots == mask.any(1))


def _edmonds(scores: np.ndarray) -> np.ndarray:
    """`maximum_spanning_tree` by Chu-Liu/Edmonds: walk up the best arcs, and merge each cycle into one node.

    Merging a cycle of k nodes reads k rows and columns, so that a sentence takes O(W^2) as in Tarjan (1977).

    One root is had exactly, by weighing an arc with two numbers, of which the second counts only where the first are
    equal: minus one for an arc from the root, and the score. A best tree then has as few children of the root as it
    can, which is one, and of those trees the best score. This is the reweighting of Stanojevic and Cohen (2021, "A
    Root of a Problem") without its large constant, in which small differences of scores would drown. The
    pair is a complex number, since numpy orders these by their real parts first.
    """
    size = len(scores) + 1
    weights = np.zeros((size, size), dtype=np.complex128)
    weights.imag[1:] = scores
    weights.real[1:, 0] = -1
    weights[0] = -np.inf
    np.fill_diagonal(weights, -np.inf)
    arcs = np.arange(size * size).reshape(size, size)  # of the original graph: dependent * size + head
    nodes = np.arange(size)  # of each word: into which node it has been merged
    into = np.zeros(size, dtype=np.int64)  # of each node: its best arc
    merged: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    rooted = np.arange(size) == 0
    for word in range(1, size):
        path: list[int] = []
        node = int(nodes[word])
        while not rooted[node]:
            if node in path:
                cycle = path[path.index(node) :]
                del path[-len(cycle) :]
                merged.append((cycle, nodes.copy(), into[cycle]))
                _merge(cycle, weights, arcs)
                nodes[np.isin(nodes, cycle)] = node
            head = int(weights[node].argmax())
            into[node] = arcs[node, head]
            path.append(node)
            node = head
        rooted[path] = True
    for cycle, before, arcs_within in reversed(merged):
        entering = into[cycle[0]]
        into[cycle] = arcs_within
        into[before[entering // size]] = entering
    return into[1:] % size


def _merge(cycle: list[int], weights: np.ndarray, arcs: np.ndarray) -> None:
    """Make the first node of a cycle stand for all of it, in place."""
    node, members, every = cycle[0], np.array(cycle), np.arange(len(weights))
    # What a tree gains by entering the cycle at a member, whose arc within the cycle it then gives up.
    gains = weights[members] - weights[members].max(1, keepdims=True)
    best = gains.argmax(0)
    entering, its_arcs = gains[best, every], arcs[members[best], every]
    leaving = members[weights[:, members].argmax(1)]
    weights[:, node], arcs[:, node] = weights[every, leaving], arcs[every, leaving]
    weights[node], arcs[node] = entering, its_arcs
    weights[:, cycle[1:]] = -np.inf
    weights[node, node] = -np.inf


def tree_error(heads: Sequence[int]) -> str | None:
    """What keeps heads from being a tree over words 1 to W with one root, in words; None where nothing does."""
    words = len(heads)
    if words == 0:
        return "no words"
    for word, head in enumerate(heads, 1):
        if not 0 <= head <= words:
            return f"word {word} has head {head} of {words} words"
        if head == word:
            return f"a word is its own head (word {word})"
    roots = [str(word) for word, head in enumerate(heads, 1) if head == 0]
    if not roots:
        return "no root"
    if len(roots) > 1:
        return f"{len(roots)} roots (words {', '.join(roots[:-1])} and {roots[-1]})"
    rooted = {0}
    for word in range(1, words + 1):
        path: list[int] = []
        node = word
        while node not in rooted:
            if node in path:
                cycle = sorted(path[path.index(node) :])
                return f"a cycle of words {', '.join(map(str, cycle))}"
            path.append(node)
            node = heads[node - 1]
        rooted.update(path)
    return None
