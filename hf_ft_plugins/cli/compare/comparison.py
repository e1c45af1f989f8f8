"""A comparison from beginning to end: the runs, the verdicts, and the files with the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ... import mends
from ...errors import PluginError
from ...technique import Technique
from ..report.command import write_report
from .outcomes import Outcome
from .picture import draw
from .running import Runs, comparison_folder
from .table import sentences, table_of
from .verdicts import WITH, WITHOUT, Comparison, judge


def compare_runs(
    techniques: Sequence[Technique],
    command: Sequence[str],
    output: Path,
    *,
    console: Console,
    as_json: bool,
    seeds: int = 1,
) -> None:
    """Run `hf-ft run` on `command` (options, script and its arguments) without and with techniques, then show both.

    Args:
        seeds: how often, each time with the script's own seed moved by one more.

    Raises:
        PluginError: a run failed or built no Trainer, the text ending with the last lines that it printed; or `output`
            cannot be used.
    """
    if seeds < 1:
        raise PluginError(
            f"compare: --seeds {seeds} runs nothing. Use 1 or more; 3 tell a difference from noise.",
            code="command-line",
            mend=[mends.add_flag("--seeds", 3)],
        )
    with comparison_folder(output):
        outcomes = _both(techniques, command, output, seeds)
        compared = judge(outcomes, techniques)
        _write(output, compared)
        title = " + ".join(map(str, techniques))
        picture = draw(outcomes, output / "compare.png", title=title)
        page, _ = write_report([output], None, f"Without and with {title}")
    if as_json:
        print(json.dumps(compared.as_dict(), indent=1))
        return
    console.print(table_of(compared.rows, title, seeds))
    for sentence in sentences(compared):
        console.print(sentence)
    files = f"page: {page}   picture: {picture}   table: {output / 'compare.json'}   output of the runs: {output}/*.log"
    console.print(escape(files))


def _both(
    techniques: Sequence[Technique], command: Sequence[str], output: Path, seeds: int
) -> dict[str, list[Outcome]]:
    recipe = output / "recipe.yaml"
    # JSON, which is YAML, holds any text.
    options = [{technique.name: technique.changed_options()} for technique in techniques]
    recipe.write_text(json.dumps({"techniques": options}, indent=1), encoding="utf-8")
    chosen = {WITHOUT: [], WITH: ["--recipe", str(recipe.resolve())]}
    outcomes: dict[str, list[Outcome]] = {WITHOUT: [], WITH: []}
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with progress:
        runs = Runs(output, command, progress)
        for seed in range(seeds):
            # In turns, as what runs first finds the disk's cache cold.
            for which in (WITHOUT, WITH) if seed % 2 == 0 else (WITH, WITHOUT):
                outcomes[which].append(runs.run(which, seed, chosen[which]))
    return outcomes


def _write(output: Path, compared: Comparison) -> None:
    (output / "compare.json").write_text(json.dumps(compared.as_dict(), indent=1), encoding="utf-8")
