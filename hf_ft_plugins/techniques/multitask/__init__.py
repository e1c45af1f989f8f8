"""Multi-task: one model, several tasks, one Trainer."""

from ...lazy import lazily

_HOMES = {
    "MultiTask": "technique",
    "MultiTaskCallback": "callback",
    "MultiTaskCollator": "collator",
    "MultiTaskConfig": "heads.model",
    "MultiTaskMetrics": "metrics",
    "MultiTaskModel": "heads.model",
    "MultiTaskSampler": "mixing.sampler",
    "TaggedConcat": "data",
    "TaggedRow": "data",
    "TaskSpec": "tasks",
    "multitask_dataset": "data",
    "with_labels": "label_names",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
