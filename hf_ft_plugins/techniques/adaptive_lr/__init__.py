"""Adaptive learning rate: change the rate while training, by what the metric does. See `technique.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .technique import AdaptiveLR

if TYPE_CHECKING:
    from .callback import AdaptiveLRCallback

__all__ = ["AdaptiveLR", "AdaptiveLRCallback"]


def __getattr__(name: str) -> Any:
    # The callback needs transformers and torch; naming the technique does not.
    if name == "AdaptiveLRCallback":
        from .callback import AdaptiveLRCallback

        return AdaptiveLRCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
