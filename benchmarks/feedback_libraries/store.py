"""The store on disk: ours against sqlite3, pyarrow and duckdb."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.feedback_libraries.side_by_side import installed, timed
from benchmarks.report import Result
from hf_ft_plugins.feedback.spool import Spool

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
