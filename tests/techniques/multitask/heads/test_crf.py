"""The linear chain against sums over all sequences."""

import itertools

import torch

from hf_ft_plugins.techniques.multitask.heads.crf import bio_rule, log_likelihood, viterbi
from tests.techniques.multitask.heads.small_heads import BIO, HIDDEN, chain_by_enumeration, new_head


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
