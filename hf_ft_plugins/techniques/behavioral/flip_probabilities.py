"""Each pair's own probability of being the wrong way round, in TRL's robust DPO loss.

Chowdhury et al. 2024 (rDPO, 2403.00409, equation 12) and, as the conservative loss, Mitchell 2023 (cDPO), with one
probability for each pair where TRL has one for the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .collator import FLIP

if TYPE_CHECKING:
    from transformers import Trainer


def conservative(flip: Tensor) -> Tensor:
    """The `label_smoothing` with which TRL's `robust` loss is the conservative loss of flip probability `flip`.

    (1 - e') l(z) - e' l(-z), over 1 - 2e', is (1 - e) l(z) + e l(-z) for e' = -e / (1 - 2e).
    """
    return -flip / (1 - 2 * flip)


@contextlib.contextmanager
def flip_probabilities(trainer: Trainer, inputs: dict[str, Any], noise: str) -> Iterator[None]:
    """Let one batch's `behavior_eps` be the `label_smoothing` of a `DPOTrainer` whose loss is `robust`.

    Args:
        inputs: a batch; without `behavior_eps`, this does nothing.
        noise: `robust` or `cdpo`.
    """
    flip = inputs.get(FLIP)
    if flip is None:
        yield
        return
    for_the_run = trainer.label_smoothing
    trainer.label_smoothing = conservative(flip) if noise == "cdpo" else flip
    try:
        yield
    finally:
        trainer.label_smoothing = for_the_run
