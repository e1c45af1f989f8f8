"""What the benchmarks share: the command line, one row of a result, the noise floor, and how rows are printed."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """One measured quantity.

    Attributes:
        ours, baseline: in the metric's unit; a median or mean, as the benchmark's docstring says; None where there
            is none.
        ratio: ours / baseline, as the benchmark's docstring says.
        noise: how far `ratio` would be from 1 if nothing but chance differed (`noise_floor`).
        gate: the promise, in words; None where there is none.
        met: whether it was kept; None where there is no gate.
        conditions: everything needed to read the numbers; `quartiles`, where present, are those of the ratio.
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


def arguments(description: str | None, more: Mapping[str, Mapping[str, Any]] | None = None) -> argparse.Namespace:
    """The command line that all benchmarks have, and what one of them adds: flags, and argparse's settings of each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the same gates")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, nothing else on stdout")
    for flag, settings in (more or {}).items():
        parser.add_argument(flag, **settings)
    parsed = parser.parse_args()
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU.")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return parsed


def conditions(device: str, **more: Any) -> dict[str, Any]:
    """Versions and device, and what the benchmark adds."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **more,
    }


def noise_floor(ratios: Sequence[float]) -> float:
    """How far from 1 the median of an A/A comparison's ratios lies, in 95 % of bootstrap resamples, at most."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (RESAMPLES, len(ratios)))
    return float(np.quantile(np.abs(np.median(drawn, axis=1) - 1), 0.95))


def quartiles(ratios: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in np.quantile(np.asarray(ratios), (0.25, 0.75))]


def show(results: Iterable[Result], *, as_json: bool) -> None:
    """Print the rows: as a table, or one JSON object a line."""
    if as_json:
        for result in results:
            print(json.dumps(asdict(result)), flush=True)
        return
    table = Table("metric", "ours", "baseline", "ratio", "noise", "quartiles", "gate", "met")
    for result in results:
        low_high = result.conditions.get("quartiles")
        table.add_row(
            result.metric,
            _number(result.ours),
            _number(result.baseline),
            _number(result.ratio),
            f"± {result.noise:.4f}" if result.noise is not None else "",
            f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "",
            result.gate or "",
            {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[result.met],
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
