"""Run Hugging Face's example scripts with techniques, each beside the script alone.

    python -m benchmarks.scripts --scripts FOLDER [--only SCRIPT] [--quick] [--json] [--write]

FOLDER holds the scripts, whose names `runs.py` lists, as they are in transformers' `examples/pytorch/*/`
(`run_glue.py`, `run_qa.py` with `trainer_qa.py` and `utils_qa.py`, ...); TRL's are taken from the installed package.

Verdicts: **right**: it ended well, with every file, every metric and every step that the script alone has, all metrics
finite; **refused**: our error before training; **wrong**: something is missing, or the error came after training;
**raw error**: any other error. One row a script; `ours`: how many are right, `baseline`: how many there are. Gate: no
row wrong and no raw error where the script alone runs. `--quick` leaves the variants out. A/A: each script's first run
alone, held to a second of the same; `ours`: how many are right, `baseline`: how many there are. With `--write`,
`python -m benchmarks.figures` renews docs/guide/scripts.md.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Gate, Result, row
from benchmarks.scripts import guide, material
from benchmarks.scripts.judge import Ended, carry_out, command, judge, script_line
from benchmarks.scripts.runs import Run, runs

BENCHMARK = "scripts"


def measure(wanted: list[Run], scripts: Path, folder: Path) -> Iterator[Result]:
    alone: dict[tuple[str, str], Ended] = {}
    first: dict[tuple[str, tuple[str, ...]], Path] = {}
    twice: dict[str, str] = {}
    number = 0
    for script, group in groupby(wanted, key=lambda run: run.script):
        rows: list[dict[str, Any]] = []
        for run in group:
            number += 1
            output = folder / "out" / str(number)
            again = first.setdefault((script, run.techniques), output)
            ended = carry_out(command(run.techniques, script_line(run, scripts, folder, output, again)), folder, output)
            verdict, said = judge(run, ended, alone.get((script, run.variant)) if run.techniques else None)
            if not run.techniques and verdict == "right":
                alone[script, run.variant] = ended
                if script not in twice:
                    twice[script] = judge(run, second(run, scripts, folder), ended)[0]
            elif run.techniques and (script, run.variant) not in alone:
                verdict = "the script alone fails"
            line = shlex.join(script_line(run, *map(Path, ("SCRIPTS", "DATA", "OUT", "BEFORE"))))
            rows.append(
                {
                    "variant": run.variant,
                    "techniques": list(run.techniques),
                    "line": line,
                    "verdict": verdict,
                    "said": said.replace(str(folder), "DATA"),
                    "seconds": round(ended.seconds, 1),
                    "metrics": {name: round(float(value), 4) for name, value in sorted(ended.metrics.items())},
                }
            )
            print(f"{script} {run.variant} {' '.join(run.techniques)}: {verdict} {said}", file=sys.stderr, flush=True)
            if verdict in ("wrong", "raw error", "the script alone fails"):
                (folder / f"failed-{number}.log").write_text(f"{run.techniques} {line}\n" + ended.text)
        yield summary(script, rows)
    yield row(
        *(BENCHMARK, "the script alone beside itself (A/A)"),
        *(sum(verdict == "right" for verdict in twice.values()), len(twice)),
        gate=Gate("difference", "=", 0),
        conditions=report.conditions("cpu", verdicts=twice),
    )


def second(run: Run, scripts: Path, folder: Path) -> Ended:
    """The same run once more, in an output folder of its own."""
    output = folder / "out" / f"{run.script} again"
    return carry_out(command(run.techniques, script_line(run, scripts, folder, output, output)), folder, output)


def summary(script: str, rows: list[dict[str, Any]]) -> Result:
    count = {verdict: sum(one["verdict"] == verdict for one in rows) for verdict in guide.VERDICTS}
    bad = count["wrong"] + count["raw error"]
    return row(
        *(BENCHMARK, script, count["right"], len(rows)),
        also={"no row wrong, no raw error where the script alone runs": not bad},
        conditions=report.conditions("cpu", **{name: count[name] for name in guide.VERDICTS[1:]}, runs=rows),
    )


def measured(asked: Namespace) -> Iterator[Result]:
    wanted = [run for run in runs() if asked.only in (None, run.script) and not (asked.quick and run.variant)]
    scripts = (asked.scripts or Path()).resolve()
    needed = {run.script for run in wanted if not run.script.startswith("trl.")}
    if missing := sorted(name for name in needed if not (scripts / name).is_file()):
        raise SystemExit(f"--scripts {scripts}: it has no {', '.join(missing)}. Bring them from transformers.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        material.make(folder)
        yield from measure(wanted, scripts, folder)


def main() -> int:
    more = {
        "--scripts": {"type": Path, "help": "the folder of the example scripts"},
        "--only": {"choices": sorted({run.script for run in runs()}), "help": "this script alone"},
        "--keep": {"type": Path, "help": "work in this folder, and keep it"},
    }
    return report.run(BENCHMARK, __doc__, measured, more)


if __name__ == "__main__":
    raise SystemExit(main())
