"""From vectors of tokens to those of words and rows, against loops."""

import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask.heads.pooling import pool_sequence, pool_words
from tests.techniques.multitask.heads.small_heads import HIDDEN, NAN


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
