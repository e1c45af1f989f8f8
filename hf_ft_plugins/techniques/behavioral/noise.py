"""How often each signal is wrong, as this log tells, and how much a row weighs.

Where a signal and an explicit label speak of the same thing, they disagree with probability
`d = e (1 - x) + x (1 - e)`, e and x their flip probabilities, independent. So `e = (d - x) / (1 - 2x)`; for two labels
of one kind `e = (1 - sqrt(1 - 2d)) / 2`. The share d is shrunk to what the table expects (Beta-binomial, the table
counting as `PRIOR_OVERLAPS` observations). Explicit labels are estimated first, among themselves.

Weights: (1 - 2 epsilon)^2, the information in a label that is flipped so often (Natarajan et al., 2013, scale the
unbiased loss by 1 / (1 - 2 epsilon)), times the user's, the age's and the propensity's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .signals import RULES

PRIOR_OVERLAPS = 20.0
LOWEST, HIGHEST = 0.01, 0.49
# A vote counts as one, the table's (or the log's) epsilon as two more.
PRIOR_VOTES = 2.0
MOST_PROPENSITY_WEIGHT = 5.0
# Of the weight of all rows, for signals that are off unless asked for.
MOST_OPT_IN = 0.2


def prior_epsilons() -> dict[str, float]:
    return {signal: rule.epsilon for signal, rule in RULES.items()}


def estimated_epsilons(overlaps: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, float]:
    """Each signal's flip probability.

    Args:
        overlaps: of a signal and an explicit one how often they agreed and disagreed about one thing.
    """
    epsilons = prior_epsilons()
    for signal, rule in RULES.items():
        if rule.explicit and (signal, signal) in overlaps:
            agreed, differed = overlaps[signal, signal]
            share = _shrunk(agreed, differed, 2 * rule.epsilon * (1 - rule.epsilon))
            epsilons[signal] = _clipped((1 - math.sqrt(max(0.0, 1 - 2 * share))) / 2)
    known = dict(epsilons)
    for signal, rule in RULES.items():
        judges = [judge for (judged, judge) in overlaps if judged == signal and judge != signal]
        if rule.explicit and (signal, signal) in overlaps:
            continue
        if judges:
            agreed = sum(overlaps[signal, judge][0] for judge in judges)
            differed = sum(overlaps[signal, judge][1] for judge in judges)
            # The judges' own rate, as often as they judged.
            wrong = sum(known[judge] * sum(overlaps[signal, judge]) for judge in judges) / (agreed + differed)
            expected = rule.epsilon * (1 - wrong) + wrong * (1 - rule.epsilon)
            epsilons[signal] = _clipped((_shrunk(agreed, differed, expected) - wrong) / (1 - 2 * wrong))
    return epsilons


def _shrunk(agreed: float, differed: float, expected: float) -> float:
    return (PRIOR_OVERLAPS * expected + differed) / (PRIOR_OVERLAPS + agreed + differed)


def _clipped(epsilon: float) -> float:
    return min(HIGHEST, max(LOWEST, epsilon))


def flip_probability(votes: Mapping[str, int], against: int, epsilons: Mapping[str, float]) -> float:
    """The mean of the Beta posterior of "somebody says the contrary", below 0.5.

    Args:
        votes: number of voters of the majority, by signal.
        against: number of voters of the minority.
        epsilons: of each signal; of a single vote its own is the result.
    """
    count = sum(votes.values())
    prior = sum(epsilons[signal] * number for signal, number in votes.items()) / count
    return (PRIOR_VOTES * prior + against) / (PRIOR_VOTES - 1 + count + against)


def weights(
    epsilon: np.ndarray, user: np.ndarray, age: np.ndarray, propensity: np.ndarray, opt_in: np.ndarray
) -> np.ndarray:
    """What each row's gradient is scaled by; their mean is 1.

    Args:
        epsilon: float [rows].
        user, age: factors, float [rows].
        propensity: of what was judged, float [rows], 1 where unknown.
        opt_in: bool [rows], whether its signal is off unless asked for. All of these together weigh at most a fifth;
            alone nothing.
    """
    weight = (1 - 2 * epsilon) ** 2 * user * age * np.minimum(1 / propensity, MOST_PROPENSITY_WEIGHT)
    weak, strong = weight[opt_in].sum(), weight[~opt_in].sum()
    if weak > MOST_OPT_IN / (1 - MOST_OPT_IN) * strong:
        weight[opt_in] *= MOST_OPT_IN / (1 - MOST_OPT_IN) * strong / weak
    total = weight.sum()
    return weight * (len(weight) / total) if total > 0 else weight


def effective_size(weight: np.ndarray) -> float:
    """Kish's: how many rows of equal weight say as much."""
    square = float((weight**2).sum())
    return float(weight.sum()) ** 2 / square if square else 0.0
