"""Where the benchmarks' real data lies, and how its files are read."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("FT_DATA", "../shared/data"))
MINILM = DATA / "ckpt_minilm_l6"


def lines_of(file: Path) -> Iterator[Any]:
    """What each line of a `.jsonl.gz` holds."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def has_reviews() -> bool:
    """Whether the film reviews and the MiniLM that learns them are there."""
    reviews = [DATA / "sentiment_mr" / f"{part}.jsonl.gz" for part in ("train", "test")]
    return all(file.is_file() for file in (MINILM / "model.safetensors", *reviews))


def reviews(part: str) -> list[dict[str, Any]]:
    """`text` and `label` of the film reviews of a part: train, dev or test."""
    return list(lines_of(DATA / "sentiment_mr" / f"{part}.jsonl.gz"))
