"""Conversations written as one text: by the names of who speaks, or in the markup of a chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .conversations import role_of

Turns = list[dict[str, Any]]
HUMAN = "\n\nHuman:"
# What is before a user's and before an assistant's words: Anthropic's, Guanaco's, Alpaca's without its preamble.
SPEAKERS = (
    (HUMAN, "\n\nAssistant:"),
    ("\nHuman:", "\nAssistant:"),
    ("### Human:", "### Assistant:"),
    ("### Instruction:", "### Response:"),
)
# Of ChatML, Llama 3, Gemma, Zephyr and Phi: a turn's role and words. The last may be open, for the answer to begin.
MARKUP = (
    re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL),
    re.compile(r"<start_of_turn>(\w+)\n(.*?)(?:<end_of_turn>\n?|\Z)", re.DOTALL),
    re.compile(
        r"<\|(system|user|assistant)\|>\n?(.*?)(?:(?:</s>|<\|end\|>)\n?|\Z|(?=<\|(?:system|user|assistant)\|>))",
        re.DOTALL,
    ),
)
# Of Llama 2 and Mistral: a question, with the system's words in the first, and the answer.
INSTRUCTION = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?:</s>\s*|\Z|(?=\[INST\]))", re.DOTALL)
SYSTEM_PROMPT = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
BEGINNING = re.compile(r"\s*(?:<\|begin_of_text\|>|<s>|<bos>)?\s*")
END = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|</s>)\s*\Z")


def turns_in(text: str) -> Turns | None:
    """The turns of a text that is a conversation; None of any other text.

    Raises:
        UnfitError: of a role that is unknown.
    """
    begun = [names for names in SPEAKERS if text.lstrip().startswith(names[0].lstrip())]
    # Where nobody answers, as its own first question.
    for human, assistant in [names for names in begun if names[1] in text] or begun:
        return _transcript(f"{human[: -len(human.lstrip())]}{text.lstrip()}", human, assistant)
    start = BEGINNING.match(text).end()  # type: ignore[union-attr]
    for markup in MARKUP:
        if markup.match(text, start):
            return [{"role": role_of(one[1]), "content": one[2]} for one in markup.finditer(text, start)]
    if INSTRUCTION.match(text, start):
        return _instructed(text[start:])
    return None


def _instructed(text: str) -> Turns:
    turns: Turns = []
    for one in INSTRUCTION.finditer(text):
        system = SYSTEM_PROMPT.match(one[1])
        if system:
            turns.append({"role": "system", "content": system[1].strip()})
        turns.append({"role": "user", "content": one[1][system.end() if system else 0 :].strip()})
        if one[2].strip():
            turns.append({"role": "assistant", "content": one[2].strip()})
    return turns


def _transcript(text: str, human: str, assistant: str) -> Turns:
    turns: Turns = []
    for exchange in text.split(human)[1:]:
        question, *answers = exchange.split(assistant)
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return turns


def asked_in(text: str) -> Turns | None:
    """The turns of a prompt, without the assistant's open one at the end, which an answer is to follow."""
    turns = turns_in(text)
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        return turns[:-1]
    return turns


def without_end(text: str) -> str:
    """An answer without the markup that ends a turn."""
    return END.sub("", text)


def common_beginning(texts: Sequence[str]) -> str:
    """What all texts begin with, up to the beginning of a word."""
    shortest = min(texts, key=len)
    differs = (at for at, letter in enumerate(shortest) if any(text[at] != letter for text in texts))
    length = next(differs, len(shortest))
    while length and any(length < len(text) and not text[length - 1].isspace() for text in texts):
        length -= 1
    return shortest[:length]
