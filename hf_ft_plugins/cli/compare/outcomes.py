"""What a finished run left: its trainings, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...training_log import Training


@dataclass(frozen=True)
class Outcome:
    """One finished run of the script.

    Attributes:
        wall, cpu: seconds, of the whole process.
        peak: bytes, of main memory; gpu_peak: of GPU memory.
    """

    trainings: list[Training] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    gpu_peak: int = 0

    @property
    def steps(self) -> int:
        return sum(training.steps for training in self.trainings)


def trainings_of(record: Mapping[str, Any]) -> list[Training]:
    """The trainings of a record that `cli/record.py` wrote."""
    return [
        Training(item["log"], item["step"], item["initial"], item["final"], item["setting"])
        for item in record["trainings"]
    ]
