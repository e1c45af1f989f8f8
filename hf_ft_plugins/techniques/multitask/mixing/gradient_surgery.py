"""Combining the gradients of several tasks so that they do not work against each other, by torchjd.

Both methods weigh the tasks' gradients by what their inner products say, so the gradients themselves need not be put
into one matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .... import mends
from ....errors import PluginError
from ....near import nearest_value
from ..tasks import NAME

METHODS = ("pcgrad", "cagrad")
INSTALL = "pip install torchjd scipy; from a clone of hf-ft-plugins, pip install -c constraints.txt -e '.[all]'"
# How far the direction may be from the mean gradient, as a share of its length.
CAGRAD_C = 0.5
# A weighed gradient shorter than this share of its parts' lengths has cancelled out, and float32 cannot tell how long
# it is: products of float32 gradients are off by about 1e-7 of their size, a length by the root of that.
CANCELLED = 3e-3


def surgery_weights(method: str, gramian: Tensor, seed: int) -> Tensor:
    """The weight of each task's gradient in the combined one.

    - pcgrad: the sum of the gradients, each without what conflicts with the others, in a random order (Yu et al. 2020,
      algorithm 1).
    - cagrad: the direction, close to the mean gradient, that serves the worst-served task best (Liu et al. 2021,
      algorithm 1, c = 0.5), times the number of tasks, so that the learning rate keeps its meaning. Deviation: where
      the gradients cancel, the step away from the mean fades out instead of being divided by a length near 0.

    Args:
        method: "pcgrad" or "cagrad".
        gramian: inner products of the gradients, float [tasks, tasks].
        seed: of the random order; the global random state is left as it was.

    Returns:
        float [tasks]; tasks without a gradient weigh 1, and so do all where an inner product is not finite.

    Raises:
        PluginError: no such method, or what it needs (torchjd, scipy) is not installed.
    """
    if method not in METHODS:
        raise PluginError(
            f"{NAME}: there is no gradient surgery {method!r}. Use {' or '.join(METHODS)}.",
            code="option-value",
            mend=nearest_value(NAME, "balance", method, METHODS),
        )
    weights = torch.ones(len(gramian), dtype=torch.float64)
    moving = gramian.diagonal() > 0
    if bool(torch.isfinite(gramian).all()) and int(moving.sum()) > 1:
        part = gramian[moving][:, moving].double().cpu()
        weights[moving.cpu()] = _pcgrad(part, seed) if method == "pcgrad" else _cagrad(part)
    return weights.to(gramian)


def _pcgrad(gramian: Tensor, seed: int) -> Tensor:
    try:
        from torchjd.aggregation import PCGradWeighting
    except ImportError as error:
        raise PluginError(
            f"{NAME}: option balance=pcgrad needs torchjd, which is not installed. {INSTALL}",
            code="package-missing",
            mend=[mends.install("torchjd>=0.18,<1")],
        ) from error
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed every GPU, whose states are not put back.
        torch.default_generator.manual_seed(seed)
        return PCGradWeighting()(gramian)


def _cagrad(gramian: Tensor, c: float = CAGRAD_C) -> Tensor:
    """torchjd's needs a solver of its own (cvxpy, clarabel); this solves the same dual by scipy, over the simplex."""
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise PluginError(
            f"{NAME}: option balance=cagrad needs scipy, which is not installed. {INSTALL}",
            code="package-missing",
            mend=[mends.install("scipy")],
        ) from error

    count = len(gramian)
    # By the length of the mean gradient, so that the solver's tolerance means the same for any scale of losses.
    products = gramian.numpy()
    mean = np.full(count, 1.0 / count)
    length = float(np.sqrt(max(mean @ products @ mean, 0.0)))
    if length == 0.0:
        return torch.ones(count, dtype=torch.float64)
    scaled = products / length**2

    def dual(weights: np.ndarray) -> float:
        return float(weights @ scaled @ mean + c * np.sqrt(max(weights @ scaled @ weights, 0.0)))

    def slope(weights: np.ndarray) -> np.ndarray:
        norm = np.sqrt(max(weights @ scaled @ weights, 1e-24))
        return np.asarray(scaled @ mean + c * (scaled @ weights) / norm)

    found = minimize(
        dual,
        mean,
        jac=slope,
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(count)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    norm = max(np.sqrt(max(found @ scaled @ found, 0.0)), CANCELLED * float(found @ np.sqrt(scaled.diagonal())))
    return torch.from_numpy(np.asarray((mean + c * found / norm) * count))
