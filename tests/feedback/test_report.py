"""The report and its page."""

from collections import Counter

import numpy as np
import pytest

from hf_ft_plugins.feedback import preferences_from_log
from hf_ft_plugins.feedback.report import rendered, write
from tests.feedback.written_logs import contents, conversation, found

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


def test_page_says_that_users_are_unknown_not_that_there_are_none(log):
    act = {"type": "copy", "message_id": "c.0"}
    known, unknown = (rendered(found(log(conversation("a"), [{**act, **user}], name))[2]) for name, user in USERS)
    assert "<b>1</b>users<" in known
    assert "<b>unknown</b>users: the log names none" in unknown


def test_tables_of_the_page_can_be_scrolled_on_a_narrow_screen(busy):
    page = rendered(preferences_from_log(busy).report)
    narrow = page.split("@media (max-width")[1].split("</style>")[0]
    assert "overflow-x: auto" in narrow
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
