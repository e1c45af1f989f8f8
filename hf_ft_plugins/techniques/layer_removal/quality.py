"""How well a language model still writes: perplexity, repetition, and agreement with what the original wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...models.unchanged import evaluating
from .score import Batches, mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Tokens in an n-gram; shorter ones repeat in any grammatical text.
NGRAM = 4


@dataclass(frozen=True)
class Quality:
    """Attributes:
    perplexity: exp of the mean loss of the batches; nan without batches.
    repetition: share of a continuation's 4-grams that it has already had, mean over prompts; 0 is none.
    continuations: int64 [B, new tokens], greedy, one of each prompt.
    """

    perplexity: float
    repetition: float
    continuations: torch.Tensor

    def match(self, original: Quality) -> float:
        """Share of a continuation that comes before its first token that differs from the original's, mean."""
        same = (self.continuations == original.continuations).long().cumprod(1)
        return float(same.float().mean())


@torch.no_grad()
def measure_quality(
    model: PreTrainedModel, batches: Batches, prompts: torch.Tensor, *, new_tokens: int = 64
) -> Quality:
    """Measure a causal language model or an encoder-decoder.

    Args:
        batches: held out, with labels; none if only what it writes is of interest.
        prompts: int64 [B, L] without padding.
    """
    with evaluating(model):
        loss = mean_loss(model, batches) if len(batches) else math.nan
        prompts = prompts.to(model.device)
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    continuations = written[:, -new_tokens:].cpu()
    repeated = [repetition(row) for row in continuations.tolist()]
    return Quality(perplexity_of(loss), sum(repeated) / len(repeated), continuations)


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats, infinite where that is too large."""
    return math.exp(loss) if not loss > 700 else math.inf


def repetition(tokens: Sequence[int], size: int = NGRAM) -> float:
    """Share of the n-grams that came before (1 - distinct / all; Li et al. 2016 count the distinct ones); 0 if none."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
