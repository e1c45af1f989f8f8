"""Near-duplicates: ours against rensa and datasketch, in time, in what is found, and in memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.feedback_libraries.side_by_side import QUICK_ROUNDS, Row, counted, installed, replies, timed
from benchmarks.report import Result
from hf_ft_plugins.feedback.near_duplicates import near_duplicates, signatures

HASHES, BANDS, ALIKE = 64, 8, 0.9


def near_duplicate_results(rounds: int) -> Iterator[Result]:
    rows = replies()
    draw = random.Random(0)
    draw.shuffle(rows)
    long = [row for row in rows if sum(len(text.split()) for text in row) >= 60]
    planted = [(question, changed(answer, draw)) for question, answer in draw.sample(long, 1000)]
    everything = rows + planted
    true = exact_resemblance(everything)

    def quality(flagged: np.ndarray) -> tuple[float, int]:
        """The share of the planted ones that were found, and how many rows were flagged that resemble no other."""
        return float(flagged[len(rows) :].mean()), sum(true(row) < 0.7 for row in np.flatnonzero(flagged).tolist())

    found, wrong = quality(ours_near(everything))
    of = {"rows": len(everything), "planted": len(planted), "hashes": HASHES, "bands": BANDS, "resemblance": ALIKE}
    libraries = [(name, find) for name, find in (("rensa", rensa_near), ("datasketch", datasketch_near))]
    for name, find in libraries:
        if not installed(name):
            continue
        theirs, theirs_wrong = quality(find(everything))
        yield from timed(
            f"near-duplicates, {name}",
            lambda: ours_near(everything),
            lambda find=find: find(everything),  # type: ignore[misc]
            rounds if name == "rensa" else min(rounds, QUICK_ROUNDS),
            0.5,
            **of,
        )
        yield counted(
            f"near-duplicates, planted ones found, {name}",
            found,
            theirs,
            "at most 0.03 fewer",
            found >= theirs - 0.03,
            **of,
        )
        yield counted(
            f"near-duplicates, false ones, {name}", wrong, theirs_wrong, "not more", wrong <= theirs_wrong, **of
        )
        ours_mib, theirs_mib = (memory_of(which) for which in ("ours", name))
        yield counted(
            f"near-duplicates, MiB for 100,000 rows, {name}",
            ours_mib,
            theirs_mib,
            "ratio <= 0.5",
            ours_mib <= 0.5 * theirs_mib,
        )


def changed(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    words[draw.randrange(len(words))] = "changed"
    return " ".join(words)


def ours_near(rows: Sequence[Row]) -> np.ndarray:
    made = np.concatenate([signatures(rows[at : at + 1000]) for at in range(0, len(rows), 1000)])
    return near_duplicates(made, np.zeros(len(rows), np.int64)) != np.arange(len(rows))


def shingles(row: Row) -> list[str]:
    """Pairs of neighbouring words; a text of one word is its own."""
    return [f"{one} {other}" for text in row for one, other in pairwise(text.split())] or list(row)


def rensa_near(rows: Sequence[Row]) -> np.ndarray:
    import rensa

    index = rensa.RMinHashDeduplicator(threshold=ALIKE, num_perm=HASHES, use_lsh=True, num_bands=BANDS)
    return ~np.array(index.add_pairs((str(number), shingles(row)) for number, row in enumerate(rows)))


def datasketch_near(rows: Sequence[Row]) -> np.ndarray:
    from datasketch import MinHash, MinHashLSH

    made = MinHash.bulk([[one.encode() for one in shingles(row)] for row in rows], num_perm=HASHES)
    index = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS))
    flagged = np.zeros(len(rows), bool)
    for number, one in enumerate(made):
        flagged[number] = any(made[other].jaccard(one) >= ALIKE for other in index.query(one))
        index.insert(number, one)
    return flagged


def exact_resemblance(rows: Sequence[Row]) -> Callable[[int], float]:
    """Of a row the resemblance (Jaccard's, of three words each) with the earlier row that is most like it."""
    sets, holders = [], {}  # type: ignore[var-annotated]
    for number, texts in enumerate(rows):
        words = f"{texts[0]} \0 {texts[1]}".split()
        sets.append(set(zip(words, words[1:], words[2:], strict=False)))
        for shingle in sets[-1]:
            holders.setdefault(shingle, []).append(number)

    def most_alike(row: int) -> float:
        shared = Counter(other for shingle in sets[row] for other in holders[shingle] if other < row)
        return max((n / (len(sets[row]) + len(sets[other]) - n) for other, n in shared.items()), default=0.0)

    return most_alike


def memory_of(which: str) -> float:
    """MiB that a process of its own gains while it looks for near-duplicates in 100,000 rows."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from benchmarks.feedback_libraries.near_duplicates import gain; print(gain({which!r}))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def gain(which: str) -> float:
    """See `memory_of`; texts are made and forgotten a thousand at a time, as they are when a log is read."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(4000)]
    batches = (
        [(" ".join(draw.choices(words, k=20)), " ".join(draw.choices(words, k=50))) for _ in range(1000)]
        for _ in range(100)
    )
    if which == "rensa":
        import rensa

        index = rensa.RMinHashDeduplicator(threshold=ALIKE, num_perm=HASHES, use_lsh=True, num_bands=BANDS)
    elif which == "datasketch":
        from datasketch import MinHash, MinHashLSH

        lsh, hashes = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS)), []
    before, kept, number = resident(), [], 0
    for rows in batches:
        if which == "ours":
            kept.append(signatures(rows))
        elif which == "rensa":
            kept += index.add_pairs((str(number + at), shingles(row)) for at, row in enumerate(rows))
        else:
            hashes += MinHash.bulk([[one.encode() for one in shingles(row)] for row in rows], num_perm=HASHES)
            for at in range(len(rows)):
                lsh.insert(number + at, hashes[number + at])
        number += len(rows)
    if which == "ours":
        near_duplicates(np.concatenate(kept), np.zeros(number, np.int64))
    return resident() - before


def resident() -> float:
    """MiB of this process's memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
