"""`hf-ft compare`: one script, without and with techniques, side by side as a table and a picture."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import PluginError
from ..metrics import greater_is_better, without_set_name
from ..technique import Technique

WITHOUT, WITH = "without", "with"
MEGABYTE = 1024 * 1024
# Of Trainer's log: how fast, how much, when; not how good.
NOT_METRICS = ("_runtime", "_per_second", "epoch", "step", "total_flos", "num_input_tokens_seen", "learning_rate")
EVALUATED = re.compile(r"eval_(.+)_runtime")


@dataclass(frozen=True)
class Outcome:
    """One finished run: what its trainers logged and what it cost.

    Attributes:
        history: `log_history` of all its trainers, one after the other.
        wall, cpu: seconds, of the whole process.
        peak: bytes, of main memory; gpu_peak: of GPU memory.
    """

    history: list[dict[str, Any]]
    steps: int
    wall: float
    cpu: float
    peak: int
    gpu_peak: int

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity."""
        points = [(entry["step"], entry[key]) for entry in self.history if isinstance(entry.get(key), (int, float))]
        return [step for step, _ in points], [value for _, value in points]

    def final_metrics(self) -> dict[str, float]:
        """The last value of every metric, in order of appearance; of what was evaluated repeatedly, the best too.

        What a technique logs about its own decisions (`NAME/action` and its neighbours) is none.
        """
        found: dict[str, list[float]] = {}
        for entry in self.history:
            own = tuple(key.removesuffix("action") for key in entry if key.endswith("/action"))
            for key, value in entry.items():
                if isinstance(value, (int, float)) and not key.endswith(NOT_METRICS) and not key.startswith(own):
                    found.setdefault(key, []).append(float(value))
        for key in ("loss", "grad_norm"):
            found.pop(key, None)
        final = {key: values[-1] for key, values in found.items()}
        for key, values in found.items():
            greater = self.direction(key)
            if len(values) > 2 and greater is not None:
                final[f"best {key}"] = max(values) if greater else min(values)
        return final

    def direction(self, key: str) -> bool | None:
        """Whether a logged metric is better when greater; None where its name does not say."""
        # Trainer logs the time that each evaluation set took under the set's own name.
        timed = [EVALUATED.fullmatch(other) for entry in self.history for other in entry]
        return greater_is_better(without_set_name(key, {match[1] for match in timed if match}))


def compare_runs(
    techniques: Sequence[Technique], command: Sequence[str], output: Path, *, console: Console, as_json: bool
) -> None:
    """Run `hf-ft run` twice on `command` (options, script and its arguments), then print and draw both.

    Raises:
        PluginError: a run failed or built no Trainer; the text ends with the last lines that it printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    recipe = output / "recipe.yaml"
    # JSON, which is YAML: unlike the string form it holds any text.
    said = [{technique.name: technique.changed_options()} for technique in techniques]
    recipe.write_text(json.dumps({"techniques": said}, indent=1), encoding="utf-8")
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
        outcomes = {
            WITHOUT: _run([], command, output, WITHOUT, progress),
            WITH: _run(["--recipe", str(recipe.resolve())], command, output, WITH, progress),
        }
    picture = draw(outcomes, output / "compare.png", title=" + ".join(map(str, techniques)))
    rows = _rows(outcomes)
    (output / "compare.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console.print(_table(rows, techniques))
    console.print(_verdict(rows))
    console.print(f"picture: {picture}   table: {output / 'compare.json'}   output of both runs: {output}/*.log")


def _run(chosen: list[str], command: Sequence[str], output: Path, which: str, progress: Progress) -> Outcome:
    record, log = output / f"{which}.json", output / f"{which}.log"
    record.unlink(missing_ok=True)
    # A script may change its working directory before the record is written.
    options = ["--record", str(record.resolve()), "--output-subfolder", which]
    bar = progress.add_task(f"{which} the techniques", total=None)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_ft_plugins", "run", *chosen, *options, *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        ended = threading.Event()
        watcher = threading.Thread(target=_show_progress, args=(record, progress, bar, ended), daemon=True)
        watcher.start()
        try:
            # wait4 also gives what the process used; Popen.wait does not.
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - start
    content = _read(record)
    if process.returncode != 0 or "trainers" not in content:
        last = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-15:])
        what = f"ended with status {process.returncode}" if process.returncode else "trained nothing"
        raise PluginError(f"compare: the run {which} the techniques {what}. Its last lines ({log}):\n{last}")
    progress.update(bar, total=content["step"], completed=content["step"])
    return Outcome(
        history=[entry for history in content["trainers"] for entry in history],
        steps=content["step"],
        wall=wall,
        cpu=used.ru_utime + used.ru_stime,
        peak=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        gpu_peak=content["gpu_bytes"],
    )


def _show_progress(record: Path, progress: Progress, bar: Any, ended: threading.Event) -> None:
    while not ended.wait(0.2):
        content = _read(record)
        if content:
            progress.update(bar, total=content["max_steps"], completed=content["step"])


def _read(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def _rows(outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """A row for each quantity: name, both values, and whether the second is better (None: no difference or no say)."""
    before, after = outcomes[WITHOUT], outcomes[WITH]
    metrics = {which: outcome.final_metrics() for which, outcome in outcomes.items()}
    rows = [
        _row(key, metrics[WITHOUT].get(key), metrics[WITH].get(key), after.direction(key.removeprefix("best ")))
        for key in {**metrics[WITHOUT], **metrics[WITH]}
    ]
    for row in rows:
        if row["name"] == "train_loss":
            # The mean over all steps taken: lower after more steps, or after learning wrong labels by heart.
            row["better"] = None
    rows.append(_row("optimizer steps", before.steps, after.steps, greater=False))
    rows.append(_row("wall time, s", round(before.wall, 1), round(after.wall, 1), greater=False))
    rows.append(_row("CPU time, s", round(before.cpu, 1), round(after.cpu, 1), greater=False))
    rows.append(_row("peak memory, MB", before.peak // MEGABYTE, after.peak // MEGABYTE, greater=False))
    if before.gpu_peak or after.gpu_peak:
        row = _row("peak GPU memory, MB", before.gpu_peak // MEGABYTE, after.gpu_peak // MEGABYTE, greater=False)
        rows.append(row)
    return rows


def _row(name: str, before: float | None, after: float | None, greater: bool | None) -> dict[str, Any]:
    better = None
    if before is not None and after is not None:
        if math.isnan(before) != math.isnan(after):
            better = math.isnan(before)
        elif greater is not None and before != after and not math.isnan(before):
            better = (after > before) == greater
    return {"name": name, WITHOUT: before, WITH: after, "better": better}


def _table(rows: list[dict[str, Any]], techniques: Sequence[Technique]) -> Table:
    table = Table("", WITHOUT, f"{WITH} {' + '.join(map(str, techniques))}", "change", header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        colour = {True: "green", False: "red", None: "default"}[row["better"]]
        table.add_row(row["name"], _number(row[WITHOUT]), f"[{colour}]{_number(row[WITH])}[/]", _change(row))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _change(row: dict[str, Any]) -> str:
    before, after = row[WITHOUT], row[WITH]
    if not before or after is None or not math.isfinite(before) or not math.isfinite(after):
        return ""
    return f"{(after - before) / abs(before):+.1%}"


def _verdict(rows: list[dict[str, Any]]) -> str:
    """One line: the last metrics that were measured (a test set's, if the script has one), and the steps."""
    metrics = [row for row in rows if row["name"].partition("_")[0] in ("test", "eval", "predict")]
    prefix = metrics[-1]["name"].partition("_")[0] if metrics else ""
    said = [
        f"{row['name']} {_number(row[WITHOUT])} → {_number(row[WITH])} "
        + (
            "same"
            if row[WITHOUT] == row[WITH]
            else {True: "[green]better[/]", False: "[red]worse[/]"}.get(row["better"], "")
        )
        for row in metrics
        if row["name"].startswith(prefix)
    ]
    steps = next(row for row in rows if row["name"] == "optimizer steps")
    return "; ".join([*said, f"{_number(steps[WITHOUT])} → {_number(steps[WITH])} steps"])


def draw(outcomes: dict[str, Outcome], file: Path, *, title: str) -> Path:
    """Loss, one metric and the learning rate of both runs over the steps, decisions marked, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = ["loss", *_evaluated(outcomes), "learning_rate"]
    figure, panels = pyplot.subplots(1, len(keys), figsize=(4.2 * len(keys), 3.6), constrained_layout=True)
    for panel, key in zip(panels, keys, strict=True):
        for which, colour in ((WITHOUT, "#888888"), (WITH, "#0072b2")):
            steps, values = outcomes[which].series(key)
            panel.plot(steps, values, color=colour, label=which, marker="." if len(steps) < 40 else "", linewidth=1.6)
        for entry in outcomes[WITH].history:
            for action, step in _decisions(entry):
                style = "-" if action == "stop" else ":"
                panel.axvline(step, color="#d55e00", linewidth=0.9, linestyle=style)
        panel.set_title({"loss": "training loss", "learning_rate": "learning rate, as applied"}.get(key, key))
        panel.set_xlabel("optimizer step")
        panel.grid(alpha=0.25)
        if key == "learning_rate" and any(value > 0 for value in outcomes[WITH].series(key)[1]):
            panel.set_yscale("log")
    panels[0].legend(frameon=False)
    figure.suptitle(f"without and with {title}   (dotted: it decided something; solid: it stopped)", fontsize=10)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _decisions(entry: dict[str, Any]) -> list[tuple[str, int]]:
    """The decisions that a log entry tells of, and when they were made: `NAME/action` and `NAME/step`."""
    return [
        (action, entry.get(key.removesuffix("action") + "step", entry["step"]))
        for key, value in entry.items()
        if key.endswith("/action")
        for action in str(value).split(", ")
    ]


def _evaluated(outcomes: dict[str, Outcome]) -> list[str]:
    """The evaluation's loss and its first other metric, where there are any."""
    keys = [
        key
        for entry in outcomes[WITHOUT].history
        for key in entry
        if key.startswith("eval_") and not key.endswith(NOT_METRICS)
    ]
    unique = list(dict.fromkeys(keys))
    return unique[:2]
