"""Conversations as exports write them, made into `Message`s whose ids come from what they say and what went before.

So the same beginning of two records is one prompt, and their answers are candidates of one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from .events import ROLES, MalformedError, Message, UnfitError

ROLE_NAMES = {
    **{role: role for role in ROLES},
    **{"human": "user", "prompter": "user", "gpt": "assistant", "ai": "assistant", "bot": "assistant"},
    **{"chatgpt": "assistant", "model": "assistant", "developer": "system", "function": "tool", "observation": "tool"},
}


def role_of(name: Any) -> str:
    """
    Raises:
        MalformedError: the role has none of the names that exports use.
    """
    role = ROLE_NAMES.get(str(name).lower())
    if role is None:
        raise MalformedError(f"a turn's role is one of {', '.join(ROLE_NAMES)}")
    return role


def text_of(content: Any) -> str:
    """A turn's text; of a list of parts, the parts' texts.

    Raises:
        UnfitError: a part is no text (a picture, a sound), without which the turn would say something else.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        if all(isinstance(part, str) or (isinstance(part, dict) and "text" in part) for part in content):
            return "\n".join(part if isinstance(part, str) else str(part["text"]) for part in content)
        raise UnfitError("conversations with parts that are no text")
    if content is None:
        return ""
    raise MalformedError(f"a turn's content is a text, not a {type(content).__name__}")


def turn(record: dict[str, Any]) -> dict[str, Any]:
    """A turn as `{role, content[, tool_calls]}`, whether it says role/content, from/value or type/content."""
    role = role_of(record.get("role") or record.get("from") or record.get("type"))
    content = record["content"] if "content" in record else record.get("value", record.get("text"))
    calls = record.get("tool_calls")
    if content is None and not calls:
        raise MalformedError("a turn has no content")
    return {"role": role, "content": text_of(content), **({"tool_calls": calls} if calls else {})}


def turns_of(value: Any, role: str) -> list[dict[str, Any]]:
    """A conversation of one text (by `role`), one turn or a list of turns."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [turn(value)]
    if isinstance(value, list) and value:
        return [turn(one) for one in value]
    raise MalformedError(f"a conversation is a text or a list of turns that is not empty, not a {type(value).__name__}")


def chained(
    turns: Iterable[dict[str, Any]], parent: str | None = None, tools: Any = None, model: str | None = None
) -> list[Message]:
    """Messages below `parent`, each the child of the one before it; ids are digests of all up to there."""
    made = []
    for one in turns:
        said = json.dumps([parent, one["role"], one["content"], one.get("tool_calls")], ensure_ascii=False)
        identity = blake2b(said.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        made.append(
            Message(identity, parent, one["role"], one["content"], one.get("tool_calls"), tools or None, model or None)
        )
        parent = identity
    return made
