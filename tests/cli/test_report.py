"""`hf-ft report`: the page of runs, as text, for who cannot see it, and in a browser where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from hf_ft_plugins import AdaptiveLR, PluginError
from hf_ft_plugins.cli.report.command import as_json, write_report
from hf_ft_plugins.cli.report.drawing import MOST_POINTS, thinned
from hf_ft_plugins.cli.report.page import page, shade
from hf_ft_plugins.cli.report.panels import panels_of
from hf_ft_plugins.cli.report.reading import Found, Run, read_runs, run_of_record
from hf_ft_plugins.host.run_record import RECORD_FILE
from hf_ft_plugins.report_sections import Curve, Facts, Grid, Rows
from hf_ft_plugins.report_sections import as_json as section_json
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.training_log import Training

from .test_cli import hf_ft

CUTTING = {"controller": "plateau", "patience": 1, "min_delta": 1e9, "max_cuts": 1}
NASTY = '<script>alert("x")</script>|'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A hosted run, and a stock run that left checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_trainer(folder / "ours", AdaptiveLR(**CUTTING)).train()
    tiny_trainer(folder / "stock", save_strategy="steps", save_steps=7).train()
    return folder


class Page(HTMLParser):
    """What a page has: tags with their attributes, identities, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def a_run(**changes):
    history = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step, "eval_runtime": 1.0} for step in range(1, 6)]
    history[2] |= {"my_idea/action": "cut, stop", "my_idea/step": 3, "my_idea/reason": NASTY, "grad_norm": float("nan")}
    sections = [
        Facts("facts", {NASTY: NASTY}),
        Rows("rows", ("x", "y"), [("a", 1)]),
        Grid("confusion", ("cat", "dog"), ("cat", "dog"), [[9, 1], [2, 8]], "true", "predicted"),
        Curve("curve", [0, 1, 2], {"loss": [1.0, None, 3.0]}, "removed"),
    ]
    record = {
        "format": 1,
        "status": "raised",
        "why": NASTY,
        "command": ["hf-ft", "run", "t.py", NASTY],
        "techniques": [{"name": "my-idea", "distribution": "mine", "version": "1", "options": {"x": NASTY}}],
        "points": [{"step": step, "seconds": step, "tokens": 10 * step, "slots": 20 * step} for step in range(1, 6)],
        "told": [{"level": "warning", "text": NASTY}],
        "log": history,
        "step": 5,
        "max_steps": 9,
        "model": {"class": "Model", "parameters": 12},
        "data": {"train": None},
        "arguments": {"seed": 1},
        "versions": {"torch": "2"},
        "sections": {"my-idea": [section_json(one) for one in sections]},
    }
    return run_of_record(record | changes, changes.get("name", "a run"), "a file")


def shown(*given):
    return page(Found(list(given)), "a title")


def test_the_command_writes_one_page_of_several_runs(runs, tmp_path):
    process = hf_ft("report", runs / "ours", runs / "stock", "--output", "page.html", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "2 runs" in process.stdout
    words = " ".join(Page((tmp_path / "page.html").read_text()).words)
    for expected in ("adaptive-lr", "eval_loss", "learning rate, as applied", "cut", "ours", "stock", "controller"):
        assert expected in words


def test_a_folder_of_runs_is_several_runs_and_json_says_what_the_page_shows(runs, tmp_path):
    _, found = write_report([runs], tmp_path, None)
    assert [run.name.rpartition("/")[2] for run in found.runs] == ["ours", "stock"]
    ours, stock = json.loads(as_json(found))
    assert ours["decisions"][0]["action"] == "cut"
    assert ours["status"] == "ended"
    assert stock["decisions"] == []
    assert stock["metrics"].keys() >= {"eval_loss", "best eval_loss"}


def test_a_stock_run_is_read_from_its_newest_checkpoint(runs):
    (run,) = read_runs([runs / "stock"]).runs
    assert run.training.steps == 14
    assert not run.about


def test_a_folder_without_a_run_says_what_it_looked_for(tmp_path):
    with pytest.raises(PluginError, match=r"holds no run: neither hf_ft_run\.json, nor trainer_state\.json"):
        read_runs([tmp_path])
    with pytest.raises(PluginError, match="there is no folder"):
        read_runs([tmp_path / "missing"])


WRONG = ("", '"log": 3', '"log": [3]', '"told": {}', '"told": [3]', '"points": [{"step": "x"}]', '"sections": {"x": 3}')


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 2}', *(f'{{"format": 1, {one}}}' for one in WRONG)])
def test_a_record_of_another_form_is_an_error_that_names_it(content, tmp_path):
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(PluginError):
        write_report([tmp_path], None, None)


def test_what_runs_say_is_text_and_never_a_tag():
    text = shown(a_run())
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6


def test_the_page_needs_nothing_from_anywhere():
    text = shown(a_run())
    assert not Page(text).of("script")
    assert not Page(text).of("link")
    assert not [tag for tag, found in Page(text).tags if "src" in found]
    # Names of XML are addresses, too, and nobody goes there.
    elsewhere = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http" not in elsewhere
    assert "@import" not in elsewhere


def test_the_page_can_be_read_without_being_seen():
    found = Page(shown(a_run(), a_run(name="another run")))
    identities = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert found.of("html")[0]["lang"] == "en"
    drawings = found.of("svg")
    assert all(one.get("role") == "img" or one.get("aria-hidden") == "true" for one in drawings)
    told = [one["aria-label"] for one in drawings if one.get("role") == "img"]
    assert any("training loss: a run from 1 at step 1 to 0.2 at step 5" in words for words in told)
    assert all("scope" in one for one in found.of("th"))
    targets = {one["href"].removeprefix("#") for one in found.of("a")}
    assert targets <= set(identities)
    assert len(found.of("figure")) == len(found.of("figcaption")) + 2, (
        "each drawing has its name; curves have a heading"
    )


def test_drawings_follow_the_colours_of_the_page():
    text = shown(a_run())
    drawn = "".join(re.findall(r"<svg role.*?</svg>", text, re.DOTALL))
    assert "var(--s0)" in drawn
    assert not re.findall(r"(?:stroke|fill): #[0-9a-f]{6}", drawn)


def test_decisions_are_marked_with_their_reason():
    text = shown(a_run())
    assert "<title>step 3, my-idea: cut, stop. &lt;script&gt;" in text


def test_runs_of_one_group_are_drawn_alike_and_others_apart():
    log = [{"step": step, "loss": step} for step in (1, 2)]
    named = [("a", "x"), ("b", "x"), ("c", "y")]
    (panel,) = panels_of([Run(name, group, Training(log)) for name, group in named])
    assert [line.style for line in panel.lines] == [0, 0, 1]


def test_tasks_are_lines_of_one_panel():
    log = [{"step": step, "share_ner": 0.4, "share_pos": 0.6, "loss_ner": 1.0, "loss_pos": 2.0} for step in (1, 2)]
    shares, losses = panels_of([Run("a", "a", Training(log))])
    assert [line.name for line in shares.lines] == ["ner", "pos"]
    assert [line.values for line in losses.lines] == [[1.0, 1.0], [2.0, 2.0]]


def test_long_lines_are_thinned_and_keep_their_peaks():
    values = [0.0] * 10_000
    values[5001] = 9.0
    steps, kept = thinned(list(range(10_000)), values)
    assert len(steps) <= MOST_POINTS + 2
    assert 9.0 in kept
    assert (steps[0], steps[-1]) == (0, 9999)
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_counts_are_shaded_by_their_row_and_measures_by_their_range():
    counts = Grid("", ("a", "b"), ("c", "d"), [[3, 1], [0, 200]])
    assert [shade(value, counts.values[0], counts) for value in (3, 1, 0)] == [45, 15, 0]
    # The same count is another share of another row.
    again = Grid("", ("a", "b"), ("c", "d"), [[5, 5], [5, 0]])
    assert [shade(5, row, again) for row in again.values] == [30, 60]
    measures = Grid("", ("a",), ("c", "d"), [[0.5, None]])
    assert shade(None, measures.values[0], measures) == 0


def in_browser(text, folder, width, script):
    """What the script gives in Chromium, by way of the page's title."""
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"<script>document.title = String({script})</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, f"--window-size={width},900", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return re.search(r"<title>(.*?)</title>", dom)[1]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [500, 1280], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen(width, tmp_path):
    text = shown(a_run(), a_run(name="another run with a rather long name"))
    measured = in_browser(text, tmp_path, width, "document.documentElement.scrollWidth + '/' + window.innerWidth")
    needed, there = map(int, measured.split("/"))
    assert needed <= there
    wide = text.replace("<main>", "<main><p style='width: 3000px'>x</p>")
    control = in_browser(wide, tmp_path, width, "document.documentElement.scrollWidth + '/' + window.innerWidth")
    assert int(control.split("/")[0]) > int(control.split("/")[1])
