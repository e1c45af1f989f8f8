"""Each format of a log is known by its records, and gives the same preferences."""

import json

import pytest

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.feedback import preferences_from_log
from tests.feedback.format_samples import ASK, BAD, GOOD, LABELLED, OTHER, PAIRED
from tests.feedback.written_logs import contents, found, lines


@pytest.mark.parametrize("name", PAIRED)
def test_format_is_detected_and_gives_the_pair(name, tmp_path):
    pairs, _, report = found(lines(tmp_path / "log.jsonl", PAIRED[name]))
    assert report["format"] == name
    assert [contents(row) for row in pairs] == [(GOOD, BAD)]
    assert pairs[0]["prompt"] == [{"role": "user", "content": ASK}]
    assert pairs[0]["chosen"][0]["role"] == "assistant"


@pytest.mark.parametrize("name", LABELLED)
def test_format_is_detected_and_gives_the_labels(name, tmp_path):
    _, labels, report = found(lines(tmp_path / "log.jsonl", LABELLED[name]))
    assert report["format"] == name
    assert {row["completion"][0]["content"]: row["label"] for row in labels} == {GOOD: True, BAD: False}


def test_conversations_that_differ_earlier_are_no_pair(tmp_path):
    apart = [
        {**PAIRED["arena"][0], "conversation_a": [{"role": "user", "content": "Hello"}, OTHER[1]]},
        *PAIRED["arena"],
    ]
    pairs, labels, report = found(lines(tmp_path / "log.jsonl", apart))
    assert len(pairs) == 1
    assert not labels
    assert list(report["lines"]["left_out"].values()) == [1]
    both_bad = [{**apart[0], "winner": "tie (bothbad)"}]
    assert [row["label"] for row in found(lines(tmp_path / "bad.jsonl", both_bad))[1]] == [False, False]


def test_unknown_format_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(PluginError, match=r"behavioral.*unknown.*conversation_a.*keys colour, size"):
        found(lines(tmp_path / "log.jsonl", [{"colour": 1, "size": 2}]))
    with pytest.raises(OptionError, match="no format 'x'"):
        found(tmp_path / "log.jsonl", format="x")
    with pytest.raises(PluginError, match="there is no log"):
        found(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PluginError, match="holds no log"):
        found(tmp_path / "empty")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PluginError, match=r"no JSON object.*to_json"):
        found(tmp_path / "empty.jsonl")


def test_oasst_trees(data_folder):
    made = preferences_from_log(data_folder / "oasst_feedback" / "en_100_tree.jsonl.gz")
    thumbs = made.report["events"]["thumbs"]
    # SOURCE.md: 854 up, 372 down.
    assert thumbs["seen"] == 854 + 372
    assert made.report["messages"]["messages"] == 1167
    assert made.report["rows"]["pairs"]["rows"] > 650
    # Better ranked replies have more net thumbs, so labels agree with ranks far above chance.
    overlap = made.report["noise"]["choice"]["overlaps"]["thumbs"]
    assert overlap["agreed"] > 2 * overlap["differed"]
    assert not any(".+1" in json.dumps(row) for row in made.pairs())


def test_hh_transcripts(data_folder):
    made = preferences_from_log(data_folder / "hh_rlhf_harmless" / "harmless-base-test.jsonl.gz")
    assert made.report["lines"]["read"] == 2312
    assert sum(made.report["lines"]["left_out"].values()) == 5
    assert made.report["rows"]["pairs"]["rows"] > 2250
    for row in made.pairs():
        assert row["prompt"][-1]["role"] == "user"
        assert "\n\nHuman:" not in contents(row)[0]
