"""A technique in a notebook: a small table, in which no text is taken for HTML."""

from dataclasses import dataclass
from html.parser import HTMLParser
from typing import ClassVar

import pytest

from hf_ft_plugins import AdaptiveLR, Technique, option
from hf_ft_plugins.registry import offers

VOID = ("br",)


class Reader(HTMLParser):
    """The elements of a page, and its text; an element that is not closed in its place is an error."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@dataclass(frozen=True, kw_only=True)
class Hostile(Technique):
    name: ClassVar[str] = "hostile"
    summary: ClassVar[str] = "<script>alert(1)</script> & more"

    word: str = option("a", help="<img src=x onerror=alert(2)>")
    other: str = option('"><b>', help="stays")


def test_what_is_changed_comes_first_and_the_rest_is_folded():
    page = Reader(AdaptiveLR(patience=3, controller="rollback")._repr_html_())
    assert page.text.startswith("adaptive-lr:controller=rollback,patience=3")
    own, _, rest = page.text.partition("further options, at their defaults")
    assert "patience3values without improvement before a cut" in own
    assert "factor" not in own
    assert "factornone" in rest
    assert page.elements.count("table") == 2
    assert page.elements.count("details") == 1


def test_without_options_there_is_one_folded_table():
    page = Reader(AdaptiveLR()._repr_html_())
    assert page.elements.count("table") == page.elements.count("details") == 1
    assert f"{len(AdaptiveLR.option_infos())} options, at their defaults" in page.text


def test_texts_of_options_are_no_html():
    page = Reader(Hostile(word="<script>alert(3)</script>")._repr_html_())
    assert set(page.elements) <= {"div", "b", "br", "table", "tr", "th", "td", "code", "details", "summary"}
    for text in (Hostile.summary, "<script>alert(3)</script>", "<img src=x onerror=alert(2)>", '"><b>'):
        assert text in page.text


@pytest.mark.parametrize("name", [offer.name for offer in offers() if offer.distribution == "hf-ft-plugins"])
def test_every_built_in_technique_is_shown_with_all_options(name):
    technique = next(offer for offer in offers() if offer.name == name).load()()
    page = Reader(technique._repr_html_())
    assert [info.name for info in technique.option_infos() if info.name not in page.text] == []
    assert len(technique._repr_html_()) < 10_000
