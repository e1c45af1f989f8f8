"""From a labelled data set to a sound classifier or regressor with nothing but defaults. See `technique.py`."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Task": "technique",
    "TaskLoss": "losses",
    "BalancedSampler": "sampler",
    "TaskMetrics": "metrics",
    "BestMetricCallback": "best",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Lazily: `hf-ft list` reads the technique and needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
