"""What a technique answers when it is asked whether it would help a run: `Technique.suggestion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A measured figure that a suggestion quotes, as the file of the results has it.

    Attributes:
        benchmark, metric, field: the file `docs/results/BENCHMARK.json`, the row, and its field; a test holds `value`
            to it.
        value: rounded as it is quoted.
    """

    benchmark: str
    metric: str
    field: str
    value: float

    def __format__(self, form: str) -> str:
        return format(self.value, form)


@dataclass(frozen=True)
class Because:
    """One reason.

    Attributes:
        fact: where `RunFacts` has it: `data.padding`.
        value: what was measured, plain.
        text: a sentence with it, and with the figure that makes it a reason.
    """

    fact: str
    value: Any
    text: str


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """That a technique would help a run.

    Attributes:
        spec: the technique with its options as `--with` takes it.
        does: what it would do, a sentence.
        because: the reasons, the strongest first.
        not_when: when it would not help all the same, a sentence.
        weight: how much it matters beside others that it cannot run together with: 3 where the run would fail without
            it, 2 where a figure shows a large gain, 1 otherwise.
        need: what it answers; of several techniques that answer one need the command has the weightiest alone.
        first: what has to be changed in the script or its arguments before; the command does not have it then.
    """

    spec: str
    does: str
    because: tuple[Because, ...]
    not_when: str
    weight: int = 1
    need: str = ""
    first: str = ""
