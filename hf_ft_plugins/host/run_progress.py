"""How time, memory and tokens go while a run trains: a point a log entry."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

MIB = 1024 * 1024


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
            rows = 0
            for name, value in batch.items():
                if not isinstance(value, torch.Tensor):
                    continue
                shape = value.shape
                if shape and shape[0] > rows:
                    rows = shape[0]
                if name.endswith("input_ids"):
                    self._slots += value.numel()
                elif name.endswith("attention_mask") and len(shape) == 2:
                    self._tokens = self._tokens + value.sum()
            self._rows += rows

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


def memory_bytes() -> int:
    """On a GPU the most that was allocated, else the process's largest resident size; bytes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def learning_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
