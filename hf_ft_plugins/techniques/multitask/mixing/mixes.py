"""How often each source is drawn from: probabilities from sizes or losses.

All are pure functions; what they return is float64 [sources] and sums to 1. `quotas.py` makes whole counts of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .... import mends
from ....errors import PluginError

MIXES = (
    "proportional",
    "temperature",
    "unimax",
    "uniform",
    "round_robin",
    "annealed",
    "weights",
    "loss_ratio",
    "progress",
)
ADAPTIVE = ("loss_ratio", "progress")
UNIFORM_PART = 0.1


def check_sizes(sizes: Sequence[int], names: Sequence[str] | None = None) -> None:
    """Refuse no source at all, an empty one, and names that are not one for each.

    Raises:
        PluginError: with the source's name, or its number without names.
    """
    if not len(sizes):
        raise PluginError("multitask: there is no data set to draw from. Give one or more.", code="data-missing")
    if names is not None and len(names) != len(sizes):
        raise PluginError(
            f"multitask: {len(names)} names for {len(sizes)} data sets. Give one for each.", code="option-value"
        )
    for number, size in enumerate(sizes):
        if size < 1:
            called = repr(names[number]) if names else f"number {number}"
            raise PluginError(
                f"multitask: the data set {called} has {size} examples. Leave it out.", code="data-missing"
            )


def proportional(sizes: Sequence[int]) -> np.ndarray:
    """A source's share of all examples."""
    return _powers(sizes, 1.0)


def uniform(sizes: Sequence[int]) -> np.ndarray:
    """The same for every source."""
    return _powers(sizes, 0.0)


def temperature(sizes: Sequence[int], temperature: float) -> np.ndarray:
    """In proportion to size ** (1 / temperature): 1 is proportional, infinity uniform.

    Temperature-scaled mixing of Raffel et al. 2020 (T5, arXiv:1910.10683), section 3.5.2, without its limit on sizes;
    mT5 (Xue et al. 2021, arXiv:2010.11934), section 3.2, calls 1 / temperature alpha.

    Raises:
        PluginError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise PluginError(
            f"multitask: temperature={temperature} must be above 0; 1 is proportional.",
            code="option-value",
            mend=[mends.set_option("multitask", "temperature", 1)],
        )
    return _powers(sizes, 1 / temperature)


def annealed(sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
    """In proportion to size ** alpha; alpha falls evenly from 1 in the first epoch to 0.2 in the last.

    Annealed sampling of Stickland and Murray 2019 (BERT and PALs, arXiv:1902.02671), section 4.2:
    alpha = 1 - 0.8 (e - 1) / (E - 1) in epoch e = 1 .. E. It stays 1 where there is one epoch only.

    Args:
        epoch: counted from 0; those after the last are like the last.
        epochs: of the run.
    """
    done = min(epoch, epochs - 1) / (epochs - 1) if epochs > 1 else 0.0
    return _powers(sizes, 1 - 0.8 * done)


def unimax(sizes: Sequence[int], budget: float, max_passes: float) -> np.ndarray:
    """Uniform, but none is seen more than `max_passes` times; what it leaves goes to the larger ones, evenly.

    Algorithm 1 of Chung et al. 2023 (UniMax, arXiv:2304.09151), in examples instead of characters. Where even all
    sources `max_passes` times are less than the budget, shares are proportional, and each is seen more often.

    Args:
        budget: examples that the run draws in all.
        max_passes: N of the paper.

    Raises:
        PluginError: a budget or `max_passes` that is not above 0.
    """
    check_sizes(sizes)
    if not (budget > 0 and max_passes > 0):
        raise PluginError(
            f"multitask: budget={budget} and max_passes={max_passes} must be above 0.", code="option-value"
        )
    drawn = np.zeros(len(sizes))
    left = float(budget)
    for done, source in enumerate(np.argsort(np.asarray(sizes), kind="stable")):
        drawn[source] = min(left / (len(sizes) - done), sizes[source] * max_passes)
        left -= drawn[source]
    return _shares(drawn)


def weighted(weights: Sequence[float], sources: int) -> np.ndarray:
    """In proportion to given weights.

    Raises:
        PluginError: not one for each source, a negative or not finite one, or none above 0.
    """
    if len(weights) != sources:
        raise PluginError(
            f"multitask: {len(weights)} weights for {sources} data sets. Give one for each, in order.",
            code="option-value",
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise PluginError(
            f"multitask: weights={list(weights)} must be finite, 0 or more, and one of them above 0.",
            code="option-value",
        )
    return _shares(np.array(weights, dtype=np.float64))


def loss_ratio(
    losses_now: Sequence[float | None], losses_first: Sequence[float | None], uniform_part: float = UNIFORM_PART
) -> np.ndarray:
    """More of what has fallen less: in proportion to loss now / first loss, mixed with `uniform_part` of uniform.

    The ratio is the training rate of Chen et al. 2018 (GradNorm, arXiv:1711.02257), section 3.2; there it steers the
    weights of losses. A loss below 0 counts as 0.

    Args:
        losses_now, losses_first: mean loss of each source; None where none was measured. Such a source, and one whose
            first loss is not above 0, has the uniform share 1 / sources; the others share the rest.
    """
    now, first = _measured(losses_now), _measured(losses_first)
    ratios = np.full(len(now), np.nan)
    np.divide(np.maximum(now, 0), first, out=ratios, where=first > 0)
    return _by_score(ratios, uniform_part)


def progress(
    losses_now: Sequence[float | None], losses_before: Sequence[float | None], uniform_part: float = UNIFORM_PART
) -> np.ndarray:
    """More of what is falling: in proportion to max(0, 1 - loss now / loss before), mixed with uniform.

    Related: Graves et al. 2017 (arXiv:1704.03003) reward the drop of a loss in a bandit; here the relative drop from
    one mean to the next is the share itself.

    Args:
        losses_now, losses_before: mean loss of each source, and the one measured before it; None where there is none.
            Such a source, and one whose loss before is not above 0, has the uniform share 1 / sources; the others
            share the rest. If no loss falls, all is uniform.
    """
    now, before = _measured(losses_now), _measured(losses_before)
    falls = np.full(len(now), np.nan)
    np.divide(before - now, before, out=falls, where=before > 0)
    return _by_score(np.maximum(falls, 0), uniform_part)


def _powers(sizes: Sequence[int], exponent: float) -> np.ndarray:
    check_sizes(sizes)
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    # Of the largest, 1: no power overflows.
    return _shares(np.exp(exponent * (logs - logs.max())))


def _shares(values: np.ndarray) -> np.ndarray:
    return values / math.fsum(values)


def _measured(losses: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if loss is None else loss for loss in losses], dtype=np.float64)


def _by_score(scores: np.ndarray, uniform_part: float) -> np.ndarray:
    """Shares by score among the sources that have one; the others (NaN) have the uniform share."""
    shares = np.full(len(scores), 1 / len(scores))
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) and scores[known].any():
        shares[known] = _shares(scores[known]) * len(known) / len(scores)
    return uniform_part / len(scores) + (1 - uniform_part) * shares
