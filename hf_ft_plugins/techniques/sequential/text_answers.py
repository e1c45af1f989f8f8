"""The answers in rows of texts that are not tokenized yet, in the columns that TRL reads: `prompt` and `completion`,
both texts or both messages, or `messages`, of which the last is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

# Beside `prompt` and `completion`: how good a completion is, which another one would belie.
JUDGED = ("label", "labels", "chosen", "rejected", "rewards")


def text_column(names: Collection[str]) -> str | None:
    """The column of the answers; None where there are none, or they are judged."""
    if {"prompt", "completion"} <= set(names) and not set(JUDGED) & set(names):
        return "completion"
    return "messages" if "messages" in names else None


def text_prompt(row: dict[str, Any], tokenizer: Any) -> list[int] | None:
    """Ids of the row's prompt, as they stand before the answer; None where there is none."""
    if row.get("messages") is not None:
        *before, last = row["messages"] or [None]
        return _rendered(row, before, tokenizer) if before and _is_answer(last) else None
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        ids: list[int] = list(tokenizer(prompt)["input_ids"])
        # Some tokenizers end every text.
        return (ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids) or None
    if not isinstance(prompt, list) or not isinstance(completion, list) or len(completion) != 1:
        return None
    return _rendered(row, prompt, tokenizer) if prompt and _is_answer(completion[0]) else None


def _is_answer(message: Any) -> bool:
    said = isinstance(message, dict) and isinstance(message.get("content"), str)
    return said and message.get("role") == "assistant" and not message.get("tool_calls")


def _rendered(row: dict[str, Any], messages: list[Any], tokenizer: Any) -> list[int]:
    tools = row.get("tools")
    rendered = tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **(row.get("chat_template_kwargs") or {}),
    )
    return list(rendered["input_ids"])


def given_text(row: dict[str, Any]) -> str:
    """The answer that a row has."""
    if row.get("messages") is not None:
        return str(row["messages"][-1]["content"])
    completion = row["completion"]
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def with_text_answer(row: dict[str, Any], text: str) -> Any:
    """The value of the row's column of answers with another text."""
    if row.get("messages") is not None:
        return [*row["messages"][:-1], row["messages"][-1] | {"content": text}]
    return text if isinstance(row["completion"], str) else [row["completion"][0] | {"content": text}]


def text_of(ids: list[int], prompt: list[int], tokenizer: Any) -> str:
    """The text of an answer's ids, with the space that it begins with, which some tokenizers leave out alone."""
    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, [*prompt, *ids]))
    return str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special_tokens=True))
