"""`low-memory` on the kit's classifier."""

from __future__ import annotations

from typing import Any

from ...techniques.low_memory import LowMemory
from ..example import Example


def acted(technique: LowMemory, trainer: Any) -> bool:
    """What stepped within the backward pass has no state."""
    from ...techniques.low_memory import FusedBackward
    from ...techniques.low_memory.optimizers.lomo import LOMO

    fused = getattr(trainer.optimizer, "optimizer", None)
    return isinstance(fused, FusedBackward) and isinstance(fused.optimizer, LOMO) and not any(fused.state.values())


def setting() -> dict[str, Any]:
    return {"gradient_accumulation_steps": 1}


EXAMPLE = Example(LowMemory(algorithm="lomo"), acted, setting)
