"""How time, memory and tokens go while a run trains: a point a log entry."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

MIB = 1024 * 1024
IGNORED = -100


class Progress:
    """Counts what goes into training, and keeps a point for each step that was logged.

    Args:
        points: those of the run that this one resumes.

    Attributes:
        points: dicts of JSON values: `step`; on this rank since training began, with the run that it resumes and
            without the time between the two: `seconds`, `rows`, `slots` (positions of tokens, padded ones too),
            `tokens` (those attended to; None where nothing says which); now: `memory` (bytes on the GPU, or the
            process's largest so far), `learning` (parameters that learn).
    """

    def __init__(self, points: Iterable[dict[str, Any]] = ()) -> None:
        self.points = list(points)
        last = self.points[-1] if self.points else {}
        self._began = time.monotonic() - (last.get("seconds") or 0.0)
        self._rows, self._slots = last.get("rows") or 0, last.get("slots") or 0
        self._tokens: Any = last.get("tokens") or 0

    def count(self, batches: Iterable[Any]) -> None:
        """Count the batches of one optimizer step. Nothing is copied from a device."""
        for batch in batches:
            if not isinstance(batch, Mapping):
                continue
            self._rows += max((value.shape[0] for value in batch.values() if _is_row_wise(value)), default=0)
            self._slots += _slots(batch)
            for name, value in batch.items():
                if _is_row_wise(value) and name.endswith("attention_mask") and value.dim() == 2:
                    self._tokens = self._tokens + value.sum()
            if _has_targets(batch):
                self._tokens = self._tokens + (batch["labels"] != IGNORED).sum()

    def count_parts(self, whole: Any, parts: Iterable[Any]) -> None:
        """A counted batch goes through the model as these, each as wide as its own rows."""
        if isinstance(whole, Mapping):
            self._slots += sum(map(_slots, parts)) - _slots(whole)

    def summary(self) -> dict[str, float]:
        """For the log: how fast it was on this rank, the share of padding, and memory in MiB."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        tokens = int(self._tokens)
        found = {"run/rows_per_second": self._rows / seconds, "run/memory_mib": memory_bytes() / MIB}
        if tokens:
            found["run/tokens_per_second"] = tokens / seconds
        if tokens and self._slots:
            found["run/padding_share"] = max(0.0, 1 - tokens / self._slots)
        return found

    def note(self, step: int, model: Any) -> None:
        """Add a point; of a step that was noted before, or lies behind one, the later is forgotten."""
        while self.points and self.points[-1]["step"] >= step:
            self.points.pop()
        self._tokens = int(self._tokens)
        self.points.append(
            {
                "step": step,
                "seconds": round(time.monotonic() - self._began, 3),
                "rows": self._rows,
                "slots": self._slots,
                "tokens": self._tokens or None,
                "memory": memory_bytes(),
                "learning": learning_parameters(model),
            }
        )


def _is_row_wise(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _has_targets(batch: Mapping[str, Any]) -> bool:
    """Whether labels are rows of their own, as those of an encoder-decoder."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if "attention_mask" not in batch or not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor)):
        return False
    return labels.dim() == ids.dim() == 2 and labels.shape != ids.shape


def _slots(batch: Mapping[str, Any]) -> int:
    """Positions of tokens: of ids of which a mask tells which are real, and of targets."""
    masked = [
        value.numel()
        for name, value in batch.items()
        if _is_row_wise(value)
        and name.endswith("input_ids")
        and f"{name.removesuffix('input_ids')}attention_mask" in batch
    ]
    return sum(masked) + (batch["labels"].numel() if _has_targets(batch) else 0)


def memory_bytes() -> int:
    """On a GPU the most that was allocated, else the process's largest resident size; bytes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def learning_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
