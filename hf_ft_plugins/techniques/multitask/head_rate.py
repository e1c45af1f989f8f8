"""The rate at which the tasks' heads learn: they are new, and the encoder is not."""

from __future__ import annotations

import logging
from typing import Any

from ... import lr_scale
from ...errors import PluginError
from ...models.inputs import bare
from .tasks import NAME

logger = logging.getLogger(__name__)

FACTOR = f"{NAME}/heads"
TIMES, HIGHEST = 8.0, 4e-3


def fit_head_rate(optimizer: Any, model: Any, factor: float | None = None) -> float:
    """Let the heads of a `MultiTaskModel` learn at `factor` times the rate of its encoder.

    Args:
        optimizer: any torch optimizer that has not stepped yet; groups that hold both are split, in place.
        factor: None: 8, or less where the highest rate of the groups would then be above 0.004, but not below 1; it is
            said in a warning.

    Returns:
        The factor.

    Raises:
        PluginError: `factor` is given, and the optimizer does not step with the rate of its groups.
    """
    inner = lr_scale.innermost(optimizer)
    rate = max((float(group.get("lr", 0.0)) for group in getattr(inner, "param_groups", [])), default=0.0)
    guessed = factor is None
    factor = max(1.0, min(TIMES, HIGHEST / rate if rate > 0 else 1.0)) if factor is None else factor
    heads = [weight for name, weight in bare(model).named_parameters() if name.startswith("heads.")]
    if factor == 1.0 or not heads:
        return 1.0
    try:
        lr_scale.set_scale(inner, FACTOR, factor, lr_scale.split_groups(inner, heads))
    except PluginError as error:
        if not guessed:
            raise
        logger.warning("%s: the heads learn at the encoder's rate, %g: %s", NAME, rate, error)
        return 1.0
    if guessed:
        logger.warning(
            "%s: the heads are new, and learn at %g, %g times learning_rate=%g, at which the encoder learns. "
            "head_rate=1 leaves them at that.",
            *(NAME, factor * rate, factor, rate),
        )
    return factor
