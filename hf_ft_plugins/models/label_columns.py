"""Where a data set's labels stand, and their values as the model is given them.

A column is `labels`, `label` or `label_ids`, one of the script's `label_names`, or whichever column the script's
collator makes the labels of. Where the data set transforms its rows as they are read (`set_transform`), what the
transform gives counts, not what is stored.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..progress import progress

LABEL_COLUMNS = ("labels", "label", "label_ids")
# Rows that are compared to find the column of the labels, and whether a transform changes them.
SHOWN = 16
PADDING = -100

FirstBatches = Callable[[int], list[Any]]


def columns_of(dataset: Any) -> dict[str, Any]:
    """The features of the columns that the data set gives; empty where it has none."""
    features = dict(getattr(dataset, "features", None) or {})
    shown = getattr(dataset, "format", None)
    given = (shown.get("columns") if isinstance(shown, dict) else None) or features
    return {name: feature for name, feature in features.items() if name in given}


def label_column(dataset: Any, label_names: Sequence[str] = (), given: Sequence[Any] | None = None) -> str | None:
    """The column of the labels; None where the data set has no columns, or the labels are made of other columns.

    Args:
        label_names: what the script calls labels (`TrainingArguments.label_names`).
        given: the labels of the first rows as they are collated (`collated_labels`); None where they are not known.
    """
    columns = columns_of(dataset)
    known = [name for name in dict.fromkeys((*label_names, *LABEL_COLUMNS)) if name in columns]
    if not columns or not hasattr(dataset, "__len__"):
        return known[0] if known else None
    shown = _shown(dataset) if is_transformed(dataset) else {}
    if given is None:
        named = [*known, *(name for name in (*label_names, *LABEL_COLUMNS) if name in shown)]
        return next((name for name in named if not shown or name in shown), known[0] if known else None)
    count = min(SHOWN, len(dataset), len(given))
    stored = dataset.with_format(None)[list(range(count))]
    found = {name: shown.get(name, stored.get(name)) for name in (*columns, *shown)}
    # Stored columns first: they have features.
    return next((name for name in (*known, *found) if same(found[name][:count], given[:count])), None)


def collated_labels(first_batches: FirstBatches, label_names: Sequence[str] = ()) -> list[Any] | None:
    """The labels of the first rows, a number or a list each, as the collator gives them; None where it gives none."""
    with random_state_kept():
        batches = first_batches(SHOWN)
    found: list[Any] = [
        next((batch[name] for name in ("labels", *label_names) if name in batch), None) for batch in batches
    ]
    if not found or not all(isinstance(labels, torch.Tensor) and labels.dim() for labels in found):
        return None
    return [label for labels in found for label in labels.tolist()]


def first_batches_of(trainer: Any) -> FirstBatches | None:
    """The first rows of a host's training data, collated; None where they are a stream or have no order."""
    dataset = trainer.train_dataset
    if not (hasattr(dataset, "select") and hasattr(dataset, "__len__")):
        return None
    return lambda count: list(trainer.feature_batches(dataset.select(range(min(count, len(dataset))))))


def label_values(dataset: Any, column: str) -> list[Any]:
    """The labels of every row, a number, a list, a text or None each, as the model is given them."""
    if not is_transformed(dataset):
        return list(dataset.with_format(None)[column])
    if column in columns_of(dataset):
        places = sorted({int(place) for place in np.linspace(0, len(dataset) - 1, SHOWN)}) if len(dataset) else []
        shown = _shown(dataset, places)
        if column not in shown or same(dataset.with_format(None)[places][column], shown[column]):
            # Reading a column as it is stored costs nothing; a transform may decode and augment a picture a row.
            return list(dataset.with_format(None)[column])
    with random_state_kept():
        batches, number = dataset.iter(batch_size=SHOWN), -(-len(dataset) // SHOWN)
        read = progress(batches, f"reading {column!r} of every row", total=number, unit="batches")
        return [_plain(value) for rows in read for value in rows[column]]


def is_transformed(dataset: Any) -> bool:
    """Whether the rows are made when they are read (`set_transform`, `with_transform`)."""
    shown = getattr(dataset, "format", None)
    return isinstance(shown, dict) and shown.get("type") == "custom"


def _shown(dataset: Any, places: Sequence[int] | None = None) -> dict[str, list[Any]]:
    """Rows, by default the first, as the transform gives them, by column."""
    with random_state_kept():
        rows = dataset[list(range(min(SHOWN, len(dataset))) if places is None else places)]
    return {name: [_plain(value) for value in values] for name, values in rows.items()}


def same(stored: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether rows of labels are the same but for padding."""
    pairs = list(zip(map(_plain, stored), map(_plain, given), strict=True))
    try:
        return all(np.allclose(_unpadded(one), _unpadded(other), equal_nan=True) for one, other in pairs)
    except (TypeError, ValueError):
        return False  # Texts, pictures, lists of another shape: not these.


def _unpadded(row: Any) -> Any:
    return [value for value in row if value != PADDING] if isinstance(row, list) else row


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """What a transform or a collator draws, it draws again in the run."""
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])
