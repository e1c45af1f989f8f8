"""From a labelled data set to a sound classifier or regressor with nothing but defaults. See `technique.py`."""

from ...lazy import lazily

NAME = "task"
_HOMES = {
    "Task": "technique",
    "TaskLoss": "losses",
    "BalancedSampler": "sampler",
    "TaskMetrics": "metrics",
    "BestMetricCallback": "best",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
