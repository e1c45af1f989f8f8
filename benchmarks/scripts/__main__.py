"""Run Hugging Face's example scripts with techniques, each beside the script alone.

    python -m benchmarks.scripts --scripts FOLDER [--only SCRIPT] [--quick] [--json] [--write docs/guide/scripts.md]

FOLDER holds the scripts, whose names `runs.py` lists, as they are in transformers' `examples/pytorch/*/`
(`run_glue.py`, `run_qa.py` with `trainer_qa.py` and `utils_qa.py`, ...); TRL's are taken from the installed package.

Verdicts: **right**: it ended well, with every file, every metric and every step that the script alone has, all metrics
finite; **refused**: our error before training; **wrong**: something is missing, or the error came after training;
**raw error**: any other error. One row a script; `ours`: how many are right, `baseline`: how many there are. Gate: no
row wrong and no raw error where the script alone runs. `--quick` leaves the variants out.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Result
from benchmarks.scripts import guide, material
from benchmarks.scripts.judge import Ended, carry_out, command, judge, script_line
from benchmarks.scripts.runs import Run, runs

GATE = "no row wrong, no raw error where the script alone runs"


def measure(wanted: list[Run], scripts: Path, folder: Path) -> Iterator[Result]:
    alone: dict[tuple[str, str], Ended] = {}
    first: dict[tuple[str, tuple[str, ...]], Path] = {}
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


def summary(script: str, rows: list[dict[str, Any]]) -> Result:
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in guide.VERDICTS}
    return Result(
        benchmark="scripts",
        metric=script,
        ours=count["right"],
        baseline=len(rows),
        ratio=None,
        noise=None,
        gate=GATE,
        met=not count["wrong"] and not count["raw error"],
        conditions=report.conditions("cpu", **{name: count[name] for name in guide.VERDICTS[1:]}, runs=rows),
    )


def main() -> int:
    more = {
        "--scripts": {"type": Path, "help": "the folder of the example scripts"},
        "--only": {"choices": sorted({run.script for run in runs()}), "help": "this script alone"},
        "--write": {"type": Path, "help": "write what came of the runs into this file of the documentation"},
        "--read": {"type": Path, "help": "with --write: take the results of this file (of --json) and run nothing"},
        "--keep": {"type": Path, "help": "work in this folder, and keep it"},
    }
    asked = report.arguments(__doc__, more)
    if asked.read:
        results = [Result(**json.loads(line)) for line in asked.read.read_text().splitlines()]
    else:
        wanted = [run for run in runs() if asked.only in (None, run.script) and not (asked.quick and run.variant)]
        scripts = (asked.scripts or Path()).resolve()
        needed = {run.script for run in wanted if not run.script.startswith("trl.")}
        if missing := sorted(name for name in needed if not (scripts / name).is_file()):
            raise SystemExit(f"--scripts {scripts}: it has no {', '.join(missing)}. Bring them from transformers.")
        with tempfile.TemporaryDirectory() as temporary:
            folder = (asked.keep or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            material.make(folder)
            results = list(measure(wanted, scripts, folder))
    if asked.write:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        asked.write.write_text(guide.page([asdict(result) for result in results]))
    if not asked.read:
        report.show(results, as_json=asked.json)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
