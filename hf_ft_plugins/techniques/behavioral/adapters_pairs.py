"""Data sets of preferences as logs: OpenAI's, Arena's, OpenAssistant's, Anthropic's, LLaMA-Factory's and TRL's rows.

A preferred answer becomes a choice between two candidates, a label becomes thumbs. Who chose is unknown in most of
them; the user is None then, and a row belongs to its conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .events import BOTH_BAD, TIE, Event, MalformedError, Message, timestamp
from .records import Reading, converted
from .turns import chained, role_of, turn, turns_of

Record = dict[str, Any]
Turns = list[dict[str, Any]]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# Arena writes them so.
WINNERS: dict[str, int | str] = {
    "model_a": 0,
    "model_b": 1,
    "a": 0,
    "b": 1,
    "tie": TIE,
    "tie (bothbad)": BOTH_BAD,
    "bothbad": BOTH_BAD,
}
APART_EARLIER = "conversations that differ before their last answer"


def is_openai(record: Record) -> bool:
    return {"input", "preferred_output", "non_preferred_output"} <= record.keys()


def openai(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """OpenAI's preference fine-tuning files."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        given = record["input"]
        before = [turn(one) for one in given["messages"]]
        sides = [before + turns_of(record[side], "assistant") for side in ("preferred_output", "non_preferred_output")]
        return _compared(place, sides, 0, reading, tools=given.get("tools"))

    return converted(records, reading, convert)


def is_arena(record: Record) -> bool:
    return {"conversation_a", "conversation_b", "winner"} <= record.keys()


def arena(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """Chatbot Arena's votes; a vote on conversations that differ earlier says nothing about answers to one prompt."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        winner = WINNERS.get(str(record["winner"]).lower())
        if winner is None:
            raise MalformedError(f"winner is one of {', '.join(WINNERS)}")
        sides = [turns_of(record[f"conversation_{side}"], "user") for side in "ab"]
        judge = record.get("judge") or record.get("evaluator") or record.get("user_id")
        return _compared(
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


def is_hh(record: Record) -> bool:
    sides = record.get("chosen"), record.get("rejected")
    return all(isinstance(side, str) and side.startswith(HUMAN) for side in sides)


def hh(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """Anthropic's helpful and harmless transcripts, each whole and as one text."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        return _compared(place, [transcript(record[side]) for side in ("chosen", "rejected")], 0, reading)

    return converted(records, reading, convert)


def transcript(text: str) -> Turns:
    """The turns of `"\\n\\nHuman: ...\\n\\nAssistant: ..."`.

    Raises:
        MalformedError: it does not begin with a turn of the human's, or does not end with one of the assistant's.
    """
    turns: Turns = []
    before, *exchanges = text.split(HUMAN)
    for exchange in exchanges:
        question, *answers = exchange.split(ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    if before.strip() or not turns or turns[-1]["role"] != "assistant":
        raise MalformedError("a transcript begins with a human's turn and ends with an assistant's")
    return turns


def is_kto(record: Record) -> bool:
    said = record.get("conversations", record.get("messages"))
    return isinstance(said, list) and ("kto_tag" in record or isinstance(record.get("label"), bool))


def kto(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """ShareGPT conversations whose last answer has LLaMA-Factory's `kto_tag`."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        turns = turns_of(record.get("conversations", record.get("messages")), "user")
        if record.get("system"):
            turns.insert(0, {"role": "system", "content": record["system"]})
        tag = record["kto_tag"] if "kto_tag" in record else record["label"]
        return _labelled(place, turns, tag)

    return converted(records, reading, convert)


def is_trl(record: Record) -> bool:
    keys = record.keys()
    return {"chosen", "rejected"} <= keys or {"prompt", "completion", "label"} <= keys


def trl(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """TRL's rows: preferences with the prompt apart or within, and labelled completions; texts or conversations."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        given = record.get("prompt")
        before = turns_of(given, "user") if given else []
        tools = record.get("tools")
        if "completion" in record:
            return _labelled(place, before + turns_of(record["completion"], "assistant"), record["label"], tools)
        sides = [before + turns_of(record[side], "assistant") for side in ("chosen", "rejected")]
        return _compared(place, sides, 0, reading, tools=tools)

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
    return {name: int(count) for name, count in emojis.items()}


def _compared(
    identity: str,
    sides: list[Turns],
    winner: int | str,
    reading: Reading,
    *,
    user: str | None = None,
    ts: float = 0.0,
    models: tuple[Any, Any] = (None, None),
    shown: bool = False,
    tools: Any = None,
) -> Iterator[Message | Event]:
    """Two conversations of which one is preferred; `shown`: the first side was shown first."""
    left, right = sides
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        raise MalformedError("a conversation that is compared ends with an answer of the assistant")
    if left[:-1] != right[:-1] and winner != BOTH_BAD:
        reading.left_out[APART_EARLIER] += 1
        return
    ids = []
    for side, model in zip(sides, models, strict=True):
        made = chained(side, tools=tools, model=model)
        yield from made
        ids.append(made[-1].id)
    chosen = ids[winner] if isinstance(winner, int) else winner
    if left[:-1] != right[:-1]:
        # Both bad needs no common prompt.
        for number, one in enumerate(ids):
            yield Event(f"{identity}:{number}", ts, user, one, "thumbs", -1)
        return
    place = winner if shown and isinstance(winner, int) else None
    yield Event(identity, ts, user, None, "choice", chosen, candidates=tuple(ids), shown_position=place)


def _labelled(identity: str, turns: Turns, label: Any, tools: Any = None) -> Iterator[Message | Event]:
    if label not in (True, False) or turns[-1]["role"] != "assistant":
        raise MalformedError("a labelled conversation ends with an answer of the assistant, and its label is a bool")
    made = chained(turns, tools=tools)
    yield from made
    yield Event(identity, 0.0, None, made[-1].id, "thumbs", 1 if label else -1)
