"""Data sets of preferences with a form of their own as logs: OpenAI's, Arena's, OpenAssistant's.

A preferred answer becomes a choice between two candidates, a label becomes thumbs. Who chose is unknown in most of
them; the user is None then, and a row belongs to its conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..conversations import role_of, tools_of, turns_of
from ..events import Event, MalformedError, Message, timestamp
from ..judged_conversations import compared
from ..log_files import Reading, converted
from .column_names import NEITHER, spelled

Record = dict[str, Any]
# Each reaction becomes an event; OpenAssistant had 13,500 volunteers.
MOST_VOTERS = 100_000
# Arena writes them so.
WINNERS: dict[Any, int | str] = {"model_a": 0, "model_b": 1, "a": 0, "b": 1, **NEITHER}


def is_openai(record: Record) -> bool:
    return {"input", "preferred_output", "non_preferred_output"} <= record.keys()


def openai(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """OpenAI's preference fine-tuning files."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        given = record["input"]
        given = given if isinstance(given, dict) and "messages" in given else {"messages": given}
        before = turns_of(given["messages"], "user")
        sides = [before + turns_of(record[side], "assistant") for side in ("preferred_output", "non_preferred_output")]
        return compared(place, sides, 0, reading, tools=tools_of(given.get("tools")))

    return converted(records, reading, convert)


def is_arena(record: Record) -> bool:
    return {"conversation_a", "conversation_b", "winner"} <= record.keys()


def arena(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """Chatbot Arena's votes; a vote on conversations that differ earlier says nothing about answers to one prompt."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        winner = WINNERS.get(spelled(str(record["winner"])))
        if winner is None:
            raise MalformedError(f"winner is one of {', '.join(map(str, WINNERS))}")
        sides = [turns_of(record[f"conversation_{side}"], "user") for side in "ab"]
        judge = record.get("judge") or record.get("evaluator") or record.get("user_id")
        return compared(
            str(record.get("question_id") or record.get("id") or place),
            sides,
            winner,
            reading,
            user=None if judge is None else str(judge),
            ts=timestamp(record.get("tstamp") or record.get("timestamp")),
            models=(record.get("model_a"), record.get("model_b")),
            shown=True,
        )

    return converted(records, reading, convert)


def is_oasst(record: Record) -> bool:
    prompt = record.get("prompt")
    return (isinstance(prompt, dict) and "replies" in prompt) or {"message_id", "text", "role"} <= record.keys()


def oasst(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """OpenAssistant's trees, nested or as flat messages: ranks of siblings become choices, +1 and -1 become thumbs."""
    # Siblings of flat messages are anywhere in the file.
    ranks: dict[str, list[tuple[int, str]]] = {}

    def one(record: Record, parent: str | None) -> Iterator[Message | Event]:
        if record.get("deleted"):
            reading.left_out["messages that were deleted, and what follows them"] += 1
            return
        identity, ts = record["message_id"], timestamp(record.get("created_date"))
        yield Message(
            identity, parent, role_of(record["role"]), record["text"], model_id=record.get("model_name") or None
        )
        if role_of(record["role"]) == "assistant":
            for name, value in (("+1", 1), ("-1", -1)):
                for voter in range(_emojis(record).get(name, 0)):
                    yield Event(f"{identity}:{name}:{voter}", ts, None, identity, "thumbs", value)
            if parent is not None and record.get("rank") is not None:
                ranks.setdefault(parent, []).append((int(record["rank"]), identity))
        # Not by recursion: a long conversation is a deep tree.
        waiting = [(reply, identity) for reply in record.get("replies") or ()]
        for reply, above in waiting:
            yield from one({**reply, "replies": None}, above)
            if not reply.get("deleted"):
                waiting += [(below, reply["message_id"]) for below in reply.get("replies") or ()]

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        if isinstance(record.get("prompt"), dict):
            yield from one(record["prompt"], None)
        else:
            yield from one(record, record.get("parent_id"))

    yield from converted(records, reading, convert)
    for parent, ranked in ranks.items():
        ranked.sort()
        for place, (rank, identity) in enumerate(ranked):
            below = tuple(other for worse, other in ranked[place + 1 :] if worse > rank)
            if below:
                yield Event(
                    f"{parent}:rank:{place}", 0.0, None, identity, "choice", identity, candidates=(identity, *below)
                )


def _emojis(record: Record) -> dict[str, int]:
    emojis = record.get("emojis") or {}
    if "name" in emojis:
        # As in the data set on the Hub: two lists.
        emojis = dict(zip(emojis["name"], emojis["count"], strict=True))
    counts = {name: int(count) for name, count in emojis.items()}
    if max(counts.values(), default=0) > MOST_VOTERS:
        raise MalformedError(f"more reactions to one message than {MOST_VOTERS:,} voters can give")
    return counts
