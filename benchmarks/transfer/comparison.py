"""What the rows gain over stock, at the best rate of each, and the gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Gate, Result, noise_floor, quartiles
from benchmarks.transfer.images import SHIFTS
from benchmarks.transfer.runs import Measured
from benchmarks.transfer.settings import AGAIN, BENCHMARK, OURS, STOCK, Setting


def at_its_best(run: dict[str, np.ndarray]) -> tuple[int, np.ndarray, np.ndarray | None]:
    """The best rate by dev accuracy, and the seeds' accuracies in and out of distribution there."""
    best = int(run["dev"].mean(axis=1).argmax())
    out = [run[name][best] for name in SHIFTS if name in run]
    return best, run["test"][best], np.mean(out, axis=0) if out else None


def results_of(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    name = setting.name
    _, stock, stock_out = at_its_best(measured[STOCK])
    _, again, again_out = at_its_best(measured[AGAIN])
    for row in setting.rows:
        if row == STOCK:
            continue
        best, inside, outside = at_its_best(measured[row])
        for metric, ours, base, aa in (
            ("in distribution", inside, stock, again),
            ("out of distribution", outside, stock_out, again_out),
        ):
            if ours is None or base is None or aa is None:
                continue
            yield report.row(
                *(BENCHMARK, f"{name}: {row}: accuracy {metric}", float(ours.mean()), float(base.mean())),
                ratio=float(ours.mean() / base.mean()),
                noise=noise_floor(aa / base),
                gate=gate_of(name, metric) if row in OURS else None,
                conditions={
                    **about,
                    "rate": setting.rates[best],
                    "quartiles": quartiles(ours / base),
                    "over_seeds": ours.tolist(),
                    "stock_over_seeds": base.tolist(),
                    "by_rate": {
                        f"{rate:g}": {
                            part: [float(found[index].mean()), float(found[index].std())]
                            for part, found in measured[row].items()
                        }
                        for index, rate in enumerate(setting.rates)
                    },
                },
            )


def gate_of(setting: str, metric: str) -> Gate:
    """In points, but for digits out of distribution."""
    if metric == "out of distribution":
        return Gate("ratio", ">=", 1.8) if setting == "digits" else Gate("difference", ">=", 5)
    return Gate("difference", ">=", 1)
