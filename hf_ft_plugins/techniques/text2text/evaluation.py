"""What `text2text` does with a pass over evaluation data that generates: prompts, lengths, the loss, examples."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .architecture import NAME, is_causal
from .generation import generate_from_prompts
from .lengths import measured, targets_alone
from .loss import IGNORED, TokenMeanLoss
from .metrics import decoded
from .tokens import columns_of

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)
LONGEST_SHOWN = 200  # characters


@contextlib.contextmanager
def evaluating(
    trainer: Trainer,
    dataloader: Any,
    prefix: str,
    *,
    examples: int = 0,
    max_source: int | None = None,
    max_target: int | None = None,
) -> Iterator[None]:
    """Seq2SeqTrainer's evaluation as it would be on one process, of prompts alone; examples are printed at its end.

    Stock keeps the rows that are repeated to fill the last batch of several ranks, and takes the label-smoothed loss
    of causal models without the shift by one.

    Args:
        trainer: a Seq2SeqTrainer that generates; changed within alone.
        dataloader: of the pass.
        prefix: of its metrics; stands before the examples.
        examples: how many are printed.
        max_source, max_target: the collator's limits, in tokens.
    """
    tokenizer, smoother = trainer.processing_class, trainer.label_smoother
    shown = _Examples(tokenizer, examples if trainer.is_world_process_zero() and tokenizer else 0)
    longest = _longest_reference(dataloader.dataset, max_source, max_target, causal=is_causal(trainer.model))
    # Trainer sets it again after the pass.
    trainer.gather_function = trainer.accelerator.gather_for_metrics
    if isinstance(trainer.compute_loss_func, TokenMeanLoss):
        trainer.label_smoother = LossOfRealRows(trainer.compute_loss_func, trainer.accelerator)
    try:
        with generate_from_prompts(
            trainer.model,
            pad_token_id=getattr(tokenizer, "pad_token_id", None),
            default_new_tokens=longest,
            on_batch=shown.remember,
        ):
            yield
    finally:
        trainer.label_smoother = smoother
    shown.show(prefix)


@dataclass(frozen=True)
class LossOfRealRows:
    """`loss` of an evaluation batch without the rows that accelerate repeats to fill the last one; nan of none."""

    loss: TokenMeanLoss
    accelerator: Any

    def __call__(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            first = self.accelerator.process_index * len(labels)
            repeated = torch.arange(first, first + len(labels), device=labels.device) >= state.remainder
            labels = labels.masked_fill(repeated[:, None], IGNORED)
        return self.loss(outputs, labels)


def _longest_reference(dataset: Any, max_source: int | None, max_target: int | None, *, causal: bool) -> int | None:
    """Tokens of the longest target; None where it cannot be known."""
    if not hasattr(dataset, "__len__") or not len(dataset):
        return None
    columns = columns_of(dataset)
    if "labels" not in columns:
        return None
    if "input_ids" not in columns:
        return int(targets_alone(dataset).targets.max())
    lengths, _ = measured(dataset, max_source, max_target, causal=causal, missing=True)
    return int(lengths.targets.max()) or None


class _Examples:
    """The first rows of the first batch, as text."""

    def __init__(self, tokenizer: Any, number: int) -> None:
        self.tokenizer = tokenizer
        self.number = number
        self.rows: list[tuple[str, ...]] = []

    def remember(self, sources: torch.Tensor, labels: torch.Tensor, generated: torch.Tensor) -> None:
        if self.rows or not self.number:
            return
        # Of several outputs of a row, the first.
        generated = generated[:: max(1, len(generated) // len(labels))]
        columns = (decoded(self.tokenizer, ids[: self.number].cpu().numpy()) for ids in (sources, labels, generated))
        self.rows = list(zip(*columns, strict=True))

    def show(self, prefix: str) -> None:
        from tqdm.auto import tqdm

        for number, row in enumerate(self.rows, 1):
            for what, text in zip(("source", "reference", "prediction"), row, strict=True):
                shown = text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
                # Where Trainer's own metrics appear, and without tearing a progress bar apart.
                tqdm.write(f"{NAME}: {prefix} example {number}, {what:<10} {shown!r}")
