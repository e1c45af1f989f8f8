"""A data set of pairs or texts, of whatever kind, as one of token ids: tokenized, without empty targets, measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from ...models.inputs import main_input_name
from . import objectives
from .architecture import NAME, is_causal
from .collator import TextPairCollator
from .lengths import measured
from .pair_format import PairFormat, no_column
from .tokens import chunks, columns_of, ends_of, is_arrow

logger = logging.getLogger(__name__)


def prepared(dataset: Any, split: str, pairs: PairFormat) -> Any:
    """The data set with token ids; of the training set, without pairs whose target is empty.

    Args:
        dataset: a `datasets.Dataset`, or another of mappings, by position or streamed.
        split: "train", or any other name for data to evaluate on.
        pairs: where its texts stand, and what is made of them.

    Raises:
        PluginError: there are neither token ids nor the columns of text, or too many targets are empty.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return tokenized_stream(dataset, split, pairs)
    names = columns_of(dataset)
    if not names:
        return dataset
    training = split == "train"
    if pairs.objective != "seq2seq" and is_arrow(dataset):
        return prepared_texts(dataset, split, pairs)
    if "input_ids" not in names and pairs.source not in names:
        if "labels" in names or main_input_name(pairs.model) in names or not is_arrow(dataset):
            # Sounds, pictures, or what only the script's own collator can read.
            return dataset
        raise no_column("source", pairs.source, names)
    if pairs.objective != "seq2seq":
        tokenize = partial(_text_ids, source=pairs.source, tokenizer=pairs.tokenizer)
        return dataset if "input_ids" in names else TokenizedRows(dataset, tokenize)
    if not training:
        dataset = _without_column_of_none(dataset, pairs.target if "input_ids" not in names else "labels")
    if training and pairs.source_prefix and "input_ids" in names:
        logger.warning(
            "%s: source_prefix=%r has no effect: the script tokenizes its data (they hold input_ids). Put it "
            "before the texts there.",
            NAME,
            pairs.source_prefix,
        )
    if "input_ids" not in names:
        dataset = _tokenized(dataset, pairs, training=training)
    elif "labels" not in names and "label" in names and is_arrow(dataset):
        dataset = dataset.rename_column("label", "labels")
    return _counted(dataset, pairs) if training else dataset


def reads_other_columns(collator: Any, dataset: Any) -> bool:
    """Whether a collator of the script's own is to make token ids of a data set's rows, as far as can be told."""
    if collator is None or isinstance(collator, TextPairCollator):
        return False
    # Of a function, where it is defined; of an object, its class.
    own = not (getattr(collator, "__module__", None) or "").startswith("transformers.")
    return own and "input_ids" not in columns_of(dataset)


def _tokenized(dataset: Any, pairs: PairFormat, *, training: bool) -> Any:
    names = columns_of(dataset)
    if training and pairs.target not in names:
        raise no_column("target", pairs.target, names)
    if pairs.tokenizer is None:
        raise PluginError(
            f"{NAME}: there is no tokenizer to make token ids with; the data has {', '.join(names)}. Pass "
            "processing_class=tokenizer, or tokenize into input_ids and labels.",
            code="tokenizer-unsuited",
        )
    collator = pairs.collator(for_evaluation=not training)
    # Not `pairs`, which would take the model into the fingerprint of `map`.
    source, target = pairs.source, pairs.target

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = list(batch[source])
        if any(text is None for text in texts):
            raise PluginError(
                f"{NAME}: a row has {source}=None. Drop such rows, or give them a text.", code="data-rows"
            )
        if target not in batch:
            return {"input_ids": collator.prompts(texts).as_lists()}
        sources, targets = collator.tokenized(texts, list(batch[target]))
        return {"input_ids": sources.as_lists(), "labels": targets.as_lists()}

    if not is_arrow(dataset):
        return TokenizedRows(dataset, tokenize)
    # `map` caches by a fingerprint of the data and the function.
    dataset = dataset.with_format(None)
    return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc=f"{NAME}: tokenizing")


def _text_ids(batch: dict[str, list[Any]], source: str, tokenizer: Any) -> dict[str, Any]:
    return {"input_ids": tokenizer(batch[source])["input_ids"]}


class TokenizedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of texts of any data set, tokenized when they are read.

    Args:
        dataset: its rows are mappings: a list, a torch data set, one with a transform.
        tokenize: makes token ids of a batch of them, a mapping of lists.
    """

    def __init__(self, dataset: Any, tokenize: Any) -> None:
        self.dataset = dataset
        self.tokenize = tokenize

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _of_one(self.tokenize, self.dataset[index])


class TokenizedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The same of a torch stream; rows that hold other than texts, as each tells when it is read, stay.

    Args:
        source: the column of texts.
    """

    def __init__(self, stream: Any, source: str, tokenize: Any) -> None:
        self.stream = stream
        self.source = source
        self.tokenize = tokenize

    def __iter__(self) -> Iterator[Any]:
        for row in self.stream:
            texts = isinstance(row, Mapping) and self.source in row and "input_ids" not in row
            yield _of_one(self.tokenize, row) if texts else row


def _of_one(tokenize: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    made = tokenize({name: [value] for name, value in row.items()})
    return {name: values[0] for name, values in made.items()}


def _without_column_of_none(dataset: Any, name: str) -> Any:
    """Without a column of references that holds none at all."""
    if not is_arrow(dataset) or name not in dataset.column_names or not len(dataset):
        return dataset
    column = dataset.data.column(name)
    return dataset.remove_columns(name) if column.null_count == len(column) else dataset


def _counted(dataset: Any, pairs: PairFormat) -> Any:
    """The training set without pairs whose target is empty; a warning names how many, and how many are cut."""
    if not len(dataset):
        return dataset
    causal = is_causal(pairs.model)
    lengths, copies = measured(dataset, causal=causal)
    if causal and not copies and next(chunks(dataset)).are_moved_copies():
        raise PluginError(
            f"{NAME}: the labels are input_ids moved by one already, and the loss moves them. Give labels that are a "
            "copy of input_ids, -100 on what is not to be learned.",
            code="labels-unsuited",
        )
    empty = lengths.targets == 0
    if empty.any():
        # Labels of -100 alone are the script's doing; of no token at all, the data's.
        share = (empty & (lengths.target_slots == 0)).mean() if not copies else 0
        dataset, lengths = _without_empty(dataset, empty, share, pairs.max_empty_share), lengths.at(~empty)
    limits = (pairs.max_source, pairs.max_target)
    if copies and any(limits):
        logger.warning(
            "%s: max_source_length and max_target_length have no effect on rows that hold prompt and target in one.",
            NAME,
        )
    else:
        _report_cuts("sources", lengths.sources, limits[0])
        _report_cuts("targets", lengths.targets, limits[1])
    return dataset


def _without_empty(dataset: Any, empty: np.ndarray, share: float, max_empty_share: float) -> Any:
    rows, count = ", ".join(map(str, np.flatnonzero(empty)[:5])), f"{int(empty.sum())} of {len(empty)}"
    if empty.all() and not share:
        raise PluginError(
            f"{NAME}: all {len(empty)} targets of the train set are -100 alone. Look at the labels.", code="data-rows"
        )
    if empty.all() or (share > max_empty_share and is_arrow(dataset)):
        raise PluginError(
            f"{NAME}: {count} targets of the train set are empty (rows {rows}, ...), more than "
            f"max_empty_share={max_empty_share}. Look at the data, or raise the option to drop them.",
            code="data-rows",
            mend=[] if empty.all() else [mends.drop_rows("train", np.flatnonzero(empty))],
        )
    logger.warning("%s: dropped %s pairs, whose target is empty (rows %s).", NAME, count, rows)
    kept = np.flatnonzero(~empty)
    return dataset.select(kept) if hasattr(dataset, "select") else torch.utils.data.Subset(dataset, kept.tolist())


def _report_cuts(what: str, lengths: np.ndarray, longest: int | None) -> None:
    over = lengths - (longest or 0)
    if longest is not None and (over > 0).any():
        logger.warning(
            "%s: %d of %d %s are longer than %d and are cut, by %d tokens in all.",
            NAME,
            int((over > 0).sum()),
            len(over),
            what,
            longest,
            int(over[over > 0].sum()),
        )


def tokenized_stream(stream: Any, split: str, pairs: PairFormat) -> Any:
    """A stream of evaluation data with token ids; training data is tokenized pool by pool."""
    tokenizer, source, target = pairs.tokenizer, pairs.source, pairs.target
    if split == "train" or tokenizer is None:
        return stream
    mapped = hasattr(stream, "map")
    names = (stream.column_names or list(next(iter(stream), {}))) if mapped else []
    if mapped and ("input_ids" in names or source not in names):
        return stream
    collator = pairs.collator(for_evaluation=True)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        if collator.text_objective is not None:
            return {"input_ids": tokenizer(batch[source])["input_ids"]}
        if target not in batch:
            return {"input_ids": collator.prompts(batch[source]).as_lists()}
        sources, targets = collator.tokenized(batch[source], batch[target])
        return {"input_ids": sources.as_lists(), "labels": targets.as_lists()}

    if mapped:
        return stream.map(tokenize, batched=True, remove_columns=names)
    return TokenizedStream(stream, source, tokenize)


def prepared_texts(dataset: Any, split: str, pairs: PairFormat) -> Any:
    """A data set of texts with `input_ids` alone, without texts of fewer than two tokens.

    Raises:
        PluginError: there are neither token ids nor the column of text, or too many texts are too short.
    """
    names, tokenizer, source = dataset.column_names, pairs.tokenizer, pairs.source
    if "input_ids" not in names and (source not in names or tokenizer is None):
        what = f"no column {source!r}" if tokenizer is not None else "no tokenizer to make token ids with"
        raise PluginError(
            f"text2text: there is {what}; the data has {', '.join(names)}. Say which column holds the texts "
            "(text2text:source=...), pass processing_class=tokenizer, or tokenize into input_ids.",
            code="data-columns",
        )
    if "input_ids" not in names:
        assert tokenizer is not None
        dataset = dataset.map(
            lambda batch: {"input_ids": tokenizer(batch[source])["input_ids"]},
            batched=True,
            remove_columns=names,
            desc="text2text: tokenizing",
        )
    elif "labels" in names:
        logger.warning(
            "text2text: objective=%s makes its own labels; the column of that name is ignored.", pairs.objective
        )
        dataset = dataset.remove_columns("labels")
    objective = pairs.collator().text_objective
    assert objective is not None
    short = objective.inner_lengths(*ends_of(dataset))[0] < objectives.SHORTEST
    if not short.any():
        return dataset
    if short.mean() > pairs.max_empty_share:
        rows = ", ".join(map(str, np.flatnonzero(short)[:5]))
        raise PluginError(
            f"text2text: {int(short.sum())} of {len(short)} texts of the {split} set have fewer than two tokens (rows "
            f"{rows}, ...), more than max_empty_share={pairs.max_empty_share}. Look at the data, or raise the option "
            "to drop them.",
            code="data-rows",
            mend=[mends.drop_rows(split, np.flatnonzero(short))],
        )
    logger.warning("text2text: dropped %d of %d texts, of fewer than two tokens.", int(short.sum()), len(short))
    return dataset.select(np.flatnonzero(~short))
