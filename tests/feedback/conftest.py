"""Logs that several tests read."""

import random

import pytest

from tests.feedback.written_logs import EMAIL, conversation, lines


@pytest.fixture
def log(tmp_path):
    """A log of given messages and events, in our own tables."""

    def make(messages, events, name="log"):
        folder = tmp_path / name
        lines(folder / "messages.jsonl", messages)
        numbered = [{"id": f"e{number}", "user": "u", **event} for number, event in enumerate(events)]
        lines(folder / "events.jsonl", numbered)
        return folder

    return make


@pytest.fixture(scope="session")
def busy(tmp_path_factory):
    """1,500 conversations of 80 users: everything happens, some prompts are shared, personal data is planted."""
    draw = random.Random(3)
    folder = tmp_path_factory.mktemp("busy")
    messages, acts = [], []
    kinds = ("thumbs", "copy", "regenerate", "choice", "rating", "correction", "edit")
    for n in range(1500):
        text = [f"answer {n} {draw.random()} {EMAIL if draw.random() < 0.1 else ''}" for _ in range(2)]
        messages += conversation(*text, name=f"c{n}", prompt=f"question {n % 700} from {EMAIL}")
        for _ in range(3):
            kind, about = draw.choice(kinds), f"c{n}.{draw.randrange(2)}"
            user = f"{draw.randrange(80)}@example.com" if draw.random() < 0.9 else None
            act = {"type": kind, "message_id": about, "user": user, "id": f"e{len(acts)}", "ts": 1.7e9 + n}
            value = {"thumbs": draw.choice((1, -1)), "rating": draw.randrange(1, 6), "choice": about}.get(kind)
            act |= {"value": value, "text_after": text[0] + f" call {EMAIL}" if kind == "edit" else None}
            act["candidates"] = [f"c{n}.0", f"c{n}.1"] if kind == "choice" else None
            acts.append(act)
    lines(folder / "messages.jsonl", messages)
    lines(folder / "events.jsonl", acts)
    return folder
