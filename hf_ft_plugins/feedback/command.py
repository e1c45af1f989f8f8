"""`hf-ft behavioral inspect LOG`: what a log would teach, before anything is trained on it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="What people did with a chatbot, as preferences.", no_args_is_help=True, add_completion=False)


@app.callback()
def behavioral() -> None:
    """What people did with a chatbot, as preferences."""


@app.command()
def inspect(
    log: Annotated[Path, typer.Argument(help="A file or a folder.")],
    format: Annotated[str, typer.Option(help="Which log it is; auto: by its first records.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="A folder for pairs.jsonl, labels.jsonl, behavior_report.json and .html.")
    ] = None,
    signals: Annotated[str | None, typer.Option(help="Types of events that count, joined by +.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A model's folder: completions cut, padding.")] = None,
    max_length: Annotated[int, typer.Option(help="Of prompt and completion, tokens; with --tokenizer.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show our own traceback with an error.")] = False,
) -> None:
    """What a log gives, what was dropped and why, how sure and how balanced it is."""
    # Not before: `hf-ft list` reads this file too.
    from .preferences import preferences_from_log
    from .report import write
    from .signals import DEFAULT_SIGNALS
    from .token_lengths import token_lengths

    chosen = tuple(signals.split("+")) if signals is not None else DEFAULT_SIGNALS
    with tempfile.TemporaryDirectory() as work:
        found = preferences_from_log(log, format=format, signals=chosen, folder=out or work)
        report = found.report
        if tokenizer is not None:
            report["tokens"] = token_lengths(found.folder, tokenizer, max_length)
        page = write(report, found.folder, next(found.pairs(), None)) if out is not None else None
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    show(report, Console())
    if page is not None:
        Console(soft_wrap=True).print(f"rows, report and page: {escape(str(page.parent))}", highlight=False)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report's figures as tables."""
    events = Table("event", "seen", "pair", "positive", "negative", "dropped", "why", box=None, header_style="bold")
    for column in events.columns[1:6]:
        column.justify = "right"
    for kind, counts in report["events"].items():
        dropped = counts["dropped"]
        why = "; ".join(f"{reason}: {count}" for reason, count in list(dropped.items())[:3])
        numbers = (counts["seen"], counts["pair"], counts["positive"], counts["negative"], sum(dropped.values()))
        events.add_row(kind, *(f"{number:,}" for number in numbers), why)
    console.print(f"[bold]{escape(report['log'])}[/] ({report['format']}): {report['lines']['read']:,} records")
    console.print(events)
    rows = Table("rows", "signal", "rows", "weight", "effective", "epsilon", "of the table", box=None)
    for column in rows.columns[2:]:
        column.justify = "right"
    for kind, found in report["rows"].items():
        for signal, of in found["by_signal"].items():
            rows.add_row(
                kind,
                signal,
                f"{of['rows']:,}",
                f"{of['weight']:.1%}",
                f"{of['effective_rows']:,.0f}",
                f"{of['epsilon']:.3f}",
                f"{of['epsilon_prior']:.3f}",
            )
    console.print(rows)
    pairs, labels = report["rows"]["pairs"], report["rows"]["labels"]
    console.print(f"{pairs['rows']:,} pairs; {labels['positives']:,} good and {labels['negatives']:,} bad answers")
    if pairs["rows"]:
        gap = pairs["length_gap_words"]
        console.print(f"chosen - rejected: {gap['mean']:+.1f} words; longer in {gap['chosen_longer']:.0%} of the pairs")
    if "kto" in labels:
        kto = labels["kto"]
        console.print(
            f"KTO: desirable_weight {kto['desirable_weight']}, undesirable_weight {kto['undesirable_weight']}"
        )
    if report["personal_data"]:
        console.print("replaced: " + ", ".join(f"{count:,} {kind}" for kind, count in report["personal_data"].items()))
    for kind in ("pairs", "labels"):
        if kind in report.get("tokens", {}):
            of = report["tokens"][kind]
            console.print(
                f"{kind} at {report['tokens']['max_length']:,} tokens: {of['cut']:.1%} cut, {of['padding']:.1%} padding"
            )
    if report["lines"]["columns_not_read"]:
        console.print(f"columns that hold nothing of it: {escape(', '.join(report['lines']['columns_not_read']))}")
    for warning in report["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")
