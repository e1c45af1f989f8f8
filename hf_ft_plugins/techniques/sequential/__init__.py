"""Stage after stage, without forgetting what the stages before have taught. See `technique.py`."""

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .penalty_callback import PenaltyCallback
    from .replay_sampler import ReplaySampler
    from .running import Stage, run_stages
    from .stage_callback import StageCallback
    from .stage_records import StageRecords
    from .start_memory import StartMemory
    from .technique import Sequential

__all__ = [
    "PenaltyCallback",
    "ReplaySampler",
    "Sequential",
    "Stage",
    "StageCallback",
    "StageRecords",
    "StartMemory",
    "run_stages",
]
# The parts need transformers and torch; naming the technique does not.
__getattr__ = lazily(
    __name__,
    {
        "PenaltyCallback": "penalty_callback",
        "ReplaySampler": "replay_sampler",
        "Sequential": "technique",
        "Stage": "running",
        "StageCallback": "stage_callback",
        "StageRecords": "stage_records",
        "StartMemory": "start_memory",
        "run_stages": "running",
    },
)
