"""What a run did to its model, and how good the model was before: what the gate compares with when training ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...host.stash import StashKey
from ...models.unchanged import evaluating
from .quality import Quality, measure_quality, perplexity_of
from .score import Batches, mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PROMPT, PROMPTS, NEW_TOKENS = 16, 8, 32


@dataclass
class Surgery:
    """What was done to a model, and what it was measured against.

    Attributes:
        removed: numbers in the stack as it was; depth: of that stack; side: of an encoder-decoder.
        why: how they were chosen.
        held_out, prompts: what is measured on; none where there is no evaluation data.
        whole, cut: loss and writing of the model before and after the removal, without training.
        curve: what each number of layers costs, to be written when the run begins; none where it is not measured.
        original: a copy of the whole model, where the gate or distillation needs one.
    """

    removed: tuple[int, ...]
    depth: int
    side: str
    why: str
    held_out: Batches = field(default_factory=list)
    prompts: torch.Tensor | None = None
    whole: Quality | None = None
    cut: Quality | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    original: Any = None


SURGERY = StashKey[Surgery]("layer-removal: what was removed")


def quality_of(model: PreTrainedModel, held_out: Batches, prompts: torch.Tensor | None) -> Quality | None:
    """What can be measured: perplexity of the batches, and the writing where there are prompts; None without batches.

    Of a classifier, perplexity is exp of its loss.
    """
    if not held_out:
        return None
    if prompts is not None:
        return measure_quality(model, held_out, prompts, new_tokens=NEW_TOKENS)
    with evaluating(model), torch.no_grad():
        return Quality(perplexity_of(mean_loss(model, held_out)), math.nan, torch.empty(0, 0, dtype=torch.long))


def prompts_of(model: PreTrainedModel, batches: Batches) -> torch.Tensor | None:
    """The first tokens of some rows, int64 [up to 8, 16], for a causal language model; None if there are none."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        return None
    rows = []
    for batch in batches:
        ids = batch.get("input_ids")
        if ids is None:
            return None
        mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
        rows += [row[real][:PROMPT] for row, real in zip(ids, mask, strict=True) if int(real.sum()) >= PROMPT]
    return torch.stack(rows[:PROMPTS]) if rows else None
