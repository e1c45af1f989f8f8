"""Exports of platforms as logs: LangSmith's feedback with runs, Langfuse's scores with traces.

Scores of LangSmith and Langfuse are on any scale, and a 1 is the best of some and the worst of others. So a first look
through the export finds the scale of each name (`scales_of`): 0/1 and -1/1 are thumbs, 0..1, 1..5, 1..10 and 0..100 are
ratings, moved to 1..5. What a model judged (source EVAL or model) is no behavior of people and is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..conversations import known_role, tools_of, turns_of
from ..events import Event, Message, UnfitError, timestamp
from ..judged_conversations import answered
from ..log_files import Reading, converted
from .column_names import label_of, number_of

Record = dict[str, Any]
# Where a run or a trace keeps its text, in the order in which they are tried.
INPUT_KEYS = ("messages", "input", "question", "query", "prompt", "text", "content")
OUTPUT_KEYS = (*("messages", "output", "answer", "completion", "response", "text", "content"), "generations", "choices")
BY_A_MODEL = "scores that a model gave, not a person"


def is_langsmith(record: Record) -> bool:
    return ({"run_id", "key"} <= record.keys()) or ({"inputs", "outputs", "id"} <= record.keys())


def langsmith(records: Any, reading: Reading, reread: Callable[[], Iterable[Record]]) -> Iterator[Message | Event]:
    """Runs and feedback, in one file or in several of a folder; a correction is an edit."""
    scales = scales_of((str(one["key"]), one.get("score")) for one in reread() if "run_id" in one and "key" in one)

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        if "run_id" not in record:
            yield from _exchange(f"run/{record['id']}", record.get("inputs"), record.get("outputs"))
            return
        source = record.get("feedback_source") or {}
        if source.get("type") == "model":
            reading.left_out[BY_A_MODEL] += 1
            return
        user = source.get("user_id") or (source.get("metadata") or {}).get("user_id")
        identity, ts = str(record.get("id") or place), timestamp(record.get("created_at"))
        user, about = None if user is None else str(user), f"run/{record['run_id']}"
        correction = record.get("correction")
        if correction:
            text = correction if isinstance(correction, str) else _text_in(correction, OUTPUT_KEYS)
            if text is None:
                reading.left_out["corrections that hold no text"] += 1
            else:
                yield Event(f"{identity}:correction", ts, user, about, "edit", text_after=text)
        name = str(record["key"])
        value = record.get("score")
        if value is None:
            value = record.get("value")
        if value is None and correction:
            return
        yield from _scored(identity, ts, user, about, value, scales.get(name), reading)

    return converted(records, reading, convert)


def is_langfuse(record: Record) -> bool:
    keys = _camel(record).keys()
    return {"traceId", "name", "value"} <= keys or ({"input", "output", "id"} <= keys and "run_id" not in keys)


def langfuse(records: Any, reading: Reading, reread: Callable[[], Iterable[Record]]) -> Iterator[Message | Event]:
    """Scores and traces (or observations), in one file or several; scores within traces too."""
    scales = scales_of(
        (str(score.get("name")), score.get("value")) for one in reread() for score in _scores(_camel(one))
    )

    def convert(place: str, record: Record) -> Iterator[Message | Event]:
        record = _camel(record)
        if "traceId" not in record or "input" in record:
            yield from _exchange(f"trace/{record['id']}", record.get("input"), record.get("output"))
        for number, score in enumerate(_scores(record)):
            if score.get("source") == "EVAL":
                reading.left_out[BY_A_MODEL] += 1
                continue
            user = score.get("userId") or record.get("userId") or score.get("authorUserId")
            about = score.get("observationId") or score.get("traceId") or record["id"]
            value = score.get("stringValue") if score.get("dataType") == "CATEGORICAL" else score.get("value")
            yield from _scored(
                identity=str(score.get("id") or f"{place}:{number}"),
                ts=timestamp(score.get("timestamp") or score.get("createdAt")),
                user=None if user is None else str(user),
                about=f"trace/{about}",
                value=value,
                scale=scales.get(str(score.get("name"))),
                reading=reading,
            )

    return converted(records, reading, convert)


def _camel(record: Record) -> Record:
    """A record of the export to a bucket, whose keys are the database's, with the keys of the interface."""
    if not {"trace_id", "user_id", "created_at"} & record.keys():
        return record
    return {re.sub("_([a-z])", lambda found: found[1].upper(), key): value for key, value in record.items()}


def _scores(record: Record) -> list[Record]:
    if "traceId" in record and "value" in record:
        return [record]
    # A list of ids, in some exports.
    return [score for score in record.get("scores") or () if isinstance(score, dict)]


def scales_of(scores: Iterable[tuple[str, Any]]) -> dict[str, tuple[float, float] | None]:
    """Of each name of scores the lowest and highest value of its scale; None where it is no scale that is known.

    (0, 0) stands for thumbs.
    """
    extent: dict[str, list[float]] = {}
    whole: dict[str, bool] = {}
    for name, given in scores:
        value = number_of(given)
        if value is not None:
            low_high = extent.setdefault(name, [value, value])
            low_high[:] = min(low_high[0], value), max(low_high[1], value)
            whole[name] = whole.get(name, True) and float(value).is_integer()
    scales: dict[str, tuple[float, float] | None] = {}
    for name, (low, high) in extent.items():
        if low >= -1 and high <= 1 and whole[name]:
            scales[name] = (0, 0)
        else:
            known = ((-1, 1), (0, 1), (1, 5), (0, 5), (1, 10), (0, 10), (0, 100))
            # The narrowest that holds them; from 0 only where a 0 was given, but for 0 to 1.
            fitting = [(a, b) for a, b in known if a <= low and high <= b and (a == 0 or low < 0 or high > 1)]
            scales[name] = min(fitting, key=lambda scale: scale[1] - scale[0], default=None)
    return scales


def _scored(
    identity: str,
    ts: float,
    user: str | None,
    about: str,
    value: Any,
    scale: tuple[float, float] | None,
    reading: Reading,
) -> Iterator[Event]:
    number = number_of(value)
    if isinstance(value, str) and number is None:
        good = label_of(value)
        if good is not None:
            yield Event(identity, ts, user, about, "thumbs", 1 if good else -1)
        else:
            reading.left_out["scores that are words of unknown meaning"] += 1
    elif number is None:
        reading.left_out["feedback without a score"] += 1
    elif scale is None:
        reading.left_out["scores on an unknown scale"] += 1
    elif scale == (0, 0):
        yield Event(identity, ts, user, about, "thumbs", 1 if number > 0 else -1)
    else:
        low, high = scale
        yield Event(identity, ts, user, about, "rating", 1 + 4 * (number - low) / (high - low))


def _exchange(identity: str, given: Any, returned: Any) -> Iterator[Message]:
    """The prompt's turns and, named `identity`, the answer."""
    prompt = _turns_in(given, INPUT_KEYS, "user")
    answer = _turns_in(returned, OUTPUT_KEYS, "assistant")
    if prompt is None or answer is None:
        # Its feedback will be counted as being about nothing.
        raise UnfitError("runs or traces whose input or output holds no text")
    # Some write the whole conversation as output.
    if len(answer) > 1 and answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]
    if answer[-1]["role"] != "assistant":
        raise UnfitError("runs or traces whose output is no answer of the assistant")
    asked = given if isinstance(given, dict) else {}
    system, tools = asked.get("system"), tools_of(asked.get("tools"))
    if isinstance(system, str) and system.strip() and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    *before, last = answered(prompt + answer, len(prompt + answer) - 1, tools=tools)
    yield from before
    yield replace(last, id=identity)


def _turns_in(value: Any, keys: tuple[str, ...], role: str) -> list[dict[str, Any]] | None:
    if isinstance(value, str) and value:
        written = _written(value)
        return [{"role": role, "content": value}] if written is None else _turns_in(written, keys, role)
    if isinstance(value, list) and value:
        # LangChain writes a batch of one conversation, and messages as {type, data} or {id, kwargs}.
        if isinstance(value[0], list):
            return _turns_in(value[0], keys, role)
        if all(isinstance(one, dict) for one in value):
            unwrapped = [_unwrapped(one, role) for one in value]
            return None if None in unwrapped else turns_of(unwrapped, role)
    if isinstance(value, dict):
        if known_role(value.get("role")) and "content" in value:
            return turns_of(value, role)
        for key in keys:
            if value.get(key):
                return _turns_in(value[key], keys, role)
    return None


def _written(text: str) -> Any:
    """A conversation, or what holds one, that was written as JSON; None of any other text, as of an answer in JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    first = found[0] if isinstance(found, list) and found else found
    if not isinstance(first, dict):
        return None
    is_turn = known_role(first.get("role") or first.get("type")) is not None and "content" in first
    holds = isinstance(found, dict) and any(isinstance(found.get(key), list) for key in ("messages", "choices"))
    return found if is_turn or holds else None


def _unwrapped(one: Record, role: str) -> Record | None:
    for key in ("message", "data", "kwargs"):
        if isinstance(one.get(key), dict) and "role" not in one:
            inner = one[key]
            if isinstance(inner.get("kwargs"), dict):
                return _unwrapped(inner, role)
            # LangChain's class is the last of its path.
            path = one.get("id")
            kinds = (
                inner.get("type"),
                one.get("type"),
                inner.get("role"),
                path[-1] if isinstance(path, list) else None,
            )
            kind = next((kind for kind in kinds if kind and known_role(kind)), None)
            return {"role": role, **inner, "type": None} if kind is None else {**inner, "role": kind}
    if one.get("role") or (one.get("type") and known_role(one["type"])):
        return one
    if isinstance(one.get("text"), str):
        return {"role": role, "content": one["text"]}
    return None


def _text_in(value: Any, keys: tuple[str, ...]) -> str | None:
    found = _turns_in(value, keys, "assistant")
    return found[-1]["content"] if found else None
