"""The new rows and the kept rows of earlier stages, laid end to end, as one data set that reads as the new one does.

    data, sizes = joined(train_dataset, {"general": load_rows(...), "medical": load_rows(...)})
    sampler = ReplaySampler(sizes[0], sizes[1:], share=0.05)

A `datasets.Dataset` stays one, with its format or transform; any other map-style data set becomes torch's
`ConcatDataset`, whose kept rows have values of the new rows' types. What would not be the same to the model is refused,
with a diff: other columns, other classes, texts for numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from ... import mends
from ...errors import PluginError
from ...models.label_columns import is_transformed, random_state_kept
from .arrow_rows import like, stored
from .kept_rows import refuse_stream
from .settings import NAME

# Names of classes that a refusal lists.
SHOWN = 8


def joined(train: Any, pools: Mapping[str, Any], columns: Collection[str] | None = None) -> tuple[Any, list[int]]:
    """The new rows, then each stage's kept rows, as one data set, and the number of rows of each.

    Args:
        train: the new data: a `datasets.Dataset`, or a list or map-style data set of mappings.
        pools: kept rows by stage, in order; `datasets.Dataset`s of `keep_rows` or `load_rows`.
        columns: those that are read in training, which must be alike; others that are not on both sides are left out,
            as Trainer leaves out what the model does not take. None: all are read. Of data with a transform, which
            makes columns of columns, all are.

    Raises:
        PluginError: a stream, rows that are no mappings, or columns that are not alike.
    """
    import datasets

    sizes = [refuse_stream(train), *(len(pool) for pool in pools.values())]
    if isinstance(train, datasets.Dataset):
        read = None if is_transformed(train) else columns
        names = _common(train.column_names, pools, read)
        rows = [_cast(pool.with_format(None), train.features, names, stage) for stage, pool in pools.items()]
        return _concatenated(train, rows, names), sizes
    with random_state_kept():
        example = train[0] if sizes[0] else None
    if not isinstance(example, Mapping):
        raise PluginError(
            f"{NAME}: replay joins rows by column, and a training row is a {type(example).__name__}. Set replay=0, or "
            "train on a data set of mappings.",
            code="data-unsuited",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    shown, names = list(example), _common(list(example), pools, columns)
    example = {name: example[name] for name in names}
    features = stored([example]).features
    kept = [like(_cast(pool.with_format(None), features, names, stage), example) for stage, pool in pools.items()]
    new = train if names == shown else SomeColumns(train, names)
    return ConcatDataset([new, *kept]), sizes


def alike(rows: Any, data: Any, name: str, columns: Collection[str] | None = None) -> Any:
    """Kept rows as `data` gives its own: with its format or transform, or with values of its types; see `joined`."""
    both, sizes = joined(data, {name: rows}, columns)
    if isinstance(both, ConcatDataset):
        return both.datasets[1]
    return both.select(range(sizes[0], sum(sizes)))


class SomeColumns(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style data set of mappings, of which rows show some columns only."""

    def __init__(self, rows: Any, names: Collection[str]) -> None:
        self.rows, self.names = rows, tuple(names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.rows[position]
        return {name: row[name] for name in self.names}


def _common(new: list[str], pools: Mapping[str, Any], read: Collection[str] | None) -> list[str]:
    """The new data's columns that all pools have; an error where one that is read is not on both sides."""
    names = list(new)
    for stage, pool in pools.items():
        differing = set(new) ^ set(pool.column_names)
        missing = differing if read is None else differing & set(read)
        if missing:
            raise PluginError(
                f"{NAME}: replay: the rows kept of stage {stage!r} have other columns than the new data. "
                f"Only the new data have {_listed(missing & set(new))}; only {stage!r} has "
                f"{_listed(missing - set(new))}. Prepare the data of both stages alike, or set replay=0.",
                code="data-columns",
                mend=[mends.set_option(NAME, "replay", 0)],
            )
        names = [name for name in names if name not in differing]
    return names


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _cast(pool: Any, features: Mapping[str, Any], names: list[str], stage: str) -> Any:
    """A pool's columns with the features of the new data."""
    import pyarrow

    pool = pool.select_columns(names)
    for name in names:
        new, old = features[name], pool.features[name]
        if new == old:
            continue
        _refuse_other_classes(name, _class_names(new), _class_names(old), stage)
        kinds = _kind(new), _kind(old)
        if kinds[0] != kinds[1] and not _fits(*kinds):
            raise PluginError(
                f"{NAME}: replay: the column {name!r} holds {old} in the rows kept of stage {stage!r}, and {new} in "
                "the new data. Prepare the data of both stages alike, or set replay=0.",
                code="data-columns",
                mend=[mends.set_option(NAME, "replay", 0)],
            )
        if kinds[0] == kinds[1]:
            try:
                _check_numbers(pool, name, _class_names(new))
                pool = pool.cast_column(name, new)
            except (pyarrow.ArrowException, TypeError, ValueError) as error:
                raise PluginError(
                    f"{NAME}: replay: the column {name!r} of the rows kept of stage {stage!r}, {old}, does not fit the "
                    f"new data's {new} ({type(error).__name__}: {error}). Prepare both alike, or set replay=0.",
                    code="data-columns",
                    mend=[mends.set_option(NAME, "replay", 0)],
                ) from error
    return pool


def _refuse_other_classes(column: str, new: list[str] | None, old: list[str] | None, stage: str) -> None:
    if new is None or old is None or new == old:
        return
    if set(new) == set(old):
        how = f"in another order: {_some(old)}; the new data have {_some(new)}"
    else:
        added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
        how = f"others. Only the new data have {_some(added)}; only {stage!r} has {_some(gone)}"
    raise PluginError(
        f"{NAME}: replay: the classes of the column {column!r} in the rows kept of stage {stage!r} are {how}. One head "
        "has one set of labels: cast both to one ClassLabel (Dataset.align_labels_with_mapping), or set replay=0.",
        code="labels-unsuited",
        mend=[mends.set_option(NAME, "replay", 0)],
    )


def _check_numbers(rows: Any, column: str, classes: list[str] | None) -> None:
    """Casting takes numbers for classes unseen."""
    import pyarrow.compute

    if classes is None:
        return
    values = rows.with_format("arrow")[:].column(column).combine_chunks()
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    largest = pyarrow.compute.max(values).as_py()
    if largest is not None and largest >= len(classes):
        raise ValueError(f"label {largest} of {len(classes)} classes")


def _some(names: list[str]) -> str:
    return (", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")) or "none"


def _class_names(feature: Any) -> list[str] | None:
    while hasattr(feature, "feature"):
        feature = feature.feature
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _kind(feature: Any) -> Any:
    """What a value means, without its width: kinds that are equal can be cast to each other without another meaning."""
    if hasattr(feature, "feature"):
        return [_kind(feature.feature)]
    if isinstance(feature, Mapping):
        return {name: _kind(inner) for name, inner in feature.items()}
    dtype = str(getattr(feature, "dtype", feature))
    for kind in ("int", "float", "string", "binary"):
        if dtype.removeprefix("u").removeprefix("large_").startswith(kind):
            return kind
    return dtype


def _fits(one: Any, other: Any) -> bool:
    """Whether two kinds differ only where one has no value at all."""
    if "null" in (one, other):
        return True
    if isinstance(one, list) and isinstance(other, list):
        return _fits(one[0], other[0])
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_fits(one[name], other[name]) for name in one)
    return bool(one == other)


def _concatenated(train: Any, pools: list[Any], names: list[str]) -> Any:
    """One `datasets.Dataset`, with the format of the new data, which `datasets` would reset."""
    from datasets import concatenate_datasets

    form = train.format
    rows = concatenate_datasets([train.with_format(None).select_columns(names), *pools])
    if form["type"] is None and set(form["columns"]) >= set(names):
        return rows
    shown = [name for name in form["columns"] if name in names]
    return rows.with_format(
        form["type"], columns=shown, output_all_columns=form["output_all_columns"], **form["format_kwargs"]
    )
