"""Ranks, verdicts, tools and turns of rows; rows that cannot be read, and what is guessed."""

import json

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback import load_feedback, preferences_from_log
from tests.feedback.adapters.rows_of_turns import (
    ASKED,
    BAD,
    GOOD,
    SIDES,
    SYSTEM,
    TOLD,
    TOOLS,
    Q,
    call,
    human,
    read,
    result,
    said,
    user,
)


def test_ranks_are_a_pair_of_each_two_that_differ(tmp_path):
    answers = [{"answer": f"answer {rank}", "rank": rank} for rank in (2, 1, 1, 3)]
    answers[2]["answer"] = "also the first"
    pairs, _, _ = read(tmp_path, {"prompt": Q, "answers": answers})
    found = {(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in pairs}
    assert found == {
        *(("answer 1", f"answer {n}") for n in (2, 3)),
        *(("also the first", f"answer {n}") for n in (2, 3)),
        ("answer 2", "answer 3"),
    }


@pytest.mark.parametrize(
    ("verdict", "pairs", "reason"),
    [("model_a", [GOOD], None), ("model_b", [BAD], None), ("tie", [], "a tie"), ("nobody", [], "verdict is unknown")],
)
def test_a_verdict_is_known_or_its_row_is_counted(verdict, pairs, reason, tmp_path):
    row = {"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": verdict}
    found, _, report = read(tmp_path, row)
    assert [one["chosen"][0]["content"] for one in found] == pairs
    assert reason is None or reason in json.dumps([report["lines"]["left_out"], report["events"]])


def test_an_answer_without_a_rank_is_left_out_and_said(tmp_path):
    answers = [{"answer": "first", "rank": 1}, {"answer": "none", "rank": None}, {"answer": "second", "rank": 2}]
    ((pair,), _, report) = read(tmp_path, {"prompt": Q, "answers": answers})
    assert (pair["chosen"], pair["rejected"]) == ([said("first")], [said("second")])
    assert any("1 rows with answers without a rank" in warning for warning in report["warnings"])


def test_an_answer_is_a_turn_with_its_calls_and_what_came_of_them(tmp_path):
    """Answers that call different tools differ before their last turns, and are answers to one prompt all the same."""
    sides = {
        "chosen": [call(of="sea"), result("blue"), said(GOOD)],
        "rejected": [call(of="mud"), result("?"), said(BAD)],
    }
    for row in (
        {"prompt": ASKED, **sides, "tools": TOOLS},
        {**{name: [user(Q), *turns] for name, turns in sides.items()}, "tools": TOOLS},
        {"messages": [user(Q), *sides["chosen"]], "rejected_messages": [user(Q), *sides["rejected"]], "tools": TOOLS},
    ):
        ((pair,), _, report) = read(tmp_path, row)
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (ASKED, sides["chosen"], sides["rejected"])
        assert not report["warnings"]
    # Control: with a user's turn in between they answer different questions.
    apart = {name: [*turns, user("More?"), said(name)] for name, turns in sides.items()}
    pairs, _, report = read(tmp_path, {"prompt": ASKED, **apart})
    assert not pairs
    assert report["lines"]["left_out"] == {"conversations that differ before their last answer": 1}


def test_rows_of_data_sets_are_what_was_written_and_no_more(tmp_path):
    """Arrow has one type for all rows; a chat template must not see a None for what a turn does not have."""
    calls = [call(of="sea"), call(x=1, y=[2, None])]
    rows = [
        {"prompt": [{**user(f"{Q} {n}"), "name": "ann"}], "chosen": [one], "rejected": [said(BAD)], "tools": TOOLS}
        for n, one in enumerate(calls)
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_feedback(path, eval_share=0.0)
    assert [row["chosen"] for row in data] == [[one] for one in calls]
    assert [row["prompt"] for row in data] == [row["prompt"] for row in rows]
    assert [row["tools"] for row in data] == [TOOLS, TOOLS]


def test_with_other_tools_it_is_another_conversation(tmp_path):
    rows = [{"prompt": Q, "completion": GOOD, "label": bool(n), "tools": [{**TOOLS[0], "n": n}]} for n in range(2)]
    assert [(one["label"], one["tools"][0]["n"]) for one in read(tmp_path, *rows)[1]] == [(False, 0), (True, 1)]
    # Control: of one conversation, good and bad cancel out.
    assert not read(tmp_path, *({**row, "tools": TOOLS} for row in rows))[1]


def test_conversations_of_one_system_prompt_are_split_all_the_same(tmp_path):
    rows = [{"system": SYSTEM, "prompt": f"{Q} {n}", **SIDES} for n in range(60)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = preferences_from_log(path, eval_share=0.5).report["rows"]["pairs"]["splits"]
    assert splits["train"] + splits["eval"] == 60
    assert min(splits.values()) > 15


def test_turns_say_more_than_a_role_and_a_text(tmp_path):
    said_more = [
        user(Q),
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "function_call": {"name": "c", "arguments": "{}"},
        },
        {"role": "function", "name": "c", "content": [{"type": "text", "text": "blue", "image": None}]},
    ]
    ((pair,), _, _) = read(tmp_path, {"prompt": said_more, **SIDES})
    called, returned = pair["prompt"][1:]
    assert called["tool_calls"] == [{"type": "function", "function": {"name": "c", "arguments": {}}}]
    assert called["reasoning_content"] == "hm"
    assert returned == {"role": "tool", "content": "blue", "name": "c"}


OK = {"prompt": Q, **SIDES}
UNREADABLE = {
    "no rejected answer": ({"prompt": Q, "chosen": GOOD}, "without a rejected answer"),
    "None": ({"prompt": Q, "chosen": None, "rejected": BAD}, "without a chosen answer"),
    "no question": (SIDES, "no common beginning"),
    "an empty question": ({"prompt": "", "chosen": [said(GOOD)], "rejected": [said(BAD)]}, "without a question"),
    "an empty conversation": ({"prompt": Q, "chosen": [], "rejected": [said(BAD)]}, "an empty conversation"),
    "an unknown role": ({"prompt": [{"role": "critic", "content": Q}], **SIDES}, r"an unknown role \(critic\)"),
    "pictures": ({**OK, "images": ["a.png"]}, "parts that are no text"),
    "pictures in a turn": (
        {**OK, "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Q}]}]},
        "parts that are no text",
    ),
    "pictures beside a turn": ({**OK, "prompt": [{**user(Q), "images": ["x"]}]}, "parts that are no text"),
    "tools that are no JSON": ({**OK, "tools": "colour()"}, "tools that are no JSON"),
    "a call that is no JSON": (
        {"conversations": [human(Q), {"from": "function_call", "value": "colour()"}], **SIDES},
        "calls of tools that are no JSON",
    ),
    "a label of neither": ({"prompt": Q, "completion": GOOD, "label": "meh"}, "neither good nor bad"),
    "no label": ({"prompt": Q, "completion": GOOD, "label": None}, "without a label"),
    "no answer": ({"prompt": Q, "completion": None, "label": True}, "without an answer"),
    "a third answer": ({"messages": [user(Q), said("Red.")], **SIDES}, "beside a chosen and a rejected one"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_row_that_cannot_be_read_is_counted_with_its_reason(name, tmp_path, caplog):
    row, reason = UNREADABLE[name]
    pairs, labels, report = read(tmp_path, OK, row)
    assert len(pairs) == 1
    assert not labels
    ((why, count),) = report["lines"]["left_out"].items()
    assert count == 1
    assert any(why in warning for warning in report["warnings"])
    assert why in caplog.text
    # Of nothing else, the reason is the error's.
    (tmp_path / "alone.jsonl").write_text(json.dumps({"rejected": None} | row if "chosen" in row else row) + "\n")
    with pytest.raises(PluginError, match=reason):
        load_feedback(tmp_path / "alone.jsonl", "pairs" if "label" not in row else "labels", eval_share=0.0)


def test_what_was_guessed_is_said(tmp_path):
    report = read(tmp_path, {"chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"})[2]
    assert any("1 rows of texts without a prompt" in warning for warning in report["warnings"])
    other = {"system": SYSTEM, "prompt": "Another.", "chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)]}
    ((pair,), _, report) = read(tmp_path, other)
    assert pair["prompt"] == TOLD
    assert any("1 rows whose prompt is not in their conversations" in warning for warning in report["warnings"])
    # Control: nothing to guess.
    assert not read(tmp_path, OK)[2]["warnings"]


def test_texts_are_parted_at_the_beginning_of_a_word(tmp_path):
    ((pair,), _, _) = read(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert pair["prompt"] == [user("The sky is")]
    assert (pair["chosen"], pair["rejected"]) == ([said("blue.")], [said("black.")])


def test_an_answer_that_begins_like_a_conversation_is_an_answer(tmp_path):
    ((pair,), _, _) = read(tmp_path, {"prompt": Q, "chosen": "Human: the colour of skin.", "rejected": BAD})
    assert (pair["prompt"], pair["chosen"]) == (ASKED, [said("Human: the colour of skin.")])


def test_columns_that_hold_nothing_of_it_are_named(tmp_path):
    assert read(tmp_path, {**OK, "score": 3, "source": "x"})[2]["lines"]["columns_not_read"] == ["score", "source"]


def test_an_unknown_layout_is_an_error_that_names_columns_and_layouts(tmp_path):
    with pytest.raises(PluginError, match=r"trl: chosen and rejected.*swift: messages.*keys frage, antwort"):
        read(tmp_path, {"frage": Q, "antwort": GOOD})
