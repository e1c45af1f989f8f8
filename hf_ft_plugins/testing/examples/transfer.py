"""`transfer` on the kit's classifier."""

from __future__ import annotations

from typing import Any

from ... import lr_scale
from ...techniques.transfer import Transfer
from ..example import Example


def acted(technique: Transfer, trainer: Any) -> bool:
    """The optimizer's groups are split by layer, and lower layers step at a lower rate, where they are to."""
    from ...techniques.transfer.layers import MARK

    groups = [group for group in trainer.optimizer.param_groups if MARK in group]
    factors = [lr_scale.scale_of(group) for group in groups]
    falling = technique.layer_decay is not None or trainer.state.max_steps >= technique.short_run
    return len({group[MARK] for group in groups}) > 2 and (factors[0] > factors[-1] or not falling)


EXAMPLE = Example(Transfer(strategy="gradual", layer_decay=0.5), acted)
