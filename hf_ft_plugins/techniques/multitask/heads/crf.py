"""A linear chain over the labels of a sentence: a conditional random field.

A sequence of labels y scores start[y_1] + sum of emissions[t, y_t] + sum of transitions[y_t-1, y_t] + end[y_n]
(Lafferty et al. 2001; for neural emissions Lample et al. 2016, arXiv:1603.01360, section 2.2). B rows, W words, C
labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization

from ..tasks import ABSENT


class LinearChain(nn.Module):
    """The scores between labels, all 0 at first, and what is computed with them, in float32.

    Args:
        labels: names of the labels.
        constrain: decode only what `bio_rule` allows. Training does not use the rule: data that break it would have a
            likelihood of 0.
    """

    def __init__(self, labels: Sequence[str], constrain: bool = True) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.empty(len(labels), len(labels)))
        self.start = nn.Parameter(torch.empty(len(labels)))
        self.end = nn.Parameter(torch.empty(len(labels)))
        # Arrays and no buffers: transformers leaves buffers that a checkpoint lacks without values.
        self.rule = bio_rule(labels) if constrain else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All 0 again."""
        for scores in (self.transitions, self.start, self.end):
            initialization.zeros_(scores)

    def log_likelihood(self, emissions: Tensor, labels: Tensor) -> Tensor:
        """The log probability of each row's labels.

        Args:
            emissions: float [B, W, C].
            labels: int64 [B, W], -100 for no label. A word without one may have any, if it comes before the last word
                that has one; what comes after that is taken for padding.

        Returns:
            float32 [B], in nats; 0 for a row without labels.
        """
        if labels.shape[1] == 0:
            return emissions.float().sum((1, 2))
        labelled = labels != ABSENT
        up_to_last = labelled.flip(1).cumsum(1).flip(1) > 0
        chain = (self.transitions.float(), self.start.float(), self.end.float())
        found = log_likelihood(emissions.float(), labels, up_to_last, *chain)
        return torch.where(labelled.any(1), found, 0.0)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The best labels of each row.

        Args:
            emissions: float [B, W, C].
            mask: bool [B, W], which words there are; others may stand anywhere, and are passed over.

        Returns:
            int64 [B, W], arbitrary outside `mask`.
        """
        if mask.shape[1] == 0:
            return mask.long()
        transitions, start = self.transitions.float(), self.start.float()
        if self.rule is not None:
            follows, first = (torch.from_numpy(rule).to(emissions.device) for rule in self.rule)
            transitions = transitions.masked_fill(~follows, -torch.inf)
            start = start.masked_fill(~first, -torch.inf)
        order = (~mask).long().argsort(dim=1, stable=True)
        words_first = emissions.float().gather(1, order[..., None].expand_as(emissions))
        found = viterbi(words_first, mask.gather(1, order), transitions, start, self.end.float())
        return torch.zeros_like(found).scatter(1, order, found)


def log_partition(
    emissions: Tensor, allowed: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """The log of the summed exponentials of all sequences' scores, by the forward algorithm.

    Args:
        emissions: float [B, W, C], W at least 1.
        allowed: bool [B, W, C], the labels that a word may have, at least one each.
        mask: bool [B, W], True for the words of a row, then False; a row without words is taken to have one.
        transitions: float [C, C], from a label (row) to the next (column).
        start, end: float [C].

    Returns:
        [B], in nats.
    """
    forbidden = ~allowed
    scores = (start + emissions[:, 0]).masked_fill(forbidden[:, 0], -torch.inf)
    for word in range(1, emissions.shape[1]):
        reached = torch.logsumexp(scores[:, :, None] + transitions, dim=1) + emissions[:, word]
        reached = reached.masked_fill(forbidden[:, word], -torch.inf)
        scores = torch.where(mask[:, word, None], reached, scores)
    return torch.logsumexp(scores + end, dim=1)


def log_likelihood(
    emissions: Tensor, labels: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """The log probability of each row's labels, summed over all labels of words that have none.

    The sum over a word's unknown label is that of Bellare and McCallum (2007, "Learning extractors from unlabeled text
    using relevant databases"); Tsuboi et al. (2008) give it for chains.

    Args:
        labels: int64 [B, W], -100 for a word whose label is not known.
        emissions, mask, transitions, start, end: as in `log_partition`.

    Returns:
        [B], in nats, at most 0 up to rounding; 0 for a row with no label known.
    """
    unknown = labels == ABSENT
    numbers = torch.arange(emissions.shape[-1], device=labels.device)
    given = (labels[..., None] == numbers) | unknown[..., None]
    # Given and all sequences go through one loop as two rows.
    both = log_partition(
        torch.cat([emissions, emissions]),
        torch.cat([given, torch.ones_like(given)]),
        torch.cat([mask, mask]),
        transitions,
        start,
        end,
    )
    rows = len(emissions)
    return both[:rows] - both[rows:]


def viterbi(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The labels with the highest score of each row.

    Args:
        transitions, start: -inf where a label must not follow another, or come first.
        emissions, mask, end: as in `log_partition`.

    Returns:
        int64 [B, W]; after a row's words its last label is repeated.
    """
    scores = start + emissions[:, 0]
    itself = torch.arange(emissions.shape[-1], device=emissions.device).expand_as(scores)
    origins = []
    for word in range(1, emissions.shape[1]):
        inside = mask[:, word, None]
        best, origin = (scores[:, :, None] + transitions).max(dim=1)
        scores = torch.where(inside, best + emissions[:, word], scores)
        origins.append(torch.where(inside, origin, itself))
    labels = [(scores + end).argmax(1, keepdim=True)]
    for origin in reversed(origins):
        labels.append(origin.gather(1, labels[-1]))
    return torch.cat(labels[::-1], dim=1)


def bio_rule(labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which label may follow which, and come first, by their names: I-X comes only after B-X or I-X.

    A type X without a label B-X (as in IOB1, where I-X may begin a span) is left free, and so are labels of any other
    form.

    Returns:
        bool [C, C], from a label (row) to the next (column), and bool [C].
    """
    inside = [name.startswith("I-") and f"B-{name[2:]}" in labels for name in labels]
    follows = [
        [not within or before in (f"B-{name[2:]}", name) for name, within in zip(labels, inside, strict=True)]
        for before in labels
    ]
    return np.array(follows, dtype=bool), ~np.array(inside, dtype=bool)
