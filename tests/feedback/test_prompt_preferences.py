"""From acts on one prompt to votes, and from votes to pairs and labels."""

import pytest

from hf_ft_plugins.feedback import load_feedback, prompt_preferences, signals
from tests.feedback.written_logs import contents, conversation, found, why


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
