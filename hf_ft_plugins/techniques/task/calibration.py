"""Calibration after training: a temperature, a shift and decision thresholds, fitted on one half, judged on the other.

Temperature scaling and the expected calibration error are those of Guo et al. 2017 (arXiv:1706.04599): logits are
divided by one number, so that probabilities change and the most likely class does not. Where the model was trained for
other class frequencies than the evaluation set's, logits are also shifted by class (Alexandari et al. 2020,
arXiv:1901.06852). Deviation: along one direction, the logs of the frequencies' quotients, of which the
strength is fitted: a rare class has too few rows for a number of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models.labels import Kind
from .frequencies import Trained, direction, shares_of, shift, wanted
from .metrics import probabilities

BINS = 15
# A temperature outside of these means that the half was perfectly separable, or pure noise.
COLDEST, HOTTEST = 0.05, 20.0
FEWEST_ROWS = 20
MOST_CUTS = 500
STRONGEST = 2.0  # shift, of what the frequencies say


@dataclass(frozen=True)
class Calibration:
    """What was fitted on one half of the evaluation set, and how it did on the other.

    Attributes:
        temperature: logits are divided by it; 1 where the fitted one did not lower the other half's loss.
        fitted_temperature: what was fitted.
        shift: added to the divided logits, by class; None: nothing. It moves answers to `frequencies`.
        frequencies: for which class frequencies answers and probabilities are meant: what the option says.
        target: these as shares by class; None: the evaluation set's.
        thresholds: of several labels, the probability above which each is given; of two classes, that of the second
            class; 0.5 where another did not raise F1 on the other half. None with more classes.
        nll_before, nll, ece_before, ece: of the other half, its rows weighed to `frequencies`; loss in nats, error in
            0 to 1.
        rows: of the half that they were judged on; tokens, where these are classified.
    """

    temperature: float
    fitted_temperature: float
    shift: tuple[float, ...] | None
    frequencies: str
    target: tuple[float, ...] | None
    thresholds: tuple[float, ...] | None
    nll_before: float
    nll: float
    ece_before: float
    ece: float
    rows: int

    def as_config(self, folded: bool) -> dict[str, Any]:
        """What is saved in the model's config; `folded`: its weights are divided by the temperature already."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return values | {"temperature_in_weights": folded}

    def applied(self, logits: np.ndarray) -> np.ndarray:
        """Logits, [..., C], as the calibrated model gives them."""
        return logits / self.temperature + (0.0 if self.shift is None else np.array(self.shift))


def halves(rows: int, seed: int, strata: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of `rows` positions, sorted; with `strata` (a class for each row), alike in every class."""
    random = np.random.default_rng(seed)
    order = random.permutation(rows)
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])


def nll(kind: Kind, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats, rows weighed by `weights`; of several labels, over rows and labels."""
    if kind == "multi_label":
        return float(np.mean(np.logaddexp(0, logits) - labels * logits))
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return float(np.average(total - logits[np.arange(len(labels)), labels], weights=weights))


def fit_temperature_and_shift(
    kind: Kind, logits: np.ndarray, labels: np.ndarray, direction: np.ndarray | None = None
) -> tuple[float, float]:
    """The number by which to divide the logits for the lowest `nll`, within 0.05 and 20, and how much of `direction`,
    float64 [C], to add then, within -2 and 2; 0 without one.
    """
    from scipy.optimize import minimize, minimize_scalar

    if direction is None:
        found = minimize_scalar(
            # Convex in the inverse temperature.
            lambda inverse: nll(kind, logits * inverse, labels),
            bounds=(1 / HOTTEST, 1 / COLDEST),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return float(1 / found.x), 0.0
    both = minimize(
        lambda point: nll(kind, logits * point[0] + point[1] * direction, labels),
        (1.0, 0.0),
        bounds=((1 / HOTTEST, 1 / COLDEST), (-STRONGEST, STRONGEST)),
        method="L-BFGS-B",
    )
    return float(1 / both.x[0]), float(both.x[1])


def sure_and_right(kind: Kind, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure the model is of each prediction, and whether it is right (1.0 or 0.0); float64 [predictions] each.

    Of one class, a row is one prediction: the probability of the chosen class, and whether it is the row's. Of several
    labels, each label of each row is one: its probability, and whether the row has it.
    """
    shares = probabilities(kind, logits)
    if kind == "multi_label":
        return shares.ravel(), labels.ravel().astype(np.float64)
    return shares.max(axis=-1), (shares.argmax(axis=-1) == labels).astype(np.float64)


def reliability(
    kind: Kind, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """How sure and how right the model is (`sure_and_right`), in 15 bins of equal width; rows weighed by `weights`.

    Returns:
        `sure`, `right` float64 [15], means (NaN where a bin is empty); `count` [15], of weights their sum.
    """
    sure, right = sure_and_right(kind, logits, labels)
    # Bins are closed on the right, as in the paper.
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    each = np.ones(len(sure)) if weights is None else weights
    count = np.bincount(bins, each, BINS)
    with np.errstate(invalid="ignore"):
        return {
            "sure": np.bincount(bins, each * sure, BINS) / count,
            "right": np.bincount(bins, each * right, BINS) / count,
            "count": count,
        }


def ece(kind: Kind, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error, in 0 to 1: the mean gap between sure and right, weighted by the bins' counts."""
    table = reliability(kind, logits, labels, weights)
    gaps = np.nan_to_num(np.abs(table["sure"] - table["right"]))
    return float((gaps * table["count"]).sum() / table["count"].sum())


def best_threshold(shares: np.ndarray, truth: np.ndarray, *, both_classes: bool) -> float:
    """The probability above which to say yes, for the highest F1; `both_classes`: for the mean of both classes' F1."""
    # Evenly spaced ranks: more cuts than these find no better one, and the time is quadratic in them.
    candidates = np.unique(np.quantile(shares, np.linspace(0, 1, min(len(shares), MOST_CUTS))))
    if len(candidates) < 2:
        return 0.5
    cuts = (candidates[1:] + candidates[:-1]) / 2
    scores = [f1(shares > cut, truth, both_classes=both_classes) for cut in cuts]
    best = np.flatnonzero(np.isclose(scores, max(scores)))
    # The nearest to 0.5 of those that are equally good: it depends least on the sample.
    return float(min(cuts[best], key=lambda cut: abs(cut - 0.5)))


def f1(chosen: np.ndarray, truth: np.ndarray, *, both_classes: bool) -> float:
    """F1 of a yes, or the mean of a yes' and a no's; 0 where there is none."""

    def of(predicted: np.ndarray, true: np.ndarray) -> float:
        either = predicted.sum() + true.sum()
        return float(2 * (predicted & true).sum() / either) if either else 0.0

    return (of(chosen, truth) + of(~chosen, ~truth)) / 2 if both_classes else of(chosen, truth)


def fit_thresholds(kind: Kind, fit: tuple[Any, Any], judge: tuple[Any, Any]) -> tuple[float, ...] | None:
    """The threshold of each label, of two classes of the second; 0.5 where another is no better on the other half.

    Args:
        fit, judge: logits float64 [N, C], divided by the temperature, and labels, of either half.
    """
    if kind == "multi_label":
        columns, truths = range(fit[0].shape[1]), [half[1] > 0.5 for half in (fit, judge)]
    elif kind == "single_label" and fit[0].shape[1] == 2:
        columns, truths = range(1, 2), [np.stack([half[1] != 1, half[1] == 1], axis=1) for half in (fit, judge)]
    else:
        return None
    fitted, judged = (probabilities(kind, half[0]) for half in (fit, judge))
    both = kind == "single_label"
    chosen = []
    for column in columns:
        cut = best_threshold(fitted[:, column], truths[0][:, column], both_classes=both)
        gain = f1(judged[:, column] > cut, truths[1][:, column], both_classes=both) - f1(
            judged[:, column] > 0.5, truths[1][:, column], both_classes=both
        )
        chosen.append(cut if gain > 0 else 0.5)
    return tuple(chosen)


def calibrate(
    kind: Kind,
    fit: tuple[Any, Any],
    judge: tuple[Any, Any],
    *,
    frequencies: str = "evaluation",
    trained: Trained | None = None,
) -> Calibration:
    """Fit on `fit` and judge on `judge`: logits float64 [N, C] and labels, as `metrics.flat_predictions` gives them.

    Args:
        frequencies: as the option: for which the answers are meant.
        trained: for which frequencies the model was trained; None: nobody knows.
    """
    towards, weights, target = None, None, None
    moved: Any = 0.0
    if kind != "multi_label":
        counts = np.bincount(np.concatenate([fit[1], judge[1]]), minlength=fit[0].shape[1])
        shares = shares_of(counts)
        towards = direction(counts, trained)
        if frequencies != "evaluation":
            target = wanted(frequencies, shares, trained)
            moved, weights = shift(shares, target), (target / shares)[judge[1]]
    ways = [(1.0, 0.0), fit_temperature_and_shift(kind, *fit)]
    if towards is not None:
        ways.append(fit_temperature_and_shift(kind, *fit, towards))
    fitted = ways[-1][0]

    def shifted(strength: float) -> Any:
        return moved + (0.0 if towards is None else strength * towards)

    # Judged at the frequencies of its rows, of which there are most.
    temperature, strength = min(ways, key=lambda way: nll(kind, judge[0] / way[0] + shifted(way[1]) - moved, judge[1]))
    added = shifted(strength)
    scaled, scaled_fit = (half[0] / temperature + added for half in (judge, fit))
    return Calibration(
        temperature=temperature,
        fitted_temperature=fitted,
        shift=tuple(added.tolist()) if np.any(added) else None,
        frequencies=frequencies,
        target=None if target is None else tuple(target.tolist()),
        thresholds=fit_thresholds(kind, (scaled_fit, fit[1]), (scaled, judge[1])),
        nll_before=nll(kind, *judge, weights),
        nll=nll(kind, scaled, judge[1], weights),
        ece_before=ece(kind, *judge, weights),
        ece=ece(kind, scaled, judge[1], weights),
        rows=len(judge[1]),
    )
