"""Adaptive learning rate: change the rate while training, by what the metric does. See `technique.py`."""

from typing import TYPE_CHECKING

from ...lazy import lazily

if TYPE_CHECKING:
    from .callback import AdaptiveLRCallback
    from .technique import AdaptiveLR

__all__ = ["AdaptiveLR", "AdaptiveLRCallback"]
# The callback needs transformers and torch; naming the technique does not.
__getattr__ = lazily(__name__, {"AdaptiveLR": "technique", "AdaptiveLRCallback": "callback"})
