"""What `sequential` keeps of earlier stages, what it costs, and whether it is exact.

    python -m benchmarks.sequential [--quick] [--json] [--write] [--device cuda] [--only PART]

- digits, text, sentences: three stages each (`tasks.py`). The baseline is a stock Trainer, stage after stage, with the
  same data, seeds, settings and number of passes over each stage's own rows; of the average accuracy, joint training
  is a row, too. "Forgotten" is the mean over the earlier stages of what their metric has lost since their own end;
  "left" is that of ours as a share of stock's. `ours` and `baseline` are means over seeds. `noise` is that of stock
  against itself with the next seed. Settings were chosen on seed 100.
- cost: seconds of processor time a step, in turns with stock; the first row is stock against stock.
- exact: penalties' gradients in 64 bits, and accumulation.
- killed: runs of three stages that were killed and run again, against one that was not.
"""

from __future__ import annotations

import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from benchmarks import report
from benchmarks.report import LeftOut, Result
from benchmarks.sequential import cost, exact, forgetting, killed

BENCHMARK = "sequential"
TASKS = tuple(forgetting.MEASURED)
PARTS = (*TASKS, "killed", "exact", "cost")


def rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    parts = PARTS if asked.only is None else (asked.only,)
    chosen = [name for name in TASKS if name in parts]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        ended = killed.begun(asked, pool) if "killed" in parts else None
        if chosen:
            yield from forgetting.rows(chosen, asked)
        if ended is not None:
            yield from killed.rows(ended)
    if "exact" in parts:
        yield from exact.rows(asked)
    # Alone, since it is timed.
    if "cost" in parts:
        yield from cost.rows(asked)


if __name__ == "__main__":
    only = {"--only": {"choices": PARTS, "help": "one part"}}
    sys.exit(report.run(BENCHMARK, __doc__, rows, only))
