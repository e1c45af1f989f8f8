"""`text2text` on a T5 over bytes that learns to reverse words."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import ByT5Tokenizer, DataCollatorForSeq2Seq, T5Config, T5ForConditionalGeneration

from ...techniques.text2text import Text2Text
from ..example import Example


def tiny_t5(seed: int = 0) -> Any:
    """A T5 of two and two layers, hidden size 16, over bytes, freshly initialised."""
    torch.manual_seed(seed)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=384, decoder_start_token_id=0, pad_token_id=0, **size))


def tiny_pairs(size: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of 1 to 9 random letters and the same reversed, as bytes' ids with the end of sequence."""
    # Without the sentinels, which take longer to make than the pairs.
    generator, tokenizer = random.Random(seed), ByT5Tokenizer(extra_ids=0)
    texts = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 9))) for _ in range(size)]
    return [{"input_ids": tokenizer(text)["input_ids"], "labels": tokenizer(text[::-1])["input_ids"]} for text in texts]


def setting() -> dict[str, Any]:
    """The T5, pairs to train and to evaluate on, and transformers' own collator, which text2text replaces."""
    model, tokenizer = tiny_t5(), ByT5Tokenizer()
    return {
        "model": model,
        "train_dataset": tiny_pairs(36),
        "eval_dataset": tiny_pairs(12, seed=1),
        "processing_class": tokenizer,
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
    }


def acted(technique: Text2Text, trainer: Any) -> bool:
    """The last epoch's batches hold about `target_tokens` each, packed as asked; the loss is the tokens' mean."""
    from ...techniques.text2text.batches import TokenBudgetBatchSampler
    from ...techniques.text2text.loss import TokenMeanLoss
    from ...techniques.text2text.streaming import PooledBudgetBatches

    packed = getattr(trainer.data_collator, "packing", "none") == technique.packing
    weighed = isinstance(trainer.compute_loss_func, TokenMeanLoss)
    batches = getattr(trainer, "train_batches", None)
    return packed and weighed and isinstance(batches, (TokenBudgetBatchSampler, PooledBudgetBatches))


EXAMPLE = Example(Text2Text(target_tokens=24), acted, setting)
