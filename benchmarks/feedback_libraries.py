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
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.behavioral_logs import HH, OASST, hh_pairs, oasst_pairs
from benchmarks.report import Gate, LeftOut, Result, compared, conditions, row
from hf_ft_plugins.feedback.log_files import Reading, records_of
from hf_ft_plugins.feedback.near_duplicates import near_duplicates, signatures
from hf_ft_plugins.feedback.personal_data import Scrubber
from hf_ft_plugins.feedback.spool import Spool

BENCHMARK = "feedback_libraries"
HASHES, BANDS, ALIKE = 64, 8, 0.9
ROUNDS, QUICK_ROUNDS = 9, 3
Row = tuple[str, str]


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


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def timed(
    metric: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, most: float | None, **more: Any
) -> Iterator[Result]:
    """Seconds of the CPU; the gate is a ratio of at most `most`, after the noise has worsened it."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "again": []}
    for _ in range(rounds):
        for name, work in (("ours", ours), ("theirs", theirs), ("again", ours)):
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    gate = None if most is None else Gate("ratio", "<=", most)
    pairs = {("ours", "theirs"): gate}
    yield from compared(BENCHMARK, f"{metric} (s)", seconds, pairs, ("again", "ours"), conditions("cpu", **more))


def counted(metric: str, ours: float, theirs: float | None, gate: str | None, met: bool | None, **more: Any) -> Result:
    """A quality: a share or a number, the same in each round."""
    ratio = None if not theirs else ours / theirs
    also = None if gate is None else {gate: bool(met)}
    return row(BENCHMARK, metric, ours, theirs, ratio=ratio, also=also, conditions=conditions("cpu", **more))


# Texts


def replies() -> list[Row]:
    """Questions and replies of people; made-up words where the data sets are not there."""
    if OASST.is_file() and HH.is_file():
        pairs = oasst_pairs() + hh_pairs()
        found = [(row["prompt"][-1]["content"], row[side][0]["content"]) for row in pairs for side in SIDES]
        return list(dict.fromkeys(found))
    print("left out: real replies; made-up words stand for them", file=sys.stderr)
    draw = random.Random(0)
    words = [f"word{number}" for number in range(4000)]
    return [
        (" ".join(draw.choices(words, k=20)), " ".join(draw.choices(words, k=draw.randrange(20, 120))))
        for _ in range(5000)
    ]


SIDES = ("chosen", "rejected")


# Near-duplicates


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
        [sys.executable, "-c", f"from benchmarks.feedback_libraries import gain; print(gain({which!r}))"],
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


# Personal data

Replace = Callable[[str], str]
PLANTED: dict[str, tuple[str, ...]] = {
    "EMAIL": (
        "jane.doe@example.org",
        "j_d+shop@mail.example.co.uk",
        "info@m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller.de",
    ),
    "PHONE": (
        *("+49 30 1234567", "+1 212 555 0123", "+44 20 7946 0958", "+33 1 42 68 53 00", "(212) 555-0123"),
        *("212-555-0123", "030 1234 5678", "0049 30 1234567", "+4915123456789", "020 7946 0958"),
    ),
    "CARD": ("4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "6011111111111117"),
    "IBAN": ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606"),
    "IP": ("192.168.17.4", "8.8.4.4", "2001:db8::8a2e:370:7334"),
    "API_KEY": (
        *("sk-abcdefghijklmnopqrstuvwxyz012345", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9),
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    ),
    "URL_WITH_PASSWORD": ("https://joe:secret@host.example.org/x", "postgres://admin:hunter2@db.example.org:5432/app"),
}
DECOYS = (
    *("on 2024-01-15 at 10:30:00", "version 1.2.3 of it", "3.14159265 or so", "1,000,000 of them", "from 1990 to 2005"),
    *(
        "order 4111 1111 1111 1112",
        "ISBN 978-3-16-148410-0",
        "chapter 12, section 3.4.1.2",
        "at 12:45",
        "std::vector",
    ),
    *("room 0123", "it cost 1 299.00", "commit 4f2a9c1d8e", "10-20-30 and 5/6", "@property", "the years 1914-1918"),
)


def personal_data_results(rounds: int) -> Iterator[Result]:
    draw = random.Random(0)
    texts = [answer for _, answer in replies() if not re.search(r"\d|@|://", answer)][:2000]
    planted = [
        (kind, value, f"{text[:60]} {value}, {text[60:120]}")
        for kind, values in PLANTED.items()
        for value in values
        for text in draw.sample(texts, 5)
    ]
    decoys = [f"{text[:60]} {value}, {text[60:120]}" for value in DECOYS for text in draw.sample(texts, 5)]
    work = [answer for _, answer in replies()][:1500]

    def quality(replaced: Replace, mark: str = "<") -> tuple[dict[str, float], float]:
        """The share of the planted values that cannot be read any more, by kind; and of decoys that got a mark."""
        hidden: dict[str, list[bool]] = {}
        for kind, value, text in planted:
            hidden.setdefault(kind, []).append(value not in replaced(text))
        touched = sum(mark in replaced(text) for text in decoys) / len(decoys)
        return {kind: sum(found) / len(found) for kind, found in hidden.items()}, touched

    scrub = Scrubber()
    for name, make in (("presidio_analyzer", presidio), ("scrubadub", scrubadub), ("phonenumbers", phonenumbers)):
        if not installed(name):
            continue
        replaced = make()
        theirs, theirs_touched = quality(replaced, "{" if name == "scrubadub" else "<")
        only_phones = name == "phonenumbers"
        found, touched = quality(scrub, "<PHONE>" if only_phones else "<")
        kinds = ("PHONE",) if only_phones else tuple(PLANTED)
        mine, others = (sum(one[kind] for kind in kinds) / len(kinds) for one in (found, theirs))
        of = {
            "texts": len(work),
            "found": {kind: round(found[kind], 3) for kind in kinds},
            "theirs_found": {kind: round(theirs[kind], 3) for kind in kinds},
        }
        yield from timed(
            f"personal data, {name}",
            lambda: [scrub(text) for text in work],
            lambda replaced=replaced: [replaced(text) for text in work],  # type: ignore[misc]
            min(rounds, QUICK_ROUNDS),
            0.5,
            texts=len(work),
        )
        yield counted(f"personal data, planted found, {name}", mine, others, "not fewer", mine >= others, **of)
        yield counted(
            f"personal data, decoys touched, {name}", touched, theirs_touched, "not more", touched <= theirs_touched
        )
    if installed("phonenumbers"):
        yield from foreign_phones(scrub)


def foreign_phones(scrub: Replace) -> Iterator[Result]:
    """Numbers of all countries as phonenumbers writes them, from whose tables and not from our forms they come."""
    import phonenumbers as library

    matched = phonenumbers()
    forms = library.PhoneNumberFormat
    for name, form, most_fewer in (("+49 30 123456", forms.INTERNATIONAL, 0.05), ("+4930123456", forms.E164, 0.05)):
        examples = [library.example_number(region) for region in sorted(library.SUPPORTED_REGIONS)]
        written = [library.format_number(one, form) for one in examples if one is not None]
        ours, theirs = (
            sum(number not in replaced(f"Call {number} today.") for number in written) / len(written)
            for replaced in (scrub, matched)
        )
        gate = f"at most {most_fewer} fewer"
        metric = f"personal data, numbers of all countries as {name}"
        yield counted(metric, ours, theirs, gate, ours >= theirs - most_fewer, numbers=len(written))


def presidio() -> Replace:
    """Presidio's recognisers of what has a form, at the score from which its anonymiser acts."""
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    # Else the list of public suffixes is fetched from the network.
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=()).extract_str
    recognisers = [
        known.EmailRecognizer(),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.IpRecognizer(),
        known.PhoneRecognizer(),
        known.UrlRecognizer(),
    ]

    def replaced(text: str) -> str:
        spans = [
            (found.start, found.end)
            for one in recognisers
            for found in one.analyze(text, one.supported_entities, None) or ()
            if found.score >= 0.4
        ]
        return without(text, spans)

    return replaced


def scrubadub() -> Replace:
    import scrubadub as library

    return library.Scrubber().clean


def phonenumbers() -> Replace:
    import phonenumbers as library

    def replaced(text: str) -> str:
        spans = [(one.start, one.end) for region in REGIONS for one in library.PhoneNumberMatcher(text, region)]
        return without(text, spans)

    return replaced


# Numbers without a country code are read as of one of these.
REGIONS = ("US", "DE", "GB")


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}<X>{text[end:]}"
    return text


# Streaming JSON


def streaming_results(rounds: int) -> Iterator[Result]:
    if not installed("ijson"):
        return
    import ijson

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.json"
        records = [
            {
                "id": number,
                "score": 0.5,
                "inputs": {"messages": [{"role": "user", "content": question}]},
                "text": answer,
            }
            for number, (question, answer) in enumerate(replies() * 4)
        ]
        file.write_text(json.dumps(records), encoding="utf-8")

        def ours() -> int:
            return sum(1 for _ in records_of([file], Reading()))

        def theirs() -> int:
            with file.open("rb") as stream:
                return sum(1 for _ in ijson.items(stream, "item", use_float=True))

        if ours() != theirs():
            raise RuntimeError("the two read another number of records")
        backend = ijson.backend_name if hasattr(ijson, "backend_name") else ijson.backend
        of = {"records": len(records), "mib": file.stat().st_size >> 20, "backend": str(backend)}
        yield from timed("streaming JSON, ijson", ours, theirs, rounds, 1.25, **of)
    ours_read, theirs_read = (sum(reads(read, content) for content in WRITTEN) for read in (read_by_us, read_by_ijson))
    metric = f"streaming JSON, of {len(WRITTEN)} lists as exports write them, read rightly, ijson"
    yield counted(metric, ours_read, theirs_read, "all of them", ours_read == len(WRITTEN))


# Python's and pandas' NaN, a byte order mark, an id beyond 64 bits, half of a surrogate pair, a plain one.
WRITTEN = (
    b'[{"score": NaN}]',
    b'\xef\xbb\xbf[{"id": 1}]',
    b'[{"id": 123456789012345678901234567890}]',
    b'[{"text": "\\ud83d"}]',
    b'[{"text": "\\ud83d\\ude00", "score": 0.5}]',
)


def reads(read: Callable[[Path], list[Any]], content: bytes) -> bool:
    """Whether a list is read as Python's own `json` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.json"
        file.write_bytes(content)
        try:
            # NaN equals nothing, and is compared as a text.
            return repr(read(file)) == repr(json.loads(content.decode("utf-8-sig")))
        except ValueError:
            return False


def read_by_us(file: Path) -> list[Any]:
    return [record for _, record in records_of([file], Reading())]


def read_by_ijson(file: Path) -> list[Any]:
    import ijson

    with file.open("rb") as stream:
        try:
            return list(ijson.items(stream, "item", use_float=True))
        except ijson.JSONError as error:
            raise ValueError(str(error)) from error


# The store on disk

GROUP = 12


def store_results(rounds: int) -> Iterator[Result]:
    draw = random.Random(0)
    texts = [f'{{"role": "assistant", "content": "{"w" * draw.randrange(50, 600)}"}}'.encode() for _ in range(100_000)]
    groups = [list(range(first, first + GROUP)) for first in range(0, len(texts) - GROUP, 10)]
    stores: dict[str, Callable[[Path], Iterator[list[bytes]]]] = {
        "sqlite3": lambda folder: in_sqlite(folder, texts, groups),
        "pyarrow": lambda folder: in_arrow(folder, texts, groups),
        "duckdb": lambda folder: in_duckdb(folder, texts, groups),
    }

    def size(store: Callable[[Path], Iterator[list[bytes]]]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return sum(sum(map(len, group)) for group in store(Path(folder)))

    def ours() -> int:
        return size(lambda folder: in_spool(folder, texts, groups))

    for name, store in stores.items():
        if not installed(name):
            continue
        if size(store) != ours():
            raise RuntimeError(f"{name} gives other texts")
        yield from timed(
            f"store on disk, {name}",
            ours,
            lambda store=store: size(store),
            rounds,
            0.75,
            texts=len(texts),  # type: ignore[misc]
        )


Groups = list[list[int]]


def in_spool(folder: Path, texts: list[bytes], groups: Groups) -> Iterator[list[bytes]]:
    spool = Spool(folder / "texts")
    for text in texts:
        spool.append(text)
    spool.flush()
    for group in groups:
        yield spool.read(group)
    spool.close()


def in_sqlite(folder: Path, texts: list[bytes], groups: Groups) -> Iterator[list[bytes]]:
    base = sqlite3.connect(folder / "texts.db")
    for setting in ("journal_mode = off", "synchronous = off"):
        base.execute(f"PRAGMA {setting}")
    base.execute("CREATE TABLE texts (number INTEGER PRIMARY KEY, text BLOB)")
    base.executemany("INSERT INTO texts VALUES (?, ?)", enumerate(texts))
    asked = f"SELECT text FROM texts WHERE number IN ({', '.join('?' * GROUP)}) ORDER BY number"
    for group in groups:
        yield [text for (text,) in base.execute(asked, group)]
    base.close()


def in_arrow(folder: Path, texts: list[bytes], groups: Groups) -> Iterator[list[bytes]]:
    import pyarrow

    kind = pyarrow.large_binary()
    schema = pyarrow.schema([("text", kind)])
    file = str(folder / "texts.arrow")
    with pyarrow.OSFile(file, "wb") as out, pyarrow.ipc.new_file(out, schema) as writer:
        for at in range(0, len(texts), 2000):
            column = pyarrow.array(texts[at : at + 2000], kind)
            writer.write_batch(pyarrow.record_batch([column], schema=schema))
    with pyarrow.memory_map(file) as mapped:
        # Chunk by chunk it takes a hundred times as long; combined, all texts are in memory.
        column = pyarrow.ipc.open_file(mapped).read_all().combine_chunks()["text"]
        for group in groups:
            yield column.take(pyarrow.array(group)).to_pylist()


def in_duckdb(folder: Path, texts: list[bytes], groups: Groups) -> Iterator[list[bytes]]:
    """All groups by one join: questions one by one take a hundred times as long."""
    import duckdb
    import pyarrow

    base = duckdb.connect(str(folder / "texts.duckdb"), config={"threads": 1})
    base.execute("CREATE TABLE texts (number BIGINT, text BLOB)")
    for at in range(0, len(texts), 2000):
        batch = texts[at : at + 2000]
        base.register("batch", pyarrow.table({"number": range(at, at + len(batch)), "text": batch}))
        base.execute("INSERT INTO texts SELECT * FROM batch")
    numbered = [(number, row) for number, group in enumerate(groups) for row in group]
    asked, rows = zip(*numbered, strict=True)
    base.register("wanted", pyarrow.table({"asked": asked, "number": rows}))
    base.execute("SELECT text FROM wanted JOIN texts USING (number) ORDER BY asked, number")
    while found := base.fetchmany(GROUP):
        yield [text for (text,) in found]
    base.close()


PARTS = {
    "near-duplicates": near_duplicate_results,
    "personal-data": personal_data_results,
    "streaming": streaming_results,
    "store": store_results,
}
LIBRARIES = ("rensa", "datasketch", "presidio_analyzer", "scrubadub", "phonenumbers", "ijson", "pyarrow", "duckdb")

if __name__ == "__main__":
    raise SystemExit(main())
