"""Runs that are cut off at a step and resumed, against the run that was never cut off."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.report import Gate, Result
from hf_ft_plugins.testing import difference, tiny_trainer
from hf_ft_plugins.testing.resuming import outcome, resumed

BENCHMARK = "low_memory"
ALGORITHMS = (
    *("script", "adamw-8bit", "compact-adamw", "lomo", "adalomo", "galore:rank=4,update_gap=3"),
    *("apollo:rank=4,update_gap=3", "apollo-mini:update_gap=3", "sinkgd", "muon"),
    *("lisa:active_layers=1,switch_every=3", "badam:switch_every=3", "mezo"),
)
STOPS = (3, 6, 7, 9)


def rows(asked: Namespace) -> Iterator[Result]:
    equal = {}
    for algorithm in ALGORITHMS:
        name, _, options = algorithm.partition(":")
        technique = f"low-memory:algorithm={name}" + (f",{options}" if options else "")
        setting = {"gradient_accumulation_steps": 1, "use_cpu": asked.device == "cpu"}
        with tempfile.TemporaryDirectory() as folder:
            straight = tiny_trainer(Path(folder) / "straight", technique, **setting)
            straight.train()
            expected = outcome(straight)
            for stop in STOPS[-1:] if asked.quick else STOPS:
                again = resumed(Path(folder) / f"resumed-{stop}", technique, stop_at=stop, **setting)
                equal[f"{name}, step {stop}"] = difference(expected, outcome(again)) is None
    yield report.row(
        *(BENCHMARK, "runs that were cut off and end with the bits of the run never cut off, of all that were tried"),
        *(float(sum(equal.values())), float(len(equal))),
        gate=Gate("difference", "=", 0),
        conditions=report.conditions(asked.device, equal=equal),
    )
