"""Conversations of which one is preferred, or that are good or bad, as messages and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from .conversations import Turn, chained, message
from .events import BOTH_BAD, Event, Message, UnfitError
from .log_files import Reading

Turns = list[Turn]
APART_EARLIER = "conversations that differ before their last answer"


def compared(
    identity: str,
    sides: Sequence[Turns],
    winner: int | str,
    reading: Reading,
    *,
    user: str | None = None,
    ts: float = 0.0,
    models: Sequence[Any] = (),
    shown: bool = False,
    tools: Any = None,
) -> Iterator[Message | Event]:
    """Conversations of which one is preferred: their prompt is what they have in common, their answers what follows.

    An answer is a turn of the assistant's, with what it called, what that returned and what it said then; where a user
    speaks in between, the conversations are no answers to one prompt.

    Args:
        sides: two or more.
        winner: the number of the preferred one, "tie" or "both_bad".
        shown: whether the sides are in the order in which somebody saw them.

    Raises:
        UnfitError: a side does not end with an answer of the assistant.
    """
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        raise UnfitError("compared conversations that do not end with an answer of the assistant")
    models = models or [None] * len(sides)
    common = _common(sides)
    one_prompt = all(is_answer(side[common:]) for side in sides)
    if not one_prompt and winner != BOTH_BAD:
        reading.left_out[APART_EARLIER] += 1
        return
    ids = []
    for side, model in zip(sides, models, strict=True):
        made = answered(side, common if one_prompt else len(side) - 1, tools=tools, model=model)
        yield from made
        ids.append(made[-1].id)
    if not one_prompt:
        # Both bad needs no common prompt.
        for number, one in enumerate(ids):
            yield Event(f"{identity}:{number}", ts, user, one, "thumbs", -1)
        return
    chosen = ids[winner] if isinstance(winner, int) else winner
    place = winner if shown and isinstance(winner, int) else None
    yield Event(identity, ts, user, None, "choice", chosen, candidates=tuple(ids), shown_position=place)


def labelled(
    identity: str, turns: Turns, label: bool, *, prompt: int | None = None, tools: Any = None
) -> Iterator[Message | Event]:
    """A conversation whose last answer is good or bad.

    Args:
        prompt: how many turns the prompt has; None: all but the last.

    Raises:
        UnfitError: it does not end with an answer of the assistant.
    """
    if turns[-1]["role"] != "assistant":
        raise UnfitError("labelled conversations that do not end with an answer of the assistant")
    if prompt is None or not is_answer(turns[prompt:]):
        prompt = len(turns) - 1
    made = answered(turns, prompt, tools=tools)
    yield from made
    yield Event(identity, 0.0, None, made[-1].id, "thumbs", 1 if label else -1)


def answered(turns: Turns, prompt: int, *, tools: Any = None, model: Any = None) -> list[Message]:
    """The messages of a conversation of which all turns past the prompt are one answer, the last message."""
    before = chained(turns[:prompt], tools=tools, model=model)
    parent = before[-1].id if before else None
    return [*before, message(turns[prompt], parent, turns[prompt + 1 :], tools=tools, model=model)]


def is_answer(turns: Turns) -> bool:
    """Whether turns are one answer: the assistant's, with what its tools returned between them."""
    roles = [one["role"] for one in turns]
    if not roles or roles[0] != "assistant" or not set(roles) <= {"assistant", "tool"}:
        return False
    return ("assistant", "assistant") not in pairwise(roles)


def _common(sides: Sequence[Turns]) -> int:
    """How many turns all have in common; of equal conversations all but the last."""
    common = 0
    for same in zip(*sides, strict=False):
        if any(one != same[0] for one in same):
            break
        common += 1
    return min(common, min(map(len, sides)) - 1)
