"""Logs made to break the reader: each is read, counted as broken, or refused by name; none ends in a traceback."""

import contextlib
import copy
import json

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback import preferences_from_log
from hf_ft_plugins.feedback.python_literals import python_literal
from tests.feedback.format_samples import LABELLED, PAIRED
from tests.feedback.written_logs import conversation, found, lines

# Deeper than the interpreter's stack.
DEEP = "[" * 100_000 + "]" * 100_000
ODD = {
    "a list": [],
    "an object": {"role": {"role": []}},
    "a huge number": 10**400,
    "infinity": float("inf"),
    "a number": -3,
    "true": True,
    "half a surrogate pair": "\ud83d",
    "a separator of ours": "\x1f\x00\x1f",
    "turns that Python did not print": "[{'role': " + "-" * 100_000 + "1}]",
    "turns nested too deeply": "[{'role': 'user', 'content': " + "[" * 100_000,
}
ACTS = [
    {"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"], "shown_position": 0, "propensity": 0.5, "ts": 1},
    {"type": "edit", "message_id": "c.0", "text_after": "Blue, I think.", "user": "u"},
    {"type": "dwell", "message_id": "c.1", "dwell_ms": 3, "consent": True},
    {"type": "rating", "message_id": "c.1", "value": 4},
    {"type": "regenerate", "message_id": "c.0", "value": "c.1"},
]
SIGNALS = ("choice", "edit", "dwell", "rating", "regenerate", "thumbs")
MORE = {"tool_calls": [], "tools": [], "model_id": "m", "name": "n", "tool_call_id": "t", "thinking": "hm"}


def with_one_changed(record, odd):
    """The record with one of its values, at any depth, replaced by `odd`; one after the other."""
    places = list(record) if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ()
    for place in places:
        changed = copy.copy(record)
        changed[place] = odd
        yield changed
        for inner in with_one_changed(record[place], odd):
            changed = copy.copy(record)
            changed[place] = inner
            yield changed


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_in_our_tables(odd, log):
    messages = [{**one, **MORE} for one in conversation("Blue.", "Red.")]
    acts = [{"id": f"a{number}", **act} for number, act in enumerate(ACTS)]
    odd_messages = [one for message in messages for one in with_one_changed(message, ODD[odd])]
    odd_acts = [one for act in acts for one in with_one_changed(act, ODD[odd])]
    # So many sound ones that the broken are fewer than a hundredth.
    sound = [line for number in range(1500) for line in conversation("Yes.", "No.", name=f"s{number}")]
    sound_acts = [{"type": "copy", "message_id": f"s{number}.0", "user": f"u{number}"} for number in range(6000)]
    made = preferences_from_log(log([*sound, *messages, *odd_messages], [*sound_acts, *odd_acts]), signals=SIGNALS)
    assert made.report["lines"]["read"] == len([*sound, *messages, *odd_messages, *sound_acts, *odd_acts])
    for rows in (made.pairs(), made.labels()):
        for row in rows:
            assert {turn["role"] for turn in row["prompt"]} <= {"system", "user", "assistant", "tool"}


@pytest.mark.parametrize("name", [*PAIRED, *(name for name in LABELLED if name not in PAIRED)])
def test_odd_values_in_each_format(name, tmp_path):
    """Read with the format named: any error is one of ours."""
    records = PAIRED.get(name) or LABELLED[name]
    for number, odd in enumerate(ODD.values()):
        changed = [one for record in records for one in with_one_changed(record, odd)]
        path = lines(tmp_path / f"{number}.jsonl", [*changed, *records * 2])
        report = None
        with contextlib.suppress(PluginError):
            report = found(path, format=name)[2]
        assert report is None or report["lines"]["read"] >= len(records)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_nesting_beyond_the_stack(ending, tmp_path):
    path = tmp_path / f"log.{ending}"
    sound = [json.dumps({**PAIRED["trl"][0], "prompt": f"q{number}"}) for number in range(200)]
    deep = f'{{"prompt": {DEEP}, "chosen": "a", "rejected": "b"}}'
    if ending == "json":
        path.write_text(f"[{', '.join([*sound, deep])}]")
        with pytest.raises(PluginError, match=r"item 201 .* nested too deeply"):
            found(path)
    else:
        path.write_text("\n".join([*sound, deep]))
        pairs, _, report = found(path)
        assert (len(pairs), report["lines"]["broken"]) == (200, 1)


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": 'it\'s "x" \n\t\\ \x00 \x7f é \u2028 \U000e0001 \ud800 日本', "n": None}],
        [{"a": [1, -2.5e-07, 10**30, True, False, {}]}, []],
    ],
)
def test_what_python_printed_is_read_as_it_was(value):
    assert python_literal(repr(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        *("[f()]", "[__import__('os')]", "[1 + 1]", "['a' 'b']", "[(1,)]", "{1: 2}", "[b'a']", "[array([1])]"),
        *("['\\N{BEL}']", "['\\Uffffffff']", "['\\ud8']", "['a", "[1_0]", "[0x1]", "[1.]"),
        *("[" * 100_000, "-" * 100_000),
    ],
    ids=lambda text: text[:20],
)
def test_nothing_else_of_python_is_read(text):
    with pytest.raises((ValueError, RecursionError)):
        python_literal(text)
