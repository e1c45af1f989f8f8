"""What `text2text` does with a trainer's data: tokenize, drop, count, measure, and cut into batches."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

from ...errors import PluginError
from ...technique import data_seed
from .batches import TokenBudgetBatchSampler
from .collator import TextPairCollator
from .streaming import POOL, PooledBudgetBatches
from .texts import prepared_texts, text_lengths
from .tokens import lengths_of, pair_lengths

logger = logging.getLogger(__name__)
NAME = "text2text"


def is_causal(model: Any) -> bool:
    return not getattr(model.config, "is_encoder_decoder", False)


def prepared(options: Any, dataset: Any, split: str, model: Any, tokenizer: Any) -> Any:
    """The data set with token ids; of the training set, without pairs whose target is empty.

    Raises:
        PluginError: there are neither token ids nor the columns of text, or too many targets are empty.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return tokenized_stream(options, dataset, split, model, tokenizer)
    names = getattr(dataset, "column_names", None)
    if names is None or not hasattr(dataset, "map"):
        return dataset
    if options.objective != "seq2seq":
        return prepared_texts(options, dataset, split, model, tokenizer)
    if "input_ids" not in names:
        dataset = _tokenized(options, dataset, model, tokenizer)
    if split == "train":
        dataset = _without_empty(options, dataset, split)
        for column, longest in (("input_ids", options.max_source_length), ("labels", options.max_target_length)):
            _report_cuts(dataset, column, longest)
    return dataset


def _tokenized(options: Any, dataset: Any, model: Any, tokenizer: Any) -> Any:
    missing = [name for name in (options.source, options.target) if name not in dataset.column_names]
    if missing or tokenizer is None:
        what = f"no column {missing[0]!r}" if missing else "no tokenizer to make token ids with"
        raise PluginError(
            f"{NAME}: there is {what}; the data has {', '.join(dataset.column_names)}. Say which columns hold texts "
            f"({NAME}:source=...,target=...), pass processing_class=tokenizer, or tokenize into input_ids and labels."
        )
    collator = options.new_collator(tokenizer, model)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        sources, targets = collator.tokenized(batch[options.source], batch[options.target])
        return {"input_ids": sources.as_lists(), "labels": targets.as_lists()}

    # `map` caches by a fingerprint of the data and the function.
    return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc=f"{NAME}: tokenizing")


def _without_empty(options: Any, dataset: Any, split: str) -> Any:
    empty = lengths_of(dataset, "labels") == 0
    if not empty.any():
        return dataset
    share = empty.mean()
    if share > options.max_empty_share:
        rows = ", ".join(map(str, np.flatnonzero(empty)[:5]))
        raise PluginError(
            f"{NAME}: {int(empty.sum())} of {len(empty)} targets of the {split} set are empty (rows {rows}, ...), more "
            f"than max_empty_share={options.max_empty_share}. Look at the data, or raise the option to drop them."
        )
    logger.warning("%s: dropped %d of %d pairs, whose target is empty.", NAME, int(empty.sum()), len(empty))
    return dataset.select(np.flatnonzero(~empty))


def _report_cuts(dataset: Any, column: str, longest: int | None) -> None:
    if longest is None:
        return
    over = lengths_of(dataset, column) - longest
    if (over > 0).any():
        logger.warning(
            "%s: %d of %d %s are longer than %d and are cut, by %d tokens in all.",
            NAME,
            int((over > 0).sum()),
            len(over),
            "sources" if column == "input_ids" else "targets",
            longest,
            int(over[over > 0].sum()),
        )


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
    objective = getattr(trainer.data_collator, "text_objective", None)
    sources, targets = (
        pair_lengths(options, dataset, causal=is_causal(trainer.model))
        if objective is None
        else text_lengths(objective, dataset)
    )
    pairs = args.train_batch_size
    enough = options.target_tokens or max(1, round(pairs * float(targets.mean())))
    most = options.max_tokens or max(1, round(2 * pairs * float((sources + targets).mean())))
    alone = int((sources + targets > most).sum())
    if alone:
        logger.warning("%s: %d pairs exceed max_tokens=%d; each is a batch of its own.", NAME, alone, most)
    batches = TokenBudgetBatchSampler(
        sources,
        targets,
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
    return PooledBudgetBatches(
        stream,
        trainer.data_collator,
        max_tokens=options.max_tokens,
        target_tokens=options.target_tokens,
        pairs=args.train_batch_size,
        pool=options.pool or POOL,
        per_step=args.gradient_accumulation_steps * world_size,
        rank=args.process_index,
        world_size=world_size,
        seed=data_seed(args),
        max_empty_share=options.max_empty_share,
    )


def tokenized_stream(options: Any, stream: Any, split: str, model: Any, tokenizer: Any) -> Any:
    """A stream of evaluation data with token ids; training data is tokenized pool by pool."""
    if split == "train" or not hasattr(stream, "map") or tokenizer is None:
        return stream
    names = stream.column_names or list(next(iter(stream)))
    if "input_ids" in names:
        return stream
    collator = options.new_collator(tokenizer, model)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        if collator.text_objective is not None:
            return {"input_ids": tokenizer(batch[options.source])["input_ids"]}
        sources, targets = collator.tokenized(batch[options.source], batch[options.target])
        return {"input_ids": sources.as_lists(), "labels": targets.as_lists()}

    return stream.map(tokenize, batched=True, remove_columns=names)


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
