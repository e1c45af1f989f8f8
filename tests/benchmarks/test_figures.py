"""Figures of the pages, from files of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.figures import FigureError, renewed
from benchmarks.report import Gate, as_json, row
from benchmarks.results import ResultFile

ROWS = [
    row("speed", "seconds: ours against stock", 0.5, 2.0, ratio=0.25, gate=Gate("ratio", "<=", 0.5), conditions={}),
    # Its name holds a point and begins as the other's does.
    row(
        *("speed", "seconds: ours against stock, 0.9 of it", 1234.0, None),
        gate=Gate("ours", "<=", 1),
        conditions={"quartiles": [0.98, 1.02], "device": "cpu"},
    ),
]
FILES = {
    "speed": ResultFile("speed", {"commit": "abc", "date": "2026-01-02"}, [json.loads(as_json(one)) for one in ROWS])
}


def figure(what: str, old: str = "?") -> str:
    return f"<!-- figure: {what} -->{old}<!-- /figure -->"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("speed.seconds: ours against stock.ratio", "0.25"),
        ("speed.seconds: ours against stock.ratio as .1f", "0.2"),
        ("speed.seconds: ours against stock.saved as .0%", "75%"),
        ("speed.seconds: ours against stock.gained as +.0%", "-75%"),
        ("speed.seconds: ours against stock.inverse", "4"),
        ("speed.seconds: ours against stock.difference as .2f", "-1.50"),
        ("speed.seconds: ours against stock.gate", "ratio <= 0.5"),
        ("speed.seconds: ours against stock.met", "met"),
        ("speed.seconds: ours against stock.noise", ""),
        ("speed.seconds: ours against stock, 0.9 of it.ours", "1,234"),
        ("speed.seconds: ours against stock, 0.9 of it.met", "missed"),
        ("speed.seconds: ours against stock, 0.9 of it.conditions.quartiles as .2f", "0.98 to 1.02"),
        ("speed.head.date", "2026-01-02"),
    ],
)
def test_a_figure_is_the_file_s(what: str, expected: str) -> None:
    text = f"| a | {figure(what)} times |\n"
    assert renewed(text, FILES) == f"| a | {figure(what, expected)} times |\n"
    assert renewed(renewed(text, FILES), FILES) == renewed(text, FILES)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (figure("slow.seconds.ratio"), "has no slow.json, but speed"),
        (figure("speed.seconds: ours against.ratio"), "the nearest is 'seconds: ours against stock'"),
        (figure("speed.seconds: ours against stock.rate"), "there is no 'rate', but benchmark"),
        (figure("speed.seconds: ours against stock, 0.9 of it.saved"), "needs numbers"),
        (figure("speed.seconds: ours against stock.gate as .2f"), "is no number"),
        (figure("speed.head.machine"), "there is no 'machine', but commit, date"),
        ("a\n<!-- figure: speed.seconds.ratio -->1", "line 2: this comment has no partner"),
        ("<!-- /table -->", "line 1: this comment has no partner"),
        ("<!-- table: speed.nothing* -->\n<!-- /table -->", "has no such row"),
    ],
)
def test_what_no_file_holds_is_an_error(text: str, error: str) -> None:
    with pytest.raises(FigureError, match=error):
        renewed(text, FILES)


def test_a_table_has_the_wanted_rows_and_columns() -> None:
    text = "<!-- table: speed.*stock columns: metric, ours as .2f, ratio, met -->\nold\n<!-- /table -->\n"
    assert renewed(text, FILES).splitlines()[1:-1] == [
        "| metric | ours | ratio | met |",
        "| --- | --- | --- | --- |",
        "| seconds: ours against stock | 0.50 | 0.25 | met |",
    ]
    assert renewed("<!-- table: speed -->\n<!-- /table -->", FILES).count("\n| seconds") == 2


def test_the_index_counts_gates() -> None:
    text = renewed("<!-- index -->\n<!-- /index -->", FILES)
    assert "## [speed](speed.json)" in text
    assert "1 of 2 gates met, 2 rows. Commit abc, date 2026-01-02, machine: not recorded." in text


def test_comments_in_fenced_code_are_left_alone() -> None:
    text = f"```markdown\n{figure('none.at.all')}\n<!-- table: none -->\n```\n"
    assert renewed(text, FILES) == text


def test_a_stale_page_is_told_and_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- index -->\nold\n<!-- /index -->\n")
    assert figures.main(["--check", str(page)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert "old" in page.read_text()
    assert figures.main([str(page)]) == 0
    assert figures.main(["--check", str(page)]) == 0
    page.write_text(figure("none.at.all"))
    assert figures.main([str(page)]) == figures.main(["--check", str(page)]) == 1


def test_the_documentation_s_figures_are_those_of_the_files() -> None:
    assert figures.main(["--check"]) == 0
