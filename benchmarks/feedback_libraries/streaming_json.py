"""Streaming JSON: ours against ijson, in time, and on lists as exports write them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.feedback_libraries.side_by_side import counted, installed, replies, timed
from benchmarks.report import Result
from hf_ft_plugins.feedback.log_files import Reading, records_of


def streaming_results(rounds: int) -> Iterator[Result]:
    if not installed("ijson"):
        return
    import ijson

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.json"
        records = [
            {
                "id": number,
                "score": 0.5,
                "inputs": {"messages": [{"role": "user", "content": question}]},
                "text": answer,
            }
            for number, (question, answer) in enumerate(replies() * 4)
        ]
        file.write_text(json.dumps(records), encoding="utf-8")

        def ours() -> int:
            return sum(1 for _ in records_of([file], Reading()))

        def theirs() -> int:
            with file.open("rb") as stream:
                return sum(1 for _ in ijson.items(stream, "item", use_float=True))

        if ours() != theirs():
            raise RuntimeError("the two read another number of records")
        backend = ijson.backend_name if hasattr(ijson, "backend_name") else ijson.backend
        of = {"records": len(records), "mib": file.stat().st_size >> 20, "backend": str(backend)}
        yield from timed("streaming JSON, ijson", ours, theirs, rounds, 1.25, **of)
    ours_read, theirs_read = (sum(reads(read, content) for content in WRITTEN) for read in (read_by_us, read_by_ijson))
    metric = f"streaming JSON, of {len(WRITTEN)} lists as exports write them, read rightly, ijson"
    yield counted(metric, ours_read, theirs_read, "all of them", ours_read == len(WRITTEN))


# Python's and pandas' NaN, a byte order mark, an id beyond 64 bits, half of a surrogate pair, a plain one.
WRITTEN = (
    b'[{"score": NaN}]',
    b'\xef\xbb\xbf[{"id": 1}]',
    b'[{"id": 123456789012345678901234567890}]',
    b'[{"text": "\\ud83d"}]',
    b'[{"text": "\\ud83d\\ude00", "score": 0.5}]',
)


def reads(read: Callable[[Path], list[Any]], content: bytes) -> bool:
    """Whether a list is read as Python's own `json` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.json"
        file.write_bytes(content)
        try:
            # NaN equals nothing, and is compared as a text.
            return repr(read(file)) == repr(json.loads(content.decode("utf-8-sig")))
        except ValueError:
            return False


def read_by_us(file: Path) -> list[Any]:
    return [record for _, record in records_of([file], Reading())]


def read_by_ijson(file: Path) -> list[Any]:
    import ijson

    with file.open("rb") as stream:
        try:
            return list(ijson.items(stream, "item", use_float=True))
        except ijson.JSONError as error:
            raise ValueError(str(error)) from error
