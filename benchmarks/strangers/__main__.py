"""Every technique in situations as strangers bring them: right, or refused well?

    python -m benchmarks.strangers [--quick] [--json] [--only TECHNIQUE]

One row a technique and kind of situation. `ours`: how many are right; `baseline`: how many there are. What came of each
stands in `conditions`.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import groupby

import datasets
import torch

from benchmarks import report, strangers
from benchmarks.report import Result
from benchmarks.strangers.situation import Situation, judge

GATE = "no row wrong, no raw error"


def modules() -> dict[str, str]:
    """The module of each technique, by the technique's name."""
    names = [module.name for module in pkgutil.iter_modules(strangers.__path__)]
    return {name.replace("_", "-"): name for name in names if name not in ("__main__", "situation")}


def measure(technique: str, situations: list[Situation], device: str) -> Iterator[Result]:
    situations = sorted(situations, key=lambda one: one.kind)
    for kind, group in groupby(situations, key=lambda one: one.kind):
        began, found = time.monotonic(), {one.name: judge(one) for one in group}
        bad = {name: ": ".join(verdict) for name, verdict in found.items() if verdict[0] in ("wrong", "raw error")}
        for name, said in bad.items():
            print(f"{technique}, {kind}, {name}: {said}", file=sys.stderr)
        yield Result(
            benchmark="strangers",
            metric=f"{technique}: {kind}",
            ours=sum(verdict == "right" for verdict, _ in found.values()),
            baseline=len(found),
            ratio=None,
            noise=None,
            gate=GATE,
            met=not bad,
            conditions=report.conditions(
                device,
                refused=sum(verdict == "refused" for verdict, _ in found.values()),
                situations={name: ": ".join(filter(None, verdict)) for name, verdict in found.items()},
                seconds=round(time.monotonic() - began, 1),
            ),
        )


def main() -> int:
    names = modules()
    asked = report.arguments(__doc__, {"--only": {"choices": sorted(names), "help": "this technique alone"}})
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    results = []
    for technique in [asked.only] if asked.only else sorted(names):
        module = importlib.import_module(f"benchmarks.strangers.{names[technique]}")
        situations = [one for one in module.situations() if one.quick or not asked.quick]
        results += measure(technique, situations, asked.device)
    report.show(results, as_json=asked.json)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
