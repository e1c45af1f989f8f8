"""What came of each run, as the documentation's page on scripts shows it; `python -m benchmarks.figures` writes it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

VERDICTS = ("right", "refused", "wrong", "raw error", "the script alone fails")


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """All of it as Markdown."""
    results = [one for one in results if "runs" in one["conditions"]]
    return "\n".join([versions(results), *overview(results), *(part for one in results for part in script(one))])


def versions(results: Sequence[Mapping[str, Any]]) -> str:
    where = results[0]["conditions"]
    return (
        f"Python {where['python']}, torch {where['torch']}, transformers {where['transformers']}, {where['device']}.\n"
    )


def overview(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [f"| script | runs | {' | '.join(VERDICTS)} |", f"| --- | {'--- | ' * (len(VERDICTS) + 1)}".rstrip()]
    for one in results:
        counts = [int(one["ours"]), *(one["conditions"][name] for name in VERDICTS[1:])]
        rows.append(f"| `{one['metric']}` | {int(one['baseline'])} | {' | '.join(map(str, counts))} |")
    return [*rows, ""]


def script(result: Mapping[str, Any]) -> list[str]:
    """A section for the script: for each variant its command line, and a table of techniques."""
    lines = [f"## {result['metric']}", ""]
    for (variant, line), rows in groupby(result["conditions"]["runs"], key=lambda row: (row["variant"], row["line"])):
        lines += [f"{variant.capitalize() or 'Plain'}:", "", "```bash", wrapped(line), "```", ""]
        lines += ["| run by | what came of it |", "| --- | --- |"]
        for row in rows:
            named = "".join(f" --with {name}" for name in row["techniques"])
            told = [f"**{row['verdict']}**", short(row["said"]), figures(row["metrics"])]
            by = f"hf-ft run{named}" if named else "python"
            lines.append(f"| `{by}` | {'. '.join(filter(None, told))} |")
        lines.append("")
    return lines


def wrapped(line: str) -> str:
    """A command line as a shell takes it, in lines of at most 118 characters where its words allow it."""
    return " \\\n  ".join(textwrap.wrap(line, 114, break_long_words=False, break_on_hyphens=False))


def short(said: str) -> str:
    """The message without the note where it was raised, at most 300 characters of it, safe in a table."""
    said = said.split(" (in hook ")[0].rstrip(".").replace("|", "\\|").replace("<", "&lt;")
    return said if len(said) <= 300 else said[:297] + "..."


def figures(metrics: dict[str, float]) -> str:
    wanted = ("train_loss", "eval_loss", "eval_accuracy", "eval_f1", "eval_bleu", "eval_rouge1")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in wanted if name in metrics)
