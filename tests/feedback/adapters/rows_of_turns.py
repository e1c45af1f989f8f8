"""Turns and answers out of which the tests write rows, and what is read of those."""

import json
from pathlib import Path

from hf_ft_plugins.feedback import preferences_from_log

Q, GOOD, BAD = "Name a colour.", "Blue is one.", "I know none."
SYSTEM, BEFORE, SAID = "Be short.", "Hello.", "Hi, what is it?"
TOOLS = [{"type": "function", "function": {"name": "colour", "parameters": {"type": "object", "properties": {}}}}]


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def call(name="colour", **arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def result(text):
    return {"role": "tool", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def read(tmp_path, *rows, **options):
    path = Path(tmp_path) / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = preferences_from_log(path, eval_share=0.0, estimate_noise=False, **options)
    return list(made.pairs()), list(made.labels()), made.report


ASKED = [user(Q)]
TOLD = [system(SYSTEM), user(Q)]
MULTI = [user(BEFORE), said(SAID), user(Q)]
CALLED = [user(Q), call(of="sea"), result('{"is": "blue"}')]
SIDES = {"chosen": GOOD, "rejected": BAD}
