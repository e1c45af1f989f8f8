"""The report and its page."""

import html
import re
from collections import Counter

import numpy as np
import pytest

from hf_ft_plugins.feedback import preferences_from_log
from hf_ft_plugins.feedback.report import rendered, write
from tests.feedback.written_logs import EMAIL, contents, conversation, found

USERS = (("known", {"user": "u"}), ("unknown", {"user": None}))


def test_report_counts_and_page(busy, tmp_path):
    made = preferences_from_log(busy)
    page = rendered(made.report)
    assert page.count("<table") == page.count("</table>")
    assert "http" not in page.replace("http-equiv", "")
    pairs = list(made.pairs())
    gap = [len(contents(row)[0].split()) - len(contents(row)[1].split()) for row in pairs]
    assert made.report["rows"]["pairs"]["length_gap_words"]["mean"] == pytest.approx(np.mean(gap), abs=0.5)
    assert sum(of["rows"] for of in made.report["rows"]["labels"]["by_signal"].values()) == len(list(made.labels()))
    assert Counter(row["signal"] for row in pairs) == {
        name: of["rows"] for name, of in made.report["rows"]["pairs"]["by_signal"].items()
    }
    assert write(made.report, tmp_path).is_file()


def test_page_quotes_what_the_log_says(log):
    _, _, report = found(log(conversation("a"), [{"type": "copy", "message_id": "c.0"}]))
    report["log"] = "<script>alert(1)</script>"
    assert "<script>" not in rendered(report)


def test_every_colour_of_the_page_has_another_in_the_dark(busy):
    style = rendered(preferences_from_log(busy).report).split("<style>")[1].split("</style>")[0]
    light, dark = (set(re.findall(r"(--\w+): #", part.split("}")[0])) for part in style.split(":root {")[1:])
    assert light == dark
    assert {"--paper", "--ink"} <= light
    assert "prefers-color-scheme: dark" in style
    # No colour stands anywhere but in the two lists.
    assert len(re.findall(r"#[0-9a-f]{3,6}\b", style)) == len(light) + len(dark)


HOSTILE = f"<img src=x onerror=alert(1)> & {EMAIL} hf_{'a' * 34} "


@pytest.mark.parametrize("pii", [True, False])
def test_the_pair_that_the_page_shows_is_quoted_cut_and_without_personal_data(pii, log):
    path = log(
        conversation(HOSTILE, HOSTILE + "z" * 5000, prompt=f"{HOSTILE}?"),
        [{"type": "choice", "value": "c.1", "candidates": ["c.0", "c.1"]}],
    )
    made = preferences_from_log(path, pii=pii, eval_share=0.0)
    pair = next(made.pairs())
    assert (EMAIL in str(pair)) == (not pii), "the control: what the page gets does hold it"
    page = rendered(made.report, pair)
    assert "<img" not in page
    assert EMAIL not in page
    assert "hf_aaa" not in page
    shown = [html.unescape(turn) for turn in re.findall(r'<div class="turn \w+"><b>\w+</b>(.*?)</div>', page)]
    masked = "<img src=x onerror=alert(1)> & <EMAIL> <API_KEY> "
    assert [shown[0], shown[2]] == [f"{masked}?", masked]
    assert shown[1].startswith(f"{masked}zzz")
    assert len(shown[1]) == 600
    assert shown[1].endswith("…")
    assert "<h2>One pair</h2>" not in rendered(made.report)


def test_the_page_explains_its_words(busy):
    page = rendered(preferences_from_log(busy).report)
    for word in (
        "An event is",
        "In a pair",
        "A signal is",
        "Weight is",
        "Effective rows are",
        "Epsilon is",
        "capped, so",
    ):
        assert word in page


def test_page_says_that_users_are_unknown_not_that_there_are_none(log):
    act = {"type": "copy", "message_id": "c.0"}
    known, unknown = (rendered(found(log(conversation("a"), [{**act, **user}], name))[2]) for name, user in USERS)
    assert "<b>1</b>users<" in known
    assert "<b>unknown</b>users: the log names none" in unknown


def test_tables_of_the_page_can_be_scrolled_on_a_narrow_screen(busy):
    page = rendered(preferences_from_log(busy).report)
    wide = page.split(".wide {")[1].split("}")[0]
    assert "overflow-x: auto" in wide
    assert (
        page.count("<table") == page.count('<div class="wide" tabindex="0"><table>') == page.count("</table></div>") > 5
    )
    # What is long stands above the table, not in a cell of its head.
    assert page.count("<caption>") == 2
    assert max(len(cell.split("<")[0]) for cell in page.split("<th")[1:]) < 40


def test_kto_weights_are_those_of_equation_eight(log):
    messages = [m for n in range(12) for m in conversation(f"an answer {n}", name=f"c{n}", prompt=f"q{n}")]
    acts = [{"type": "thumbs", "message_id": f"c{n}.0", "value": 1 if n < 9 else -1} for n in range(12)]
    kto = found(log(messages, acts))[2]["rows"]["labels"]["kto"]
    for undesirable in kto["undesirable_weight"]:
        assert 1 - 1e-3 <= 9 / (3 * undesirable) <= 4 / 3 + 1e-3
    assert kto["desirable_weight"] == 1
