"""Every figure of the documentation, from the files of `docs/results/`.

    python -m benchmarks.figures [--check] [PAGE ...]

Pages (by default README.md and all of `docs/`) say which figure stands where, in comments that a reader does not see:

    <!-- figure: NAME.METRIC.FIELD as .2f -->1.28<!-- /figure -->

NAME is the file's, METRIC a row's, FIELD one of a row's fields or `conditions.KEY`; or `inverse` (1 / ratio), `saved`
(1 - ratio), `gained` (ratio - 1), `difference` (ours - baseline). `NAME.head.KEY` is of the file's head. After `as`
comes Python's format, by default `.3g` and whole numbers in full. Of many rows:

    <!-- table: NAME.METRIC* columns: metric, ours as .1f, baseline as .1f, ratio -->
    <!-- /table -->

`METRIC*` may hold `*`; without it all rows are taken. `<!-- index -->` ... `<!-- /index -->` holds what all files say,
`<!-- scripts -->` ... `<!-- /scripts -->` what `benchmarks.scripts` found. What stands between two comments is
replaced; comments in fenced code are left alone. With `--check` nothing is written; the exit status is 1 if a page is
stale or a figure is in no file.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, ROOT, ResultFile, all_results
from benchmarks.scripts.guide import page as page_of_scripts

FORMAT = r"[+ ]?,?(?:\.\d+)?[fge%]"
MARKER = re.compile(
    r"<!-- (?P<kind>figure|table|index|scripts)(?:: (?P<what>.+?))? -->(?P<old>.*?)<!-- /(?P=kind) -->", re.DOTALL
)
BEGIN = re.compile(r"<!-- /?(?:figure|table|index|scripts)\b")
FENCED = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
COLUMNS = "metric, ours, baseline, ratio, noise, gate, met"
DERIVED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "inverse": lambda row: 1 / row["ratio"],
    "saved": lambda row: 1 - row["ratio"],
    "gained": lambda row: row["ratio"] - 1,
    "difference": lambda row: row["ours"] - row["baseline"],
}
Files = Mapping[str, ResultFile]


class FigureError(ValueError):
    """A comment names what no file holds, or is not closed."""


def value_of(files: Files, key: str) -> Any:
    """What `NAME.METRIC.FIELD` or `NAME.head.KEY` is.

    Raises:
        FigureError: no file, row or field of this name.
    """
    name, _, rest = key.partition(".")
    file = file_named(files, name)
    if rest.startswith("head."):
        return inside(file.head, rest.removeprefix("head."), key)
    # Metrics hold points and may begin alike.
    for metric in sorted((row["metric"] for row in file.rows), key=len, reverse=True):
        if rest.startswith(f"{metric}."):
            row = next(row for row in file.rows if row["metric"] == metric)
            return field_of(row, rest.removeprefix(f"{metric}."), key)
    close = difflib.get_close_matches(rest.rpartition(".")[0], [row["metric"] for row in file.rows], 1, 0.0)
    raise FigureError(f"{key}: {name}.json has no such row; the nearest is {''.join(close)!r}.")


def file_named(files: Files, name: str) -> ResultFile:
    if name not in files:
        raise FigureError(f"{name}: docs/results/ has no {name}.json, but {', '.join(sorted(files)) or 'nothing'}.")
    return files[name]


def field_of(row: Mapping[str, Any], field: str, key: str) -> Any:
    if field in DERIVED:
        try:
            return DERIVED[field](row)
        except (TypeError, ZeroDivisionError):
            raise FigureError(f"{key}: {field} needs numbers that this row does not have.") from None
    return inside(row, field, key)


def inside(of: Any, path: str, key: str) -> Any:
    for part in path.split("."):
        if not isinstance(of, Mapping) or part not in of:
            known = ", ".join(of) if isinstance(of, Mapping) else "nothing"
            raise FigureError(f"{key}: there is no {part!r}, but {known}.")
        of = of[part]
    return of


def written(value: Any, form: str | None = None) -> str:
    """A value as it stands in a page."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "met" if value else "missed"
    if isinstance(value, int | float):
        whole = form is None and float(value).is_integer()
        return f"{int(value):,}" if whole else format(value, form or ".3g")
    if isinstance(value, list | tuple):
        return " to ".join(written(one, form) for one in value)
    if form is not None:
        raise FigureError(f"{value!r} is no number to be written as {form}.")
    return str(value)


def figure(files: Files, what: str) -> str:
    key, form = with_format(what)
    return written(value_of(files, key), form)


def with_format(what: str) -> tuple[str, str | None]:
    found = re.fullmatch(rf"(.+?)(?: as ({FORMAT}))?", what.strip())
    assert found is not None
    return found[1], found[2]


def table(files: Files, what: str) -> str:
    """A Markdown table of a file's rows."""
    rows_wanted, _, columns = what.partition(" columns: ")
    name, _, pattern = rows_wanted.partition(".")
    rows = [row for row in file_named(files, name).rows if fnmatchcase(row["metric"], pattern or "*")]
    if not rows:
        raise FigureError(f"{rows_wanted}: {name}.json has no such row.")
    fields = [with_format(column) for column in (columns or COLUMNS).split(", ")]
    cells = [
        [written(field_of(row, field, f"{name}.{row['metric']}.{field}"), form) for field, form in fields]
        for row in rows
    ]
    return markdown_table([field.removeprefix("conditions.") for field, _ in fields], cells)


def markdown_table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def index(files: Files, what: str | None = None) -> str:
    """Every file, where it comes from, and its rows with gates met or missed."""
    parts = []
    for name, file in sorted(files.items()):
        gates = [row["met"] for row in file.rows if row["met"] is not None]
        machine = file.head.get("machine") or {}
        where = f"{machine['cpu']}, {machine['cores']} cores" if machine else "not recorded"
        commit, date = (file.head.get("commit") or "")[:12], (file.head.get("date") or "")[:10]
        parts += [
            f"## [{name}]({name}.json)\n",
            f"{gates.count(True)} of {len(gates)} gates met, {len(file.rows)} rows. Commit {commit or 'not recorded'}, "
            f"date {date or 'not recorded'}, machine: {where}.\n",
            table(files, name) + "\n",
        ]
    return "\n".join(parts).rstrip("\n")


def scripts(files: Files, what: str | None = None) -> str:
    return page_of_scripts(file_named(files, "scripts").rows).rstrip("\n")


BLOCKS: dict[str, Callable[[Files, Any], str]] = {"table": table, "index": index, "scripts": scripts}


def renewed(text: str, files: Files) -> str:
    """A page's text with every figure as the files have it.

    Raises:
        FigureError: some figures are in no file, or a comment is not closed; the text names all of them.
    """
    fenced = [found.span() for found in FENCED.finditer(text)]
    errors: list[str] = []
    replaced: list[tuple[int, int]] = []

    def in_fence(place: int) -> bool:
        return any(start <= place < end for start, end in fenced)

    def new(found: re.Match[str]) -> str:
        if in_fence(found.start()):
            return found[0]
        replaced.append(found.span())
        begin = text[found.start() : found.start("old")]
        try:
            if found["kind"] == "figure":
                return f"{begin}{figure(files, found['what'] or '')}<!-- /figure -->"
            return f"{begin}\n{BLOCKS[found['kind']](files, found['what'])}\n<!-- /{found['kind']} -->"
        except FigureError as error:
            errors.append(str(error))
            return found[0]

    made = MARKER.sub(new, text)
    for found in BEGIN.finditer(text):
        if not in_fence(found.start()) and not any(start <= found.start() < end for start, end in replaced):
            line = text.count("\n", 0, found.start()) + 1
            errors.append(f"line {line}: this comment has no partner: {text[found.start() :].splitlines()[0]}")
    if errors:
        raise FigureError("\n".join(errors))
    return made


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is stale")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of the files")
    asked = parser.parse_args(argv)
    files = {file.name: file for file in all_results(asked.results)}
    wrong = False
    for page in asked.pages or pages():
        text = page.read_text(encoding="utf-8")
        try:
            new = renewed(text, files)
        except FigureError as error:
            print(f"{page}: {error}", file=sys.stderr)
            wrong = True
            continue
        if new == text:
            continue
        if asked.check:
            print(f"{page} is stale: run python -m benchmarks.figures", file=sys.stderr)
            wrong = True
        else:
            page.write_text(new, encoding="utf-8")
            print(f"{page} renewed")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
