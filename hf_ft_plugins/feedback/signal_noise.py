"""How often each signal is wrong, as this log tells, and how much a row weighs.

Where a signal and an explicit label of two people (or of one, where the signal is no label) speak of the same thing,
they disagree with probability `d = e (1 - x) + x (1 - e)`, e and x their flip probabilities, independent. The estimate
is the most probable one given all overlaps together, the table counting for each signal as `PRIOR_OVERLAPS` judgements
whose truth is known (as Dawid & Skene, 1979, for judges who err alike on either side, by coordinates on a grid). What
two kinds of labels share between them, labels of one kind that overlap with each other tell apart; without those the
table does.

Weights: (1 - 2 epsilon)^2, the information in a label that is flipped so often (Natarajan et al., 2013, scale the
unbiased loss by 1 / (1 - 2 epsilon)), times the user's, the age's and the propensity's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .signals import RULES

PRIOR_OVERLAPS = 20.0
# The epsilons that an estimate may be.
GRID = np.linspace(0.01, 0.49, 481)
SWEEPS = 100
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

    Returns:
        epsilons in [0.01, 0.49]; the table's for signals without overlaps.
    """
    epsilons = prior_epsilons()
    seen = sorted({signal for overlap in overlaps for signal in overlap})
    for _ in range(SWEEPS):
        before = dict(epsilons)
        for signal in seen:
            prior = RULES[signal].epsilon
            surprise = -PRIOR_OVERLAPS * (prior * np.log(GRID) + (1 - prior) * np.log(1 - GRID))
            for (one, other), (agreed, differed) in overlaps.items():
                if signal in (one, other):
                    theirs = GRID if one == other else epsilons[other if signal == one else one]
                    differ = GRID * (1 - theirs) + theirs * (1 - GRID)
                    surprise -= differed * np.log(differ) + agreed * np.log(1 - differ)
            epsilons[signal] = float(GRID[surprise.argmin()])
        if epsilons == before:
            break
    return epsilons


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
