"""Small heads with random weights, and features and labels for them."""

import itertools

import torch

from hf_ft_plugins.techniques.multitask.heads.task_heads import make_head
from hf_ft_plugins.techniques.multitask.tasks import WORD_KINDS

HIDDEN, ROWS, WORDS = 10, 3, 5
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NAN = float("nan")


def new_head(kind, **options):
    """A head that is evaluated, with random weights also where new ones are 0."""
    head = make_head(kind, HIDDEN, BIO, **options).eval()
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


def chain_by_enumeration(emissions, transitions, start, end):
    """All label sequences of one sentence with their scores, for others not to be found."""
    words, classes = emissions.shape
    sequences = torch.tensor(list(itertools.product(range(classes), repeat=words)))
    scores = start[sequences[:, 0]] + end[sequences[:, -1]] + emissions[torch.arange(words), sequences].sum(1)
    if words > 1:
        scores = scores + transitions[sequences[:, :-1], sequences[:, 1:]].sum(1)
    return sequences, scores
