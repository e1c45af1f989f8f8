"""Which evaluation sets of a sequence a trainer can measure, and their rows as this trainer reads its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from ...errors import PluginError
from ...models.label_columns import is_transformed, random_state_kept
from .evaluating import is_tokenized
from .joined_data import alike
from .kept_rows import keep_rows
from .settings import NAME
from .stage_data import StageData
from .unfit_losses import is_trls

logger = logging.getLogger(__name__)

# One for all runs: what is measured after each stage is measured on the same rows.
EVALUATION_SEED = 0


class UnwrappedRows(Dataset[Any]):
    """Rows that another technique has wrapped (`row`), as the mappings that it was given."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows[position].row


def own_sets(data: StageData, most: int) -> dict[str, Any]:
    """Up to `most` rows of each evaluation set of this stage, to keep and to measure by, as `keep_rows` gives them.

    Those that cannot be kept, such as streams, are left out, and a warning says why. They are read once a run.
    """
    if data.kept is None:
        data.kept = {}
        for name, rows in data.evaluations.items():
            try:
                data.kept[name] = keep_rows(_mappings(rows), most, EVALUATION_SEED)
            except PluginError as error:
                logger.warning("%s: the evaluation set %s is not measured or kept: %s", NAME, name, error)
                continue
            if most < len(rows):
                logger.info("%s: keeps %d of the %d rows of %s to measure by", NAME, most, len(rows), name)
    return data.kept


def as_own(name: str, rows: Any, data: StageData, trainer: Any, own: str | None = None) -> Any:
    """Kept rows as the trainer reads one of its own data sets; None, and a warning says why, where it cannot.

    Args:
        name: of the set, for the warning.
        rows: as `load_rows` gives them.
        own: the name of this stage's evaluation set that they are of; None: of another stage. Then they are read as one
            of this stage's that they are like in columns and classes, or as its training data.
    """
    candidates = [*data.evaluations.values(), data.train] if own is None else [data.evaluations[own]]
    candidates = [_mappings(one) for one in candidates if _is_read_by_position(one)]
    reasons = []
    for given in candidates:
        try:
            return alike(rows, given, name, _read_columns(given, trainer))
        except PluginError as error:
            reasons.append(str(error))
    # TRL's trainers prepare what they are given.
    if not candidates or (is_trls(trainer) and not is_tokenized(rows)):
        return rows
    logger.warning("%s: the evaluation set %s is not measured by this stage's model: %s", NAME, name, reasons[0])
    return None


def _is_read_by_position(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, Mapping)


def _mappings(rows: Any) -> Any:
    if not _is_read_by_position(rows) or len(rows) == 0 or hasattr(rows, "features"):
        return rows
    with random_state_kept():
        first = rows[0]
    wraps = not isinstance(first, Mapping) and isinstance(getattr(first, "row", None), Mapping)
    return UnwrappedRows(rows) if wraps else rows


def _read_columns(own: Any, trainer: Any) -> list[str] | None:
    """The columns that reach the model, as far as Trainer removes others; None: all may."""
    if not trainer.args.remove_unused_columns or is_transformed(own):
        return None
    trainer._set_signature_columns_if_needed()
    with random_state_kept():
        names = getattr(own, "column_names", None) or list(own[0] if len(own) else ())
    # Texts that are yet to be tokenized are none of the model's.
    return [name for name in names if name in trainer._signature_columns] or None
