"""`adaptive-lr` on the kit's classifier."""

from __future__ import annotations

from typing import Any

from ... import lr_scale
from ...techniques.adaptive_lr import AdaptiveLR
from ..example import Example


def acted(technique: AdaptiveLR, trainer: Any) -> bool:
    """The rate was changed, the optimizer still has the factor, and the log shows the rate as applied."""
    events = [entry for entry in trainer.state.log_history if "adaptive_lr/scale" in entry]
    factors = {group.get(lr_scale.KEY, {}).get(technique.name) for group in trainer.optimizer.param_groups}
    return bool(events) and factors == {events[-1]["adaptive_lr/scale"]} != {1.0}


# With a patience of one and an improvement that no value can be, every second evaluation cuts.
EXAMPLE = Example(AdaptiveLR(controller="plateau", patience=1, min_delta=1e9, max_cuts=2, stop=False), acted)
