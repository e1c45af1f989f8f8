"""All that people did about the answers to one prompt, as the rules of `votes.py` read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Act(NamedTuple):
    """An event about answers that are known by their number in the log.

    Attributes:
        answer: the answer that it is about; of a choice the chosen one, None of a tie or where all are bad.
        other: of a regeneration the new answer, None where there is none.
        user: hashed; None where unknown.
        voter: the user, or the event where the user is unknown.
    """

    event: str
    type: str
    answer: int | None
    value: Any
    candidates: tuple[int, ...]
    other: int | None
    user: str | None
    voter: str
    ts: float
    shown: int | None
    propensity: float | None
    text_after: str | None
    dwell_ms: float | None


@dataclass(slots=True)
class Group:
    """One prompt, its answers and the acts about them.

    Attributes:
        prompt: the number of the message that is answered; `conversation` that of the first message before it.
        turns: the JSON of each answer that an act is about, and of all before it, by number.
        before: numbers of the conversation's messages down to the prompt.
        tools: JSON of the tools that the answers could call; None without.
        continued: bool [messages of the log], whether the user wrote on after it.
    """

    prompt: int
    conversation: int
    acts: list[Act]
    turns: dict[int, str]
    before: list[int]
    tools: str | None
    continued: np.ndarray

    def context(self) -> str:
        """JSON of the turns up to the prompt, without brackets."""
        return ", ".join([self.turns[row] for row in self.before])
