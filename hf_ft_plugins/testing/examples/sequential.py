"""`sequential` on the kit's classifier."""

from __future__ import annotations

from typing import Any

from ...techniques.sequential import Sequential
from ..example import Example


def acted(technique: Sequential, trainer: Any) -> bool:
    """The log tells how far the average of the weights is from the start, and the model is not the start itself."""
    from ...techniques.sequential.start_memory import distance_from
    from ...techniques.sequential.start_weights import read_start, start_folder

    told = any(entry.get("sequential/distance", 0) > 0 for entry in trainer.state.log_history)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return told and distance_from(model, read_start(start_folder(trainer.args))) > 0


EXAMPLE = Example(Sequential(wise=0.5), acted)
