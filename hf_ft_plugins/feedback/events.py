"""What a chatbot's log holds: messages, and what people did about them.

Two tables, as JSON lines. A folder has them as `messages.jsonl` and `events.jsonl` (or `.jsonl.gz`); a single file says
in each line `"table": "message"` or `"table": "event"`. A line's keys are the attributes of `Message` or of `Event`;
what is optional may be missing.

    {"id": "m2", "parent_id": "m1", "role": "assistant", "content": "Blue."}
    {"id": "e1", "type": "thumbs", "message_id": "m2", "value": 1, "user": "u7", "ts": 1767225600}
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
# Of choices, instead of the id of the message that was chosen.
TIE, BOTH_BAD = "tie", "both_bad"
# What people say of an answer, as against what they do after it.
LABELS = ("thumbs", "rating", "choice")
TYPES = (*LABELS, "edit", "regenerate", "copy", "accept", "correction", "dwell", "abandon", "continue")
LOWEST, HIGHEST = 1.0, 5.0
# What chat templates read of a turn beside its role, its content and its calls.
TEMPLATE_FIELDS = ("name", "tool_call_id", "reasoning_content", "thinking")


class MalformedError(ValueError):
    """A record that is no message and no event; the text says why, without quoting what people wrote."""


class UnfitError(MalformedError):
    """A sound record that cannot teach a model of texts; the text is the reason under which it is counted."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        parent_id: the turn before it; None for a conversation's first. Several messages may have one parent: answers to
            choose from, regenerated ones, branches.
        role: system, user, assistant or tool.
        content: its text.
        tool_calls, tools: of an assistant's turn, as chat templates take them.
        model_id: which model wrote it.
        template_fields: what else chat templates read of it, some of `TEMPLATE_FIELDS`.
        continuation: turns that belong to the same answer: what its tools returned, and what it said after.

    Raises:
        MalformedError: an id is empty, the message is its own parent, the role is another, or the content is no text.
    """

    id: str
    parent_id: str | None
    role: str
    content: str
    tool_calls: list[Any] | None = None
    tools: list[Any] | None = None
    model_id: str | None = None
    template_fields: dict[str, str] | None = None
    continuation: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if not self.id or not isinstance(self.id, str):
            raise MalformedError(f"a message's id is a text that is not empty, not {self.id!r}")
        if not isinstance(self.parent_id, str | None):
            raise MalformedError(f"a message's parent_id is a text, not a {type(self.parent_id).__name__}")
        if self.role not in ROLES:
            raise MalformedError(f"a message's role is one of {', '.join(ROLES)}, not {_shown(self.role)}")
        if not isinstance(self.content, str):
            raise MalformedError(f"a message's content is a text, not a {type(self.content).__name__}")
        for key, text in (self.template_fields or {}).items():
            if not isinstance(text, str):
                raise MalformedError(f"a message's {key} is a text, not a {type(text).__name__}")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that somebody did about a message.

    Attributes:
        ts: seconds since 1970; 0 where unknown.
        user: who did it; None where unknown.
        message_id: the assistant's message that it is about. Of a correction it may be the user's message that
            corrects: its parent is meant. Of a choice it may be missing.
        type: one of `TYPES`.
        value: of thumbs 1 or -1; of a rating 1 to 5; of a choice the id of the chosen message, "tie" or "both_bad"; of
            regenerate the id of the new message (where missing, the next answer to the same turn).
        candidates: of a choice, the ids of all messages that were shown.
        shown_position: of a choice, at which place the chosen one was shown, from 0.
        propensity: with which probability this message was shown, in (0, 1].
        text_after: of an edit, the text as edited.
        dwell_ms: how long the message was looked at, milliseconds.
        consent: False where the user did not agree to training on it; such events are left out.

    Raises:
        MalformedError: something that the type needs is missing or out of range.
    """

    id: str
    ts: float
    user: str | None
    message_id: str | None
    type: str
    value: Any = None
    candidates: tuple[str, ...] = ()
    shown_position: int | None = None
    propensity: float | None = None
    text_after: str | None = None
    dwell_ms: float | None = None
    consent: bool | None = None

    def __post_init__(self) -> None:
        kind, value = self.type, self.value
        if kind not in TYPES:
            raise MalformedError(f"an event's type is one of {', '.join(TYPES)}, not {_shown(kind)}")
        if not self.id or not isinstance(self.id, str):
            raise MalformedError(f"an event's id is a text that is not empty, not {self.id!r}")
        for name in (self.user, self.message_id, *self.candidates):
            if name is not None and not isinstance(name, str):
                raise MalformedError(f"an event's user and message ids are texts, not a {type(name).__name__}")
        if kind == "thumbs":
            if value not in (1, -1):
                raise MalformedError(f"thumbs have the value 1 or -1, not {_shown(value)}")
        elif kind == "rating":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not LOWEST <= value <= HIGHEST:
                raise MalformedError(f"a rating has a value from 1 to 5, not {_shown(value)}")
        elif kind == "choice":
            if len(self.candidates) < 2:
                raise MalformedError(f"a choice has two candidates or more, not {len(self.candidates)}")
            if value not in (TIE, BOTH_BAD) and value not in self.candidates:
                raise MalformedError('a choice has as value one of its candidates, "tie" or "both_bad"')
        elif kind == "edit":
            if not isinstance(self.text_after, str):
                raise MalformedError("an edit has the edited text as text_after")
        elif kind == "dwell" and not isinstance(self.dwell_ms, (int, float)):
            raise MalformedError("dwell has the time in milliseconds as dwell_ms")
        if self.text_after is not None and not isinstance(self.text_after, str):
            raise MalformedError(f"text_after is a text, not a {type(self.text_after).__name__}")
        place = self.shown_position
        if place is not None and (isinstance(place, bool) or not isinstance(place, int) or place < 0):
            raise MalformedError(f"a shown_position is a whole number from 0, not {_shown(place)}")
        if self.message_id is None and kind != "choice":
            raise MalformedError(f"an event of type {kind} has a message_id")
        if self.propensity is not None and not (isinstance(self.propensity, (int, float)) and 0 < self.propensity <= 1):
            raise MalformedError(f"a propensity is in (0, 1], not {_shown(self.propensity)}")


def timestamp(value: Any) -> float:
    """Seconds since 1970 of a number (of seconds, or of milliseconds) or of a text in ISO 8601; 0 for None.

    Raises:
        MalformedError: it is neither.
    """
    if value is None:
        return 0.0
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise MalformedError("a time is a number of seconds or a text in ISO 8601") from None
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise MalformedError("a time is a number of seconds or a text in ISO 8601")
    # In seconds this would be the year 5138.
    return value / 1000 if value > 1e11 else float(value)


def message_of(record: dict[str, Any]) -> Message:
    """A line of the table of messages.

    Raises:
        MalformedError: see `Message`.
    """
    identity, parent = record.get("id"), record.get("parent_id")
    content = record.get("content")
    return Message(
        identity if identity.__class__ is str else _text_id(identity),
        parent if parent is None or parent.__class__ is str else _text_id(parent),
        record.get("role"),  # type: ignore[arg-type]
        # An assistant that calls tools often says nothing.
        "" if content is None and record.get("tool_calls") else content,  # type: ignore[arg-type]
        record.get("tool_calls"),
        record.get("tools"),
        record.get("model_id"),
        {key: record[key] for key in TEMPLATE_FIELDS if record.get(key)} or None,
    )


def event_of(record: dict[str, Any]) -> Event:
    """A line of the table of events.

    Raises:
        MalformedError: see `Event`.
    """
    get = record.get
    identity, user, about, ts, kind = get("id"), get("user"), get("message_id"), get("ts"), get("type")
    value = get("value")
    if kind == "choice" or (kind == "regenerate" and value is not None):
        value = value if value.__class__ is str else _text_id(value)
    candidates = get("candidates") or ()
    if not isinstance(candidates, (list, tuple)):
        raise MalformedError("candidates are a list of ids of messages")
    return Event(
        identity if identity.__class__ is str else _text_id(identity),
        ts if ts.__class__ is float and 0 <= ts < 1e11 else timestamp(ts),
        user if user is None or user.__class__ is str else _text_id(user),
        about if about is None or about.__class__ is str else _text_id(about),
        kind,  # type: ignore[arg-type]
        value,
        tuple([one if one.__class__ is str else _text_id(one) for one in candidates]) if candidates else (),
        get("shown_position"),
        get("propensity"),
        get("text_after"),
        get("dwell_ms"),
        get("consent"),
    )


def _text_id(value: Any) -> str:
    """Databases number their rows; a number and its text are the same id."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return value
    raise MalformedError(f"an id is a text or a whole number, not a {type(value).__name__}")


def _shown(value: Any) -> str:
    """A value as an error may quote it: short, and never a text that somebody wrote."""
    text = repr(value)
    return text if len(text) <= 20 and (not isinstance(value, str) or value.isidentifier()) else type(value).__name__
