"""What `low-memory` saves and what it costs; what is learned is in `low_memory_quality`.

    python -m benchmarks.low_memory [--only peak|bytes|exact|time|accumulation|resume|paper] [--quick] [--json]
        [--write] [--device cuda]

- peak: MiB of a stock run's peak and of ours, of 98 million parameters in float32, each in a process of its own: on the
  CPU the resident memory beyond what was there before the model was made, and what torch's own tracker counts
  (`counted`, with its `counted_ratio`); on a GPU `max_memory_allocated`.
- bytes: of weight, gradient and state a parameter, by what is allocated.
- exact: whether 20 steps within the backward pass give the weights of the same optimizer stepped after it.
- time: seconds of a training step, in turns.
- accumulation: one step of four micro-batches against one of the whole batch.
- resume: runs that are cut off at a step and resumed, against the run never cut off.
- paper: the estimate for seven billion parameters in bfloat16.
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator

from benchmarks import report
from benchmarks.low_memory import accumulation, exact, paper, peak, resume, time
from benchmarks.report import LeftOut, Result

PARTS = {
    "peak": peak.rows,
    "bytes": peak.bytes_rows,
    "exact": exact.rows,
    "time": time.rows,
    "accumulation": accumulation.rows,
    "resume": resume.rows,
    "paper": paper.rows,
}


def rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    for name, part in PARTS.items():
        if asked.only in (None, name):
            # Trainers print their logs.
            with contextlib.redirect_stdout(sys.stderr):
                found = list(part(asked))
            yield from found


if __name__ == "__main__":
    only = {"choices": tuple(PARTS), "help": "one part alone"}
    sys.exit(report.run("low_memory", __doc__, rows, {"--only": only}))
