"""The loss that Trainer's documentation promises: the mean over the real target tokens of a whole optimizer step.

transformers 5.23 takes T5's and BART's own loss for one that is divided by `num_items_in_batch` already, since their
`forward` takes `**kwargs`, and skips the division by the accumulation steps: loss and gradients are as many times too
large (measured at 4 steps: 3.997 times). As `compute_loss_func` this function is told the number of tokens of all
micro-batches on all ranks, and divides by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

IGNORED = -100


@dataclass
class Asked:
    """What a model has been found to do itself.

    Attributes:
        own: its loss is another than the mean over the target's tokens, and stays; None: not asked yet.
        shifts: it moves a causal row's labels by one.
    """

    own: bool | None = None
    shifts: bool = True


@dataclass(frozen=True)
class TokenMeanLoss:
    """A `compute_loss_func` for Trainer.

    Attributes:
        shift: whether position i predicts the label at i + 1 (causal models) or at i (encoder-decoders).
        label_smoothing: share of the target's probability that is spread over the vocabulary, as in
            `label_smoothing_factor`.
        asked: what the model has been found to do; filled in by `text2text`.
    """

    shift: bool
    label_smoothing: float = 0.0
    asked: Asked = field(default_factory=Asked, compare=False)

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The summed loss divided by `num_items_in_batch`; where that is None (evaluation), by the batch's tokens.

        Args:
            outputs: of the model: `logits` [..., T, V]; where its own loss stays, `loss`, the mean over this batch.
            labels: int64 [..., T]; -100 is ignored.
        """
        if self.asked.own:
            return self._share_of(outputs, labels, num_items_in_batch)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten().to(logits.device),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        if num_items_in_batch is None:
            return total / (labels != IGNORED).sum()
        # A step without a target has no loss.
        return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

    def _share_of(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The model's own loss, by this batch's share of the tokens of the whole step."""
        own: torch.Tensor = outputs["loss"]
        count = (labels[..., 1:] != IGNORED).sum() if self.shift else (labels != IGNORED).sum()
        if num_items_in_batch is None:
            return own
        if not count:
            return 0 * outputs["logits"].sum()
        return own * (count / torch.as_tensor(num_items_in_batch, device=own.device).clamp(min=1)).to(own.dtype)
