"""What the training data of preferences are, for the run's report."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from ...host.stash import StashKey, stash_of
from ...report_sections import Cell, Facts, Rows, Section
from .collator import FLIP, NAME, WEIGHT

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

# By split of the data: how many rows were whole, trimmed, cut or dropped, and why.
FITTED_ROWS = StashKey[dict[str, Counter[str]]]("behavioral: what became of the rows at max_length")
SHARES_PREFIXES = StashKey[bool]("behavioral: whether the common beginning of a pair may be computed once")
# `benchmarks.behavioral_feedback`: 400 real pairs taught nothing that 500 held-out ones show, 1,600 did.
FEW = 1000


def tell_few(trainer: Trainer) -> None:
    """Say so where the pairs are too few to show anything."""
    dataset: Any = trainer.train_dataset
    if hasattr(dataset, "__len__") and len(dataset) < FEW:
        logger.info(
            "%s: %d rows are few: what people say of so many answers has not been seen to change how a model does on "
            "others.",
            *(NAME, len(dataset)),
        )


def sections(trainer: Trainer, *, weights: bool, noise: bool) -> list[Section]:
    """Rows with their weights and doubts, and what became of them at `max_length`.

    Args:
        weights, noise: whether the weight and the doubt of each row were used.
    """
    dataset: Any = trainer.train_dataset
    facts: dict[str, Cell] = {"rows": len(dataset) if hasattr(dataset, "__len__") else None}
    for column, word, used in ((WEIGHT, "weight", weights), (FLIP, "doubt", noise)):
        if used and facts["rows"] and column in (getattr(dataset, "column_names", None) or ()):
            values = [value for value in dataset[column] if value is not None]
            if values:
                facts |= {f"rows with a {word}": len(values), f"mean {word}": statistics.fmean(values)}
    facts["prefixes of pairs computed once"] = stash_of(trainer).get(SHARES_PREFIXES)
    found: list[Section] = [Facts("Preferences", facts)]
    fitted = stash_of(trainer).get(FITTED_ROWS, {})
    rows: list[list[Cell]] = []
    for split, counts in fitted.items():
        rows += [[split, how, count] for how, count in counts.most_common()]
    if rows:
        heads = ["data", "what became of them", "rows"]
        found.append(Rows(f"Rows at max_length={getattr(trainer.args, 'max_length', None)}", heads, rows))
    return found
