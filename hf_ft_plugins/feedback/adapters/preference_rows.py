"""Rows of preference data sets, whose columns `column_names.py` tells, as messages and events.

A row that is sound and cannot teach is left out and counted with its reason; what has to be guessed is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..conversations import NO_TEXT, Turn, listed, text_of, tools_of, turns_of
from ..events import Event, MalformedError, Message, UnfitError
from ..judged_conversations import compared, labelled
from ..log_files import Reading, converted
from ..transcripts import asked_in, common_beginning, turns_in, without_end
from . import column_names as layouts
from .column_names import COLUMNS, Compared, Ranked, column, label_of, value

Record = dict[str, Any]
Turns = list[Turn]
READ = frozenset(name for names in COLUMNS.values() for name in names)
UNRANKED = "rows with answers without a rank, which were left out"
IGNORED_PROMPT = "rows whose prompt is not in their conversations; the conversations were taken"
IMPLICIT = "rows of texts without a prompt; what both begin with was taken for it (a column `prompt` says it exactly)"


def rows(records: Any, reading: Reading, reread: Any) -> Iterator[Message | Event]:
    """Pairs with the prompt apart or within, labelled answers, and answers that are ranked or compared."""

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        made = layouts.unfolded(record)
        if not made:
            raise UnfitError("tasks without an annotation that compares")
        for number, row in enumerate(made):
            yield from one(place if len(made) == 1 else f"{place}:{number}", row)

    def one(place: str, record: Record) -> Iterator[Message | Event]:
        if any(record.get(name) for name in COLUMNS["media"]):
            raise UnfitError(NO_TEXT)
        tools = tools_of(value(record, "tools"))
        layout = None if layouts.is_pair(record) or layouts.is_label(record) else layouts.ranking(record)
        if isinstance(layout, Compared):
            judged_columns: set[str] = {*layout.answers, *layout.verdict}
            found = _compared(place, record, layout, reading, tools)
        elif isinstance(layout, Ranked):
            judged_columns = {layout.answers, str(layout.order)}
            found = _ranked(place, record, layout, reading, tools)
        elif any(column(record, role) is not None for role in ("chosen", "rejected")):
            judged_columns = set()
            found = compared(place, list(_sides(record, reading)), 0, reading, tools=tools)
        elif column(record, "label") is None:
            raise MalformedError("no row of answers that are preferred, labelled or ranked")
        else:
            judged_columns = set()
            found = _labelled(place, record, reading, tools)
        reading.unread.update(record.keys() - READ - judged_columns)
        return found

    return converted(records, reading, convert)


def _sides(record: Record, reading: Reading) -> Iterator[Turns]:
    """The conversation with the chosen answer, then that with the rejected one, or those."""
    apart = column(record, "chosen") is not None
    prompt, last = _asked(record, with_answer=not apart)
    chosen = value(record, "chosen") if apart else last or value(record, "answer")
    rejected = value(record, "rejected")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer is None:
            raise UnfitError(f"rows without a {name} answer")
    several = isinstance(rejected, list) and bool(rejected) and all(isinstance(one, (str, list)) for one in rejected)
    answers = [listed(one) for one in (chosen, *(rejected if several else [rejected]))]
    if not prompt.asked and all(isinstance(one, str) and turns_in(one) is None for one in answers):
        begin = common_beginning(answers)
        if not begin.strip():
            raise UnfitError("texts without a prompt, and with no common beginning")
        reading.remarks[IMPLICIT] += 1
        prompt = Prompt([*prompt.turns, {"role": "user", "content": begin.strip()}])
        answers = [one[len(begin) :].strip() for one in answers]
    sides = _joined(prompt, answers, reading)
    if apart and last and not any(_alike(last[-1], side[-1]) for side in sides):
        raise UnfitError("conversations that end with an answer, beside a chosen and a rejected one")
    yield from sides


def _labelled(place: str, record: Record, reading: Reading, tools: Any) -> Iterator[Message | Event]:
    given = value(record, "label")
    label = label_of(given)
    if label is None:
        raise UnfitError("rows without a label" if given is None else "labels that are neither good nor bad")
    apart = column(record, "answer") is not None
    prompt, last = _asked(record, with_answer=not apart)
    answer = value(record, "answer") if apart else last
    if not answer and answer != "":
        raise UnfitError("rows without an answer")
    (turns,) = _joined(prompt, [answer], reading)
    # Of a conversation the last turn is judged, of an answer apart all of it.
    return labelled(place, turns, label, prompt=len(prompt.turns) if apart else None, tools=tools)


def _compared(place: str, record: Record, layout: Compared, reading: Reading, tools: Any) -> Iterator[Message | Event]:
    if layout.question is not None:
        record = {**record, "prompt": record[layout.question], "history": None}
    questions, *answers = (_texts(given) for given in (value(record, "question"), *(record[n] for n in layout.answers)))
    if questions and all(answer and len(answer) == len(questions) for answer in answers):
        # Arena's tables: all of a conversation's questions in one column, and all answers to them.
        prompt, _ = _asked({**record, str(column(record, "question")): questions[0]}, with_answer=False)
        system = [one for one in prompt.turns if one["role"] == "system"]
        sides = [system + _exchanges(list(zip(questions, answer, strict=True))) for answer in answers if answer]
        if any(not answer[-1] for answer in answers if answer):
            raise UnfitError("rows without an answer")
    else:
        prompt, _ = _asked(record, with_answer=False)
        sides = _joined(prompt, [record[name] for name in layout.answers], reading)
    return compared(place, sides, layout.winner(record), reading, tools=tools)


def _texts(given: Any) -> list[str | None] | None:
    """A list of texts, or the JSON of one; None of anything else."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    if not isinstance(given, list) or not all(one is None or isinstance(one, str) for one in given):
        return None
    return given


def _ranked(place: str, record: Record, layout: Ranked, reading: Reading, tools: Any) -> Iterator[Message | Event]:
    prompt, _ = _asked(record, with_answer=False)
    ranked = sorted(layout.ranked(record), key=lambda one: -one[0])
    if len(ranked) < len(record[layout.answers]):
        reading.remarks[UNRANKED] += 1
    if len(ranked) < 2:
        raise UnfitError("fewer than two answers with a rank")
    whole = _joined(prompt, [answer for _, answer in ranked], reading)
    sides = [(score, side) for (score, _), side in zip(ranked, whole, strict=True)]
    for number, (score, side) in enumerate(sides):
        worse = [other for below, other in sides[number + 1 :] if below < score]
        if worse:
            yield from compared(f"{place}:{number}", [side, *worse], 0, reading, tools=tools)


@dataclass(frozen=True)
class Prompt:
    """The turns before an answer.

    Attributes:
        listed: whether the prompt was a list of turns, not a text.
    """

    turns: Turns
    listed: bool = False

    @property
    def asked(self) -> Turns:
        """The turns without the system's."""
        return [one for one in self.turns if one["role"] != "system"]

    def joined(self, side: Turns) -> Turns:
        """The whole conversation with an answer, which may repeat some of the prompt, or all of it.

        Raises:
            UnfitError: nothing is asked.
        """
        if side[0]["role"] in ("assistant", "tool"):
            if not any(one["content"].strip() for one in self.asked):
                raise UnfitError("answers without a question")
            return self.turns + side
        for shared in range(min(len(self.turns), len(side)), 0, -1):
            if all(map(_alike, self.turns[-shared:], side)):
                return self.turns + side[shared:]
        if self.is_not_in(side) and self.listed and self.asked[-1]["role"] == "assistant":
            return self.turns + side
        # A system prompt of the conversation's own holds against the row's.
        system = [one for one in self.turns if one["role"] == "system"]
        return side if side[0]["role"] == "system" else system + side

    def is_not_in(self, side: Turns) -> bool:
        """Whether a conversation holds nothing of what is asked, and is no answer to it."""
        asked = self.asked
        if not asked or side[0]["role"] in ("assistant", "tool"):
            return False
        return not any(_alike(one, asked[0]) or _alike(one, asked[-1]) for one in side)


def _joined(prompt: Prompt, answers: Sequence[Any], reading: Reading) -> list[Turns]:
    given = [_answer(one, prompt) for one in answers]
    sides = [prompt.joined(one) for one in given]
    if any(
        prompt.is_not_in(one) and len(side) < len(prompt.turns) + len(one)
        for one, side in zip(given, sides, strict=True)
    ):
        reading.remarks[IGNORED_PROMPT] += 1
    return sides


def _asked(record: Record, *, with_answer: bool) -> tuple[Prompt, Turns]:
    """What a row asks, and the answer with which its column of turns ends.

    Args:
        with_answer: whether the answer, which no other column holds, is looked for there.
    """
    question, before, answer = listed(value(record, "question")), listed(value(record, "turns")), []
    if isinstance(question, dict) and isinstance(question.get("full_text"), str):
        # WebGPT's.
        question = question["full_text"]
    as_turns = not isinstance(question, str)
    if before and (with_answer or not question):
        turns = turns_of(before, "user")
        if turns[-1]["role"] == "assistant":
            turns, answer = turns[:-1], turns[-1:]
        as_turns = True
    elif isinstance(question, (list, dict)) and question:
        turns = turns_of(question, "user")
    else:
        # A context that is a text is what the question is about.
        turns = _question(question, value(record, "input") or (before if isinstance(before, str) else None))
    turns = [*_exchanges(value(record, "history")), *turns]
    system = text_of(value(record, "system"))
    if system.strip() and not (turns and turns[0]["role"] == "system"):
        turns = [{"role": "system", "content": system}, *turns]
    return Prompt(turns, as_turns), answer


def _question(question: Any, about: Any) -> Turns:
    texts = [text_of(one) for one in (question, about) if one]
    if len(texts) == 2 and texts[1] in texts[0]:
        texts.pop()
    text = "\n".join(texts)
    if not text.strip():
        return []
    return asked_in(text) or [{"role": "user", "content": text}]


def _answer(given: Any, prompt: Prompt) -> Turns:
    given = listed(given)
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        given = given[0]
    if not isinstance(given, str):
        return turns_of(given, "assistant")
    found = turns_in(given)
    # Beside a question, a text that only begins like a conversation is an answer that does.
    if found and (found[-1]["role"] == "assistant" or not prompt.asked):
        return found
    return [{"role": "assistant", "content": without_end(given)}]


def _exchanges(history: Any) -> Turns:
    """The turns of `[[question, answer], ...]`, of a list of turns, or of the JSON of either."""
    found = listed(history)
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = json.loads(found)
        except ValueError:
            raise UnfitError("conversations that are no JSON") from None
    if not found:
        return []
    if not isinstance(found, list):
        raise MalformedError(f"a history is a list, not a {type(found).__name__}")
    turns: Turns = []
    for one in found:
        if isinstance(one, (list, tuple)):
            if len(one) != 2:
                raise MalformedError(f"a history has a question and an answer in each item, not {len(one)}")
            roles = ("user", "assistant")
            turns += [{"role": role, "content": text_of(text)} for role, text in zip(roles, one, strict=True) if text]
        else:
            turns += turns_of([one], "user")
    return turns


def _alike(one: Turn, other: Turn) -> bool:
    same = one["role"] == other["role"] and one.get("tool_calls") == other.get("tool_calls")
    return same and one["content"].strip() == other["content"].strip()
