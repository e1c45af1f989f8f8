"""A report of `hf-ft suggest` as paragraphs, and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ...memory.estimate import GIB
from ...suggest.facts import RunFacts
from ...suggest.report import Advice, Report

INDENT = 2
MIB = 2**20


def run_line(specs: Sequence[str], command: Sequence[str]) -> list[str]:
    """`hf-ft run` with these techniques."""
    return ["hf-ft", "run", *_named(specs), *command]


def compare_line(specs: Sequence[str], command: Sequence[str]) -> list[str]:
    """`hf-ft compare` with these techniques, as often as a verdict needs."""
    return ["hf-ft", "compare", "--seeds", "3", *_named(specs), *command]


def _named(specs: Sequence[str]) -> list[str]:
    return [part for spec in specs for part in ("--with", spec)]


def as_dict(report: Report, command: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints; `command` is the script with what belongs to it."""
    together = report.together
    return {
        "facts": report.facts.as_dict(),
        "suggestions": [one.as_dict() for one in report.advice],
        "notes": list(report.notes),
        "command": run_line(together, command) if together else [],
        "compare": compare_line(together, command) if together else [],
    }


def show(report: Report, command: Sequence[str], console: Console) -> None:
    """Print it: what was looked at, each suggestion, the command of all that go together, how to measure it."""
    console.print(escape(looked_at(report.facts)), highlight=False)
    for one in report.advice:
        console.print()
        _show_advice(one, command, console)
    for note in report.notes:
        console.print()
        console.print(escape(f"note: {note}"), style="yellow", highlight=False)
    console.print()
    together = report.together
    if not report.advice:
        console.print("Nothing to suggest: no technique's measured gains apply to this run.", highlight=False)
        return
    if len(together) > 1:
        console.print("[bold]all that go together[/]")
        _show_command(run_line(together, command), console)
    if together:
        console.print("[bold]measure it before you rely on it[/]")
        _show_command(compare_line(together, command), console)


def _show_advice(one: Advice, command: Sequence[str], console: Console) -> None:
    suggestion = one.suggestion
    console.print(f"[bold cyan]{escape(suggestion.spec)}[/]", soft_wrap=True)
    lines = [("why", reason.text) for reason in suggestion.because]
    lines += [("does", suggestion.does), ("not when", suggestion.not_when)]
    lines += [("first", suggestion.first)] if suggestion.first else []
    lines += [("install", one.install)] if one.install else []
    if one.left_out and not (suggestion.first or one.install):
        lines.append(("left out", f"of the command of all: {one.left_out}"))
    table = Table.grid("", "", padding=(0, INDENT, 0, 0))
    for name, text in lines:
        table.add_row(f"[bold]{name}[/]", escape(text))
    console.print(Padding(table, (0, 0, 0, INDENT)), highlight=False)
    _show_command(run_line([suggestion.spec], command), console)


def _show_command(line: Sequence[str], console: Console) -> None:
    # To be pasted: on one line, however narrow the terminal.
    console.print(f"{' ' * INDENT}{shlex.join(line)}", style="green", markup=False, highlight=False, soft_wrap=True)


def looked_at(facts: RunFacts) -> str:
    """One paragraph on what was found."""
    model, data, run = facts.model, facts.data, facts.schedule
    trained = "all of them learn" if model.trained == model.parameters else f"{_count(model.trained)} of them learn"
    origin = f"loaded from {model.loaded_from}" if model.pretrained else "not loaded by from_pretrained"
    rows = "a stream" if data.examples is None else f"{data.examples:,} examples"
    if facts.labels is not None and facts.labels.counts:
        rows += f" of {facts.labels.classes} classes"
    passes = "" if run.passes is None else f", {run.passes:.1f} passes"
    parts = [
        f"{facts.trainer_class}: a {model.name} ({model.kind}) of {_count(model.parameters)} parameters, {trained}, "
        f"{origin}",
        f"{rows}, {run.steps:,} steps{passes}, {run.evaluations} evaluations",
    ]
    if data.padding is not None and data.lengths is not None:
        shortest, mean, longest = data.lengths
        spread = (
            f"{longest} tokens" if shortest == longest else f"{shortest} to {longest} tokens, {mean:.0f} on average"
        )
        parts.append(f"rows of {spread}; {data.padding:.0%} of the batches is padding")
    needed = facts.memory.needed
    takes = "unknown" if needed is None else f"about {_bytes(needed)}"
    parts.append(f"memory of a step {takes}, of {_bytes(facts.memory.available)} ({facts.memory.device})")
    if facts.techniques:
        parts.append(f"techniques that the script has: {', '.join(facts.techniques)}")
    parts.append("Stopped at the first train(); nothing was trained")
    return f"{'. '.join(part[0].upper() + part[1:] for part in parts)}."


def _bytes(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{max(1, round(number / MIB))} MiB"


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,}"
