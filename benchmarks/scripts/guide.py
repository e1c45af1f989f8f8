"""The page of the documentation that says what came of each run."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

VERDICTS = ("right", "refused", "wrong", "raw error", "the script alone fails")
BEGIN = """\
# Hugging Face's example scripts, unedited

Made by `python -m benchmarks.scripts --scripts SCRIPTS --write docs/guide/scripts.md`. SCRIPTS is a folder with the
scripts of transformers' `examples/pytorch/*/`, which you bring from their repository; TRL's are those of the installed
package. No script was edited. DATA is a folder of tiny checkpoints (four layers of width 16) and files that the
command makes, OUT the output folder, BEFORE the output of the same techniques' first run. `evaluate` and `nltk` are
replaced by small stand-ins (`benchmarks/scripts/stand_ins`), since they load code and data from a hub. A command line
begins with what the first column of its table says.

**right**: the run ended well, with every file, metric and step that the script alone has, and all metrics finite.
**refused**: our error, before anything was trained. **wrong**, **raw error**: neither. A run of six steps shows that a
script works, not that a technique helps it: for that see the README's figures.
"""


def page(results: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    return "\n".join([BEGIN, versions(results), *overview(results), *(part for one in results for part in script(one))])


def versions(results: list[dict[str, Any]]) -> str:
    where = results[0]["conditions"]
    return (
        f"Python {where['python']}, torch {where['torch']}, transformers {where['transformers']}, {where['device']}.\n"
    )


def overview(results: list[dict[str, Any]]) -> list[str]:
    rows = [f"| script | runs | {' | '.join(VERDICTS)} |", f"| --- | {'--- | ' * (len(VERDICTS) + 1)}".rstrip()]
    for one in results:
        counts = [int(one["ours"]), *(one["conditions"][name] for name in VERDICTS[1:])]
        rows.append(f"| `{one['metric']}` | {int(one['baseline'])} | {' | '.join(map(str, counts))} |")
    return [*rows, ""]


def script(result: dict[str, Any]) -> list[str]:
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
