"""Several data sets as one, without a copy: each row says which data set it is of and which tasks it teaches."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ...errors import PluginError
from ...near import nearest_column
from .columns import column_names, plain
from .labels import WORD_COLUMNS, declared_otherwise, named, refuse_bad_rows
from .tasks import NAME, TaskSpec, columns_of, source_tasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaggedRow:
    """A row of one of several data sets.

    Not a mapping, so that Trainer's removal of unused columns leaves it alone.

    Attributes:
        source: name of its data set; "" where there is one only.
        tasks: those that the data set teaches; its labels of one may still be None.
        row: its columns.
        index: its position in its data set.
    """

    source: str
    tasks: tuple[str, ...]
    row: Mapping[str, Any]
    index: int


class TaggedConcat(Dataset[TaggedRow]):
    """Data sets one after the other; row `i` is found by bisection, nothing is copied.

    Args:
        sources: data sets of mappings by position, by name.
        tasks: for each source, the tasks that it teaches.
        declared: for each source, the columns whose numbers are to be names (see `declared_otherwise`).

    Attributes:
        sizes: rows of each source, in order.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        tasks: Mapping[str, tuple[str, ...]],
        declared: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.tasks = {name: tuple(tasks[name]) for name in self.sources}
        self._declared = declared or {}
        self.sizes = [len(source) for source in self.sources.values()]
        self._names = list(self.sources)
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> TaggedRow:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        number = bisect.bisect_right(self._ends, position)
        name = self._names[number]
        index = int(position - (self._ends[number] - self.sizes[number]))
        row = named(self.sources[name][index], self._declared.get(name, {}))
        return TaggedRow(name, self.tasks[name], row, index)

    def taught(self) -> tuple[str, ...]:
        """The tasks that any source teaches, each once."""
        return tuple(dict.fromkeys(task for tasks in self.tasks.values() for task in tasks))


def multitask_dataset(
    dataset: Any, tasks: Mapping[str, TaskSpec], split: str = "train", *, need_all: bool = True
) -> TaggedConcat:
    """A data set, or a mapping of them, as one `TaggedConcat`; labels and trees are checked row by row.

    Args:
        dataset: `datasets.Dataset`s, or others of mappings by position, by name; or one of them.
        tasks: the model's tasks.
        split: its name in errors.
        need_all: whether each task must be taught by one of them, each row have its words, and -1 be no label: as
            training data are read.

    Raises:
        PluginError: streamed or empty data, a task without data, a label outside the task's labels, labels that are
            not as many as the words, a tree that is none, a row without words.
    """
    if isinstance(dataset, TaggedConcat):
        return dataset
    sources = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    taught: dict[str, tuple[str, ...]] = {}
    declared = {}
    for name, given in sources.items():
        source = sources[name] = plain(given)
        called = f"{split} data{f' {name!r}' if name else ''}"
        if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
            raise PluginError(
                f"{NAME}: the {called} are streamed, and batches of one task each need their sizes. Download them, or "
                "take the first rows: datasets.Dataset.from_list(list(stream.take(n))).",
                code="data-unsuited",
            )
        if len(source) == 0:
            raise PluginError(f"{NAME}: the {called} have no row. Leave them out.", code="data-missing")
        if isinstance(source[0], TaggedRow):
            raise PluginError(
                f"{NAME}: the {called} are a part ({type(source).__name__}) of a TaggedConcat, and batches of one task "
                "each need the whole. Take a part of each data set instead, and give these as a mapping.",
                code="data-unsuited",
            )
        # An evaluation set is often called after the task that it is for.
        taught[name] = source_tasks(name or split, column_names(source), tasks, need_labels=need_all)
        if not taught[name] and need_all:
            wanted = "; ".join(f"{task}: {', '.join(columns_of(task, spec))}" for task, spec in tasks.items())
            raise PluginError(
                f"{NAME}: the {called} have the columns {', '.join(column_names(source))}, the labels of no task "
                f"({wanted}). Say TaskSpec(columns=...) or TaskSpec(sources=...).",
                code="data-columns",
            )
        declared[name] = declared_otherwise(source, {task: tasks[task] for task in taught[name]})
        labelled = [refuse_bad_rows(task, tasks[task], source, called, strict=need_all) for task in taught[name]]
        if not any(labelled):
            logger.warning(
                "%s: the %s have no label of a task; their columns are %s. They are predicted, and not scored.",
                NAME,
                called,
                ", ".join(column_names(source)),
            )
    idle = [task for task in tasks if not any(task in names for names in taught.values())]
    if idle and need_all:
        raise PluginError(
            f"{NAME}: no {split} data for task {idle[0]!r}: its labels are to stand in "
            f"{' and '.join(columns_of(idle[0], tasks[idle[0]]))}. Add them, or make the model without this task.",
            code="data-columns",
            mend=[
                step
                for column in columns_of(idle[0], tasks[idle[0]])
                for step in nearest_column(
                    column, {name for source in sources.values() for name in column_names(source)}
                )
            ],
        )
    if not need_all and len(set(taught.values())) > 1:
        raise PluginError(
            f"{NAME}: the {split} data sets teach different tasks: {taught}. Evaluate each by itself: "
            "eval_dataset={name: data set, ...}.",
            code="data-unsuited",
        )
    return TaggedConcat(sources, taught, declared)


def read_as_it_is(dataset: Any) -> bool:
    """Whether only the collator can read evaluation data: a stream, no row at all, or a part of a `TaggedConcat`."""
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return True
    return not isinstance(dataset, Mapping) and (len(dataset) == 0 or isinstance(dataset[0], TaggedRow))


def columns_read(tasks: Mapping[str, TaskSpec]) -> list[str]:
    """The columns of a row that `MultiTaskCollator` may read."""
    labels = (column for name, spec in tasks.items() for column in columns_of(name, spec))
    return [*WORD_COLUMNS, "text", "text_pair", "input_ids", *labels]


def words_of(row: Mapping[str, Any]) -> Sequence[str] | None:
    """A row's words, from its column `tokens` or `words`; None where it has neither."""
    return next((row[column] for column in WORD_COLUMNS if row.get(column) is not None), None)
