"""From the runs to the rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.adaptive_lr.runs import Measured
from benchmarks.adaptive_lr.settings import BENCHMARK, METRICS, Setting
from benchmarks.report import Gate, Result, noise_floor, quartiles


def worst(values: np.ndarray) -> float:
    return float(values.mean(axis=1).max())


def headline_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    """The gated quantities, for every row but the baseline."""
    stock, again = measured[setting.stock], measured[setting.again]
    kept = "best" if setting.eval_steps else "end"
    tuned = int(stock["dev loss"].mean(axis=1).argmin())
    more = {**about, "baseline": setting.stock, "baseline_best_rate": setting.rates[tuned]}

    def result(
        row: str, metric: str, values: tuple[float, float], seeds: list[np.ndarray], gate: Gate | None
    ) -> Result:
        ours, aa, baseline = seeds
        return report.row(
            *(BENCHMARK, f"{setting.name}: {row}: {metric}", *values),
            ratio=values[0] / values[1],
            noise=noise_floor(aa / baseline),
            gate=gate if row == setting.gated else None,
            conditions={**more, "quartiles": quartiles(ours / baseline)},
        )

    for row in setting.rows:
        if row == setting.stock:
            continue
        run = measured[row]
        others: list[tuple[str, str, Gate | None]] = [("best", "best", None), ("end", "end", None)]
        for ours_at, stock_at, gate in (
            ("end", kept, Gate("ratio", "<=", setting.gate)),
            *(others if setting.eval_steps else ()),
        ):
            values = worst(run[f"NLL {ours_at}"]), worst(stock[f"NLL {stock_at}"])
            seeds = [run[f"NLL {ours_at}"], again[f"NLL {stock_at}"], stock[f"NLL {stock_at}"]]
            metric = f"worst-rate NLL, {ours_at} against the baseline's {stock_at}"
            yield result(row, metric, values, [one.max(axis=0) for one in seeds], gate)
        values = worst(run["NLL end"]), float(stock[f"NLL {kept}"][tuned].mean())
        seeds = [run["NLL end"].max(axis=0), again[f"NLL {kept}"][tuned], stock[f"NLL {kept}"][tuned]]
        metric = f"worst-rate NLL, end against the baseline's {kept} at its best rate"
        yield result(row, metric, values, seeds, Gate("ratio", "<=", 1.05))
        steps = [one["steps"].mean(axis=0) for one in (run, again, stock)]
        values = float(steps[0].mean()), float(steps[2].mean())
        yield result(row, "steps, mean over rates", values, steps, Gate("ratio", "<=", 0.6))
        for ours_at in ("end", "best") if setting.eval_steps else ("end",):
            seeds = [run[f"accuracy {ours_at}"], again[f"accuracy {kept}"], stock[f"accuracy {kept}"]]
            seeds = [one[tuned] for one in seeds]
            metric = f"accuracy at the baseline's best rate, {ours_at} against its {kept}"
            gate = Gate("difference", ">=", -0.01) if ours_at == "end" else None
            yield result(row, metric, (float(seeds[0].mean()), float(seeds[2].mean())), seeds, gate)


def detail_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    """Every row, rate and metric against the baseline at the same rate, without gates."""
    stock = measured[setting.stock]
    for row in setting.rows:
        for index, rate in enumerate(setting.rates):
            for name in METRICS if setting.eval_steps else [name for name in METRICS if "best" not in name]:
                ours, baseline = measured[row][name][index], stock[name][index]
                yield report.row(
                    *(BENCHMARK, f"{setting.name}: {row}: {name} at {rate:g}"),
                    *(float(ours.mean()), float(baseline.mean())),
                    ratio=float(ours.mean() / baseline.mean()),
                    noise=noise_floor(measured[setting.again][name][index] / baseline),
                    conditions={
                        **about,
                        "quartiles": quartiles(ours / baseline),
                        "deviation": float(ours.std()),
                        "over_seeds": ours.tolist(),
                    },
                )
