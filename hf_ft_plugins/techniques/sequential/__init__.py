"""Stage after stage, without forgetting what the stages before have taught. See `technique.py`."""

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .replay_sampler import ReplaySampler
    from .running import Stage, run_stages
    from .stage_callback import StageCallback
    from .technique import Sequential

__all__ = ["ReplaySampler", "Sequential", "Stage", "StageCallback", "run_stages"]
# The parts need transformers and torch; naming the technique does not.
__getattr__ = lazily(
    __name__,
    {
        "ReplaySampler": "replay_sampler",
        "Sequential": "technique",
        "Stage": "running",
        "StageCallback": "stage_callback",
        "run_stages": "running",
    },
)
