"""Pairs made of one text: the objectives `span_corruption` and `prefix_lm`, over many texts at once.

Span corruption is T5's (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4), with the rule of the t5 repository's
`random_spans_noise_mask`, `noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`: a text begins with a
span that stays and ends with one that is taken out, so the target has no sentinel after its last span (figure 2 of the
paper shows one), and a text of so few tokens that one span is taken out of it (30, by T5's numbers) always loses its
end. Deviations: there are never more spans than sentinels, and never more than tokens that stay.

Prefix language modelling is section 3.2.3's, split as the t5 repository's `random_prefix_noise_mask` does: at a place
drawn evenly from 1 to length - 1.

All of these take texts without special tokens, and states of `randomness.py`, one for each text.
"""

from __future__ import annotations

import numpy as np

from .arrays import Ragged, positions
from .randomness import fractions, numbers

SHORTEST = 2  # tokens of a text: one for the source, one for the target


def noise_counts(
    lengths: np.ndarray, *, noise_density: float, mean_span_length: float, most_spans: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of texts of these lengths (2 or more) are taken out, in how many spans; int64 [rows] each.

    In float32 and rounding halves to even, as t5 does.
    """
    noise = np.round(lengths.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise = np.clip(noise, 1, lengths - 1)
    spans = np.round(noise.astype(np.float32) / np.float32(mean_span_length)).astype(np.int64)
    return noise, np.clip(spans, 1, np.minimum(np.minimum(noise, lengths - noise), most_spans))


def noise_mask(lengths: np.ndarray, noise: np.ndarray, spans: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Which tokens are taken out; bool [sum of lengths].

    `noise[i]` tokens of text i, in `spans[i]` spans; which lengths these and those between them have, every way of
    cutting is equally likely.
    """
    drawn, starts = numbers(states, lengths), np.cumsum(lengths) - lengths
    taken = _segments(noise, spans, drawn[positions(starts, noise)])
    left = _segments(lengths - noise, spans, drawn[positions(starts + noise, lengths - noise)])
    runs = np.stack([left, taken], axis=1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _segments(items: np.ndarray, segments: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Lengths of the segments, none empty, into which each row's items are cut; int64 [sum of segments]."""
    starts = np.cumsum(items) - items
    drawn[starts] = 0  # A row's first item begins its first segment.
    rows = np.repeat(np.arange(len(items)), items)
    smallest_first = np.lexsort((drawn, rows))
    begins = np.empty(len(drawn), dtype=bool)
    begins[smallest_first] = np.arange(len(drawn)) - starts[rows] < segments[rows]
    return np.diff(np.append(np.flatnonzero(begins), len(drawn)))


def span_corruption(
    texts: Ragged,
    states: np.ndarray,
    sentinels: np.ndarray,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tuple[Ragged, Ragged]:
    """Sources with a sentinel in place of each span that is taken out, and targets of sentinels and these spans.

    Args:
        texts: of 2 tokens or more each.
        sentinels: int64 [S], the first stands for each text's first span.
    """
    limits = {"noise_density": noise_density, "mean_span_length": mean_span_length, "most_spans": len(sentinels)}
    noise, spans = noise_counts(texts.lengths, **limits)  # type: ignore[arg-type]
    mask = noise_mask(texts.lengths, noise, spans, states)
    spans_before = np.repeat(np.cumsum(spans) - spans, texts.lengths)

    def replaced(taken: np.ndarray, lengths: np.ndarray) -> Ragged:
        before = np.concatenate([[False], taken[:-1]])
        before[texts.starts()] = False
        first = taken & ~before
        number = np.cumsum(first) - 1 - spans_before
        values = np.where(first, sentinels[np.clip(number, 0, None)], texts.values)
        return Ragged(values[first | ~taken], lengths)

    return replaced(mask, texts.lengths - noise + spans), replaced(~mask, noise + spans)


def prefix_lm(
    texts: Ragged, states: np.ndarray, *, most_source: np.ndarray | None = None, most_target: np.ndarray | None = None
) -> tuple[Ragged, Ragged]:
    """Each text's beginning and its rest.

    Args:
        texts: of 2 tokens or more each, and of no more than `most_source` + `most_target`.
        most_source, most_target: the longest beginning and the longest rest, int64 [rows]; None: no limit.
    """
    lengths = texts.lengths
    fewest = np.ones_like(lengths) if most_target is None else np.maximum(1, lengths - most_target)
    most = lengths - 1 if most_source is None else np.minimum(lengths - 1, most_source)
    cut = fewest + (fractions(states) * (most - fewest + 1)).astype(np.int64)
    starts = texts.starts()
    return (
        Ragged(texts.values[positions(starts, cut)], cut),
        Ragged(texts.values[positions(starts + cut, lengths - cut)], lengths - cut),
    )
