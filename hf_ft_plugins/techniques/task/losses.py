"""`TaskLoss`: the training loss, with a remedy for rare classes, as a `compute_loss_func` for any Trainer.

    Trainer(..., compute_loss_func=TaskLoss("single_label", weights=balanced_weights("single_label", counts)))

The sum over the examples is divided by the number of labels of the whole optimizer step, over accumulation and ranks,
which Trainer counts. Stock transformers 5.17 and 5.23 average each micro-batch and then skip the division by the
accumulation steps for models whose `forward` takes `**kwargs` (BERT's does): loss and gradients are as many times too
large.

Trainer evaluates with the same function, without gradients; there it is the plain loss, so that `eval_loss` stays what
it was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, mse_loss

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...models.labels import IGNORED, Kind, Labels
from . import NAME
from .labels import class_counts

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

Imbalance = Literal["none", "weights", "sampler", "logit_adjust", "focal"]


@dataclass(frozen=True)
class TaskLoss:
    """Cross-entropy (of several labels: binary; of numbers: squared error), changed while training by one of:

    Attributes:
        kind: what is predicted.
        weights: of a label, by class; of several labels, a pair (without the label, with it) by class.
        shift: added to the logits by class: logit adjustment (Menon et al. 2021, arXiv:2007.07314, section 4.1,
            equation 10).
        gamma: of the focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4, without its alpha); 0 is none. It is
            divided by the number of labels, not by that of positive anchors.
    """

    kind: Kind
    weights: tuple[Any, ...] | None = None
    shift: tuple[float, ...] | None = None
    gamma: float = 0.0

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The summed loss divided by `num_items_in_batch`; where that is None, by the batch's labels.

        Args:
            outputs: of the model: `logits`, [B, C], of tokens [B, T, C].
            labels: int64 [B] or [B, T], -100 is ignored; of several labels or numbers, like the logits.

        Returns:
            float32 scalar.
        """
        logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
        labels = labels.to(logits.device)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        plain = not torch.is_grad_enabled()
        if self.kind == "regression":
            losses = mse_loss(logits.reshape(labels.shape), labels.float(), reduction="none")
        elif self.kind == "multi_label":
            losses = self._binary(logits, labels.float(), plain)
        else:
            losses = self._one_class(logits.flatten(0, -2), labels.flatten(), plain)
        return losses.sum() / count

    def _one_class(self, logits: torch.Tensor, labels: torch.Tensor, plain: bool) -> torch.Tensor:
        if self.shift is not None and not plain:
            logits = logits + logits.new_tensor(self.shift)
        losses = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        if plain:
            return losses
        if self.gamma:
            losses = (1 - torch.exp(-losses)) ** self.gamma * losses
        if self.weights is not None:
            losses = losses * logits.new_tensor(self.weights)[labels.clamp(min=0)]
        return losses

    def _binary(self, logits: torch.Tensor, labels: torch.Tensor, plain: bool) -> torch.Tensor:
        if self.shift is not None and not plain:
            logits = logits + logits.new_tensor(self.shift)
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if plain:
            return losses
        if self.gamma:
            missed = torch.exp(torch.where(labels > 0.5, logsigmoid(-logits), logsigmoid(logits)))
            losses = missed**self.gamma * losses
        if self.weights is not None:
            without, with_it = logits.new_tensor(self.weights)
            losses = losses * (labels * with_it + (1 - labels) * without)
        return losses


def balanced_weights(kind: Kind, counts: np.ndarray, rows: int = 0) -> tuple[Any, ...]:
    """Weights inverse to how often a class occurs, with mean 1 over the training set, so that the rate fits as before.

    Args:
        counts: int64 [classes], all above 0.
        rows: of the training set; several labels only, where each label has two classes, without and with it.
    """
    if kind == "multi_label":
        pairs = np.maximum(np.stack([rows - counts, counts]), 1)
        return tuple(tuple(line) for line in (rows / (2 * pairs)).tolist())
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def frequency_shift(kind: Kind, counts: np.ndarray, tau: float, rows: int = 0) -> tuple[float, ...]:
    """`tau` times the log frequency of each class (of several labels, the log odds of each), as `TaskLoss.shift`."""
    if kind == "multi_label":
        share = np.clip(counts / rows, 0.5 / rows, 1 - 0.5 / rows)
        return tuple((tau * np.log(share / (1 - share))).tolist())
    return tuple((tau * np.log(counts / counts.sum())).tolist())


def new_loss(
    kind: Kind,
    dataset: Any,
    labels: Labels | None,
    *,
    imbalance: Imbalance = "none",
    tau: float = 1.0,
    gamma: float = 2.0,
) -> TaskLoss:
    """The `TaskLoss` for the labels of a training set.

    Args:
        labels: those of `dataset`; of `weights` and `logit_adjust` they are counted, else they may be None.
        imbalance: the remedy for rare classes; `sampler` changes no loss.
        tau: logit_adjust: strength of the shift.
        gamma: focal: how much less easy examples count.
    """
    if imbalance in ("weights", "logit_adjust"):
        assert labels is not None
        counts, rows = class_counts(dataset, labels), len(dataset)
        if imbalance == "weights":
            return TaskLoss(kind, weights=balanced_weights(kind, counts, rows))
        return TaskLoss(kind, shift=frequency_shift(kind, counts, tau, rows))
    return TaskLoss(kind, gamma=gamma if imbalance == "focal" else 0.0)


def refuse_loss_of_its_own(trainer: Trainer, imbalance: Imbalance) -> bool:
    """Whether the script or its model has a loss of its own, which then stays.

    Raises:
        PluginError: it has, and `imbalance` is to change the loss.
    """
    model = bare(trainer.model)
    if trainer.compute_loss_func is not None:
        own = "the script has its own compute_loss_func. Leave it out"
    elif trainer.args.label_smoothing_factor:
        own = f"label_smoothing_factor={trainer.args.label_smoothing_factor} is a loss of its own. Set it to 0"
    elif not type(model).__module__.startswith("transformers."):
        own = f"the model, a {type(model).__name__}, is the script's own and so is its loss. Use one of transformers'"
    else:
        return False
    if imbalance in ("none", "sampler"):
        logger.info("%s: the loss stays as it is: %s.", NAME, own.partition(". ")[0])
        return True
    raise PluginError(
        f"{NAME}: imbalance={imbalance} changes the loss, and {own}, or use imbalance=sampler.",
        code="technique-conflict",
        mend=[mends.set_option(NAME, "imbalance", "sampler")],
    )
