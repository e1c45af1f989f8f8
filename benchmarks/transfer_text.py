"""What transfer gains on few sentences against stock fine-tuning: the read-out by cross-validation.

    python -m benchmarks.transfer_text [--device cuda] [--quick] [--json] [--write]

MiniLM-L6 on 8, 32 or 128 sentences a class, of film reviews (sentiment) or objective and subjective ones, tested in
distribution; all rows with the same sentences, steps and batches. Needs the folder FT_DATA (default ../shared/data).

A row's rate is, for each of both sets, the one of three with the best mean accuracy on dev data over two other seeds
(100 and 101), with 32 sentences a class. `ours` and `baseline` are mean accuracies over seeds, in points; `noise` is
twice the deviation of a mean's difference, from stock against itself with another initialization and order of the data
(A/A). Gates, in points: +3 at 8 and 32 a class, not below at 128.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from statistics import mean

from benchmarks import report
from benchmarks.data import has_reviews
from benchmarks.report import Gate, LeftOut, Result, noise_of_mean, quartiles
from benchmarks.transfer.runs import run_all, threads_of
from benchmarks.transfer.sentences import FOLDERS
from benchmarks.transfer.settings import AGAIN, OURS, STOCK, settings

BENCHMARK = "transfer_text"
CHOOSING, CHOOSING_ON = (100, 101), " 32 "
ROWS = (STOCK, AGAIN, OURS[0])


def _chosen_on(name: str, settings: Iterable[str]) -> str:
    return next(one for one in settings if CHOOSING_ON in one and one.split()[0] == name.split()[0])


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not has_reviews():
        yield LeftOut("FT_DATA names no folder with reviews")
        return
    found = {name: one for name, one in settings(asked.quick).items() if name.startswith(tuple(FOLDERS))}
    common = asked.device, threads_of(asked.device), asked.quick
    tried = run_all(
        [
            (name, row, rate, seed, *common)
            for name, setting in found.items()
            if CHOOSING_ON in name and len(setting.rates) > 1
            for seed in CHOOSING
            for rate in setting.rates
            for row in (STOCK, OURS[0])
        ],
        asked.device,
    )
    rates = {
        (name, row): max(
            setting.rates,
            key=lambda rate, name=name, row=row: mean(
                tried[_chosen_on(name, found), row, rate, seed, *common]["dev"] if tried else 0.0 for seed in CHOOSING
            ),
        )
        for name, setting in found.items()
        for row in (STOCK, OURS[0])
    }
    rates |= {(name, AGAIN): rates[name, STOCK] for name in found}
    seeds = range(1 if asked.quick else 10)
    jobs = {
        (name, row): [(name, row, rates[name, row], seed, *common) for seed in seeds] for name in found for row in ROWS
    }
    in_turns = [jobs[name, row][seed] for name in found for seed in seeds for row in ROWS]
    runs = run_all(in_turns, asked.device)
    for name, setting in found.items():
        scores = {row: [runs[job]["test"] for job in jobs[name, row]] for row in ROWS}
        noise = noise_of_mean(scores[STOCK], scores[AGAIN])
        about = report.conditions(asked.device, seeds=len(seeds), max_steps=setting.steps, over_seeds=scores)
        for row in ROWS[1:]:
            ratios = [ours / stock for ours, stock in zip(scores[row], scores[STOCK], strict=True)]
            yield report.row(
                *(BENCHMARK, f"{name}: accuracy, {row}", mean(scores[row]), mean(scores[STOCK])),
                noise=noise,
                gate=Gate("difference", ">=", 0 if "128" in name else 3) if row == OURS[0] else None,
                conditions=about
                | {"rate": rates[name, row], "stock_rate": rates[name, STOCK], "quartiles": quartiles(ratios)},
            )


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
