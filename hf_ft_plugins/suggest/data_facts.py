"""The training and evaluation data of a run: how many rows, which columns, and what its own batches look like."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..errors import PluginError
from ..models.label_columns import columns_of

# What is looked at: as many batches as make so many rows, at most so many, in at most so many seconds.
ROWS, BATCHES, SECONDS = 512, 64, 4.0
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Of the data, and of the first batches as the script's own loader and collator make them.

    Attributes:
        examples: training rows; None of a stream.
        streamed: the training data are read once, in order.
        columns: of the training data, as far as they are known without reading it.
        sets: names of the training data sets, where there are several.
        evaluation: rows to evaluate on; None where there are none or they are a stream.
        evaluation_sets: how many sets to evaluate on.
        collator: the class of the script's collator, or the name of its function.
        batches: how many were looked at.
        rows: in the largest of them; `width`: its columns; `target_width`: those of its labels where these are rows.
        lengths: the shortest, mean and longest row in tokens that are no padding; None where rows are not of tokens.
        padding: share of the slots of these batches that is padding, of encoder-decoders those of the labels included;
            None where that cannot be told.
        prompts: share of rows of which the first tokens have no label, as those of a prompt with its answer.
    """

    examples: int | None
    streamed: bool
    columns: tuple[str, ...]
    sets: tuple[str, ...]
    evaluation: int | None
    evaluation_sets: int
    collator: str
    batches: int = 0
    rows: int = 0
    width: int = 0
    target_width: int = 0
    lengths: tuple[int, float, int] | None = None
    padding: float | None = None
    prompts: float = 0.0


def training_loader(trainer: Any) -> Any:
    """The script's own loader of training data; None where they are several data sets, which stock Trainer cannot read.

    Raises:
        PluginError: it cannot be made.
    """
    if isinstance(trainer.train_dataset, dict):
        return None
    with _trained_alike("the loader"):
        return trainer.get_train_dataloader()


def first_batches(loader: Any, rows_in_batch: int) -> list[Any]:
    """The first batches of a loader, of some hundred rows.

    Raises:
        PluginError: one cannot be made.
    """
    wanted = min(BATCHES, max(1, ROWS // max(1, rows_in_batch)))
    began = time.monotonic()
    found: list[Any] = []
    with _trained_alike("a batch"):
        for batch in islice(loader, wanted):
            found.append(batch)
            if time.monotonic() - began > SECONDS:
                break
    return found


@contextlib.contextmanager
def _trained_alike(what: str) -> Iterator[None]:
    """An error of the script's own data, which is not ours."""
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(
            f"suggest: {what} of the script's training data cannot be made ({type(error).__name__}: {error}). Training "
            "would end with this error, too; mend it first.",
            code="data-unsuited",
        ) from error


def data_facts(trainer: Any, batches: Sequence[Any], *, encoder_decoder: bool) -> DataFacts:
    """Of a trainer's data, and of its first batches."""
    train, evaluation = trainer.train_dataset, trainer.eval_dataset
    sets = tuple(map(str, train)) if isinstance(train, dict) else ()
    evaluated = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
    evaluated = [one for one in evaluated if one is not None]
    sizes = [_size(one) for one in evaluated]
    known = [size for size in sizes if size is not None]
    first = [next(iter(train.values()), None)] if sets else [train]
    collator = trainer.data_collator
    return DataFacts(
        examples=_sum([_size(one) for one in train.values()]) if sets else _size(train),
        streamed=isinstance(train, IterableDataset),
        columns=_columns(first[0]),
        sets=sets,
        evaluation=sum(known) if known and len(known) == len(sizes) else None,
        evaluation_sets=len(evaluated),
        collator=getattr(collator, "__name__", type(collator).__name__),
        **_of_batches([one for one in batches if isinstance(one, Mapping)], trainer, encoder_decoder),
    )


def _size(dataset: Any) -> int | None:
    streamed = dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
    return None if streamed else len(dataset)


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _columns(dataset: Any) -> tuple[str, ...]:
    named = columns_of(dataset) or getattr(dataset, "column_names", None)
    if named:
        return tuple(named)
    row = dataset[0] if isinstance(dataset, Sequence) and len(dataset) else None
    return tuple(map(str, row)) if isinstance(row, Mapping) else ()


def _of_batches(batches: list[Mapping[str, Any]], trainer: Any, encoder_decoder: bool) -> dict[str, Any]:
    sizes = [_row_count(batch) for batch in batches]
    found: dict[str, Any] = {"batches": len(batches), "rows": max(sizes, default=0)}
    texts = [batch for batch in batches if _is_table(batch.get("input_ids"))]
    if not texts:
        return found
    real = [_real(batch, trainer.processing_class) for batch in texts]
    targets = [batch["labels"] for batch in texts if encoder_decoder and _is_table(batch.get("labels"))]
    widest = max(texts, key=lambda batch: batch["input_ids"].numel())
    found["rows"], found["width"] = widest["input_ids"].shape
    found["target_width"] = max((one.shape[1] for one in targets), default=0)
    masks = [mask for mask in real if mask is not None]
    if len(masks) == len(texts):
        lengths = torch.cat([mask.sum(1) for mask in masks]).float()
        found["lengths"] = (int(lengths.min()), round(float(lengths.mean()), 1), int(lengths.max()))
        slots = sum(mask.numel() for mask in masks) + sum(one.numel() for one in targets)
        used = sum(int(mask.sum()) for mask in masks) + sum(int((one != IGNORED).sum()) for one in targets)
        found["padding"] = round(1 - used / slots, 3) if slots else None
        found["prompts"] = 0.0 if encoder_decoder else _share_of_prompts(texts, masks)
    return found


def _row_count(batch: Mapping[str, Any]) -> int:
    return max((one.shape[0] for one in batch.values() if isinstance(one, torch.Tensor) and one.dim()), default=0)


def _is_table(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _real(batch: Mapping[str, Any], processing_class: Any) -> torch.Tensor | None:
    """Which tokens are no padding; None where that cannot be told."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None and _is_table(mask) and mask.shape == ids.shape:
        return mask != 0
    if "position_ids" in batch or "seq_lengths" in batch:
        return torch.ones_like(ids, dtype=torch.bool)  # Rows laid end to end.
    padding = getattr(processing_class, "pad_token_id", None)
    if padding is None or padding == getattr(processing_class, "eos_token_id", None):
        return None
    return ids != padding


def _share_of_prompts(batches: list[Mapping[str, Any]], masks: list[torch.Tensor]) -> float:
    begins = [
        (batch["labels"] == IGNORED)[torch.arange(len(mask)), mask.int().argmax(1)]
        for batch, mask in zip(batches, masks, strict=True)
        if _is_table(batch.get("labels")) and batch["labels"].shape == mask.shape
    ]
    return round(float(torch.cat(begins).float().mean()), 3) if begins else 0.0
