"""Rows of a stage's training data that are kept for later stages: drawn, stored on disk in Arrow, and read again.

rows = keep_rows(train_dataset, 2000, seed=0)
save_rows(rows, folder)
like(load_rows(folder), train_dataset[0])  # tensors, where the new data have tensors (arrow_rows.py)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from ...keyed_permutation import KeyedPermutation
from ...models.label_columns import random_state_kept
from ...progress import progress
from .arrow_rows import MEND, stored
from .settings import NAME


def keep_rows(dataset: Any, count: int, seed: int) -> Any:
    """`count` rows of a data set, all if there are fewer, each once, in the data's order; the draw follows from `seed`.

    Args:
        dataset: a `datasets.Dataset`, of which rows are kept as they are stored, whatever its format or transform; or a
            list or map-style data set of mappings, whose values are read once.
        count: 1 or more.
        seed: of the draw.

    Returns:
        A `datasets.Dataset` without a format.

    Raises:
        PluginError: a stream, an empty data set, rows that are no mappings or have different columns, or a value that
            Arrow cannot hold exactly.
    """
    import datasets

    size = refuse_stream(dataset)
    if count < 1 or size < 1:
        raise PluginError(
            f"{NAME}: keep_rows={count} of {size} training rows leaves none. {MEND if size < 1 else 'Keep 1 or more.'}",
            code="option-value",
            mend=[] if size < 1 else [mends.set_option(NAME, "keep_rows", 1)],
        )
    chosen = np.sort(KeyedPermutation(size, (seed,))(np.arange(min(count, size))))
    if isinstance(dataset, datasets.Dataset):
        return dataset.with_format(None).select(chosen)
    # A row may be augmented as it is read.
    with random_state_kept():
        return stored([dataset[int(position)] for position in progress(chosen, f"{NAME}: rows to keep")])


def refuse_stream(dataset: Any) -> int:
    """The number of rows; a `PluginError` where a data set cannot be read by position."""
    streams = isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")
    if streams or not hasattr(dataset, "__len__"):
        raise PluginError(
            f"{NAME}: replay needs training data that can be read by position, and a {type(dataset).__name__} is a "
            "stream. Set replay=0, or download it: datasets.Dataset.from_list(list(stream.take(n))).",
            code="data-unsuited",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    return len(dataset)


def save_rows(rows: Any, folder: str | Path) -> None:
    """Write kept rows into a folder as Arrow files; pictures and sounds that are files go into them, too."""
    rows.with_format(None).save_to_disk(str(folder))


def load_rows(folder: str | Path) -> Any:
    """The rows that `save_rows` wrote, mapped from the disk.

    Raises:
        PluginError: there are none, or they cannot be read.
    """
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise PluginError(
            f"{NAME}: folder: no kept rows can be read at {folder} ({type(error).__name__}: {error}). Run that stage "
            "again, or set replay=0.",
            code="file-unusable",
            mend=[mends.set_option(NAME, "replay", 0)],
        ) from error
