"""`task` on the kit's sentences, with named classes of unequal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...techniques.task import Task
from ..example import Example
from ..tiny_run import tiny_dataset


def tiny_rows(size: int, seed: int = 0) -> Any:
    """`tiny_dataset` as a `datasets.Dataset` with named classes, one of them rarer."""
    from datasets import ClassLabel, Dataset

    rows = [row for index, row in enumerate(tiny_dataset(2 * size, seed)) if row["labels"] == 0 or index % 2 == 0]
    columns = {name: [row[name] for row in rows[:size]] for name in rows[0]}
    columns = {
        name: [getattr(value, "tolist", lambda value=value: value)() for value in column]
        for name, column in columns.items()
    }
    return Dataset.from_dict(columns).cast_column("labels", ClassLabel(names=["low", "high"]))


def setting() -> dict[str, Any]:
    """Training rows and rows to evaluate on."""
    return {"train_dataset": tiny_rows(24), "eval_dataset": tiny_rows(40, seed=1)}


def acted(technique: Task, trainer: Any) -> bool:
    """The loss is weighted, the metrics are ours, and the report of the evaluation set is written."""
    from ...techniques.task.losses import TaskLoss

    loss = trainer.compute_loss_func
    evaluated = any("eval_macro_f1" in entry for entry in trainer.state.log_history)
    return (
        isinstance(loss, TaskLoss)
        and loss.weights is not None
        and evaluated
        and (Path(trainer.args.output_dir) / "task" / "report.json").is_file()
    )


EXAMPLE = Example(Task(imbalance="weights", early_stopping_patience=None), acted, setting)
