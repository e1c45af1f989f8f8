"""The heads of a multi-task model: one for each kind of task, alike from outside.

    head = make_head("token", hidden_size=768, labels=["NOUN", "VERB"])
    scores = head(features)
    loss, items = head.loss_sum(scores, labels)
    predicted = head.decode(scores, mask)

A loss is a sum in float32 and comes with its number of items, so that batches, accumulation steps and ranks add up.
Heads of `crf` and `dependency` have parameters that only `loss_sum` uses: under DDP, call it in the model's `forward`.

B rows, S tokens, W words (padding at the end), H features, C labels. Absent labels are -100, absent numbers NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, pad
from transformers import initialization

from ....errors import PluginError
from ....near import nearest
from ..tasks import ABSENT, NAME
from .biaffine import BiaffineScorer
from .crf import LinearChain
from .trees import maximum_spanning_trees


class TaskHead(nn.Module):
    """What all heads offer, besides `forward(features) -> scores`."""

    kind: ClassVar[str]

    def loss_sum(self, scores: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the items' losses, float32 scalar, and their number, int64 scalar; 0 and 0 where there is none."""
        return self._summed(scores, labels), count_items(self.kind, labels)

    def decode(self, scores: Any, mask: Tensor | None = None) -> Tensor:
        """What is predicted; see each head.

        Args:
            mask: bool [B, W], of `causal_lm` [B, S], where there is something to predict; None for everywhere. Heads
                over rows do not read it.
        """
        raise NotImplementedError

    def _summed(self, scores: Any, labels: Tensor) -> Tensor:
        raise NotImplementedError


class LinearHead(TaskHead):
    """Scores by one linear layer, its weights from N(0, 0.02) and its bias 0."""

    def __init__(self, hidden_size: int, labels: Sequence[Any], bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, len(labels), bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, from the global random state."""
        initialization.normal_(self.linear.weight, std=0.02)
        if self.linear.bias is not None:
            initialization.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores [..., C] of features [..., H]."""
        return self.linear(features.to(self.linear.weight.dtype))


class SequenceHead(LinearHead):
    """One class a row: features [B, H], labels int64 [B]; cross-entropy, an item is a row."""

    kind = "sequence"

    def __init__(self, hidden_size: int, labels: Sequence[str]) -> None:
        super().__init__(hidden_size, labels)

    def _summed(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(scores, labels)

    def decode(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits, float32 [B, C]."""
        return scores.float()


class MultiLabelHead(SequenceHead):
    """Any number of classes a row: features [B, H], labels float [B, C]; an item is a row.

    Its loss is the mean of the binary cross-entropies of its classes; one that is NaN is left out, and so is a row of
    NaN.
    """

    kind = "multi_label"

    def _summed(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _sum_of_row_means(binary_cross_entropy_with_logits, scores, labels)


class RegressionHead(SequenceHead):
    """Numbers for a row: features [B, H], labels float [B, C], or [B] for one number; an item is a row.

    Its loss is the mean of the squared errors of its numbers; one that is NaN is left out, and so is a row of NaN.
    What is decoded are the numbers, float32 [B, C].
    """

    kind = "regression"

    def _summed(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _sum_of_row_means(mse_loss, scores, labels[:, None] if labels.ndim == 1 else labels)


class TokenHead(SequenceHead):
    """One class a word: features [B, W, H], labels int64 [B, W]; cross-entropy, an item is a word."""

    kind = "token"

    def decode(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classes, int64 [B, W]; -100 outside `mask`."""
        return _within(scores.argmax(-1), mask)


class CRFHead(LinearHead):
    """One class a word, a sentence's as a whole: features [B, W, H], labels int64 [B, W]; an item is a labelled word.

    Its loss is the negative log-likelihood in nats of a row's labels (see `LinearChain`, also for the arguments).
    """

    kind = "crf"

    def __init__(self, hidden_size: int, labels: Sequence[str], constrain: bool = True) -> None:
        super().__init__(hidden_size, labels)
        self.chain = LinearChain(labels, constrain)

    def _summed(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -self.chain.log_likelihood(scores, labels).sum()

    def decode(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """The best sequences of classes, int64 [B, W]; -100 outside `mask`, whose words may stand anywhere."""
        if mask is None:
            mask = torch.ones_like(scores[..., 0], dtype=torch.bool)
        return _within(self.chain.decode(scores, mask), mask)


class DependencyHead(TaskHead):
    """A tree over the words: features [B, W, H], labels int64 [B, W, 2] of (head 0..W, relation); an item is a word.

    Its loss is the cross-entropy of its head plus that of its relation given the true head. Heads that compete are the
    root and the words up to the last that has a label or is a head. A word's head decides whether it has a label; a
    relation of -100 with a head costs nothing.

    Args:
        labels: names of the relations.
        arc_dim, label_dim, dropout: as in `BiaffineScorer`.
    """

    kind = "dependency"

    def __init__(
        self, hidden_size: int, labels: Sequence[str], arc_dim: int = 256, label_dim: int = 128, dropout: float = 0.33
    ) -> None:
        super().__init__()
        self.scorer = BiaffineScorer(hidden_size, len(labels), arc_dim, label_dim, dropout)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """See `BiaffineScorer.forward`."""
        return self.scorer(features)

    def _summed(self, scores: dict[str, Tensor], labels: Tensor) -> Tensor:
        heads, relations = labels.unbind(-1)
        labelled = heads != ABSENT
        words = heads.shape[1]
        numbers = torch.arange(words + 1, device=labels.device)
        last = pad(torch.where(labelled, torch.maximum(heads, numbers[1:]), 0), (1, 0)).amax(1)
        arcs = scores["arcs"].masked_fill(numbers > last[:, None, None], -torch.inf)
        relation_scores = self.scorer.label_scores(scores, heads.clamp(min=0))
        return _cross_entropy(arcs, heads) + _cross_entropy(relation_scores, torch.where(labelled, relations, ABSENT))

    def decode(self, scores: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Heads and relations, int64 [B, W, 2]; -100 outside `mask`, whose words may stand anywhere.

        The heads are the maximum spanning tree with one root (`trees.py`), a word's relation the best for its head.
        """
        arcs = scores["arcs"]
        if mask is None:
            mask = torch.ones_like(arcs[..., 0], dtype=torch.bool)
        trees = maximum_spanning_trees(arcs.detach().float().cpu().numpy(), mask.cpu().numpy())
        heads = torch.from_numpy(trees).to(arcs.device)
        relations = self.scorer.label_scores(scores, heads.clamp(min=0)).argmax(-1)
        return torch.stack([heads, _within(relations, mask)], dim=-1)


class CausalLMHead(LinearHead):
    """The next token: features [B, S, H], labels int64 [B, S] as in transformers, each to be predicted one before.

    An item is a label other than the first of its row; cross-entropy.

    Args:
        labels: as many as the vocabulary has tokens, such as `range(vocab_size)`.
    """

    kind = "causal_lm"

    def __init__(self, hidden_size: int, labels: Sequence[Any]) -> None:
        super().__init__(hidden_size, labels, bias=False)

    def _summed(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(scores[:, :-1], labels[:, 1:])

    def decode(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """The most probable next tokens, int64 [B, S]; -100 outside `mask`."""
        return _within(scores.argmax(-1), mask)


HEADS: dict[str, type[TaskHead]] = {
    head.kind: head
    for head in (SequenceHead, MultiLabelHead, RegressionHead, TokenHead, CRFHead, DependencyHead, CausalLMHead)
}


def make_head(kind: str, hidden_size: int, labels: Sequence[Any], **options: Any) -> TaskHead:
    """A new head, its weights from the global random state.

    Args:
        kind: a key of `HEADS`.
        hidden_size: H, of the features.
        labels: names of the labels; of a regression one for each number; for `causal_lm` see its head.
        options: of the head's class.

    Raises:
        PluginError: no such kind or option, or no labels.
    """
    if kind not in HEADS:
        raise PluginError(
            f"{NAME}: there is no head of kind {kind!r}.{nearest(kind, HEADS)} Kinds: {', '.join(HEADS)}.",
            code="option-value",
        )
    if len(labels) == 0:
        raise PluginError(
            f"{NAME}: a head of kind {kind!r} has no labels. Name them in the task.", code="labels-unsuited"
        )
    known = [name for name in inspect.signature(HEADS[kind]).parameters if name not in ("hidden_size", "labels")]
    for name in options:
        if name not in known:
            raise PluginError(
                f"{NAME}: a head of kind {kind!r} has no option {name!r}.{nearest(name, known)} "
                f"Its options are: {', '.join(known) or '(none)'}.",
                code="option-unknown",
            )
    return HEADS[kind](hidden_size, labels, **options)


def count_items(kind: str, labels: Tensor) -> Tensor:
    """How many items the labels of a task of this kind have, int64 scalar; nothing waits for the device."""
    if kind in ("multi_label", "regression"):
        return (~labels.isnan()).flatten(1).any(1).sum() if labels.ndim > 1 else (~labels.isnan()).sum()
    if kind == "dependency":
        labels = labels[..., 0]
    elif kind == "causal_lm":
        labels = labels[:, 1:]
    return (labels != ABSENT).sum()


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    flat = scores.flatten(0, -2).float()
    return cross_entropy(flat, labels.flatten(), ignore_index=ABSENT, reduction="sum")


def _sum_of_row_means(loss: Any, scores: Tensor, labels: Tensor) -> Tensor:
    """Over rows, of the mean loss of the elements whose label is a number; 0 for a row with none."""
    if labels.shape != scores.shape:
        raise PluginError(
            f"{NAME}: the labels have the shape {tuple(labels.shape)}, and the head predicts {tuple(scores.shape)}. "
            "Give each row as many numbers as the task has labels.",
            code="labels-unsuited",
        )
    known = ~labels.isnan()
    losses = loss(scores.float(), torch.where(known, labels, 0.0).float(), reduction="none")
    return (torch.where(known, losses, 0.0).sum(1) / known.sum(1).clamp(min=1)).sum()


def _within(predicted: Tensor, mask: Tensor | None) -> Tensor:
    return predicted if mask is None else predicted.masked_fill(~mask, ABSENT)
