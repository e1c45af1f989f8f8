"""For which frequencies of the classes a model's answers are meant, and the shift of its logits from some to others.

By Bayes' rule a class that is k times as frequent elsewhere gets log k more (Saerens et al. 2002). A loss
that is balanced by class leaves a model for classes that are equally frequent (Menon et al. 2021, arXiv:2007.07314,
section 4.1), whatever the data's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ... import mends
from ...errors import PluginError
from ...host.stash import StashKey
from ...models.labels import Kind
from . import NAME

NAMED = ("evaluation", "training", "equal")
# Of a class without rows: less than one, more than none.
UNSEEN = 0.5
# Chances at which training and evaluation frequencies count as the same.
ALIKE = 0.01


@dataclass(frozen=True)
class Trained:
    """What a model was trained on.

    Attributes:
        counts: rows (tokens) of each class in the training set, int64 [C].
        exponent: the loss, or the order of rows, made it one for frequencies of counts ** exponent.
    """

    counts: np.ndarray
    exponent: float = 1.0


TRAINED: StashKey[Trained] = StashKey("task: the frequencies that the model was trained for")


def asked(option: str) -> str | np.ndarray:
    """The option `frequencies`: a name, or shares by class, float64 [C], that sum to 1.

    Raises:
        ValueError: neither.
    """
    if option in NAMED:
        return option
    shares = np.array([float(share) for share in option.split("/")])
    if len(shares) < 2 or not (shares > 0).all() or not np.isfinite(shares).all():
        raise ValueError(option)
    return shares / shares.sum()


def shares_of(counts: np.ndarray) -> np.ndarray:
    """Shares of the classes, float64 [C], all above 0."""
    seen = np.maximum(np.asarray(counts, dtype=np.float64), UNSEEN)
    return seen / seen.sum()


def refuse_unfit_frequencies(option: str, kind: Kind, classes: int, trained: Trained | None) -> None:
    """Raises `PluginError` where no model of the kind can be moved to the frequencies, or the classes are others."""
    if option == "evaluation":
        return
    what = f"{NAME}: option frequencies={option}"
    if kind not in ("single_label", "token"):
        raise PluginError(
            f"{what} is of classes of which one is right, and the model is of kind {kind}. Leave it out.",
            code="option-combination",
            mend=[mends.remove_option(NAME, "frequencies")],
        )
    if option == "training" and trained is None:
        raise PluginError(
            f"{what}, and nothing says how frequent the classes of the training data are: they are streamed, or their "
            "labels are made by the collator. Name the shares: frequencies=0.9/0.1.",
            code="option-combination",
            mend=[mends.remove_option(NAME, "frequencies")],
        )
    shares = asked(option)
    if not isinstance(shares, str) and len(shares) != classes:
        raise PluginError(
            f"{what} has {len(shares)} shares, and the model {classes} classes. Give one for each, in order.",
            code="option-value",
            mend=[mends.remove_option(NAME, "frequencies")],
        )


def wanted(option: str, evaluation: np.ndarray, trained: Trained | None) -> np.ndarray:
    """The shares that the option means, float64 [C]; `evaluation`: those of the evaluation set."""
    shares = asked(option)
    if not isinstance(shares, str):
        return shares
    if shares == "equal":
        return np.full(len(evaluation), 1 / len(evaluation))
    if shares == "training" and trained is not None:
        return shares_of(trained.counts)
    return evaluation


def rows_at(labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Positions of the most rows, int64, first ones first, that have the frequencies `target`, float64 [C]."""
    counts = np.bincount(labels, minlength=len(target))
    most = np.floor(target * (counts / target).min() + 1e-9).astype(int)
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:number] for label, number in enumerate(most)]))


def direction(counts: np.ndarray, trained: Trained | None) -> np.ndarray | None:
    """The shift of logits, float64 [C], from the frequencies that a model was trained for to those of the evaluation
    set, `counts` int64 [C]; None where they are the same but for chance, or nothing says.
    """
    if trained is None or len(trained.counts) != len(counts):
        return None
    if trained.exponent == 1.0 and _alike(trained.counts, counts):
        return None
    return shift(shares_of(trained.counts) ** trained.exponent, shares_of(counts))


def shift(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """log(end / start) by class, with mean 0; float64 [C]."""
    moved = np.log(end) - np.log(start)
    return moved - moved.mean()


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    from scipy.stats import chi2_contingency

    table = np.stack([first, second])
    table = table[:, table.sum(axis=0) > 0]
    return table.shape[1] < 2 or float(chi2_contingency(table).pvalue) >= ALIKE
