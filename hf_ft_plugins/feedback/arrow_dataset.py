"""Rows of JSON lines as a `datasets.Dataset` in Arrow's memory, without a copy in the cache on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from ..progress import progress
from .events import TEMPLATE_FIELDS
from .log_files import NAME

AT_ONCE = 10_000


def dataset_of(file: Path, kind: str, split: str | None) -> Any:
    """The rows of a split (None: of all) of `pairs.jsonl` or `labels.jsonl`."""
    import pyarrow
    from datasets import Dataset, DatasetInfo, Features, Json, List, Value

    content = file.read_bytes()
    # Arrow has one type for all rows' calls, and None for what a turn does not have; JSON has what was written.
    more = any(f'"{key}": '.encode() in content for key in ("tool_calls", *TEMPLATE_FIELDS))
    message = Json() if more else {"role": Value("string"), "content": Value("string")}
    texts = ("prompt", "chosen", "rejected") if kind == "pairs" else ("prompt", "completion")
    features = Features(
        {
            **{column: List(message) for column in texts},
            **({"label": Value("bool")} if kind == "labels" else {}),
            "behavior_weight": Value("float32"),
            "behavior_eps": Value("float32"),
            "signal": Value("string"),
            "user": Value("string"),
            "source_event_ids": List(Value("string")),
            "split": Value("string"),
            **({"tools": List(Json())} if b'], "tools": [' in content else {}),
        }
    )
    # Equal rows have one fingerprint, in this process and the next: what is cached of them is found again.
    fingerprint = blake2b(content, key=str(split).encode(), digest_size=8).hexdigest()
    count = content.count(b"\n")
    del content
    chunks = _chunks(file, split, list(features), count)
    tables = [Dataset.from_list(rows, features=features).data.table for rows in chunks]
    table = pyarrow.concat_tables(tables or [features.arrow_schema.empty_table()])
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=fingerprint)


def _chunks(file: Path, split: str | None, columns: list[str], count: int) -> Iterator[list[dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        rows = (
            {column: row.get(column) for column in columns}
            for row in map(json.loads, progress(lines, f"{NAME}: rows as a table", total=count))
            if split is None or row["split"] == split
        )
        while chunk := list(islice(rows, AT_ONCE)):
            yield chunk
