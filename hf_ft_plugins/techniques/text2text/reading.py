"""Reading `Rows` from examples that are mappings, and padding what they hold beside their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from .arrays import Ragged
from .loss import IGNORED
from .rows import MASK, REDUNDANT, Rows, hiding

IDS, LABELS, STARTED = "input_ids", ("labels", "label"), "decoder_input_ids"


def rows_of(examples: Sequence[Mapping[str, Any]], *, takes: frozenset[str] | None, texts: Sequence[str] = ()) -> Rows:
    """Examples that have `input_ids`, with whatever else they hold that the model takes.

    Args:
        takes: names of the model's inputs; None: not known.
        texts: columns that hold the texts of which the ids were made.

    Raises:
        PluginError: a row has no `input_ids`, columns are not as long as each other, or one cannot be batched.
    """
    first = examples[0]
    sources = Ragged.from_rows(column(examples, IDS))
    label = next((name for name in LABELS if any(example.get(name) is not None for example in examples)), None)
    targets = None if label is None else _labels([example.get(label) for example in examples], sources)
    rows = Rows(sources, targets, mask=_mask(examples, sources))
    for name in first:
        if name in (IDS, *LABELS, *texts) or (name == MASK and (rows.mask is not None or _is_flat(first[name]))):
            continue
        _read_column(rows, name, [example.get(name) for example in examples], takes)
    return rows


def column(examples: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a column, one each example.

    Raises:
        PluginError: an example has none.
    """
    values = [example.get(name) for example in examples]
    # Not `None in values`: rows may be arrays, which compare one by one.
    row = next((row for row, value in enumerate(values) if value is None), None)
    if row is not None:
        raise PluginError(
            f"text2text: example {row} of the batch has no {name!r}, only {', '.join(examples[row])}. Name the "
            "columns with source=... and target=..., and drop rows without a value.",
            code="data-columns",
        )
    return values


def _labels(values: list[Any], sources: Ragged) -> Ragged:
    """A row may have no label where others do; then it has none to score.

    Raises:
        PluginError: a row's label is a number.
    """
    single = next((value for value in values if value is not None and np.ndim(value) == 0), None)
    if single is not None:
        raise PluginError(
            f"text2text: a row's labels are {single!r}; they must be a list of token ids. Tokenize its target; where "
            "the labels are classes, leave out text2text.",
            code="labels-unsuited",
            mend=[mends.remove_technique("text2text")],
        )
    beside = all(value is None or len(value) == length for value, length in zip(values, sources.lengths, strict=True))
    return Ragged.from_rows(
        [
            value if value is not None else [IGNORED] * (int(length) if beside else 0)
            for value, length in zip(values, sources.lengths, strict=True)
        ]
    )


def _is_flat(value: Any) -> bool:
    return value is None or np.ndim(value[0] if len(value) else 0) == 0


def _mask(examples: Sequence[Mapping[str, Any]], sources: Ragged) -> Ragged | None:
    masks = [example.get(MASK) for example in examples]
    if all(one is None for one in masks) or not all(_is_flat(one) for one in masks):
        return None
    mask = Ragged.from_rows(
        [[1] * int(length) if one is None else one for one, length in zip(masks, sources.lengths, strict=True)]
    )
    return hiding(mask, sources.lengths, "example {} of the batch")


def _read_column(rows: Rows, name: str, values: list[Any], takes: frozenset[str] | None) -> None:
    taken = name in takes if takes is not None else name.startswith("decoder_") or name == "position_ids"
    if name == MASK:
        taken = True
    if not taken or any(isinstance(value, (str, type(None))) for value in values):
        if name in REDUNDANT or all(np.ndim(value) == 0 for value in values):
            return
        raise _unknown(name)
    arrays = [np.asarray(value) for value in values]
    if not all(array.dtype.kind in "iubf" or array.size == 0 for array in arrays):
        raise _unknown(name)
    sizes = [array.shape for array in arrays]
    flat = all(array.ndim == 1 for array in arrays)
    if flat and not name.startswith("decoder_") and [size[0] for size in sizes] == rows.sources.lengths.tolist():
        rows.beside_source[name] = arrays
    elif flat and rows.targets is not None and [size[0] for size in sizes] == rows.targets.lengths.tolist():
        rows.beside_target[name] = arrays
    elif len(set(sizes)) == 1:
        rows.stacked[name] = _tensor(np.stack(arrays))
    else:
        raise _unknown(name)


def _unknown(name: str) -> PluginError:
    return PluginError(
        f"text2text: the examples have the columns {name}, which the collator does not know how to batch. Remove them, "
        "or keep the script's own collator.",
        code="data-columns",
        mend=[mends.remove_column(name)],
    )


def padded(
    rows: list[np.ndarray], fill: int, *, multiple: int | None = None, left: bool = False, width: int = 0
) -> torch.Tensor:
    """[rows, width] of arrays of any length, `fill` behind them (before them if `left`); int64 or float32."""
    width = max([width, *map(len, rows)])
    width = -(-width // multiple) * multiple if multiple else width
    dtype = np.float32 if any(row.dtype.kind == "f" for row in rows) else np.int64
    result = np.full((len(rows), width), fill, dtype=dtype)
    for row, values in zip(result, rows, strict=True):
        row[width - len(values) if left else 0 : width if left else len(values)] = values
    return torch.from_numpy(result)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))
