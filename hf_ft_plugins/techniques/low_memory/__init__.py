"""Full-parameter training in a fraction of AdamW's memory. See `technique.py`."""

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .fused_backward import FusedBackward
    from .matrix_algorithms import for_matrices
    from .technique import LowMemory

__all__ = ["FusedBackward", "LowMemory", "for_matrices"]
# The parts need transformers and torch; naming the technique does not.
__getattr__ = lazily(
    __name__, {"FusedBackward": "fused_backward", "LowMemory": "technique", "for_matrices": "matrix_algorithms"}
)
