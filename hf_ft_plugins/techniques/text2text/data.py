"""What `text2text` does with a trainer's data: tokenize, drop, count, measure, and cut into batches."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ...errors import PluginError
from ...models.inputs import main_input_name
from ...technique import data_seed
from .architecture import NAME, is_causal
from .batches import TokenBudgetBatchSampler
from .collator import TextPairCollator
from .lengths import Lengths, measured, targets_alone
from .streaming import POOL, PooledBudgetBatches
from .texts import prepared_texts, text_lengths
from .tokens import chunks, columns_of, is_arrow

logger = logging.getLogger(__name__)


def prepared(options: Any, dataset: Any, split: str, model: Any, tokenizer: Any) -> Any:
    """The data set with token ids; of the training set, without pairs whose target is empty.

    Raises:
        PluginError: there are neither token ids nor the columns of text, or too many targets are empty.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return tokenized_stream(options, dataset, split, model, tokenizer)
    names = columns_of(dataset)
    if not names:
        return dataset
    training = split == "train"
    if options.objective != "seq2seq" and is_arrow(dataset):
        return prepared_texts(options, dataset, split, model, tokenizer)
    if "input_ids" not in names and options.source not in names:
        if "labels" in names or main_input_name(model) in names or not is_arrow(dataset):
            # Sounds, pictures, or what only the script's own collator can read.
            return dataset
        raise PluginError(_no_column(options.source, names))
    if options.objective != "seq2seq":
        texts = {"source": options.source, "tokenizer": tokenizer}
        return dataset if "input_ids" in names else TokenizedRows(dataset, partial(_text_ids, **texts))
    if not training:
        dataset = _without_column_of_none(dataset, options.target if "input_ids" not in names else "labels")
    if options.source_prefix and "input_ids" in names:
        logger.warning(
            "%s: source_prefix=%r has no effect: the script tokenizes its data (they hold input_ids). Put it "
            "before the texts there.",
            NAME,
            options.source_prefix,
        )
    if "input_ids" not in names:
        dataset = _tokenized(options, dataset, model, tokenizer, training=training)
    elif "labels" not in names and "label" in names and is_arrow(dataset):
        dataset = dataset.rename_column("label", "labels")
    return _counted(options, dataset, causal=is_causal(model)) if training else dataset


def reads_other_columns(collator: Any, dataset: Any) -> bool:
    """Whether a collator of the script's own is to make token ids of a data set's rows, as far as can be told."""
    if collator is None or isinstance(collator, TextPairCollator):
        return False
    # Of a function, where it is defined; of an object, its class.
    own = not (getattr(collator, "__module__", None) or "").startswith("transformers.")
    return own and "input_ids" not in columns_of(dataset)


def _no_column(name: str, names: list[str]) -> str:
    return (
        f"{NAME}: there is no column {name!r}; the data has {', '.join(names)}. Say which columns hold texts "
        f"({NAME}:source=...,target=...), pass processing_class=tokenizer, or tokenize into input_ids and labels."
    )


def _tokenized(options: Any, dataset: Any, model: Any, tokenizer: Any, *, training: bool) -> Any:
    names = columns_of(dataset)
    if training and options.target not in names:
        raise PluginError(_no_column(options.target, names))
    if tokenizer is None:
        raise PluginError(
            f"{NAME}: there is no tokenizer to make token ids with; the data has {', '.join(names)}. Pass "
            "processing_class=tokenizer, or tokenize into input_ids and labels."
        )
    collator = options.new_collator(tokenizer, model, for_evaluation=not training)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        sources = list(batch[options.source])
        row = next((row for row, text in enumerate(sources) if text is None), None)
        if row is not None:
            raise PluginError(f"{NAME}: a row has {options.source}=None. Drop such rows, or give them a text.")
        if options.target not in batch:
            return {"input_ids": collator.prompts(sources).as_lists()}
        sources, targets = collator.tokenized(sources, list(batch[options.target]))
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


def _counted(options: Any, dataset: Any, *, causal: bool) -> Any:
    """The training set without pairs whose target is empty, which is said, as is what is cut."""
    if not len(dataset):
        return dataset
    lengths, copies = measured(dataset, causal=causal)
    if causal and not copies and next(chunks(dataset)).are_moved_copies():
        raise PluginError(
            f"{NAME}: the labels are input_ids moved by one already, and the loss moves them. Give labels that are a "
            "copy of input_ids, -100 on what is not to be learned."
        )
    empty = lengths.targets == 0
    if empty.any():
        # Labels of -100 alone are the script's doing; of no token at all, the data's.
        share = (empty & (lengths.target_slots == 0)).mean() if not copies else 0
        dataset, lengths = _without_empty(options, dataset, empty, share), lengths.at(~empty)
    limits = (options.max_source_length, options.max_target_length)
    if copies and any(limits):
        logger.warning(
            "%s: max_source_length and max_target_length have no effect on rows that hold prompt and target in one.",
            NAME,
        )
    else:
        _report_cuts("sources", lengths.sources, limits[0])
        _report_cuts("targets", lengths.targets, limits[1])
    return dataset


def _without_empty(options: Any, dataset: Any, empty: np.ndarray, share: float) -> Any:
    rows, said = ", ".join(map(str, np.flatnonzero(empty)[:5])), f"{int(empty.sum())} of {len(empty)}"
    if empty.all() and not share:
        raise PluginError(f"{NAME}: all {len(empty)} targets of the train set are -100 alone. Look at the labels.")
    if empty.all() or (share > options.max_empty_share and is_arrow(dataset)):
        raise PluginError(
            f"{NAME}: {said} targets of the train set are empty (rows {rows}, ...), more than "
            f"max_empty_share={options.max_empty_share}. Look at the data, or raise the option to drop them."
        )
    logger.warning("%s: dropped %s pairs, whose target is empty (rows %s).", NAME, said, rows)
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


def pairs_in_batch(trainer: Any) -> tuple[int, float]:
    """How many pairs a batch is to hold on average, and what share that is of what the script asked for.

    `auto_find_batch_size` asks for fewer after a batch that did not fit.
    """
    args = trainer.args
    asked: int = args.train_batch_size
    if not args.auto_find_batch_size:
        return asked, 1.0
    # The one place where Trainer says the batch size of the present try.
    tried: int = trainer._train_batch_size
    return tried, tried / asked


def _scaled(limit: int | None, share: float) -> int | None:
    return None if limit is None else max(1, int(limit * share))


def lengths_of(options: Any, trainer: Any, dataset: Any) -> Lengths | None:
    """Of what the trainer's collator makes of its data; None where only the script's own can tell."""
    objective = getattr(trainer.data_collator, "text_objective", None)
    if objective is not None:
        sources, targets = text_lengths(objective, dataset)
        return Lengths(sources, targets, sources, targets)
    ours, names = isinstance(trainer.data_collator, TextPairCollator), columns_of(dataset)
    if "input_ids" not in names:
        if ours:
            raise PluginError(_no_column(options.source, names))
        return targets_alone(dataset) if "labels" in names else None
    limits = (options.max_source_length, options.max_target_length) if ours else (None, None)
    packed = ours and options.packing != "none"
    return measured(dataset, *limits, causal=is_causal(trainer.model), packed=packed)[0]


def budgeted(
    options: Any, trainer: Any, dataset: Any, sampler: Any = None
) -> TokenBudgetBatchSampler | PooledBudgetBatches | None:
    """The training batches of a trainer; None, with a warning, for a stream that the script's own collator reads."""
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return pooled(options, trainer, dataset)
    args = trainer.args
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy != "random":
        logger.warning("%s: train_sampling_strategy=%r has no effect: the budget cuts the batches.", NAME, strategy)
    lengths = lengths_of(options, trainer, dataset)
    if lengths is None:
        logger.warning(
            "%s: its rows hold neither input_ids nor labels, so the script's own collator reads them, in batches of a "
            "fixed number of pairs.",
            NAME,
        )
        return None
    sources, targets, *slots = lengths
    pairs, share = pairs_in_batch(trainer)
    width = lengths.source_slots + lengths.target_slots
    enough = _scaled(options.target_tokens, share) or max(1, round(pairs * float(targets.mean())))
    most = _scaled(options.max_tokens, share) or max(1, round(2 * pairs * float(width.mean())))
    alone = int((width > most).sum())
    if alone:
        logger.warning("%s: %d pairs exceed max_tokens=%d; each is a batch of its own.", NAME, alone, most)
    batches = TokenBudgetBatchSampler(
        sources,
        targets,
        source_slots=slots[0],
        target_slots=slots[1],
        sampler=sampler,
        # Another technique's order is kept but for what comes within one pool.
        pool=options.pool or (None if sampler is None else POOL),
        target_tokens=enough,
        max_tokens=most,
        per_step=args.gradient_accumulation_steps * max(1, args.world_size),
        seed=data_seed(args),
    )
    logger.info(
        "%s: %d pairs in %d batches of about %d real target tokens, at most %d padded slots each.",
        NAME,
        len(sources),
        len(batches),
        enough,
        most,
    )
    return batches


def pooled(options: Any, trainer: Any, stream: Any) -> PooledBudgetBatches | None:
    """The training batches of a trainer whose data is a stream; None, with a warning, where it has its own collator.

    Raises:
        PluginError: no `max_steps`, or several workers.
    """
    args = trainer.args
    if not isinstance(trainer.data_collator, TextPairCollator):
        logger.warning("%s: the script's own collator reads the stream, in batches of a fixed number of pairs.", NAME)
        return None
    if args.max_steps <= 0:
        raise PluginError(f"{NAME}: a stream cut by a budget has no known number of steps. Set max_steps.")
    if args.dataloader_num_workers > 1:
        raise PluginError(
            f"{NAME}: dataloader_num_workers={args.dataloader_num_workers} with streaming data: workers would each "
            "read the whole stream, or each another part of it. Set it to 1: it reads and tokenizes ahead."
        )
    world_size = max(1, args.world_size)
    pairs, share = pairs_in_batch(trainer)
    return PooledBudgetBatches(
        stream,
        trainer.data_collator,
        max_tokens=_scaled(options.max_tokens, share),
        target_tokens=_scaled(options.target_tokens, share),
        pairs=pairs,
        pool=options.pool or POOL,
        per_step=args.gradient_accumulation_steps * world_size,
        rank=args.process_index,
        world_size=world_size,
        seed=data_seed(args),
        max_empty_share=options.max_empty_share,
    )


def tokenized_stream(options: Any, stream: Any, split: str, model: Any, tokenizer: Any) -> Any:
    """A stream of evaluation data with token ids; training data is tokenized pool by pool."""
    if split == "train" or tokenizer is None:
        return stream
    mapped = hasattr(stream, "map")
    names = (stream.column_names or list(next(iter(stream), {}))) if mapped else []
    if mapped and ("input_ids" in names or options.source not in names):
        return stream
    collator = options.new_collator(tokenizer, model, for_evaluation=True)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        if collator.text_objective is not None:
            return {"input_ids": tokenizer(batch[options.source])["input_ids"]}
        if options.target not in batch:
            return {"input_ids": collator.prompts(batch[options.source]).as_lists()}
        sources, targets = collator.tokenized(batch[options.source], batch[options.target])
        return {"input_ids": sources.as_lists(), "labels": targets.as_lists()}

    if mapped:
        return stream.map(tokenize, batched=True, remove_columns=names)
    return TokenizedStream(stream, options.source, tokenize)


# ---- for the kit ----


def tiny_t5(seed: int = 0) -> Any:
    """A T5 of two and two layers, hidden size 16, over bytes, freshly initialised."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=384, decoder_start_token_id=0, pad_token_id=0, **size))


def tiny_pairs(size: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of 1 to 9 random letters and the same reversed, as bytes' ids with the end of sequence."""
    from transformers import ByT5Tokenizer

    generator, tokenizer = random.Random(seed), ByT5Tokenizer()
    texts = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 9))) for _ in range(size)]
    return [{"input_ids": tokenizer(text)["input_ids"], "labels": tokenizer(text[::-1])["input_ids"]} for text in texts]
