"""Conversations as exports write them, made into `Message`s whose ids come from what they say and what went before.

So the same beginning of two records is one prompt, and their answers are candidates of one prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from .events import ROLES, TEMPLATE_FIELDS, MalformedError, Message, UnfitError
from .python_literals import python_literal

Turn = dict[str, Any]
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **{"human": "user", "prompter": "user", "developer": "system"},
    **dict.fromkeys(("gpt", "ai", "bot", "chatgpt", "chatbot", "model", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(
        ("function", "function_response", "tool_response", "tool_result", "observation", "observations", "ipython"),
        "tool",
    ),
}
# GPT4, gpt-3.5-turbo.
GPT = re.compile(r"(?:chat)?gpt[_ .]?\d")
# LangChain's classes: HumanMessage, AIMessageChunk.
CLASS = re.compile(r"message(?:chunk)?$")
# The beginning of turns that were written as a text, as JSON or as Python shows them.
WRITTEN = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
# Turns whose text is the JSON of what the assistant called.
CALLS = ("function_call", "tool_call")
# Keys of what a turn says.
SAID = {"content", "value", "tool_calls"}
# What turns hold that is no text.
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "sounds")
NO_TEXT = "conversations with parts that are no text"


def role_of(name: Any) -> str:
    """
    Raises:
        UnfitError: the role has none of the names that exports use.
    """
    role = known_role(name)
    if name is None:
        raise UnfitError("turns without a role (or from)")
    if role is None:
        shown = f" ({name})" if isinstance(name, str) and name.isidentifier() and len(name) <= 20 else ""
        raise UnfitError(f"turns of an unknown role{shown}")
    return role


def known_role(name: Any) -> str | None:
    """The role of a name that exports use; None of any other."""
    spelled = _spelled(name)
    return (
        ROLE_NAMES.get(spelled)
        or ROLE_NAMES.get(CLASS.sub("", spelled))
        or ("assistant" if GPT.match(spelled) else None)
    )


def _spelled(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_")


def listed(given: Any) -> Any:
    """The turns of a text that is their JSON, or that Python wrote, as tables without lists have them; anything else
    as it is.

    Raises:
        UnfitError: it begins and ends as turns do and cannot be read, as what NumPy writes.
    """
    if not isinstance(given, str) or not WRITTEN.match(given):
        return given
    found: Any = None
    for read in (json.loads, python_literal):
        try:
            found = read(given)
        except (ValueError, RecursionError):
            continue
        break
    if found is None:
        if given.rstrip().endswith("]"):
            raise UnfitError("conversations that are no JSON")
        return given
    if isinstance(found, dict):
        # An answer may be an object, too, of which one key is called so.
        known = known_role(found.get("role") or found.get("from"))
        return found if known and SAID & found.keys() else given
    turns = all(isinstance(one, dict) and {"role", "from"} & one.keys() and SAID & one.keys() for one in found)
    return found if turns else given


def text_of(content: Any) -> str:
    """A turn's text; of a list of parts, the parts' texts.

    Raises:
        UnfitError: a part is no text (a picture, a sound), without which the turn would say something else.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        # What Arrow has filled with None is not there.
        texts = [part if isinstance(part, str) else part.get("text") for part in content if part is not None]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
        raise UnfitError(NO_TEXT)
    if content is None:
        return ""
    raise MalformedError(f"a turn's content is a text, not a {type(content).__name__}")


def turn(record: dict[str, Any]) -> Turn:
    """A turn as `{role, content[, tool_calls, ...]}`, whether it says role/content, from/value or type/content.

    Raises:
        MalformedError: it is no object.
        UnfitError: its role is unknown, it has no content or holds no text, or what it calls is no JSON.
    """
    if not isinstance(record, dict):
        raise MalformedError(f"a turn is an object with a role and a content, not a {type(record).__name__}")
    name = next((record[key] for key in ("role", "from", "type", "speaker", "sender") if record.get(key)), None)
    role = role_of(name)
    content = record["content"] if "content" in record else record.get("value", record.get("text"))
    if any(record.get(kind) for kind in MEDIA):
        raise UnfitError(NO_TEXT)
    if _spelled(name) in CALLS:
        return {"role": role, "content": "", "tool_calls": calls_of(content)}
    calls = record.get("tool_calls") or record.get("function_call")
    if content is None:
        # OpenAI's models refuse in a key of their own.
        content = record.get("refusal")
    if content is None and not calls:
        raise UnfitError("turns without content")
    fields = {key: record[key] for key in TEMPLATE_FIELDS if record.get(key) and isinstance(record[key], str)}
    if record.get("reasoning") and isinstance(record["reasoning"], str):
        # So servers call it since vLLM 0.12; chat templates do not.
        fields.setdefault("reasoning_content", record["reasoning"])
    return {"role": role, "content": text_of(content), **({"tool_calls": calls_of(calls)} if calls else {}), **fields}


def calls_of(value: Any) -> list[Any]:
    """Calls of tools as chat templates take them, out of JSON text, of one call or of several.

    A call is `{type, function: {name, arguments}}`; arguments that are the JSON of an object become the object.

    Raises:
        UnfitError: it is no JSON, or no call.
    """
    found = _parsed(value, "calls of tools that are no JSON")
    made = []
    for call in found if isinstance(found, list) else [found]:
        call = _parsed(call, "calls of tools that are no JSON")
        if not isinstance(call, dict) or not ("name" in call or isinstance(call.get("function"), dict)):
            raise UnfitError("calls of tools that name no function")
        if "function" not in call:
            # LangChain says args.
            arguments = call.get("arguments", call.get("args", {}))
            about = {"id": call["id"]} if call.get("id") else {}
            call = {**about, "type": "function", "function": {"name": call["name"], "arguments": arguments}}
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _object(function["arguments"])
        made.append({**call, "function": function})
    return made


def tools_of(value: Any) -> list[Any] | None:
    """Tools as chat templates take them (`{type, function: {name, description, parameters}}`), out of a list or its
    JSON, of functions with or without the frame around them.

    Raises:
        UnfitError: they are no JSON.
    """
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    why = "tools that are no JSON"
    found = _parsed(value, why)
    tools = [_parsed(tool, why) for tool in (found if isinstance(found, list) else [found])]
    bare = [isinstance(tool, dict) and "name" in tool and not {"type", "function"} & tool.keys() for tool in tools]
    return [
        {"type": "function", "function": tool} if alone else tool for tool, alone in zip(tools, bare, strict=True)
    ] or None


def _parsed(value: Any, why: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise UnfitError(why) from None


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def turns_of(value: Any, role: str) -> list[Turn]:
    """A conversation of one text (by `role`), one turn or a list of turns.

    Raises:
        MalformedError: it is none of them.
        UnfitError: it is empty, or see `turn`.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if value is None or value == []:
        raise UnfitError("an empty conversation")
    if isinstance(value, list):
        found: list[Turn] = []
        for one in value:
            for new in _exchange(one) or [turn(one)]:
                append(found, new)
        return found
    raise MalformedError(f"a conversation is a text or a list of turns that is not empty, not a {type(value).__name__}")


def append(turns: list[Turn], new: Turn) -> None:
    """Calls that follow a text of the assistant's, or other calls, are one turn with it."""
    last = turns[-1] if turns else {}
    if last.get("role") != "assistant" or new["role"] != "assistant":
        turns.append(new)
    elif "tool_calls" in new and not new["content"]:
        turns[-1] = {**last, "tool_calls": [*last.get("tool_calls", ()), *new["tool_calls"]]}
    else:
        turns.append(new)


def _exchange(record: Any) -> list[Turn]:
    """ShareGPT's other form, `{human, assistant}`: two turns."""
    if not isinstance(record, dict) or {"role", "from", "type"} & record.keys():
        return []
    named = [(ROLE_NAMES.get(_spelled(key)), text) for key, text in record.items()]
    return [{"role": role, "content": text} for role, text in named if role and isinstance(text, str)]


def chained(
    turns: Iterable[Turn], parent: str | None = None, tools: Any = None, model: str | None = None
) -> list[Message]:
    """Messages below `parent`, each the child of the one before it; ids are digests of all up to there.

    With other tools a conversation is another one.
    """
    made = []
    for one in turns:
        made.append(message(one, parent, tools=tools, model=model))
        parent = made[-1].id
    return made


def message(
    one: Turn, parent: str | None, continuation: list[Turn] | None = None, tools: Any = None, model: str | None = None
) -> Message:
    """The `Message` of a turn, and of those that belong to the same answer."""
    fields = {key: one[key] for key in TEMPLATE_FIELDS if key in one}
    everything = [
        parent,
        one["role"],
        one["content"],
        one.get("tool_calls"),
        *filter(None, (fields, continuation, tools)),
    ]
    digest = blake2b(json.dumps(everything, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=12)
    return Message(
        id=digest.hexdigest(),
        parent_id=parent,
        role=one["role"],
        content=one["content"],
        tool_calls=one.get("tool_calls"),
        tools=tools or None,
        model_id=model or None,
        template_fields=fields or None,
        continuation=continuation or None,
    )
