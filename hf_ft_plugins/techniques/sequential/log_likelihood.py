"""The log-likelihood of one row under a model: of the labels that it has, or of labels that the model itself draws.

Which logits a label belongs to is told by the model's own loss: of a classifier of rows, of tokens, and of a causal
language model (where the position before tells a token), one of the readings must give it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from ... import mends
from ...errors import PluginError
from .settings import NAME

Kind = Literal["sampled", "empirical"]
IGNORED = -100
# Between a loss and what is computed of logits anew; the second in 16 bits.
TOLERANCE, COARSE = 1e-3, 2e-2


def negative_log_likelihood(
    model: torch.nn.Module, row: dict[str, Any], kind: Kind, generator: torch.Generator
) -> torch.Tensor | None:
    """The sum over all that is scored in a row, in nats, with gradients; None where nothing is scored.

    Args:
        row: what `model(**row)` takes, of one example.
        kind: empirical: of the row's own labels; a loss that is none of logits and classes (regression, boxes) counts
            as it is, times the number of labels that are scored. sampled: of labels that the model draws where the row
            has some.
        generator: on the CPU, for the draws.

    Raises:
        PluginError: the model gives no loss; kind="sampled", and it is not read.
    """
    labels = row.get("labels")
    if labels is not None and not _is_scored(labels):
        return None
    outputs = model(**row)
    loss = _entry(outputs, "loss")
    if loss is None:
        raise PluginError(
            f"{NAME}: ewc needs the loss of rows of earlier stages, and a {type(model).__name__} called with "
            f"{', '.join(row)} gives none. Keep rows with labels, or set ewc=0.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "ewc", 0)],
        )
    read = _scored(model, _entry(outputs, "logits"), labels, loss)
    if kind == "empirical":
        return loss * _count(model, labels) if read is None else cross_entropy(*read, reduction="sum")
    if read is None:
        raise PluginError(
            f"{NAME}: fisher=sampled draws labels from the model's logits, and the loss of a {type(model).__name__} is "
            "not the cross-entropy of its logits with classes of rows or tokens alone (regression, several labels a "
            "row, a fused loss, an auxiliary one). Set fisher=empirical, which takes the labels of the data.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "fisher", "empirical")],
        )
    logits, _ = read
    return cross_entropy(logits, _drawn(logits.detach(), generator), reduction="sum")


def _is_scored(labels: torch.Tensor) -> bool:
    return labels.is_floating_point() or bool((labels != IGNORED).any())


def _scored(model: Any, logits: Any, labels: Any, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits [scored, classes] in 32 bits or more and their labels, int64 [scored]; None if they do not give `loss`."""
    if not isinstance(logits, torch.Tensor) or labels is None or labels.is_floating_point():
        return None
    labels = labels.to(logits.device)
    readings = []
    if logits.dim() == 2 and labels.numel() == len(logits) == 1:
        readings = [(logits, labels.reshape(-1))]
    elif logits.dim() == 3 and labels.shape == logits.shape[:2]:
        readings = [(logits[0], labels[0]), (logits[0, :-1], labels[0, 1:])]
        if _is_causal(model):
            readings.reverse()
    exact = TOLERANCE if min(loss.dtype.itemsize, logits.dtype.itemsize) > 2 else COARSE
    for rows, classes in readings:
        scored = classes != IGNORED
        rows = rows[scored].to(torch.promote_types(rows.dtype, torch.float32))
        classes = classes[scored]
        if not len(classes) or not 0 <= int(classes.min()) <= int(classes.max()) < rows.shape[1]:
            continue
        if torch.isclose(cross_entropy(rows, classes).detach(), loss.detach().to(rows.dtype), rtol=exact, atol=exact):
            return rows, classes
    return None


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One class of each row of logits, int64 [rows]: uniform numbers, so that the device draws nothing."""
    sums = logits.softmax(-1).cumsum(-1)
    level = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(sums)
    return torch.searchsorted(sums, level * sums[:, -1:], right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _count(model: Any, labels: Any) -> int:
    """Of how many labels a loss is the mean."""
    if labels is None or labels.is_floating_point() or labels.dim() < 2:
        return 1
    return int((labels[:, 1:] if _is_causal(model) else labels).ne(IGNORED).sum())


def _is_causal(model: Any) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and can_generate() and not model.config.is_encoder_decoder


def _entry(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
