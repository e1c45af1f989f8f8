"""The log side of `behavioral`: formats, rules, noise, privacy, and what is written."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.feedback import prompt_preferences, signals
from hf_ft_plugins.feedback import signal_noise as noise
from hf_ft_plugins.feedback.events import Event, MalformedError, Message, timestamp
from hf_ft_plugins.feedback.near_duplicates import near_duplicates, signatures
from hf_ft_plugins.feedback.personal_data import Scrubber
from hf_ft_plugins.feedback.preferences import load_feedback, preferences_from_log
from hf_ft_plugins.feedback.report import rendered, write

EMAIL = "jane.doe@example.org"


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def conversation(*answers, prompt="What is blue?", name="c"):
    """One prompt with several answers: ids `c.p`, `c.0`, `c.1`, ..."""
    question = {"id": f"{name}.p", "parent_id": None, "role": "user", "content": prompt}
    return [
        question,
        *(
            {"id": f"{name}.{number}", "parent_id": f"{name}.p", "role": "assistant", "content": answer}
            for number, answer in enumerate(answers)
        ),
    ]


@pytest.fixture
def log(tmp_path):
    """A log of given messages and events, in our own tables."""

    def make(messages, events, name="log"):
        folder = tmp_path / name
        lines(folder / "messages.jsonl", messages)
        numbered = [{"id": f"e{number}", "user": "u", **event} for number, event in enumerate(events)]
        lines(folder / "events.jsonl", numbered)
        return folder

    return make


def found(path, **options):
    options = {"eval_share": 0.0, "estimate_noise": False, **options}
    made = preferences_from_log(path, **options)
    return list(made.pairs()), list(made.labels()), made.report


def contents(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def why(report, kind):
    return report["events"][kind]["dropped"]


# Formats

ASK, GOOD, BAD = "Name a colour.", "Blue is a colour.", "I do not know any."
TURNS = [{"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}]
OTHER = [TURNS[0], {"role": "assistant", "content": BAD}]

WEBUI = {
    "id": "f1",
    "user_id": "u1",
    "type": "rating",
    "data": {"rating": 1, "model_id": "m-a", "sibling_model_ids": ["m-b"], "details": {"rating": 9}},
    "meta": {"message_id": "a", "chat_id": "chat"},
    "snapshot": {
        "chat": {
            "id": "chat",
            "chat": {
                "history": {
                    "messages": {
                        "q": {"id": "q", "parentId": None, "role": "user", "content": ASK},
                        "a": {"id": "a", "parentId": "q", "role": "assistant", "content": GOOD, "model": "m-a"},
                        "b": {"id": "b", "parentId": "q", "role": "assistant", "content": BAD, "model": "m-b"},
                        "old": {"id": "old", "parentId": "q", "role": "assistant", "content": "x", "model": "m-c"},
                    }
                }
            },
        }
    },
    "updated_at": 1760000000,
}
RUNS = [
    {"id": "r1", "inputs": {"messages": [TURNS[0]]}, "outputs": {"choices": [{"message": TURNS[1]}]}},
    {"id": "r2", "inputs": {"question": ASK}, "outputs": {"output": BAD}},
]
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "t",
        "text": ASK,
        "role": "prompter",
        "replies": [
            {"message_id": "a", "text": GOOD, "role": "assistant", "rank": 0, "emojis": {"+1": 2}, "replies": []},
            {"message_id": "b", "text": BAD, "role": "assistant", "rank": 1, "emojis": {"-1": 1}, "replies": []},
            {"message_id": "d", "text": "gone", "role": "assistant", "rank": 2, "deleted": True, "replies": []},
        ],
    },
}
PAIRED = {
    "open-webui": [WEBUI],
    "openai": [{"input": {"messages": [TURNS[0]]}, "preferred_output": [TURNS[1]], "non_preferred_output": [OTHER[1]]}],
    "arena": [{"question_id": "1", "conversation_a": OTHER, "conversation_b": TURNS, "winner": "model_b"}],
    "oasst": [TREE],
    "hh": [{side: f"\n\nHuman: {ASK}\n\nAssistant: {text}" for side, text in (("chosen", GOOD), ("rejected", BAD))}],
    "trl": [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}],
}


@pytest.mark.parametrize("name", PAIRED)
def test_format_is_detected_and_gives_the_pair(name, tmp_path):
    pairs, _, report = found(lines(tmp_path / "log.jsonl", PAIRED[name]))
    assert report["format"] == name
    assert [contents(row) for row in pairs] == [(GOOD, BAD)]
    assert pairs[0]["prompt"] == [{"role": "user", "content": ASK}]
    assert pairs[0]["chosen"][0]["role"] == "assistant"


LABELLED = {
    "langsmith": [
        *RUNS,
        {"id": "1", "run_id": "r1", "key": "up", "score": 1},
        {"id": "2", "run_id": "r2", "key": "up", "score": 0},
    ],
    "langfuse": [
        {"id": "t1", "input": ASK, "output": GOOD, "userId": "u"},
        {"id": "t2", "input": {"messages": [TURNS[0]]}, "output": {"role": "assistant", "content": BAD}},
        {"id": "s1", "traceId": "t1", "name": "feedback", "value": 1, "dataType": "BOOLEAN", "source": "API"},
        {"id": "s2", "traceId": "t2", "name": "feedback", "value": 0, "dataType": "BOOLEAN", "source": "API"},
    ],
    "kto": [
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": text}], "kto_tag": text == GOOD}
        for text in (GOOD, BAD)
    ],
    "trl": [{"prompt": [TURNS[0]], "completion": [turns[1]], "label": turns is TURNS} for turns in (TURNS, OTHER)],
    "oasst": [TREE],
}


@pytest.mark.parametrize("name", LABELLED)
def test_format_is_detected_and_gives_the_labels(name, tmp_path):
    _, labels, report = found(lines(tmp_path / "log.jsonl", LABELLED[name]))
    assert report["format"] == name
    assert {row["completion"][0]["content"]: row["label"] for row in labels} == {GOOD: True, BAD: False}


@pytest.mark.parametrize("how", ["jsonl.gz", "json", "tables in one file", "bom"])
def test_ways_of_writing_a_log(how, tmp_path):
    records = PAIRED["trl"] * 3
    if how == "jsonl.gz":
        path = tmp_path / "log.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in records).encode()))
    elif how == "json":
        path = tmp_path / "log.json"
        path.write_text(json.dumps(records, indent=1))
    elif how == "bom":
        path = tmp_path / "log.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + lines(tmp_path / "x", records).read_bytes())
    else:
        act = {"id": "e", "type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}
        told = [{"table": "message", **one} for one in conversation(GOOD, BAD, prompt=ASK)]
        path = lines(tmp_path / "log.jsonl", [{"table": "event", **act}, *told])
    pairs, _, _ = found(path)
    assert [contents(row) for row in pairs] == [(GOOD, BAD)]


def test_large_items_of_a_list_are_read_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ft_plugins.feedback.log_files.CHUNK", 64)
    rows = [{"prompt": f"q{n}", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 40)]
    (tmp_path / "log.json").write_text(json.dumps(rows))
    assert found(tmp_path / "log.json")[2]["lines"]["read"] == 39


def test_scores_are_read_on_the_scale_of_their_name(tmp_path):
    runs = [{"id": f"r{n}", "inputs": {"input": f"q{n}"}, "outputs": {"output": f"answer {n}"}} for n in range(4)]
    stars = [{"id": f"s{n}", "run_id": f"r{n}", "key": "stars", "score": n + 1} for n in range(4)]
    _, labels, _ = found(lines(tmp_path / "a.jsonl", runs + stars))
    # One star of four or five is bad, although 1 is "up" elsewhere.
    assert {row["completion"][0]["content"]: row["label"] for row in labels} == {
        "answer 0": False,
        "answer 1": False,
        "answer 3": True,
    }
    judged = [{"id": "j", "run_id": "r0", "key": "k", "score": 1, "feedback_source": {"type": "model"}}]
    assert sum(found(lines(tmp_path / "b.jsonl", runs + judged))[2]["lines"]["left_out"].values()) == 1


def test_a_correction_of_langsmith_is_an_edit(tmp_path):
    feedback = {"id": "1", "run_id": "r2", "key": "fix", "correction": {"output": "I do not know any colour."}}
    pairs, _, _ = found(lines(tmp_path / "log.jsonl", [*RUNS, feedback]))
    assert [(contents(row), row["signal"]) for row in pairs] == [(("I do not know any colour.", BAD), "edit")]


@pytest.mark.parametrize("platform", ["langsmith", "langfuse"])
def test_system_prompt_tools_and_calls_of_a_run_arrive(platform, tmp_path):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    given = {"system": "Be short.", "messages": [TURNS[0]], "tools": tools}
    answer = {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "look", "args": {"of": "sea"}, "id": "1"}]}}
    records = {
        "langsmith": [
            {"id": "r", "inputs": given, "outputs": {"messages": [answer]}},
            {"id": "f", "run_id": "r", "key": "up", "score": 1},
        ],
        "langfuse": [
            {"id": "r", "input": given, "output": {"messages": [answer]}},
            {"id": "f", "traceId": "r", "name": "up", "value": 1},
        ],
    }
    _, (label,), _ = found(lines(tmp_path / "log.jsonl", records[platform]))
    assert label["prompt"] == [{"role": "system", "content": "Be short."}, TURNS[0]]
    function = {"name": "look", "arguments": {"of": "sea"}}
    assert label["completion"][0]["tool_calls"] == [{"id": "1", "type": "function", "function": function}]
    assert label["tools"] == tools


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


# Rules


@pytest.mark.parametrize(
    ("acts", "pair", "label"),
    [
        ([{"type": "choice", "value": "c.1", "candidates": ["c.0", "c.1"]}], ("1", "0"), {}),
        ([{"type": "choice", "value": "both_bad", "candidates": ["c.0", "c.1"]}], None, {"0": False, "1": False}),
        ([{"type": "choice", "value": "tie", "candidates": ["c.0", "c.1"]}], None, {}),
        ([{"type": "thumbs", "message_id": "c.0", "value": 1}], None, {"0": True}),
        (
            [{"type": "thumbs", "message_id": f"c.{n}", "value": v} for n, v in ((0, -1), (1, 1))],
            ("1", "0"),
            {"0": False, "1": True},
        ),
        ([{"type": "rating", "message_id": "c.0", "value": 1.0}], None, {"0": False}),
        ([{"type": "rating", "message_id": "c.0", "value": 3}], None, {}),
        ([{"type": "regenerate", "message_id": "c.0"}], None, {"0": False}),
        ([{"type": "regenerate", "message_id": "c.0"}, {"type": "copy", "message_id": "c.1"}], ("1", "0"), {"1": True}),
        ([{"type": "copy", "message_id": "c.0"}], None, {"0": True}),
        ([{"type": "accept", "message_id": "c.0"}], None, {"0": True}),
        ([{"type": "correction", "message_id": "c.0"}], None, {"0": False}),
        ([{"type": "continue", "message_id": "c.0"}], None, {}),
        ([{"type": "dwell", "message_id": "c.0", "dwell_ms": 90_000}], None, {}),
        ([{"type": "abandon", "message_id": "c.0"}], None, {}),
    ],
)
def test_rules(acts, pair, label, log):
    pairs, labels, report = found(log(conversation("answer 0", "answer 1"), acts))
    assert [contents(row) for row in pairs] == ([tuple(f"answer {one}" for one in pair)] if pair else [])
    assert {row["completion"][0]["content"][-1]: row["label"] for row in labels} == label
    # Nothing is lost silently.
    for counts in report["events"].values():
        used = sum(counts[how] for how in ("pair", "positive", "negative"))
        assert used + sum(counts["dropped"].values()) >= counts["seen"]


def test_a_regeneration_that_the_user_went_on_from_is_a_pair(log):
    messages = conversation("answer 0", "answer 1")
    act = [{"type": "regenerate", "message_id": "c.0", "value": "c.1"}]
    more = {"id": "c.2p", "parent_id": "c.1", "role": "user", "content": "And red?"}
    pairs, labels, _ = found(log([*messages, more], act))
    assert [(contents(row), row["behavior_eps"]) for row in pairs] == [(("answer 1", "answer 0"), 0.25)]
    assert not labels
    # Control: not went on, no pair.
    assert not found(log(messages, act, "control"))[0]


def test_a_correction_may_name_the_turn_that_corrects(log):
    said = [*conversation("answer 0"), {"id": "no", "parent_id": "c.0", "role": "user", "content": "No, red."}]
    _, labels, _ = found(log(said, [{"type": "correction", "message_id": "no"}]))
    assert [(row["completion"][0]["content"], row["label"]) for row in labels] == [("answer 0", False)]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ("The sky is blue, and the sea is too.", None),
        ("the  SKY is blue, and the sea is red.\n", "an edit that changes nothing"),
        ("Something else entirely was written here instead.", "an edit that rewrites everything"),
        ("  ", "an edit that leaves nothing"),
    ],
)
def test_edits(after, reason, log):
    edit = {"type": "edit", "message_id": "c.0", "text_after": after}
    pairs, _, report = found(log(conversation("The sky is blue, and the sea is red."), [edit]))
    assert [contents(row)[0] for row in pairs] == ([after] if reason is None else [])
    assert list(why(report, "edit")) == ([reason] if reason else [])


def test_the_same_user_saying_both_is_not_counted(log):
    both = [{"type": "thumbs", "message_id": "c.0", "value": value} for value in (1, -1)]
    _, labels, report = found(log(conversation("answer"), both))
    assert not labels
    assert report["conflicts"] == {"users who contradict themselves": 1}
    # A label outdoes what the same user did.
    _, labels, report = found(log(conversation("answer"), [both[1], {"type": "copy", "message_id": "c.0"}], "b"))
    assert [row["label"] for row in labels] == [False]
    assert why(report, "copy") == {"contradicted by the same user's label": 1}
    # Control: two users may say both, and say nothing together.
    two = [{**act, "user": user} for act, user in zip(both, "ab", strict=True)]
    assert found(log(conversation("answer"), two, "c"))[2]["conflicts"]["users who disagree evenly"] == 1


def test_disagreement_among_users_raises_epsilon(log):
    def epsilon(ups, downs):
        acts = [
            {"type": "thumbs", "message_id": "c.0", "value": 1 if n < ups else -1, "user": f"u{n}"}
            for n in range(ups + downs)
        ]
        _, (row,), _ = found(log(conversation("a"), acts, f"{ups}-{downs}"))
        assert row["label"] == (ups > downs)
        assert row["source_event_ids"] == [f"e{n}" for n in range(ups + downs)]
        return row["behavior_eps"]

    assert epsilon(1, 0) == pytest.approx(0.1)
    assert epsilon(3, 0) < epsilon(1, 0) < epsilon(3, 1) < epsilon(3, 2) < 0.5
    assert epsilon(1, 3) == epsilon(3, 1)


def test_ratings_are_read_against_their_users_mean(log):
    messages = [message for n in range(12) for message in conversation("an answer", name=f"c{n}", prompt=f"q{n}")]
    always_five = [{"type": "rating", "message_id": f"c{n}.0", "value": 5, "user": "kind"} for n in range(12)]
    _, labels, report = found(log(messages, always_five))
    assert not labels
    assert why(report, "rating") == {"a rating in the middle": 12}
    # Control: somebody whose mean is in the middle.
    mixed = [{**act, "value": 5 if n % 2 else 1} for n, act in enumerate(always_five)]
    assert len(found(log(messages, mixed, "control"))[1]) == 12


def test_ratings_two_apart_are_a_pair(log):
    def rated(low):
        acts = [{"type": "rating", "message_id": f"c.{n}", "value": v} for n, v in ((0, 5), (1, low))]
        return [contents(row) for row in found(log(conversation("x 0", "x 1"), acts, f"{low}"))[0]]

    assert rated(3) == [("x 0", "x 1")]
    assert rated(4) == []


def test_equal_and_empty_answers_make_no_pair(log):
    for answers, reason in ((("same", "same"), "between equal answers"), (("some", ""), "about an empty answer")):
        choice = {"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}
        pairs, _, report = found(log(conversation(*answers), [choice], answers[1] or "empty"))
        assert not pairs
        assert why(report, "choice") == {reason: 1}


def test_no_pair_is_made_across_prompts(log):
    messages = conversation("a", "b", name="x", prompt="one") + conversation("c", "d", name="y", prompt="two")
    acts = [
        {"type": "choice", "value": "x.0", "candidates": ["x.0", "y.0"]},
        {"type": "thumbs", "message_id": "x.1", "value": 1},
        {"type": "thumbs", "message_id": "y.1", "value": -1},
    ]
    pairs, labels, report = found(log(messages, acts))
    assert not pairs
    assert len(labels) == 2
    assert why(report, "choice") == {"candidates that answer different prompts": 1}


def test_without_consent_nothing_is_used(log):
    acts = [{"type": "copy", "message_id": "c.0", "consent": consent} for consent in (False, True)]
    _, labels, report = found(log(conversation("a"), acts))
    assert [row["source_event_ids"] for row in labels] == [["e1"]]
    assert why(report, "copy") == {"without consent": 1}


def test_weak_signals_weigh_a_fifth_at_most_and_nothing_alone(log):
    messages = [m for n in range(60) for m in conversation(f"an answer {n}", name=f"c{n}", prompt=f"question {n}")]
    acts = [{"type": "continue", "message_id": f"c{n}.0", "user": f"u{n}"} for n in range(60)]
    acts[0] |= {"type": "thumbs", "value": 1}
    chosen = (*signals.DEFAULT_SIGNALS, "continue")
    path = log(messages, acts)
    report = found(path, signals=chosen)[2]
    shares = {name: of["weight"] for name, of in report["rows"]["labels"]["by_signal"].items()}
    assert shares == {"thumbs": 0.8, "continue": 0.2}
    assert not found(path, signals=("continue",))[1]
    # Control: off unless asked for.
    assert len(found(path)[1]) == 1


def test_most_pairs_of_one_prompt(log):
    names = [f"c.{n}" for n in range(40)]
    choice = {"type": "choice", "value": "c.0", "candidates": names}
    pairs, _, _ = found(log(conversation(*[f"answer number {n}" for n in range(40)]), [choice]))
    assert len(pairs) == prompt_preferences.MOST_PAIRS


def test_context_is_the_ancestors_and_the_completion_one_turn_with_its_calls(log):
    call = [{"type": "function", "function": {"name": "colour", "arguments": {"of": "sea"}}}]
    messages = [
        {"id": "s", "parent_id": None, "role": "system", "content": "Be short."},
        {"id": "q", "parent_id": "s", "role": "user", "content": "Colour?"},
        {"id": "t", "parent_id": "q", "role": "assistant", "content": None, "tool_calls": call},
        {"id": "r", "parent_id": "t", "role": "tool", "content": "blue"},
        {"id": "a", "parent_id": "r", "role": "assistant", "content": "Blue."},
        {"id": "b", "parent_id": "q", "role": "assistant", "content": "Red."},
    ]
    acts = [{"type": "copy", "message_id": one} for one in "ta"] + [{"type": "thumbs", "message_id": "b", "value": -1}]
    _, labels, _ = found(log(messages, acts))
    by_text = {row["completion"][0]["content"]: row for row in labels}
    assert [turn["role"] for turn in by_text["Blue."]["prompt"]] == ["system", "user", "assistant", "tool"]
    assert by_text[""]["completion"][0]["tool_calls"] == call
    assert [turn["content"] for turn in by_text["Red."]["prompt"]] == ["Be short.", "Colour?"]
    data = load_feedback(log(messages, acts, "again"), "labels", eval_share=0.0)
    assert {row["completion"][0]["content"] for row in data} == {"", "Blue.", "Red."}
    assert data[[row["completion"][0]["content"] for row in data].index("")]["completion"][0]["tool_calls"] == call


# Noise and weights


def test_estimated_epsilon_recovers_planted_rates(log):
    draw = random.Random(0)
    planted = {"thumbs": 0.1, "copy": 0.3, "regenerate": 0.15}
    messages, acts = [], []
    for n in range(4000):
        messages += conversation(f"answer {n}", name=f"c{n}", prompt=f"question {n}")
        good = draw.random() < 0.5
        for kind, rate in planted.items():
            says = good == (draw.random() >= rate)
            if kind == "thumbs":
                acts += [
                    {"type": kind, "message_id": f"c{n}.0", "value": 1 if good == (draw.random() >= rate) else -1,
                     "user": f"u{n}-{k}"}
                    for k in range(2)
                ]  # fmt: skip
            elif says == (kind == "copy"):
                acts.append({"type": kind, "message_id": f"c{n}.0", "user": f"{kind}{n}"})
    _, _, report = found(log(messages, acts), estimate_noise=True)
    estimated = {kind: report["noise"][kind]["estimated"] for kind in planted}
    # What was not done says nothing: of copied answers those that are good make up 1 - rate.
    assert estimated == pytest.approx(planted, abs=0.02)
    # Control: the table's are off by more.
    assert any(abs(report["noise"][kind]["prior"] - rate) > 0.04 for kind, rate in planted.items())


def test_few_overlaps_leave_the_tables_epsilon():
    few = noise.estimated_epsilons({("copy", "thumbs"): [0, 1]})["copy"]
    many = noise.estimated_epsilons({("copy", "thumbs"): [0, 1000]})["copy"]
    assert 0.25 < few < 0.35 < many < 0.5
    assert noise.estimated_epsilons({}) == noise.prior_epsilons()


def test_flip_probability_of_one_vote_is_its_own_and_stays_below_a_half():
    assert noise.flip_probability({"copy": 1}, 0, noise.prior_epsilons()) == pytest.approx(0.25)
    for votes in range(1, 30):
        for against in range(votes):
            assert 0 <= noise.flip_probability({"copy": votes}, against, {"copy": 0.49}) < 0.5


def weigh(log, acts, **options):
    messages = [m for n in range(len(acts)) for m in conversation(f"an answer {n}", name=f"c{n}", prompt=f"q{n}")]
    acts = [{"type": "copy", "message_id": f"c{n}.0", **act} for n, act in enumerate(acts)]
    _, labels, _ = found(log(messages, acts, str(len(options)) + str(len(acts))), **options)
    return [row["behavior_weight"] for row in labels]


def test_users_weigh_as_the_root_of_their_rows(log):
    acts = [{"user": "busy"}] * 16 + [{"user": "rare"}]
    weights = weigh(log, acts)
    assert sum(weights[:16]) == pytest.approx(4 * weights[16], rel=1e-4)
    assert np.mean(weights) == pytest.approx(1, abs=1e-4)
    assert weigh(log, acts, user_cap=False) == pytest.approx([1.0] * 17)


def test_age_and_propensity_weigh_when_asked_for(log):
    acts = [{"user": "a", "ts": 1.7e9}, {"user": "b", "ts": 1.7e9 + 30 * 86_400}]
    old, new = weigh(log, acts, half_life_days=30)
    assert old == pytest.approx(new / 2, rel=1e-4)
    acts = [{"user": "a", "propensity": 0.01}, {"user": "b", "propensity": 0.5}, {"user": "c"}]
    rare, half, unknown = weigh(log, acts, ips=True)
    assert (rare / unknown, half / unknown) == pytest.approx((5, 2), rel=1e-4)
    assert weigh(log, acts) == pytest.approx([1, 1, 1])


def test_weight_is_the_information_left(log):
    acts = [{"user": "a"}, {"user": "b", "type": "thumbs", "value": 1}]
    copied, thumbs = weigh(log, acts)
    assert copied / thumbs == pytest.approx((1 - 2 * 0.25) ** 2 / (1 - 2 * 0.1) ** 2, rel=1e-4)


# A log with everything


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """1,500 conversations of 80 users: everything happens, some prompts are shared, personal data is planted."""
    draw = random.Random(3)
    folder = tmp_path_factory.mktemp("busy")
    messages, acts = [], []
    kinds = ("thumbs", "copy", "regenerate", "choice", "rating", "correction", "edit")
    for n in range(1500):
        text = [f"answer {n} {draw.random()} {EMAIL if draw.random() < 0.1 else ''}" for _ in range(2)]
        messages += conversation(*text, name=f"c{n}", prompt=f"question {n % 700} from {EMAIL}")
        for _ in range(3):
            kind, about = draw.choice(kinds), f"c{n}.{draw.randrange(2)}"
            user = f"{draw.randrange(80)}@example.com" if draw.random() < 0.9 else None
            act = {"type": kind, "message_id": about, "user": user, "id": f"e{len(acts)}", "ts": 1.7e9 + n}
            value = {"thumbs": draw.choice((1, -1)), "rating": draw.randrange(1, 6), "choice": about}.get(kind)
            act |= {"value": value, "text_after": text[0] + f" call {EMAIL}" if kind == "edit" else None}
            act["candidates"] = [f"c{n}.0", f"c{n}.1"] if kind == "choice" else None
            acts.append(act)
    lines(folder / "messages.jsonl", messages)
    lines(folder / "events.jsonl", acts)
    return folder


def test_invariants_of_a_busy_log(busy):
    prompts = {f"question {n}" for n in range(700)}
    made = preferences_from_log(busy, eval_share=0.4)
    pairs, labels = list(made.pairs()), list(made.labels())
    assert len(pairs) > 500
    assert len(labels) > 500
    for rows in (pairs, labels):
        for split in ("train", "eval"):
            weights = [row["behavior_weight"] for row in rows if row["split"] == split]
            assert len(weights) > 30
            assert np.mean(weights) == pytest.approx(1, abs=1e-4)
        users = {
            split: {one for row in rows if row["split"] == split and row["user"] for one in row["user"].split("+")}
            for split in ("train", "eval")
        }
        assert users["train"]
        assert not users["train"] & users["eval"]
        assert all(0 <= row["behavior_eps"] < 0.5 and row["behavior_weight"] > 0 for row in rows)
        assert all(row["source_event_ids"] for row in rows)
    for row in pairs:
        # Answers name their prompt's number, so a pair across prompts would show.
        assert len({text.split()[1] for text in contents(row)}) == 1
        assert row["prompt"][0]["content"].split(" from")[0] in prompts
        assert contents(row)[0] != contents(row)[1]
    written = "".join(file.read_text() for file in made.folder.iterdir()) + json.dumps(made.report)
    assert "@" not in written
    assert "<EMAIL>" in written
    assert made.report["personal_data"]["EMAIL"] > 1500


def test_personal_data_stays_only_where_that_is_asked_for(busy):
    made = preferences_from_log(busy, pii=False)
    assert EMAIL in (made.folder / "pairs.jsonl").read_text()
    assert any(row["user"] and row["user"].endswith("@example.com") for row in made.labels())


def test_same_log_same_rows_whatever_the_hash_seed(busy, tmp_path):
    code = (
        "import sys; from hf_ft_plugins.feedback.preferences import preferences_from_log as p;"
        "p(sys.argv[1], folder=sys.argv[2])"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(busy), str(tmp_path / seed)], check=True, env=env)
    for name in ("pairs.jsonl", "labels.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    # Control: another seed makes another split.
    made = preferences_from_log(busy, seed=5)
    assert (made.folder / "pairs.jsonl").read_bytes() != (tmp_path / "1" / "pairs.jsonl").read_bytes()


def test_load_feedback_gives_data_sets_for_trl(busy):
    data = load_feedback(busy, "pairs", "train")
    assert data.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert {"behavior_weight", "behavior_eps", "signal", "user", "source_event_ids", "split"} <= set(data.column_names)
    assert set(data["split"]) == {"train"}
    assert data._fingerprint == load_feedback(busy, "pairs", "train")._fingerprint
    assert data._fingerprint != load_feedback(busy, "pairs", "eval")._fingerprint
    labels = load_feedback(busy, "labels")
    assert set(labels["label"]) == {True, False}


# Duplicates


def test_equal_rows_are_one_with_all_events_and_users(log):
    messages = [m for n in range(3) for m in conversation("Blue.", name=f"c{n}", prompt="Colour?")]
    acts = [{"type": "copy", "message_id": f"c{n}.0", "user": f"u{n}"} for n in range(3)]
    _, (row,), report = found(log(messages, acts), pii=False)
    assert row["source_event_ids"] == ["e0", "e1", "e2"]
    assert row["user"] == "u0+u1+u2"
    assert row["behavior_eps"] < 0.25
    assert report["rows"]["labels"]["dropped"] == {"equal to another row, votes and events kept there": 2}
    # Somebody saying the same thrice is one opinion.
    _, (row,), _ = found(log(messages, [{**act, "user": "u"} for act in acts], "one"))
    assert row["behavior_eps"] == 0.25


def test_equal_pairs_the_other_way_round_are_votes_against(log):
    messages = [m for n in range(4) for m in conversation("Blue.", "Red.", name=f"c{n}", prompt="Colour?")]
    chosen = (0, 0, 1, 0)
    acts = [
        {"type": "choice", "value": f"c{n}.{one}", "candidates": [f"c{n}.0", f"c{n}.1"], "user": f"u{n}"}
        for n, one in enumerate(chosen)
    ]
    (row,), _, _ = found(log(messages, acts))
    assert contents(row) == ("Blue.", "Red.")
    assert row["behavior_eps"] == pytest.approx((2 * 0.1 + 1) / 5)
    assert not found(log(messages, acts[1:3], "even"))[0]
    turned = [{**act, "value": f"c{n}.{1 - one}"} for n, (act, one) in enumerate(zip(acts, chosen, strict=True))]
    assert contents(found(log(messages, turned, "turned"))[0][0]) == ("Red.", "Blue.")


def test_near_duplicates_are_found_and_others_are_not():
    draw = random.Random(0)
    vocabulary = [f"word{n}" for n in range(3000)]
    texts = [draw.choices(vocabulary, k=120) for _ in range(200)]
    changed = [[*text[:60], "changed", *text[61:]] for text in texts[:50]]
    rows = [("a question", " ".join(text)) for text in texts + changed]
    first = near_duplicates(signatures(rows), np.zeros(250, int))
    assert (first[:200] == np.arange(200)).all()
    assert (first[200:] == np.arange(50)).mean() > 0.9
    # Of another kind, as a good and a bad answer are, they are not one.
    kinds = np.arange(250) // 200
    assert (near_duplicates(signatures(rows), kinds) == np.arange(250)).all()
    chinese = [("", "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(200))) for _ in range(30)]
    assert (near_duplicates(signatures(chinese), np.zeros(30, int)) == np.arange(30)).all()


def test_similar_rows_are_kept_once(log):
    long = " ".join(f"word{n}" for n in range(200))
    messages = conversation(long, name="a") + conversation(long.replace("word77", "other"), name="b")
    acts = [{"type": "copy", "message_id": f"{name}.0", "user": name} for name in "ab"]
    _, labels, report = found(log(messages, acts))
    assert len(labels) == 1
    assert report["rows"]["labels"]["dropped"] == {"similar to another row": 1}


# Privacy


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"write to {EMAIL}.", ["EMAIL"]),
        ("call +49 30 1234567 or (212) 555-0123", ["PHONE", "PHONE"]),
        ("card 4111 1111 1111 1111", ["CARD"]),
        ("card 4111 1111 1111 1112", []),
        ("DE89 3704 0044 0532 0130 00", ["IBAN"]),
        ("GB82WEST12345698765432.", ["IBAN"]),
        ("from 192.168.17.4 and 2001:db8::8a2e:370:7334", ["IP", "IP"]),
        ("https://joe:secret@host.org/x", ["URL_WITH_PASSWORD"]),
        ("key sk-abcdefghijklmnopqrstuvwxyz012345", ["API_KEY"]),
        ("AKIAIOSFODNN7EXAMPLE", ["API_KEY"]),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", ["API_KEY"]),
        ("2024-01-15 10:30:00, 3.14159265, 1,000,000, version 1.2.3, in 1990 to 2005", []),
        ("task-list, right::left, a/b/c and 12:45", []),
    ],
)
def test_scrubbing(text, kinds):
    scrub = Scrubber()
    clean = scrub(text)
    assert sorted(scrub.found.elements()) == sorted(kinds)
    assert all(f"<{kind}>" in clean for kind in kinds)
    assert (clean == text) == (not kinds)


def test_scrubbing_reaches_into_tool_calls():
    calls = [{"function": {"name": "mail", "arguments": {"to": EMAIL, "card": 4111111111111111, "n": 3}}}]
    clean = Scrubber().everywhere(calls)[0]["function"]["arguments"]
    assert clean == {"to": "<EMAIL>", "card": "<CARD>", "n": 3}


# Bad input


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


def test_broken_lines_are_counted_and_quoted_and_too_many_are_an_error(tmp_path):
    rows = [json.dumps({**PAIRED["trl"][0], "prompt": f"q{n}"}) for n in range(300)]
    rows[7] = '{"prompt": "secret'
    rows[9] = json.dumps({"prompt": "x", "chosen": 3, "rejected": "y"})
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(rows))
    pairs, _, report = found(path)
    assert len(pairs) == 298
    assert report["lines"]["broken"] == 2
    assert [quote.split(": ")[0] for quote in report["lines"]["broken_first"]] == ["log.jsonl:8", "log.jsonl:10"]
    assert "secret" not in json.dumps(report)
    rows[20:24] = ["[1]", "null", "{} {}", "\ud800".encode("utf-8", "replace").decode() + "{"]
    path.write_text("\n".join(rows))
    with pytest.raises(PluginError, match=r"6 of 300 lines of the log are broken, more than 1%.*log.jsonl:8"):
        found(path)


def test_a_list_that_breaks_off_is_an_error(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(PAIRED["trl"] * 3)[:-20])
    with pytest.raises(PluginError, match="breaks off or breaks in item 3"):
        found(path)


def test_events_about_what_is_not_there(log):
    messages = [
        *conversation("a", "b"),
        {"id": "lost", "parent_id": "never", "role": "user", "content": "?"},
        {"id": "lost.0", "parent_id": "lost", "role": "assistant", "content": "x"},
        {"id": "first", "parent_id": None, "role": "assistant", "content": "Hello, who are you?"},
    ]
    acts = [{"type": "copy", "message_id": one} for one in ("nowhere", "c.p", "lost.0", "first", "c.0")]
    acts += [{"type": "choice", "value": "c.0", "candidates": ["c.0", "nowhere"]}, {**acts[-1], "id": "e4"}]
    _, labels, report = found(log(messages, acts))
    assert [row["source_event_ids"] for row in labels] == [["e4"]]
    assert why(report, "copy") == {
        "about a message that does not exist": 1,
        "about a message that is not the assistant's": 1,
        "in a conversation of which an earlier message is missing": 1,
        "about an answer to no prompt": 1,
        "an event of this id was there before": 1,
    }
    assert why(report, "choice") == {"about a message that does not exist": 1}
    assert any("2 events are about messages" in warning for warning in report["warnings"])


def test_circles_of_parents_are_found_and_named(log):
    circle = [
        {"id": "a", "parent_id": "c", "role": "user", "content": "1"},
        {"id": "b", "parent_id": "a", "role": "assistant", "content": "2"},
        {"id": "c", "parent_id": "b", "role": "user", "content": "3"},
        {"id": "d", "parent_id": "c", "role": "assistant", "content": "behind it"},
        {"id": "self", "parent_id": "self", "role": "assistant", "content": "alone"},
    ]
    acts = [{"type": "copy", "message_id": one} for one in ("b", "d", "self", "c.0")]
    circle[2] |= {"id": "c"}
    _, labels, report = found(log([*circle, *conversation("fine")], acts))
    assert len(labels) == 1
    assert why(report, "copy") == {"in a conversation whose parents go round in a circle": 3}
    assert report["messages"]["circles of parents"] == 2
    assert "self" in report["messages"]["circles"]
    assert any("go round in a circle" in warning for warning in report["warnings"])


def test_messages_with_the_id_of_another(log):
    again = conversation("first", "other")
    other = {**again[1], "content": "second"}
    _, labels, report = found(log([*again, again[1], other], [{"type": "copy", "message_id": "c.0"}]))
    assert labels[0]["completion"][0]["content"] == "first"
    assert report["messages"]["messages told again"] == 1
    assert report["messages"]["messages with the id of another, dropped"] == 1


def test_one_sided_logs_are_refused_and_warned_of(log):
    path = log(conversation("a"), [{"type": "copy", "message_id": "c.0"}])
    assert any("all 1 labels are good" in warning for warning in found(path)[2]["warnings"])
    with pytest.raises(PluginError, match=r"all 1 labels .* are good"):
        load_feedback(path, "labels", eval_share=0.0)
    with pytest.raises(PluginError, match=r"gives no pairs.*gives 1 labels: load those"):
        load_feedback(path, "pairs", eval_share=0.0)
    bad = log(conversation("a"), [{"type": "correction", "message_id": "c.0"}], "bad")
    with pytest.raises(PluginError, match="are bad"):
        load_feedback(bad, "labels", eval_share=0.0)
    with pytest.raises(PluginError, match="for the split 'eval'"):
        load_feedback(bad, "labels", "eval", eval_share=0.0)


@pytest.mark.parametrize(
    "options", [{"signals": ("thumb",)}, {"signals": "copy"}, {"eval_share": 1}, {"half_life_days": 0}, {"limit": 0}]
)
def test_options_out_of_range(options, tmp_path):
    with pytest.raises(OptionError, match=next(iter(options))):
        preferences_from_log(lines(tmp_path / "log.jsonl", PAIRED["trl"]), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message("", None, "user", "x"),
        lambda: Message("a", None, "robot", "x"),
        lambda: Message("a", None, "user", 3),
        lambda: Event("e", 0.0, None, "m", "smile"),
        lambda: Event("e", 0.0, None, "m", "thumbs", 2),
        lambda: Event("e", 0.0, None, "m", "rating", 7),
        lambda: Event("e", 0.0, None, None, "copy"),
        lambda: Event("e", 0.0, None, "m", "choice", "m", candidates=("m",)),
        lambda: Event("e", 0.0, None, "m", "edit"),
        lambda: Event("e", 0.0, None, "m", "copy", propensity=0.0),
        lambda: timestamp("yesterday"),
    ],
)
def test_what_is_no_message_and_no_event(make):
    with pytest.raises(MalformedError):
        make()


def test_times():
    assert timestamp("2026-01-01T00:00:00Z") == timestamp(1767225600) == timestamp(1767225600_000)
    assert timestamp(None) == 0


def test_half_surrogates_and_control_characters_survive(log):
    odd = 'a "quoted"\u2028\x00\x1f\ttext \ud83d and 日本'
    _, (row,), _ = found(log(conversation(odd), [{"type": "copy", "message_id": "c.0"}]))
    assert row["completion"][0]["content"] == odd.replace("\ud83d", "?")


# Reports and the command

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


def test_inspect_command(log, tmp_path):
    path = log(conversation("a", "b"), [{"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}])
    run = [sys.executable, "-m", "hf_ft_plugins", "behavior", "inspect"]
    done = subprocess.run([*run, str(path), "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["pairs"]["rows"] == 1
    names = {"pairs.jsonl", "labels.jsonl", "behavior_report.json", "behavior_report.html"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    done = subprocess.run([*run, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hf-ft: behavioral: there is no log")
    assert "Traceback" not in done.stderr


def test_the_list_of_techniques_imports_no_numpy():
    code = "import sys, hf_ft_plugins.cli.app; print([m for m in ('numpy', 'torch', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Real logs


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


def test_tokens_are_measured(data_folder, log):
    from hf_ft_plugins.feedback.report import measured

    long = conversation("short", "long " * 400)
    act = [{"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}]
    made = preferences_from_log(log(long, act), eval_share=0.0)
    tokenizer = str(data_folder / "ckpt_books_lm")
    assert measured(made.folder, tokenizer, 1024)["pairs"]["cut"] == 0
    cut = measured(made.folder, tokenizer, 64)["pairs"]
    assert cut["cut"] == 1
    assert 0 < cut["padding"] < 1
    with pytest.raises(PluginError, match="holds no tokenizer"):
        measured(made.folder, str(Path("nowhere")), 64)
