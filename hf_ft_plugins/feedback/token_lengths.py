"""How many completions a limit of tokens would cut, and how much of batches would be padding.

The one module here that imports transformers, within its function: for the tokenizer that was asked for.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PluginError
from ..progress import progress
from .log_files import NAME

# Rows whose tokens are counted; a share of them has a standard error of 1 % at most.
MEASURED = 2_500
MEASURED_BATCH = 8


def token_lengths(folder: Path, tokenizer: str, max_length: int) -> dict[str, Any]:
    """How many completions would be cut at `max_length` tokens, and how much of batches of 8 would be padding.

    Counts the first 2,500 rows of each kind. Prompt and completion go through the tokenizer's chat template; where it
    has none, they are joined by line ends, and the report says so.

    Raises:
        PluginError: there is no such tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise PluginError(
            f"{NAME}: {tokenizer!r} holds no tokenizer ({error}). Name a model's folder.", code="model-unreadable"
        ) from error
    found: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length}
    found["chat_template"] = bool(loaded.chat_template)
    for kind, sides in (("pairs", ("chosen", "rejected")), ("labels", ("completion",))):
        with (folder / f"{kind}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, MEASURED)]
        if not rows:
            continue
        counted = progress(rows, f"{NAME}: counting tokens of {kind}")
        lengths = np.array([[_tokens(loaded, row["prompt"] + row[side]) for side in sides] for row in counted])
        # Both sides of a pair are padded to the longest of the batch.
        batches = [
            np.minimum(lengths[at : at + MEASURED_BATCH], max_length) for at in range(0, len(rows), MEASURED_BATCH)
        ]
        padded = sum(int(batch.max()) * batch.size for batch in batches)
        found[kind] = {
            "rows": len(rows),
            "cut": round(float((lengths > max_length).any(axis=1).mean()), 4),
            "padding": round(1 - sum(int(batch.sum()) for batch in batches) / padded, 4),
            "median_tokens": float(np.median(lengths)),
        }
    return found


def _tokens(tokenizer: Any, turns: list[dict[str, Any]]) -> int:
    if tokenizer.chat_template:
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])
    return len(tokenizer("\n".join(turn["content"] for turn in turns))["input_ids"])
