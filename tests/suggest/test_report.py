"""Who is asked, what a faulty answer is, and which answers go into one command."""

from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from hf_ft_plugins import Technique
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.registry import GROUP, Offer, refuse_conflicts
from hf_ft_plugins.suggest import Because, Suggestion, report
from hf_ft_plugins.suggest.facts import facts_of
from hf_ft_plugins.technique import Change, option

from .runs import classified, classifier

pytestmark = pytest.mark.usefixtures("no_estimate")


def said(spec, **more):
    return Suggestion(spec=spec, does="", because=(Because("data.padding", 0.5, "Half."),), not_when="", **more)


@dataclass(frozen=True, kw_only=True)
class Says(Technique):
    """Suggests itself; what exactly, the tests set on the class."""

    answer: ClassVar[object] = None
    needs: ClassVar[dict] = {}
    amount: int = option(1, help="how much")

    @classmethod
    def suggestion(cls, facts):
        if isinstance(cls.answer, Exception):
            raise cls.answer
        return cls.answer

    def packages(self):
        return self.needs


def technique(name, answer, changes=(), excludes=(), needs=None):
    body = {
        "__module__": __name__,
        "name": name,
        "answer": answer,
        "needs": needs or {},
        "changes": lambda self: frozenset(changes),
        "excludes": lambda self: dict.fromkeys(excludes, "they do not go together."),
    }
    return dataclass(frozen=True, kw_only=True)(type("Made", (Says,), body))


@dataclass(frozen=True)
class Offered:
    name: str
    made: type
    distribution: str = "their-dist"
    version: str = "1.0"
    entry: EntryPoint = field(default=EntryPoint("", "", GROUP))

    def load(self):
        return self.made


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The report on a quiet run with these techniques installed alone."""
    facts = facts_of(classifier(tmp_path))

    def ask(*made, **changes):
        monkeypatch.setattr(
            report, "offers", lambda: [one if isinstance(one, Offer) else Offered(one.name, one) for one in made]
        )
        return report.report_on(replace(facts, **changes))

    return ask


def test_a_technique_of_a_third_party_is_asked_with_the_facts(asked):
    seen = []
    third = technique("third", said("third:amount=3"))
    third.suggestion = classmethod(lambda cls, facts: seen.append(facts) or cls.answer)
    found = asked(third, technique("silent", None))
    assert [one.technique for one in found.advice] == [third(amount=3)]
    assert found.together == ["third:amount=3"]
    assert seen[0].data.examples == 96


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ValueError("no such fact"), ["its suggestion failed (ValueError: no such fact)"]),
        ("faulty", ["its suggestion is a str"]),
        (said("faulty:amuont=3"), ["'faulty:amuont=3' cannot be used", "Did you mean 'amount'"]),
        (said("another"), ["'another' cannot be used", "it names another"]),
    ],
)
def test_a_faulty_suggestion_is_an_error_that_says_whose_it_is(asked, answer, words):
    with pytest.raises(PluginError) as raised:
        asked(technique("faulty", answer))
    assert all(word in str(raised.value) for word in [*words, "their-dist 1.0", "HF_FT_PLUGINS_DISABLE=faulty"])
    assert raised.value.__notes__ == ["in the suggestion of technique faulty (their-dist 1.0)"]


def test_a_plugin_that_cannot_be_imported_is_noted_and_the_others_are_asked(asked):
    broken = Offer("broken", "theirs", "1.0", EntryPoint("broken", "no_such_module:Plugin", GROUP))
    found = asked(broken, technique("sound", said("sound")))
    assert found.together == ["sound"]
    assert "broken was not asked" in found.notes[0]
    assert "no_such_module" in found.notes[0]


def test_a_technique_that_the_script_has_is_not_asked(asked):
    faulty = technique("faulty", ValueError("not to be asked"))
    assert asked(faulty, techniques=("faulty",)).advice == ()


def test_of_two_that_refuse_each_other_the_weightier_is_in_the_command(asked):
    light = technique("light", said("light", weight=1), changes=[Change.DEPTH])
    heavy = technique("heavy", said("heavy", weight=2), excludes=[Change.DEPTH])
    third = technique("third", said("third"))
    found = asked(light, heavy, third)
    assert found.together == ["heavy", "third"]
    by_name = {one.technique.name: one for one in found.advice}
    assert "they do not go together" in by_name["light"].left_out
    refuse_conflicts([one.technique for one in found.advice if not one.left_out])
    with pytest.raises(PluginError, match="they do not go together"):
        refuse_conflicts([one.technique for one in found.advice])


def test_two_owners_of_one_hook_are_not_in_one_command(asked):
    schedules = [technique(name, said(name)) for name in ("first", "second")]
    for one in schedules:
        one.ft_scheduler = lambda self, trainer: None
    found = asked(*schedules)
    assert found.together == ["first"]
    assert "both answer ft_scheduler" in found.advice[1].left_out


def test_of_two_answers_to_one_need_the_weightier_is_in_the_command(asked):
    found = asked(
        technique("adapter", said("adapter", need="memory")),
        technique("smaller", said("smaller", need="memory", weight=3)),
    )
    assert found.together == ["smaller"]
    assert found.advice[1].left_out == "it is another answer to what smaller is for"


def test_what_needs_a_package_or_an_edit_first_is_said_and_not_in_the_command(asked):
    found = asked(
        technique("bare", said("bare"), needs={"no_such_module": "such-a-package>=1"}),
        technique("edited", said("edited", first="Take the old one out.")),
    )
    assert found.together == []
    by_name = {one.technique.name: one for one in found.advice}
    assert "pip install 'such-a-package>=1'" in by_name["bare"].install
    assert by_name["edited"].left_out == "the script has to be changed first"
    assert by_name["edited"].as_dict()["first"] == "Take the old one out."


def test_wrong_labels_are_noted(asked):
    assert asked(wrong_labels="labels: row 3 has none.").notes == ("labels: row 3 has none.",)


def test_what_ours_suggest_together_a_host_of_the_trainers_class_accepts(tmp_path):
    from hf_ft_plugins import with_plugins

    trainer = classifier(tmp_path, train_dataset=classified(90, 6), max_steps=80, eval_steps=10)
    together = report.report_on(facts_of(trainer)).together
    assert together == ["task:imbalance=logit_adjust,frequencies=equal", "adaptive-lr"]
    host = with_plugins(type(trainer), *together)
    classifier(tmp_path, trainer_class=host, train_dataset=classified(90, 6), max_steps=2).train()
    assert [one.name for one in host._ft_techniques] == ["task", "adaptive-lr"]
