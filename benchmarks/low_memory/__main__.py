import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator

import benchmarks.low_memory
from benchmarks import report
from benchmarks.low_memory import accumulation, exact, paper, peak, quality, resume, time
from benchmarks.report import LeftOut, Result

PARTS = {
    "peak": peak.rows,
    "bytes": peak.bytes_rows,
    "exact": exact.rows,
    "time": time.rows,
    "quality": quality.rows,
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
    sys.exit(report.run("low_memory", benchmarks.low_memory.__doc__, rows, {"--only": only}))
