"""Full-parameter training in a fraction of AdamW's memory. See `technique.py`."""

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .fused_backward import FusedBackward
    from .learning_blocks import LearningBlocks
    from .matrix_algorithms import for_matrices
    from .optimizers.mezo import MeZO
    from .technique import LowMemory

__all__ = ["FusedBackward", "LearningBlocks", "LowMemory", "MeZO", "for_matrices"]
# The parts need transformers and torch; naming the technique does not.
__getattr__ = lazily(
    __name__,
    {
        "FusedBackward": "fused_backward",
        "LearningBlocks": "learning_blocks",
        "LowMemory": "technique",
        "MeZO": "optimizers.mezo",
        "for_matrices": "matrix_algorithms",
    },
)
