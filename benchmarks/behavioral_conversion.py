"""How fast a log becomes preferences, and in how much memory.

A log of our own two tables is written for it: conversations of one to four turns, a third of the prompts with two
answers (regenerated, or side by side), questions of a median of 20 and answers of 50 made-up words, and users as a Zipf
law has them. Answers are better or worse, and users see it in four of five cases. As a product's log does, it says of
each answer how long it was looked at, and of each turn whether the user went on; these events are off unless asked for,
and are half of all. A turn has 1.2 others on average; nine messages come with ten events.

The log is converted in a process of its own, whose memory is what the system says of it; the time is the whole of it,
from the start of the process to its end. It is converted twice: `ours` is the mean,
and half the difference the noise.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Gate, Result

LEAST_EVENTS_PER_SECOND = 20_000
MOST_BYTES = 1 << 30
USERS_PER_EVENT = 0.05
SEEN_RIGHT = 0.8
# How likely each is after a turn.
RATES = {"dwell": 1, "copy": 0.35, "thumbs": 0.3, "rating": 0.1, "accept": 0.1, "edit": 0.06, "correction": 0.05}
LEFT = 0.2
BESIDE, REGENERATED = 0.1, 0.25
CHILD = """
import json, resource, sys, time
start = time.perf_counter()
from hf_ft_plugins.feedback import preferences_from_log
found = preferences_from_log(sys.argv[1], folder=sys.argv[2])
took = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
rows = {kind: of["rows"] for kind, of in found.report["rows"].items()}
print(json.dumps({"seconds": took, "peak": peak, "rows": rows, "events": sum(
    of["seen"] for of in found.report["events"].values())}))
"""


def conversion(events: int) -> list[Result]:
    """Convert a log of so many events twice; `ours` is events per second, `conditions` has the memory."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.mkdir()
        messages = write_log(log, events)
        size = sum(file.stat().st_size for file in log.iterdir())
        runs = [converted(log, Path(folder) / f"out-{number}") for number in range(2)]
    first, again = (found["events"] / found["wall"] for found in runs)
    peak = max(found["peak"] for found in runs)
    about = report.conditions(
        "cpu",
        peak_mib=peak >> 20,
        messages=messages,
        log_mib=size >> 20,
        seconds=[round(found["wall"], 1) for found in runs],
        **runs[0]["rows"],
    )
    what = f"conversion of {events:,} events, events/s"
    noise = abs(again / first - 1)
    return [
        report.row(
            "behavioral", f"{what}: again (A/A)", again, first, ratio=again / first, noise=noise, conditions=about
        ),
        report.row(
            *("behavioral", what, (first + again) / 2),
            noise=abs(first - again) / 2,
            gate=Gate("ours", ">=", LEAST_EVENTS_PER_SECOND),
            also={"in < 1 GiB": peak < MOST_BYTES},
            conditions=about,
        ),
    ]


def converted(log: Path, out: Path) -> dict[str, Any]:
    """What the process says of itself, and its seconds from start to end (`wall`)."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(log), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"the conversion failed:\n{done.stderr[-2000:]}")
    wall = time.perf_counter() - start
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"wall": wall}


def write_log(folder: Path, events: int, seed: int = 0) -> int:
    """Write `messages.jsonl` and `events.jsonl`; returns the number of messages."""
    draw = random.Random(seed)
    words = [f"{draw.choice('bcdfglmnprstv')}{draw.choice('aeiou')}{draw.choice('lmnrst')}{end}" for end in ENDS]
    users = max(1, int(events * USERS_PER_EVENT))
    made = messages = 0
    with (folder / "messages.jsonl").open("w") as said, (folder / "events.jsonl").open("w") as done:
        conversation = 0
        while made < events:
            # Zipf: the most active user has ten thousand times as many conversations as the least active.
            user = f"user-{int(users ** draw.random())}"
            for message, acts in _conversation(draw, words, f"c{conversation}"):
                said.write(json.dumps(message) + "\n")
                messages += 1
                for act in acts:
                    if made < events:
                        event = {"id": f"e{made}", "ts": 1.76e9 + 20 * conversation, "user": user, **act}
                        done.write(json.dumps(event) + "\n")
                        made += 1
            conversation += 1
    return messages


ENDS = ("", "a", "er", "ing", "ed", "ly", "ness", "al", "um", "is", "ous", "ment", "ity", "ic", "en", "ant") * 250


def _conversation(draw: random.Random, words: list[str], name: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    above = None
    turns = draw.choice((1, 1, 1, 2, 2, 3, 4))
    for turn in range(turns):
        prompt = f"{name}.{turn}"
        yield {"id": prompt, "parent_id": above, "role": "user", "content": _text(draw, words, 20)}, []
        how = draw.random()
        answers = [f"{prompt}.{number}" for number in range(2 if how < BESIDE + REGENERATED else 1)]
        for number, answer in enumerate(answers):
            text = _text(draw, words, 50)
            acts = []
            if number == len(answers) - 1:
                good = draw.random() < 0.6
                if how < BESIDE:
                    value = draw.choice((*answers, *answers, "tie"))
                    acts.append({"type": "choice", "value": value, "candidates": answers, "shown_position": int(good)})
                elif how < BESIDE + REGENERATED:
                    acts.append({"type": "regenerate", "message_id": answers[0], "value": answer})
                for kind, rate in RATES.items():
                    seen = good == (draw.random() < SEEN_RIGHT)
                    if draw.random() < rate and (seen or kind not in ("copy", "accept")):
                        acts.append({"type": kind, "message_id": answer, **_value(draw, words, kind, seen, text)})
                if turn + 1 < turns:
                    acts.append({"type": "continue", "message_id": answer})
                elif draw.random() < LEFT:
                    acts.append({"type": "abandon", "message_id": answer})
            yield {"id": answer, "parent_id": prompt, "role": "assistant", "content": text}, acts
        above = answers[-1]


def _value(draw: random.Random, words: list[str], kind: str, good: bool, text: str) -> dict[str, Any]:
    if kind == "thumbs":
        return {"value": 1 if good else -1}
    if kind == "rating":
        return {"value": draw.choice((4, 5, 5, 3) if good else (1, 2, 2, 3))}
    if kind == "edit":
        edited = text.split()
        for _ in range(1 + len(edited) // 10):
            edited[draw.randrange(len(edited))] = draw.choice(words)
        return {"text_after": " ".join(edited)}
    return {"dwell_ms": draw.randrange(60_000)} if kind == "dwell" else {}


def _text(draw: random.Random, words: list[str], median: int) -> str:
    # Log-normal, as lengths of answers are.
    return " ".join(draw.choices(words, k=max(1, min(600, int(median * draw.lognormvariate(0, 0.8))))))
