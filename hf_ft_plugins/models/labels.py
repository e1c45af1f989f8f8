"""What the labels of a training run are: what the model's config says, then the data set's features, then a guess.

    labels = labels_of(train_dataset, "transfer", model)

What the script says in the config (`problem_type`, one output or another number than the default two, names of classes)
holds; features say what it leaves open; values are only looked at for what neither says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from .label_columns import FirstBatches, collated_labels, label_column
from .label_kinds import IGNORED, PROBLEM_TYPES, Kind, Labels, classifies_tokens, other_labels
from .label_reader import ConfiguredLabels, LabelReader

__all__ = ["IGNORED", "PROBLEM_TYPES", "Kind", "Labels", "classifies_tokens", "labels_of", "other_labels"]

logger = logging.getLogger(__name__)


def labels_of(
    dataset: Any,
    technique: str,
    model: Any = None,
    *,
    label_names: Sequence[str] = (),
    first_batches: FirstBatches | None = None,
) -> Labels | None:
    """The labels of a `datasets.Dataset`; None where it has no features or no column of labels.

    Without a config that says otherwise, a `ClassLabel` or a column of whole numbers is one class a row; a list of
    `ClassLabel` is one class a token; a list of shares of 0 to 1 of equal length is several classes a row; a fractional
    number is a regression.

    Args:
        model: whose config is asked first.
        label_names: what the script calls labels.
        first_batches: of the training data as they are collated, by their number of rows: a collator may take another
            column, or make the labels itself, of which nothing is known then.

    Raises:
        PluginError: the labels cannot be what the config says, or nothing says what they are; rows without a label,
            texts, classes out of range.
    """
    given = None
    if first_batches is not None and hasattr(dataset, "__len__") and len(dataset):
        try:
            given = collated_labels(first_batches, label_names)
        except Exception as error:
            # Training would fail the same way, if it is this loader that it reads.
            logger.warning("%s: the first rows cannot be collated (%s); labels are read as stored.", technique, error)
    column = label_column(dataset, label_names, given)
    if column is None:
        return None
    return LabelReader(dataset, column, technique, ConfiguredLabels.of(model)).read()
