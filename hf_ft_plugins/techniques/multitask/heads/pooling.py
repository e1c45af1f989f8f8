"""From vectors of tokens to vectors of words, and of the whole sequence.

Nothing here waits for the device: shapes follow from arguments alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ....errors import PluginError
from ..tasks import NAME

Pooling = Literal["first", "last", "mean"]


def pool_words(hidden: Tensor, word_ids: Tensor, how: Pooling, words: int) -> Tensor:
    """One vector for each word: that of its first or last token, or the mean of all its tokens.

    The mean is summed in float32, by `index_add`: on a GPU the order of three or more summands changes from run to run
    unless `torch.use_deterministic_algorithms` is on.

    Args:
        hidden: float [B, S, H], a vector for each token.
        word_ids: int64 [B, S], the number of each token's word, from 0; below 0 for none (special tokens, padding).
        how: which tokens stand for a word.
        words: W, how many words come back for each row; tokens of words from W on are left out.

    Returns:
        [B, W, H], of the dtype of `hidden`; zeros where a row has no such word, or the word no token.

    Raises:
        PluginError: `how` is none of the three.
    """
    if how not in ("first", "last", "mean"):
        raise PluginError(f"{NAME}: words are pooled by first, last or mean, not by {how!r}.", code="option-value")
    rows, tokens, width = hidden.shape
    # Tokens without a word go to a slot of their own, which is cut off.
    slots = torch.where((word_ids >= 0) & (word_ids < words), word_ids, words)
    slots = slots + torch.arange(rows, device=slots.device)[:, None] * (words + 1)
    flat = hidden.reshape(rows * tokens, width)
    if how == "mean":
        exact = torch.promote_types(hidden.dtype, torch.float32)
        sums = flat.new_zeros(rows * (words + 1), width, dtype=exact)
        sums = sums.index_add(0, slots.flatten(), flat.to(exact)).view(rows, words + 1, width)[:, :words]
        counts = slots.new_zeros(rows * (words + 1)).index_add(0, slots.flatten(), torch.ones_like(slots).flatten())
        return (sums / counts.view(rows, words + 1, 1)[:, :words].clamp(min=1)).to(hidden.dtype)
    places = torch.arange(rows * tokens, device=slots.device)
    none = rows * tokens if how == "first" else -1
    found = torch.full((rows * (words + 1),), none, device=slots.device)
    found = found.scatter_reduce(0, slots.flatten(), places, "amin" if how == "first" else "amax")
    found = found.view(rows, words + 1)[:, :words].flatten()
    missing = found == none
    chosen = flat.index_select(0, found.masked_fill(missing, 0))
    return chosen.masked_fill(missing[:, None], 0).view(rows, words, width)


def pool_sequence(hidden: Tensor, attention_mask: Tensor, how: Pooling) -> Tensor:
    """One vector for each row: that of its first or last attended token, or the mean of all of them.

    Args:
        hidden: float [B, S, H].
        attention_mask: int or bool [B, S], not 0 where a token is attended; padding may stand on either side.
        how: which tokens stand for the row.

    Returns:
        [B, H], of the dtype of `hidden`; zeros for a row without an attended token. The mean is summed in float32.

    Raises:
        PluginError: `how` is none of the three.
    """
    attended = attention_mask != 0
    if how != "mean":
        return pool_words(hidden, attended.long() - 1, how, 1)[:, 0]
    sums = hidden.masked_fill(~attended[..., None], 0).sum(1, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (sums / attended.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
