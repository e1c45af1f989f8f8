"""A technique as a notebook shows it: its options and what they do, those that are not at their default first."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from .option_text import default_text

if TYPE_CHECKING:
    from .technique import OptionInfo, Technique


def as_html(technique: Technique) -> str:
    """HTML without scripts; whatever an option holds is shown as text."""
    changed = technique.changed_options()
    infos = technique.option_infos()
    rest = [info for info in infos if info.name not in changed]
    told = f"<b>{escape(str(technique))}</b><br>{escape(technique.summary)}"
    own = _table(technique, (info for info in infos if info.name in changed)) if changed else ""
    others = f"{'further ' if changed else ''}options, at their defaults"
    folded = f"<details><summary>{len(rest)} {others}</summary>{_table(technique, rest)}</details>" if rest else ""
    return f"<div>{told}{own}{folded}</div>"


def _table(technique: Technique, infos: Iterable[OptionInfo]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(info.name)}</code></td>"
        f"<td><code>{escape(default_text(getattr(technique, info.name)))}</code></td>"
        f'<td style="text-align: left">{escape(info.help)}</td></tr>'
        for info in infos
    )
    return f"<table><tr><th>option</th><th>value</th><th></th></tr>{rows}</table>"
