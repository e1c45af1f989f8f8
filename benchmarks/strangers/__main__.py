"""Every technique in situations as strangers bring them: right, or refused well?

    python -m benchmarks.strangers [--quick] [--json] [--write] [--only TECHNIQUE]

One row a technique and kind of situation. `ours`: how many are right; `baseline`: how many there are. What came of each
stands in `conditions`. A/A, one row a technique: the first situation of each kind is judged a second time; `ours`: how
many have the same verdict, `baseline`: how many there are.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from itertools import groupby

import datasets
import torch

from benchmarks import report, strangers
from benchmarks.report import Gate, Result, row
from benchmarks.strangers.situation import Situation, judge

BENCHMARK = "strangers"


def modules() -> dict[str, str]:
    """The module of each technique, by the technique's name."""
    names = [module.name for module in pkgutil.iter_modules(strangers.__path__)]
    return {name.replace("_", "-"): name for name in names if name not in ("__main__", "situation")}


def measure(technique: str, situations: list[Situation], device: str) -> Iterator[Result]:
    situations = sorted(situations, key=lambda one: one.kind)
    alike: dict[str, bool] = {}
    for kind, group in groupby(situations, key=lambda one: one.kind):
        of_kind = list(group)
        began, found = time.monotonic(), {one.name: judge(one) for one in of_kind}
        seconds = round(time.monotonic() - began, 1)
        bad = {name: ": ".join(verdict) for name, verdict in found.items() if verdict[0] in ("wrong", "raw error")}
        for name, said in bad.items():
            print(f"{technique}, {kind}, {name}: {said}", file=sys.stderr)
        alike[f"{kind}, {of_kind[0].name}"] = judge(of_kind[0])[0] == found[of_kind[0].name][0]
        yield row(
            *(BENCHMARK, f"{technique}: {kind}"),
            *(sum(verdict == "right" for verdict, _ in found.values()), len(found)),
            also={"no row wrong, no raw error": not bad},
            conditions=report.conditions(
                device,
                refused=sum(verdict == "refused" for verdict, _ in found.values()),
                situations={name: ": ".join(filter(None, verdict)) for name, verdict in found.items()},
                seconds=seconds,
            ),
        )
    yield row(
        *(BENCHMARK, f"{technique}: judged alike a second time (A/A)", sum(alike.values()), len(alike)),
        gate=Gate("difference", "=", 0),
        conditions=report.conditions(device, judged_otherwise=[name for name, same in alike.items() if not same]),
    )


def measured(asked: Namespace) -> Iterator[Result]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    names = modules()
    for technique in [asked.only] if asked.only else sorted(names):
        module = importlib.import_module(f"benchmarks.strangers.{names[technique]}")
        situations = [one for one in module.situations() if one.quick or not asked.quick]
        yield from measure(technique, situations, asked.device)


def main() -> int:
    more = {"--only": {"choices": sorted(modules()), "help": "this technique alone"}}
    return report.run(BENCHMARK, __doc__, measured, more)


if __name__ == "__main__":
    raise SystemExit(main())
