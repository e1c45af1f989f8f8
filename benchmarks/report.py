"""The frame of every benchmark: its command line, its rows and gates, what it prints and writes, and how it ends.

A benchmark module has a docstring, which `--help` prints, and a function from the command line to rows, which it hands
to `run`. No module prints rows, judges a gate or computes a noise floor itself. This module imports neither torch nor
transformers, so that what only reads results starts at once.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.results import head, write_results

RESAMPLES = 2000


@dataclass(frozen=True)
class Gate:
    """A promise about one figure of a row.

    Attributes:
        figure: "ratio", "ours", or "difference", which is ours - baseline.
        relation: how the figure must stand to `bound`.
    """

    figure: Literal["ratio", "ours", "difference"]
    relation: Literal["<=", "<", "=", ">", ">="]
    bound: float

    def __str__(self) -> str:
        return f"{self.figure} {self.relation} {self.bound:.6g}"

    def is_met(self, value: float | None, noise: float = 0.0) -> bool:
        """Whether the promise is kept after the noise, in the figure's unit, has worsened `value`."""
        if value is None or not noise >= 0:
            return False
        if self.relation in ("<=", "<"):
            value += noise
        elif self.relation in (">=", ">"):
            value -= noise
        return {
            "<=": value <= self.bound,
            "<": value < self.bound,
            "=": value == self.bound and noise == 0,
            ">": value > self.bound,
            ">=": value >= self.bound,
        }[self.relation]


@dataclass(frozen=True)
class Result:
    """One measured quantity; `row` makes it.

    Attributes:
        ours, baseline: in the metric's unit; a median or mean, as the benchmark's docstring says; None where there
            is none.
        ratio: ours / baseline, as the benchmark's docstring says.
        noise: how far `ratio` would be from 1 if nothing but chance differed (`noise_floor`), so a share of it; where
            there is no ratio, how far chance moves `ours`, in its unit.
        gate: the promise, in words; None where there is none.
        met: whether it was kept; None where there is no gate.
        conditions: everything needed to read the numbers; `quartiles`, where present, are those of the ratio, and
            `met_without_noise` is there where only the noise keeps a gate from being met.
    """

    benchmark: str
    metric: str
    ours: float | None
    baseline: float | None
    ratio: float | None
    noise: float | None
    gate: str | None
    met: bool | None
    conditions: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """Rows that could not be measured here, and why."""

    reason: str


Measured = Iterable[Result | LeftOut]


def row(
    benchmark: str,
    metric: str,
    ours: float | None,
    baseline: float | None = None,
    *,
    ratio: float | None = None,
    noise: float | None = None,
    gate: Gate | None = None,
    also: Mapping[str, bool] | None = None,
    conditions: Mapping[str, Any],
) -> Result:
    """A row, with its gate judged.

    Args:
        gate: about `ratio`, `ours` or `ours - baseline`. The noise worsens the figure: by that share of a ratio; of a
            baseline, where the figure is in the metric's unit.
        also: further promises of the same gate, in words, and whether each is kept.
    """
    met = plain = None
    if gate is not None or also:
        worsening = noise or 0.0
        plain = met = all((also or {}).values())
    if gate is not None:
        difference = None if ours is None or baseline is None else ours - baseline
        value = {"ratio": ratio, "ours": ours, "difference": difference}[gate.figure]
        scale = ratio if gate.figure == "ratio" else baseline if ratio is not None else None
        worsening *= 1.0 if scale is None else abs(scale)
        met, plain = met and gate.is_met(value, worsening), plain and gate.is_met(value)
    hidden = {"met_without_noise": True} if plain and not met else {}
    words = [*([str(gate)] if gate is not None else []), *(also or {})]
    return Result(
        benchmark, metric, ours, baseline, ratio, noise, "; ".join(words) or None, met, {**conditions, **hidden}
    )


def compared(
    benchmark: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    pairs: Mapping[tuple[str, str], Gate | None],
    again: tuple[str, str] | None,
    conditions: Mapping[str, Any],
) -> list[Result]:
    """Rows of what was measured in turns.

    Args:
        unit: of the values; with the names of the two that are compared it makes the metric's name.
        values: by name, one value a round; the same rounds in all.
        pairs: what to compare, (ours, baseline), and the gate of it. A ratio is the median over rounds of ours /
            baseline in the same round.
        again: two names of one and the same thing, (again, first): the A/A row, and the noise of the others.
    """
    arrays = {name: np.asarray(found, dtype=float) for name, found in values.items()}
    noise = None if again is None else noise_floor(arrays[again[0]] / arrays[again[1]])
    first: dict[tuple[str, str], Gate | None] = {} if again is None else {again: None}
    results = []
    for (ours, baseline), gate in {**first, **pairs}.items():
        ratios = arrays[ours] / arrays[baseline]
        results.append(
            row(
                *(benchmark, f"{unit}: {ours} against {baseline}"),
                *(float(np.median(arrays[ours])), float(np.median(arrays[baseline]))),
                ratio=float(np.median(ratios)),
                noise=noise,
                gate=gate,
                conditions={**conditions, "rounds": len(ratios), "quartiles": quartiles(ratios)},
            )
        )
    return results


def noise_floor(ratios: Sequence[float] | np.ndarray) -> float:
    """How far from 1 the median of an A/A comparison's ratios lies, in 95 % of bootstrap resamples, at most."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (RESAMPLES, len(ratios)))
    return float(np.quantile(np.abs(np.median(drawn, axis=1) - 1), 0.95))


def noise_of_mean(first: Sequence[float], again: Sequence[float]) -> float:
    """Twice the deviation of a mean of as many differences, were they those of an A/A comparison; in its unit."""
    apart = np.asarray(again, dtype=float) - np.asarray(first, dtype=float)
    return float(2 * np.sqrt(np.mean(apart**2) / len(apart)))


def quartiles(ratios: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in np.quantile(np.asarray(ratios), (0.25, 0.75))]


def conditions(device: str, **more: Any) -> dict[str, Any]:
    """Versions and device, and what the benchmark adds."""
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **more,
    }


def run(
    name: str,
    description: str | None,
    measure: Callable[[argparse.Namespace], Measured],
    more: Mapping[str, Mapping[str, Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Measure, print the rows, write them where asked to; 0 if every gate is met and something was measured, else 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    asked = arguments(description, more, argv)
    _quieten()
    began = time.monotonic()
    results, left_out = [], []
    for one in measure(asked):
        if isinstance(one, LeftOut):
            left_out.append(one.reason)
            print(f"{name}: left out: {one.reason}", file=sys.stderr, flush=True)
            continue
        results.append(one)
        if asked.json:
            print(as_json(one), flush=True)
    if not asked.json:
        show(results)
    if asked.write and left_out:
        print(f"{name}: not written, since rows were left out", file=sys.stderr)
    elif asked.write:
        file = write_results(name, asked.device, head(argv, time.monotonic() - began), map(as_json, results))
        print(f"{name}: written to {file}", file=sys.stderr)
    for one in results:
        if one.met is False:
            print(f"{name}: missed: {one.metric}: {one.gate}", file=sys.stderr)
    kept = bool(results) and all(one.met is not False for one in results)
    return 0 if kept and not (asked.write and left_out) else 1


def arguments(
    description: str | None, more: Mapping[str, Mapping[str, Any]] | None, argv: Sequence[str]
) -> argparse.Namespace:
    """The command line that all benchmarks have, and what one of them adds: flags, and argparse's settings of each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the same gates")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, nothing else on stdout")
    parser.add_argument("--write", action="store_true", help="write docs/results/NAME.json; of a whole run only")
    for flag, settings in (more or {}).items():
        parser.add_argument(flag, **settings)
    parsed = parser.parse_args(argv)
    if parsed.write and (parsed.quick or getattr(parsed, "only", None)):
        parser.error("--write is for a whole run: leave out --quick and --only.")
    if parsed.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU.")
    return parsed


def _quieten() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def as_json(result: Result) -> str:
    """One line; numbers that are not finite, which JSON does not know, as words."""
    return json.dumps(_finite(asdict(result)), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def show(results: Iterable[Result]) -> None:
    """Print the rows as a table."""
    table = Table("metric", "ours", "baseline", "ratio", "noise", "quartiles of the ratio", "gate", "met")
    for result in results:
        low_high = result.conditions.get("quartiles")
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[result.met]
        if result.conditions.get("met_without_noise"):
            verdict += ", by the noise"
        table.add_row(
            result.metric,
            _number(result.ours),
            _number(result.baseline),
            _number(result.ratio),
            f"± {result.noise:.4f}" if result.noise is not None else "",
            f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "",
            result.gate or "",
            verdict,
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
