"""Open WebUI's export of feedback: ratings with a snapshot of the chat that they are about; and of chats, with ratings.

The snapshot is what its page shows: thoughts, calls of tools and code that was run stand in an answer's text as HTML,
which the model never wrote. Calls become calls again, thoughts are left out. The chat's system prompt is in its
settings, pictures and documents are beside the text.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from ..conversations import NO_TEXT, Turn, append, calls_of, chained, role_of, text_of
from ..events import Event, Message, UnfitError, timestamp
from ..judged_conversations import answered
from ..log_files import Reading, converted
from .column_names import number_of

Record = dict[str, Any]
BLOCK = re.compile(
    r'<details(?=[^>]*\stype="(reasoning|tool_calls|code_interpreter)")([^>]*)>(.*?)(?:</details>|\Z)\n?', re.DOTALL
)
ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
CODE = re.compile(r"```(\w*)\n(.*?)\n?```", re.DOTALL)
# Kinds of `files`; all others are documents, or what a search found.
MEDIA = ("image", "audio", "video")
THOUGHTS = "feedback on answers with thoughts, which were left out"
DOCUMENTS = "feedback on answers to turns with documents, whose text is not in the export"


def is_open_webui(record: Record) -> bool:
    if "meta" not in record:
        return _is_chat(record)
    data, meta = (_read(record.get(name)) for name in ("data", "meta"))
    return isinstance(data, dict) and "rating" in data and isinstance(meta, dict) and "message_id" in meta


def _is_chat(record: Record) -> bool:
    chat = _read(record.get("chat"))
    return isinstance(chat, dict) and isinstance(chat.get("history"), dict)


def _read(column: Any) -> Any:
    """A column of the database, which a dump of its table has as JSON."""
    if not isinstance(column, str) or not column.startswith("{"):
        return column
    try:
        return json.loads(column)
    except ValueError:
        return column


def _ratings(record: Record) -> list[Record]:
    """Feedback as its export has it, out of a chat of the other export, whose messages hold their ratings."""
    if not _is_chat(record):
        return [{**record, **{name: _read(record.get(name)) for name in ("data", "meta", "snapshot")}}]
    record = {**record, "chat": _read(record["chat"])}
    chat_id = str(record.get("id") or "chat")
    by_id = record["chat"]["history"].get("messages") or {}
    found = []
    for about, message in by_id.items():
        given = message.get("annotation") or {}
        if given.get("rating") is None:
            continue
        others = [
            one for name, one in by_id.items() if name != about and one.get("parentId") == message.get("parentId")
        ]
        data = {"rating": given["rating"], "sibling_model_ids": [_model_of(one) for one in others]}
        found.append(
            {
                **{"id": f"{chat_id}/{about}", "user_id": record.get("user_id"), "data": data},
                **{"meta": {"message_id": about, "chat_id": chat_id}, "snapshot": {"chat": record}},
                "updated_at": record.get("updated_at") or record.get("created_at"),
            }
        )
    if not found:
        raise UnfitError("chats without a rating")
    return found


def open_webui(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """A rating is thumbs; where other models' answers to the same turn were shown, it is a choice too.

    A 1 chooses the answer before all its siblings, as Open WebUI's own leaderboard counts it; a -1 chooses the sibling
    where there is just one. In its arena the message's model is the arena, and who answered is `selectedModelId`.
    """

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        for one in _ratings(record):
            yield from rated(one)

    def rated(record: Record) -> Iterator[Message | Event]:
        data, about = record["data"], record["meta"]["message_id"]
        if number_of(data.get("rating")) not in (1, -1):
            raise UnfitError("feedback without a rating")
        snapshot = (record.get("snapshot") or {}).get("chat") or {}
        # The chat's row in the database, which holds the chat.
        chat = snapshot.get("chat") or snapshot
        by_id = (chat.get("history") or {}).get("messages") or {}
        if about not in by_id:
            raise UnfitError("feedback whose snapshot lacks the message")
        rating, event = int(float(data["rating"])), str(record["id"])
        ts = timestamp(record.get("updated_at") or record.get("created_at"))
        chat_id = str(record["meta"].get("chat_id") or snapshot.get("id") or record["id"])
        path, parent, remarks = _path(by_id, about, _system_of(chat), chat_id)
        answer = _turns(by_id[about], remarks)
        judged = _below(answer, parent, len(answer) - 1, f"{chat_id}/{about}", _model_of(by_id[about]))
        yield from path
        yield from judged
        yield Event(event, ts, record.get("user_id"), judged[-1].id, "thumbs", rating)
        siblings = _siblings(by_id, about, data.get("sibling_model_ids") or ())
        if siblings and (rating == 1 or len(siblings) == 1):
            whole = {one: _turns(by_id[one], remarks) for one in (about, *siblings)}
            ids = []
            for one, turns in whole.items():
                name = f"{chat_id}/{one}" if len(turns) == 1 else f"{chat_id}/{one}/whole"
                made = _below(turns, parent, 0, name, _model_of(by_id[one]))
                if not (one == about and len(turns) == 1):
                    yield from made
                ids.append(made[-1].id)
            chosen = ids[0 if rating == 1 else 1]
            yield Event(f"{event}:choice", ts, record.get("user_id"), None, "choice", chosen, candidates=tuple(ids))
        reading.remarks.update(dict.fromkeys(remarks, 1))

    return converted(records, reading, convert)


def _path(
    by_id: dict[str, Record], about: str, system: str, chat_id: str
) -> tuple[list[Message], str | None, set[str]]:
    """The messages before an answer, the id of the last of them, and what has to be guessed of them."""
    line, row = [], by_id[about].get("parentId")
    while row in by_id and row not in line:
        line.append(row)
        row = by_id[row].get("parentId")
    remarks: set[str] = set()
    turns = [_turns(by_id[one], remarks) for one in line[::-1]]
    # A parent that the export lacks is one that the log lacks.
    parent = None if row is None else f"{chat_id}/{row}"
    messages: list[Message] = []
    if system and parent is None and not (turns and turns[0][0]["role"] == "system"):
        digest = blake2b(system.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        messages.append(Message(f"{chat_id}/system/{digest}", None, "system", system))
        # Messages' ids are unique within their chat, and those below another system prompt are others.
        chat_id, parent = f"{chat_id}/{digest}", messages[0].id
    for one, found in zip(line[::-1], turns, strict=True):
        made = _below(found, parent, len(found) - 1, f"{chat_id}/{one}", _model_of(by_id[one]))
        messages += made
        parent = made[-1].id
    return messages, parent, remarks


def _below(turns: list[Turn], parent: str | None, prompt: int, identity: str, model: Any) -> list[Message]:
    """A message's turns, of which those past `prompt` are one message of the id that the export gives."""
    before = chained(turns[:prompt], parent, model=model)
    (last,) = answered(turns[prompt:], 0, model=model)
    return [*before, replace(last, id=identity, parent_id=before[-1].id if before else parent)]


def _siblings(by_id: dict[str, Record], about: str, models: Any) -> list[str]:
    return [
        identity
        for identity, message in by_id.items()
        if identity != about
        and message["role"] == "assistant"
        and message.get("parentId") == by_id[about].get("parentId")
        and _model_of(message) in models
    ]


def _model_of(message: Record) -> str | None:
    return message.get("selectedModelId") or message.get("model")


def _system_of(chat: Record) -> str:
    settings = chat.get("params")
    system = (settings.get("system") if isinstance(settings, dict) else None) or chat.get("system")
    return system.strip() if isinstance(system, str) else ""


def _turns(message: Record, remarks: set[str]) -> list[Turn]:
    """What a message says, as turns: one, or of an answer that called tools several.

    Raises:
        UnfitError: it holds a picture or a sound.
    """
    files = [one for one in message.get("files") or () if isinstance(one, dict)]
    kinds = [str(one.get("type")) + str(one.get("content_type")) for one in files]
    if any(kind.startswith(MEDIA) or kind.removeprefix("file").startswith(MEDIA) for kind in kinds):
        raise UnfitError(NO_TEXT)
    if files:
        remarks.add(DOCUMENTS)
    role, text = role_of(message["role"]), text_of(message.get("content"))
    if role != "assistant":
        return [{"role": role, "content": text}]
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        return [{"role": role, "content": text}]
    turns: list[Turn] = []
    for start, block in zip([0, *(one.end() for one in blocks)], [*blocks, None], strict=True):
        words = text[start : block.start() if block else None].strip()
        if turns and turns[-1]["role"] == role:
            # Only thoughts stood between.
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n\n{words}".strip()}
        elif words or block is None:
            turns.append({"role": role, "content": words})
        if block is None:
            continue
        if block[1] == "reasoning":
            remarks.add(THOUGHTS)
            continue
        attributes = {name: html.unescape(value) for name, value in ATTRIBUTE.findall(block[2])}
        call, result = _called(block[1], attributes, block[3])
        append(turns, {"role": role, "content": "", "tool_calls": calls_of(call)})
        turns.append(result)
    return turns


def _called(kind: str, attributes: dict[str, str], body: str) -> tuple[Record, Turn]:
    """A call of a tool, or of the interpreter, and its result."""
    if kind == "tool_calls":
        name, arguments = attributes.get("name", ""), _unquoted(attributes.get("arguments", "{}"))
        result = _unquoted(attributes.get("result", ""))
    else:
        code = CODE.search(html.unescape(body))
        arguments = {"language": code[1], "code": code[2]} if code else {}
        name, result = "code_interpreter", _unquoted(attributes.get("output", ""))
    identity = {"id": attributes["id"]} if attributes.get("id") else {}
    about = {"tool_call_id": attributes["id"]} if identity else {}
    call = {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return call, {"role": "tool", "content": text, "name": name, **about}


def _unquoted(text: str) -> Any:
    """The value of JSON that may have been written as JSON twice."""
    found: Any = text
    for _ in range(2):
        if not isinstance(found, str):
            break
        try:
            found = json.loads(found)
        except ValueError:
            break
    return found
