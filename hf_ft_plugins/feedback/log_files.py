"""A log's files as a stream of JSON objects: `.jsonl`, `.json` with one list, either of them gzipped, or a folder."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import PluginError
from .events import MalformedError, UnfitError

NAME = "behavioral"
ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
MOST_BROKEN = 0.01
QUOTED = 5
KEYS = 8
# Lines after which a log that is broken throughout is given up, rather than at its end.
EARLY = 10_000
CHUNK = 1 << 20
BROKEN = object()
# What a converter raises of a record whose values are of other kinds than those of its format.
UNREADABLE = (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError)


@dataclass
class Reading:
    """What became of a log's lines.

    Attributes:
        lines: how many were read.
        broken: how many are not JSON, or hold no record of the format; `quoted` says where and why of the first few.
        left_out: records that are sound and say nothing about preferences, by reason.
        remarks: records that were read, and of which something had to be guessed or left out.
        unread: columns of rows that hold nothing that is looked for.
        keys: of the first record, a few.
    """

    lines: int = 0
    broken: int = 0
    quoted: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)
    keys: tuple[str, ...] = ()

    def mark_broken(self, where: str, why: str) -> None:
        self.broken += 1
        if len(self.quoted) < QUOTED:
            self.quoted.append(f"{where}: {why}")

    def check(self) -> None:
        """
        Raises:
            PluginError: more than a hundredth of the lines are broken.
        """
        if self.broken > MOST_BROKEN * self.lines:
            raise PluginError(
                f"{NAME}: {self.broken} of {self.lines} lines of the log are broken, more than {MOST_BROKEN:.0%}. "
                f"The first: {'; '.join(self.quoted)}. Mend the export, or name its format (`--format`) if another "
                "was detected.",
                code="data-rows",
            )


def files_of(path: Path) -> list[Path]:
    """The log's files, in order.

    Raises:
        PluginError: there is nothing at `path`, or no file of JSON.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PluginError(f"{NAME}: there is no log at {str(path)!r}. Name a file or a folder.", code="data-missing")
    files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
    # The reports of an earlier run, where somebody wrote them beside the log.
    files = [file for file in files if not file.name.startswith("behavior_report")]
    if not files:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise PluginError(
            f"{NAME}: {path} holds no log; looked for {', '.join(ENDINGS)}, found {there}.", code="data-missing"
        )
    return files


def records_of(files: list[Path], reading: Reading | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record with its place ("events.jsonl:12"); what is no JSON object is counted in `reading`.

    Args:
        reading: without it nothing is counted and no share of broken lines is too large: for a look ahead.

    Raises:
        PluginError: too many are broken, or a file cannot be read.
    """
    strict, reading = reading is not None, reading or Reading()
    for file in files:
        try:
            yield from _records(file, reading, strict)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise PluginError(
                f"{NAME}: {file} cannot be read ({error}). Export it again.", code="file-unusable"
            ) from error
    if strict:
        if not reading.lines:
            raise PluginError(
                f"{NAME}: {', '.join(map(str, files))} is empty. Export the log again.", code="data-missing"
            )
        reading.check()


def line_count(files: list[Path]) -> int | None:
    """Lines of the log; None where they take long to count, of gzipped files, or say nothing, of one that is a list."""
    count = 0
    for file in files:
        with file.open("rb") as content:
            if file.suffix == ".gz" or content.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return None
            content.seek(0)
            count += sum(part.count(b"\n") for part in iter(lambda: content.read(CHUNK), b""))
    return count


def converted(
    records: Iterator[tuple[str, dict[str, Any]]],
    reading: Reading,
    convert: Callable[[str, dict[str, Any]], Any],
) -> Iterator[Any]:
    """What `convert(place, record)` yields of each record; of a malformed one nothing, and it is counted as broken."""
    for place, record in records:
        try:
            # All of a record or nothing of it.
            found = list(convert(place, record))
        except UnfitError as error:
            reading.left_out[str(error)] += 1
        except MalformedError as error:
            reading.mark_broken(place, str(error))
        except UNREADABLE as error:
            reading.mark_broken(place, not_of_this_format(error))
        else:
            yield from found


def not_of_this_format(error: Exception) -> str:
    """Why a record could not be read, for its place in the report."""
    return f"not a record of this format ({type(error).__name__}: {error})"[:200]


def _records(file: Path, reading: Reading, strict: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    name = file.name
    with _opened(file) as stream:
        # Look at the first sign without losing it.
        start = stream.peek(4096)[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
        items = _listed(stream, file) if start.startswith(b"[") else _lines(stream, name, reading)
        for number, item in items:
            reading.lines += 1
            if item.__class__ is dict:
                reading.keys = reading.keys or tuple(map(str, item))[:KEYS]
                yield f"{name}:{number}", item
            elif item is not BROKEN:
                reading.mark_broken(f"{name}:{number}", f"a {type(item).__name__} instead of an object")
            if reading.broken and strict and reading.lines % EARLY == 0:
                reading.check()


def _opened(file: Path) -> io.BufferedReader:
    raw: Any = gzip.GzipFile(file) if file.suffix == ".gz" else io.FileIO(file)
    return io.BufferedReader(raw, CHUNK)


def _lines(stream: IO[bytes], name: str, reading: Reading) -> Iterator[tuple[int, Any]]:
    # What `json.loads` calls, without its two searches for blanks: half of the time of a short line.
    scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode()
            item, end = scan(text, 0)
            if end < len(text) - 1 and not text[end:].isspace():
                raise ValueError("more than one object")
        except (ValueError, StopIteration, RecursionError):
            if line.isspace():
                continue
            item = _slowly(line, f"{name}:{number}", reading)
        yield number, item


def _slowly(line: bytes, place: str, reading: Reading) -> Any:
    """What a line holds that is not plainly an object; `BROKEN`, counted, where it is not JSON."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        reading.mark_broken(place, "not UTF-8")
    except (ValueError, RecursionError) as error:
        # The message of the error, not the line: that may hold what somebody wrote.
        why = f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        reading.mark_broken(place, f"not JSON: {why}")
    return BROKEN


def _listed(stream: IO[bytes], file: Path) -> Iterator[tuple[int, Any]]:
    """The items of a file that is one list, without holding the file."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    buffer, place, wanted, number = text.read(CHUNK).lstrip()[1:], 0, CHUNK, 0
    while True:
        while place < len(buffer) and buffer[place] in " \t\r\n,":
            place += 1
        if place < len(buffer) and buffer[place] == "]":
            return
        try:
            item, end = decode(buffer, place)
            # A number at the buffer's end may go on.
            whole = end < len(buffer)
        except RecursionError:
            raise PluginError(
                f"{NAME}: item {number + 1} of {file} is nested too deeply to be read. Leave it out, or write one "
                "record a line (.jsonl), where it costs itself alone.",
                code="data-rows",
            ) from None
        except ValueError:
            whole = False
        if whole:
            number, place, wanted = number + 1, end, CHUNK
            yield number, item
            continue
        more = text.read(wanted)
        if not more:
            raise PluginError(
                f"{NAME}: {file} is a list that breaks off or breaks in item {number + 1}. Export it again, or write "
                "one record a line (.jsonl), where a broken one costs itself alone.",
                code="file-unusable",
            )
        # Doubled, so that one large item is not decoded again for each megabyte of it.
        buffer, place, wanted = buffer[place:] + more, 0, 2 * wanted
