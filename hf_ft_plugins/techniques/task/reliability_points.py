"""The points of a reliability diagram: bins of about equally many predictions, each with its interval.

Bins of equal width, as the calibration error has them, hold a handful of predictions where the model is seldom so sure,
and what chance made of these looks like miscalibration. Bins of equal mass are those of Nguyen & O'Connor 2015
(arXiv:1508.05154, section 3.1); the interval of a bin's share is Wilson's (1927, JASA 22, p. 209), 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_BINS = 10
FEWEST_IN_BIN = 20
NORMAL = 1.95996


@dataclass(frozen=True)
class Points:
    """One entry a bin, the least sure first.

    Attributes:
        sure, right: float64 [bins], means.
        count: int64 [bins].
        low, high: float64 [bins], the 95 % interval of `right`, which takes predictions for independent.
    """

    sure: np.ndarray
    right: np.ndarray
    count: np.ndarray
    low: np.ndarray
    high: np.ndarray


def points(sure: np.ndarray, right: np.ndarray) -> Points:
    """At most 10 bins of at least 20 predictions each; one where there are fewer than 40. Equal `sure` share a bin.

    Args:
        sure, right: as `calibration.sure_and_right` gives them, at least one.
    """
    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    starts = _starts(sure)
    count = np.diff(np.append(starts, len(sure)))
    share = np.add.reduceat(right, starts) / count
    return Points(np.add.reduceat(sure, starts) / count, share, count, *wilson(share, count))


def _starts(sure: np.ndarray) -> np.ndarray:
    size = max(FEWEST_IN_BIN, -(-len(sure) // MOST_BINS))
    starts, end = [0], 0
    while end + size <= len(sure):
        end = int(np.searchsorted(sure, sure[end + size - 1], side="right"))
        if len(sure) - end < FEWEST_IN_BIN:
            break
        starts.append(end)
    return np.array(starts)


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95 % interval of shares of `count` trials each."""
    spread = NORMAL**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / count / 4)
    # Of shares 0 and 1 one end is the share, but for the last bits.
    return np.minimum(middle - half, share), np.maximum(middle + half, share)
