"""The results of all pairs as a table."""

from __future__ import annotations

from collections.abc import Iterable

from ..technique import Technique


def composition_table(techniques: Iterable[Technique], results: dict[frozenset[str], str]) -> str:
    """The results of `check_pair` as a Markdown table, a conflict's reason below it."""
    names = sorted(technique.name for technique in techniques)
    lines = ["| | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    reasons = {}
    for row in names:
        cells = []
        for column in names:
            result = results.get(frozenset((row, column)), "")
            cells.append({"together": "yes", "": "-"}.get(result, "no"))
            if cells[-1] == "no":
                reasons[frozenset((row, column))] = result
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{reason}" for reason in reasons.values())])
