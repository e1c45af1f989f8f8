"""A section of the trainer's model card: how the model was made, so that one that is pushed says so itself.

The card is what `create_model_card` of the Trainer class has written to `output_dir/README.md`; where a script makes
none, there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .. import report_sections as sections
from ..option_text import written
from ..registry import DISTRIBUTION
from ..training_log import Training

FILE = "README.md"
BEGIN, END = "<!-- hf-ft-plugins -->", "<!-- end of hf-ft-plugins -->"
# Of a longer table, the card has the beginning.
MOST_ROWS = 20
MOST_COLUMNS = 12


def add_to_card(folder: Path, record: Mapping[str, Any]) -> bool:
    """Put the section into the folder's model card, in place of an earlier one; whether there is a card.

    Args:
        record: as `run_record.py` writes it.
    """
    file = folder / FILE
    if not file.is_file():
        return False
    card = ModelCard.load(file)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), DISTRIBUTION]))
    text = re.sub(f"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n", card.text, flags=re.DOTALL)
    card.text = f"{text.rstrip()}\n\n{BEGIN}\n{section_of(record)}\n{END}\n"
    card.save(file)
    return True


def has_section(folder: Path) -> bool:
    file = folder / FILE
    return file.is_file() and BEGIN in file.read_text(encoding="utf-8")


def section_of(record: Mapping[str, Any]) -> str:
    """The section as Markdown: techniques and their options, metrics, and what each technique reports."""
    parts = ["## Fine-tuning techniques", _introduction(record)]
    rows = [(one["name"], f"{one['distribution']} {one['version']}", _options(one)) for one in record["techniques"]]
    parts.append(_table(("technique", "from", "options"), rows))
    metrics = Training(record.get("log", []), steps=record.get("step", 0)).final_metrics()
    if metrics:
        parts += ["### Metrics", _table(("metric", "value"), metrics.items())]
    for technique, listed in record.get("sections", {}).items():
        for section in map(sections.from_json, listed):
            parts += [f"### {_escaped(technique)}: {_escaped(section.title)}", _body(section)]
            parts += [_escaped(section.note)] if section.note else []
    return "\n\n".join(parts)


def _introduction(record: Mapping[str, Any]) -> str:
    state = {"ended": "", "running": " so far"}.get(record.get("status", "ended"), ", stopped early")
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    rows = record["data"].get("train")
    data = f" on {rows:,} rows" if rows else ""
    return f"A `{record['trainer']}` trained it for {record.get('step', 0):,} steps{data}{state}, with {versions}."


def _options(technique: Mapping[str, Any]) -> str:
    """All of them, so that another version's defaults do not matter."""
    return ", ".join(f"`{name}={written(value)}`" for name, value in technique["options"].items())


def _body(section: sections.Section) -> str:
    if isinstance(section, sections.Facts):
        return _table(("", ""), section.facts.items())
    if isinstance(section, sections.Rows):
        return _table(section.heads, section.rows)
    if isinstance(section, sections.Grid):
        rows = [(name, *values) for name, values in zip(section.rows, section.values, strict=True)]
        return _table((f"{section.row_word} / {section.column_word}", *section.columns), rows)
    return _table((section.x_word, *section.lines), zip(section.x, *section.lines.values(), strict=True))


def _table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    listed = [tuple(row)[:MOST_COLUMNS] for row in rows]
    lines = [_row(heads[:MOST_COLUMNS]), _row(["---"] * len(heads[:MOST_COLUMNS])), *map(_row, listed[:MOST_ROWS])]
    if len(listed) > MOST_ROWS:
        lines.append(f"\nand {len(listed) - MOST_ROWS} more rows")
    return "\n".join(lines)


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(value: Any) -> str:
    """A cell of a Markdown table: neither a new cell or line of it, nor HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
