"""Which log is it? The formats that are known, how each is told, and messages and events out of any of them.

A format's converter takes places and records and gives messages and events in any order; what refers to what is found
out afterwards (`log_store.py`). A record that is sound and of no use is counted with a reason, one that is malformed as
broken.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import OptionError, PluginError
from ..mends import add_flag
from ..near import closest
from ..progress import progress
from .adapters import (
    column_names as layouts,
)
from .adapters import (
    open_webui as adapters_open_webui,
)
from .adapters import (
    preference_sets as adapters_pairs,
)
from .adapters import (
    tracing_platforms as adapters_platforms,
)
from .adapters.preference_rows import rows
from .events import Event, MalformedError, Message, event_of, message_of
from .log_files import NAME, UNREADABLE, Reading, files_of, line_count, not_of_this_format, records_of
from .transcripts import HUMAN

Record = dict[str, Any]
# Records of each file that a format is told by.
LOOKED_AT = 20


@dataclass(frozen=True)
class Format:
    """One kind of log.

    Attributes:
        looks_for: what its records hold, in words.
        matches: whether a record is of this format.
        convert: (records, reading, reread) to messages and events; `reread()` is the log from its start once more.
    """

    looks_for: str
    matches: Callable[[Record], bool]
    convert: Callable[..., Iterator[Message | Event]]


def _own(records: Iterator[tuple[str, Record]], reading: Reading, reread: Any) -> Iterator[Message | Event]:
    for place, record in records:
        try:
            item = message_of(record) if "role" in record else event_of(record)
        except MalformedError as error:
            reading.mark_broken(place, str(error))
        except UNREADABLE as error:
            reading.mark_broken(place, not_of_this_format(error))
        else:
            yield item


def _is_own(record: Record) -> bool:
    if record.get("table") in ("message", "event"):
        return True
    keys = record.keys()
    return {"id", "role", "content"} <= keys or (
        {"id", "type"} <= keys and ("message_id" in keys or "candidates" in keys)
    )


def _is_hh(record: Record) -> bool:
    return all(str(record.get(side)).startswith(HUMAN) for side in ("chosen", "rejected"))


def _is_trl(record: Record) -> bool:
    keys = record.keys()
    return {"chosen", "rejected"} <= keys or {"completion", "label"} <= keys


def _is_kto(record: Record) -> bool:
    return layouts.is_label(record) and not _is_trl(record)


# In the order in which they are tried: the more particular first.
FORMATS: dict[str, Format] = {
    "open-webui": Format(
        "data.rating, meta.message_id, snapshot.chat; chats with chat.history",
        adapters_open_webui.is_open_webui,
        adapters_open_webui.open_webui,
    ),
    "langsmith": Format(
        "feedback with run_id, key, score; runs with inputs, outputs",
        adapters_platforms.is_langsmith,
        adapters_platforms.langsmith,
    ),
    "openai": Format("input, preferred_output, non_preferred_output", adapters_pairs.is_openai, adapters_pairs.openai),
    "arena": Format("conversation_a, conversation_b, winner", adapters_pairs.is_arena, adapters_pairs.arena),
    "oasst": Format(
        "trees with prompt.replies, or messages with message_id, text, role",
        adapters_pairs.is_oasst,
        adapters_pairs.oasst,
    ),
    "hh": Format('chosen and rejected as texts that begin with "\\n\\nHuman:"', _is_hh, rows),
    "kto": Format("an answer or conversations, with kto_tag or label", _is_kto, rows),
    "trl": Format("chosen and rejected, or prompt, completion and label", _is_trl, rows),
    "swift": Format("messages or response, with rejected_response or rejected_messages", layouts.is_pair, rows),
    "ranked": Format(
        "answers with ranks or scores, or two answers and which is better",
        lambda record: any(layouts.ranking(row) is not None for row in layouts.unfolded(record)),
        rows,
    ),
    "langfuse": Format(
        "scores with traceId, name, value; traces with input, output",
        adapters_platforms.is_langfuse,
        adapters_platforms.langfuse,
    ),
    "tables": Format("messages with id, role, content; events with id, type, message_id or candidates", _is_own, _own),
}


def detected(files: list[Path]) -> str:
    """The format's name, by the first records of each file.

    Raises:
        PluginError: it is none; the text says what was looked for and what was found.
    """
    seen: set[str] = set()
    for file in files:
        for _, record in islice(records_of([file]), LOOKED_AT):
            for name, known in FORMATS.items():
                if known.matches(record):
                    return name
            seen.add(", ".join(list(map(str, record))[:8]) or "nothing")
    if not seen:
        raise PluginError(
            f"{NAME}: {', '.join(file.name for file in files)} holds no JSON object. Export the log as JSON or JSON "
            "lines; `datasets` writes a table of any other kind so by Dataset.to_json(FILE).",
            code="data-unsuited",
        )
    looked_for = "; ".join(f"{name}: {known.looks_for}" for name, known in FORMATS.items())
    found = " / ".join(sorted(seen)[:3])
    raise PluginError(
        f"{NAME}: the log's format is unknown. Looked for {looked_for}. Found records with the keys {found}. Name the "
        "columns prompt, chosen and rejected (or prompt, completion and label), name a known format with `--format`, "
        "or write the log as the two tables of `events.py`.",
        code="data-columns",
    )


def messages_and_events(path: Path, format: str, reading: Reading) -> tuple[str, Generator[Message | Event]]:
    """A log's format and all it holds, streaming.

    Args:
        path: a file or a folder.
        format: a key of `FORMATS`, or "auto".
        reading: counts what is broken or left out.

    Raises:
        OptionError: there is no such format.
        PluginError: there is no log, its format is unknown, or it is broken; the last while it is read.
    """
    if format != "auto" and format not in FORMATS:
        near = closest(format, FORMATS)
        raise OptionError(
            f"{NAME}: there is no format {format!r}; there are auto, {', '.join(FORMATS)}.",
            mend=[add_flag("--format", near)] if near else [],
        )
    files = files_of(path)
    name = detected(files) if format == "auto" else format

    def reread() -> Iterator[Record]:
        return (record for _, record in records_of(files))

    def checked() -> Generator[Message | Event]:
        records = records_of(files, reading)
        shown = progress(records, f"{NAME}: reading {path.name}", total=lambda: line_count(files), unit="records")
        yield from FORMATS[name].convert(shown, reading, reread)
        # Once more: records of the last lines may have been malformed.
        reading.check()

    return name, checked()
