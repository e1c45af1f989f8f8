"""What a well-kept library does as well need not be ours: four parts of `feedback`, each against the libraries for it.

- near-duplicates: `near_duplicates.py` against rensa (Rust) and datasketch, all with 64 hashes in 8 bands and a
  resemblance of 0.9. The texts are replies of OpenAssistant and of Anthropic's harmlessness transcripts, and a thousand
  of them once more with one word changed, which should be found. Memory is what a process gains by 100,000 rows.
- personal data: `personal_data.py` against presidio's pattern recognisers (without a language model, which would find
  names, too), scrubadub, and phonenumbers alone. Planted in the same replies are addresses, numbers and keys in the
  forms in which people write them; what is still readable afterwards was missed. Decoys are dates, versions, prices,
  order numbers; what is replaced in them is a false alarm.
- streaming JSON: `log_files.py` against ijson, on a list of records in one file, and on lists that Python, pandas and
  databases write. Not run here: 200 kB of opening brackets take ijson all memory that there is.
- store on disk: `spool.py` against sqlite3, pyarrow and duckdb: 100,000 texts go in one by one, and
  come out in groups of twelve neighbours, as conversations do.

Times are of the CPU, on one thread, medians of rounds in which the two sides take turns; `ratio` is ours / theirs, and
`noise` that of ours against ours. A library that is not installed is left out, with its name.

    pip install rensa datasketch presidio-analyzer scrubadub phonenumbers ijson duckdb
    python -m benchmarks.feedback_libraries [--quick] [--json]
"""

from __future__ import annotations

import importlib.util
import os
from argparse import Namespace
from collections.abc import Iterator

from benchmarks import report
from benchmarks.feedback_libraries.near_duplicates import near_duplicate_results
from benchmarks.feedback_libraries.personal_data import personal_data_results
from benchmarks.feedback_libraries.side_by_side import BENCHMARK, QUICK_ROUNDS, ROUNDS
from benchmarks.feedback_libraries.store import store_results
from benchmarks.feedback_libraries.streaming_json import streaming_results
from benchmarks.report import LeftOut, Result


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        yield LeftOut(f"not installed: {', '.join(absent)}")
    for name, part in PARTS.items():
        if asked.only in (None, name):
            yield from part(rounds)


def main() -> int:
    only = {"--only": {"choices": list(PARTS), "help": "one of the four parts"}}
    return report.run(BENCHMARK, __doc__, measured, only)


PARTS = {
    "near-duplicates": near_duplicate_results,
    "personal-data": personal_data_results,
    "streaming": streaming_results,
    "store": store_results,
}


LIBRARIES = ("rensa", "datasketch", "presidio_analyzer", "scrubadub", "phonenumbers", "ijson", "pyarrow", "duckdb")


if __name__ == "__main__":
    raise SystemExit(main())
