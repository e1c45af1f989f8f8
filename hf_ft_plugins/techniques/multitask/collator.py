"""Batches for a `MultiTaskModel`: tokens, the word that each belongs to, and one `labels` with those of each task."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import PluginError
from ...models.limits import longest_input
from .data import TaggedConcat, TaggedRow, words_of
from .encoding import Encoded, Encoding, listed
from .labels import declared_otherwise, named, numbers_of, row_labels
from .tasks import ABSENT, FLOAT_KINDS, NAME, WORD_KINDS, TaskSpec, source_tasks, tasks_of

logger = logging.getLogger(__name__)


class MultiTaskCollator:
    """Tokenizes rows and collects the labels of every task that they teach.

    A row has its words in a column `tokens` or `words`, or its text in `text` (and `text_pair`), or `input_ids` (and
    `word_ids`, the number of each token's word, -1 or None for none; `attention_mask`, `token_type_ids`). A batch has
    one key `labels`: a dict that maps each task that one of its rows teaches to a tensor, in which rows without a label
    are -100 (NaN for numbers). Where the rows have columns of no task it is left out, and the model predicts for all.

    A row with more tokens than `max_length` is cut, and counted in `too_long`: in training its words beyond have no
    label and it has none at all for a dependency task; in evaluation its labels stay, and count as wrong.

    Args:
        tokenizer: of any kind that pads; words are tokenized as `encoding.py` says.
        model: the `MultiTaskModel`, or its tasks by name.
        max_length: tokens in a row; None for the least of what model and tokenizer take.
        pad_to_multiple_of: round the number of tokens up.
        training: whether words that were cut off lose their labels, and -1 is an error rather than no label.

    Attributes:
        too_long: rows that were cut, by source.
        declared: the names of columns whose numbers are not the tasks' (see `declared_otherwise`), of rows that are no
            `TaggedRow`.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        training: bool = True,
    ) -> None:
        # A processor of text and more has the tokenizer within.
        tokenizer = tokenizer if hasattr(tokenizer, "pad") else getattr(tokenizer, "tokenizer", None) or tokenizer
        if not hasattr(tokenizer, "pad"):
            raise PluginError(
                f"{NAME}: rows are made to tokens by a tokenizer, and this is a {type(tokenizer).__name__}. Load one "
                "with AutoTokenizer, and pass it: processing_class=tokenizer.",
                code="model-unsuited",
            )
        self.tokenizer = tokenizer
        self.tasks: dict[str, TaskSpec] = dict(model) if isinstance(model, Mapping) else tasks_of(model)
        self.max_length = max_length or longest(tokenizer, model)
        self.training = training
        self._encoding = Encoding(tokenizer, self.max_length, pad_to_multiple_of)
        self.too_long: Counter[str] = Counter()
        self.declared: dict[str, tuple[str, ...]] = {}
        self._numbers = {name: numbers_of(spec) for name, spec in self.tasks.items()}

    def __call__(self, features: Sequence[TaggedRow | Mapping[str, Any]]) -> dict[str, Any]:
        rows = [self._tagged(feature) for feature in features]
        encoded = self._encoded(rows)
        batch: dict[str, Any] = dict(encoded.batch)
        taught = dict.fromkeys(task for row in rows for task in row.tasks)
        if any(self.tasks[task].kind in WORD_KINDS for task in taught or self.tasks):
            batch["word_ids"] = torch.from_numpy(encoded.words)
        if taught:
            batch["labels"] = {task: self._labels(task, rows, encoded) for task in self.tasks if task in taught}
        return batch

    def _tagged(self, feature: TaggedRow | Mapping[str, Any]) -> TaggedRow:
        if isinstance(feature, TaggedRow):
            return feature
        return TaggedRow("", source_tasks("", feature, self.tasks), feature, -1)

    def _encoded(self, rows: Sequence[TaggedRow]) -> Encoded:
        words = [words_of(row.row) for row in rows]
        if all(found is not None for found in words):
            encoded = self._encoding.of_words([list(found) for found in words if found is not None])
        elif all("input_ids" in row.row for row in rows):
            encoded = self._encoding.of_ids([row.row for row in rows])
        elif all(isinstance(row.row.get("text"), str) for row in rows):
            pairs = [row.row.get("text_pair") for row in rows]
            encoded = self._encoding.of_texts([row.row["text"] for row in rows], pairs)
        else:
            raise PluginError(
                f"{NAME}: {_where(rows[0])} and the {len(rows) - 1} others of its batch have neither all words (column "
                f"'tokens' or 'words'), nor all 'text', nor all 'input_ids'; it has {', '.join(rows[0].row)}. Rename "
                "the column.",
                code="data-columns",
            )
        for row, over in zip(rows, encoded.over, strict=True):
            if over:
                self._count(row)
        return encoded

    def _count(self, row: TaggedRow) -> None:
        if not self.too_long:
            what = "without a label for what is beyond, and for parsing" if self.training else "counted as wrong beyond"
            logger.warning(
                "%s: %s has more than %s tokens. Such rows are cut, %s, and counted.",
                NAME,
                _where(row),
                self.max_length,
                what,
            )
        self.too_long[row.source] += 1

    def _labels(self, task: str, rows: Sequence[TaggedRow], encoded: Encoded) -> Tensor:
        spec = self.tasks[task]
        if spec.kind == "causal_lm":
            ids = encoded.batch["input_ids"].masked_fill(encoded.batch["attention_mask"] == 0, ABSENT)
            teaches = torch.tensor([task in row.tasks for row in rows])
            return ids.masked_fill(~teaches[:, None], ABSENT)
        lengths = [
            len(found) if found is not None else _given_words(row) for row in rows for found in [words_of(row.row)]
        ]
        found = [
            row_labels(
                task, spec, named(row.row, self.declared), self._numbers[task], _where(row), length, self.training
            )
            if task in row.tasks
            else None
            for row, length in zip(rows, lengths, strict=True)
        ]
        if spec.kind in FLOAT_KINDS:
            absent = np.full(len(spec.labels), np.nan, dtype=np.float32)
            return torch.from_numpy(np.stack([absent if labels is None else labels for labels in found]))
        if spec.kind == "sequence":
            return torch.tensor([ABSENT if labels is None else int(labels) for labels in found])
        width = max(lengths)
        labels = np.full((len(rows), width, 2) if spec.kind == "dependency" else (len(rows), width), ABSENT)
        for place, own in enumerate(found):
            if own is None:
                continue
            if not (self.training and encoded.over[place]):
                labels[place, : len(own)] = own
            elif spec.kind != "dependency":
                seen = np.unique(encoded.words[place][encoded.words[place] >= 0])
                labels[place, seen] = own[seen]
        return torch.from_numpy(labels)


@contextlib.contextmanager
def declared_in(dataset: Any, collator: MultiTaskCollator) -> Iterator[None]:
    """Let the collator read the numbers of a data set that was given late by its own `ClassLabel`s.

    Args:
        dataset: whose rows are collated within; a `TaggedConcat` has read its own already.
    """
    if isinstance(dataset, TaggedConcat):
        yield
        return
    collator.declared = declared_otherwise(dataset, collator.tasks)
    try:
        yield
    finally:
        collator.declared = {}


def longest(tokenizer: Any, model: Any) -> int | None:
    """Tokens that tokenizer and model take at most; None where neither says."""
    places = None if isinstance(model, Mapping) else longest_input(model)
    # A tokenizer without a limit has a huge one.
    limits = [limit for limit in (tokenizer.model_max_length, places) if limit is not None and limit < 10**6]
    return min(limits, default=None)


def _where(row: TaggedRow) -> str:
    return f"row {row.index}{f' of {row.source!r}' if row.source else ''}" if row.index >= 0 else "a row"


def _given_words(row: TaggedRow) -> int:
    return max((-1 if word is None else int(word) for word in listed(row.row.get("word_ids"))), default=-1) + 1
