"""The layouts in which people's tools write preferences, one row each, with what it says written out by hand."""

import json
from pathlib import Path

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback.preferences import load_feedback, preferences_from_log

Q, GOOD, BAD = "Name a colour.", "Blue is one.", "I know none."
SYSTEM, BEFORE, SAID = "Be short.", "Hello.", "Hi, what is it?"
TOOLS = [{"type": "function", "function": {"name": "colour", "parameters": {"type": "object", "properties": {}}}}]


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def call(name="colour", **arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def result(text):
    return {"role": "tool", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def read(tmp_path, *rows, **options):
    path = Path(tmp_path) / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = preferences_from_log(path, eval_share=0.0, estimate_noise=False, **options)
    return list(made.pairs()), list(made.labels()), made.report


ASKED = [user(Q)]
TOLD = [system(SYSTEM), user(Q)]
MULTI = [user(BEFORE), said(SAID), user(Q)]
CALLED = [user(Q), call(of="sea"), result('{"is": "blue"}')]
SIDES = {"chosen": GOOD, "rejected": BAD}
# Layout: a row, and the prompt that it means; the answers are GOOD and BAD throughout.
PAIRS = {
    # TRL: dataset_formats
    "trl: explicit texts": ({"prompt": Q, **SIDES}, ASKED),
    "trl: explicit conversations": ({"prompt": ASKED, "chosen": [said(GOOD)], "rejected": [said(BAD)]}, ASKED),
    "trl: implicit texts": ({"chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"}, ASKED),
    "trl: implicit conversations": ({"chosen": [*MULTI, said(GOOD)], "rejected": [*MULTI, said(BAD)]}, MULTI),
    "trl: tools as JSON": (
        {"prompt": ASKED, "chosen": [said(GOOD)], "rejected": [said(BAD)], "tools": json.dumps(TOOLS)},
        ASKED,
    ),
    "trl: a conversation with a call": (
        {"prompt": CALLED, "chosen": [said(GOOD)], "rejected": [said(BAD)], "tools": TOOLS},
        CALLED,
    ),
    # The Hub's commonest: a text as prompt beside whole conversations.
    "ultrafeedback_binarized": (
        {
            "prompt": Q,
            "prompt_id": "x",
            "chosen": [user(Q), said(GOOD)],
            "rejected": [user(Q), said(BAD)],
            "messages": [user(Q), said(GOOD)],
            "score_chosen": 8.0,
        },
        ASKED,
    ),
    "a prompt that the system's turn precedes": (
        {"prompt": Q, "chosen": [*TOLD, said(GOOD)], "rejected": [*TOLD, said(BAD)]},
        TOLD,
    ),
    "a prompt that is the last of several": (
        {"prompt": Q, "chosen": [*MULTI, said(GOOD)], "rejected": [*MULTI, said(BAD)]},
        MULTI,
    ),
    "a prompt that is the first of several": (
        {"prompt": BEFORE, "chosen": [*MULTI, said(GOOD)], "rejected": [*MULTI, said(BAD)]},
        MULTI,
    ),
    "turns as prompt, repeated in the answers": (
        {"prompt": MULTI, "chosen": [*MULTI, said(GOOD)], "rejected": [*MULTI, said(BAD)]},
        MULTI,
    ),
    "a system column beside whole conversations": (
        {"system": SYSTEM, "chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)]},
        TOLD,
    ),
    # axolotl: dpo/chatml, llama3; every name of the question and of an answer
    "axolotl: argilla": ({"system": SYSTEM, "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD}, TOLD),
    "axolotl: argilla_chat": ({"chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)]}, ASKED),
    "axolotl: icr": ({"system": SYSTEM, "input": Q, **SIDES}, TOLD),
    "axolotl: intel": ({"system": SYSTEM, "question": Q, **SIDES}, TOLD),
    "axolotl: prompt_pairs": ({"system": SYSTEM, "prompt": Q, **SIDES}, TOLD),
    "axolotl: ultra": (
        {"system": SYSTEM, "prompt": Q, "chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)]},
        TOLD,
    ),
    "axolotl: mixed names": ({"input": Q, "chosen": GOOD, "rejected_response": BAD}, ASKED),
    "axolotl: zephyr.nectar": (
        {"prompt": Q, "answers": [{"answer": BAD, "rank": 2}, {"answer": GOOD, "rank": 1}]},
        ASKED,
    ),
    "axolotl: chat_template, one turn": ({"messages": MULTI, "chosen": said(GOOD), "rejected": said(BAD)}, MULTI),
    "axolotl: chat_template, whole": (
        {"messages": MULTI, "chosen": [*MULTI, said(GOOD)], "rejected": [*MULTI, said(BAD)]},
        MULTI,
    ),
    "axolotl: chat_template, texts": ({"messages": TOLD, **SIDES}, TOLD),
    "axolotl: chat_template, one question": ({"messages": Q, **SIDES}, ASKED),
    "axolotl: orpo": (
        {"system": "", "prompt": Q, "chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)]},
        ASKED,
    ),
    "axolotl: bradley_terry": ({"system": None, "input": Q, **SIDES}, ASKED),
    # LLaMA-Factory: data/README and converter.py
    "llamafactory: alpaca": ({"instruction": "Name", "input": "a colour.", **SIDES}, [user("Name\na colour.")]),
    "llamafactory: alpaca, all columns": (
        {"instruction": Q, "input": "", "system": SYSTEM, "history": [[BEFORE, SAID]], **SIDES},
        [system(SYSTEM), *MULTI],
    ),
    "llamafactory: sharegpt": (
        {
            "conversations": [human(BEFORE), gpt(SAID), human(Q)],
            "system": SYSTEM,
            "chosen": gpt(GOOD),
            "rejected": gpt(BAD),
        },
        [system(SYSTEM), *MULTI],
    ),
    "llamafactory: sharegpt, its own system turn": (
        {
            "conversations": [{"from": "system", "value": SYSTEM}, human(Q)],
            "system": "Another.",
            "chosen": gpt(GOOD),
            "rejected": gpt(BAD),
        },
        TOLD,
    ),
    "llamafactory: sharegpt, tools": (
        {
            "conversations": [
                human(Q),
                {"from": "function_call", "value": '{"name": "colour", "arguments": {"of": "sea"}}'},
                {"from": "observation", "value": '{"is": "blue"}'},
            ],
            "tools": json.dumps([TOOLS[0]["function"]]),
            "chosen": gpt(GOOD),
            "rejected": gpt(BAD),
        },
        CALLED,
    ),
    "llamafactory: openai": ({"messages": TOLD, "chosen": said(GOOD), "rejected": said(BAD)}, TOLD),
    "llamafactory: two outputs": ({"instruction": Q, "input": "", "output": [GOOD, BAD]}, ASKED),
    # ms-swift: Custom-dataset
    "swift: rejected_response": ({"messages": [*MULTI, said(GOOD)], "rejected_response": BAD}, MULTI),
    "swift: rejected_messages": (
        {"messages": [*TOLD, said(GOOD)], "rejected_messages": [*TOLD, said(BAD)]},
        TOLD,
    ),
    "swift: rejected_messages of the answer": (
        {"messages": [*TOLD, said(GOOD)], "rejected_messages": [said(BAD)]},
        TOLD,
    ),
    "swift: conversation": (
        {"system": SYSTEM, "conversation": [{"human": Q, "assistant": GOOD}], "rejected_response": BAD},
        TOLD,
    ),
    "swift: conversation of several": (
        {
            "conversation": [{"human": BEFORE, "assistant": SAID}, {"human": Q, "assistant": GOOD}],
            "rejected_response": BAD,
        },
        MULTI,
    ),
    "swift: alpaca": ({"instruction": Q, "input": None, "output": GOOD, "rejected_response": BAD}, ASKED),
    "swift: query and response": (
        {"system": SYSTEM, "query": Q, "response": GOOD, "history": [[BEFORE, SAID]], "rejected_response": BAD},
        [system(SYSTEM), *MULTI],
    ),
    "swift: history as text": (
        {"query": Q, "response": GOOD, "history": json.dumps([[BEFORE, SAID]]), "rejected_response": BAD},
        MULTI,
    ),
    "swift: agent": (
        {
            "messages": [
                user(Q),
                {"role": "tool_call", "content": '{"name": "colour", "arguments": {"of": "sea"}}'},
                {"role": "tool_response", "content": '{"is": "blue"}'},
                said(GOOD),
            ],
            "tools": TOOLS,
            "rejected_response": BAD,
        },
        CALLED,
    ),
    "swift: no pictures": ({"messages": [user(Q), said(GOOD)], "rejected_response": BAD, "images": []}, ASKED),
    # OpenRLHF: reward_dataset.py, its keys by default
    "openrlhf: conversations": (
        {"chosen": [user(Q), said(GOOD)], "rejected": [user(Q), said(BAD)], "margin": 1},
        ASKED,
    ),
    "openrlhf: prompt_key": ({"prompt": ASKED, "chosen": [said(GOOD)], "rejected": [said(BAD)]}, ASKED),
    # Others
    "nemo-rl: responses": ({"prompt": Q, "chosen_response": GOOD, "rejected_response": BAD}, ASKED),
    "nemo-rl: ranks": (
        {
            "context": ASKED,
            "completions": [{"rank": 1, "completion": [said(BAD)]}, {"rank": 0, "completion": [said(GOOD)]}],
        },
        ASKED,
    ),
    "torchtune": (
        {"chosen_conversations": [user(Q), said(GOOD)], "rejected_conversations": [user(Q), said(BAD)]},
        ASKED,
    ),
    "ultrafeedback": (
        {
            "instruction": Q,
            "completions": [{"response": BAD, "overall_score": 3.0}, {"response": GOOD, "overall_score": 8.5}],
        },
        ASKED,
    ),
    "distilabel": ({"input": Q, "generations": [BAD, GOOD], "ratings": [2.0, 5.0]}, ASKED),
    "hh": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
        ASKED,
    ),
    "hh with the prompt apart": (
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
        ASKED,
    ),
    "hh without the first line ends": (
        {"chosen": f"Human: {Q}\n\nAssistant: {GOOD}", "rejected": f"Human: {Q}\n\nAssistant: {BAD}"},
        ASKED,
    ),
    "guanaco": (
        {"chosen": f"### Human: {Q}### Assistant: {GOOD}", "rejected": f"### Human: {Q}### Assistant: {BAD}"},
        ASKED,
    ),
    "alpaca in texts": ({"prompt": f"### Instruction:\n{Q}\n\n### Response:\n", **SIDES}, ASKED),
    "conversations as JSON in texts": (
        {"prompt": json.dumps(MULTI), "chosen": json.dumps([said(GOOD)]), "rejected": json.dumps([said(BAD)])},
        MULTI,
    ),
    "llama 3 in texts": (
        {
            "prompt": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "chosen": f"{GOOD}<|eot_id|>",
            "rejected": f"{BAD}<|eot_id|>",
        },
        ASKED,
    ),
    "zephyr in texts": (
        {"prompt": f"<|system|>\n{SYSTEM}</s>\n<|user|>\n{Q}</s>\n<|assistant|>\n", **SIDES},
        TOLD,
    ),
    "several rejected answers of which one is there": (
        {"messages": [user(Q), said(GOOD)], "rejected_response": [BAD]},
        ASKED,
    ),
    "chatml in texts": (
        {
            "prompt": f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "chosen": f"{GOOD}<|im_end|>",
            "rejected": f"{BAD}<|im_end|>",
        },
        TOLD,
    ),
    "shp": ({"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0}, ASKED),
    "safe-rlhf": ({"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}, ASKED),
    "arena, flat": (
        {"prompt": Q, "response_a": BAD, "response_b": GOOD, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        ASKED,
    ),
    "webgpt": ({"question": Q, "answer_0": GOOD, "answer_1": BAD, "score_0": 0.5, "score_1": -0.5}, ASKED),
    "helpsteer": ({"context": ASKED, "response1": BAD, "response2": GOOD, "overall_preference": 2}, ASKED),
    "stack-exchange-paired": ({"question": Q, "response_j": GOOD, "response_k": BAD}, ASKED),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_layout_of_pairs_is_read_as_its_documentation_says(layout, tmp_path):
    row, prompt = PAIRS[layout]
    pairs, labels, report = read(tmp_path, row)
    assert not labels
    assert not report["lines"]["broken"]
    assert [one["prompt"] for one in pairs] == [prompt]
    assert [turn["content"].strip() for turn in (*pairs[0]["chosen"], *pairs[0]["rejected"])] == [GOOD, BAD]
    assert {turn["role"] for turn in (*pairs[0]["chosen"], *pairs[0]["rejected"])} == {"assistant"}
    assert pairs[0].get("tools") == (TOOLS if "tools" in row else None)


LABELS = {
    "trl: texts": ({"prompt": Q, "completion": GOOD}, ASKED),
    "trl: conversations": ({"prompt": MULTI, "completion": [said(GOOD)], "tools": TOOLS}, MULTI),
    "axolotl: argilla": ({"system": SYSTEM, "instruction": Q, "completion": GOOD}, TOLD),
    "axolotl: argilla_chat": ({"completion": [user(Q), said(GOOD)]}, ASKED),
    "axolotl: argilla_chat with its prompt": ({"prompt": ASKED, "completion": [user(Q), said(GOOD)]}, ASKED),
    "axolotl: intel": ({"system": SYSTEM, "question": Q, "completion": GOOD}, TOLD),
    "axolotl: ultra": ({"system": None, "prompt": Q, "completion": GOOD}, ASKED),
    "llamafactory: alpaca": ({"instruction": "Name", "input": "a colour.", "output": GOOD}, [user("Name\na colour.")]),
    "llamafactory: alpaca, all columns": (
        {"instruction": Q, "input": "", "output": GOOD, "system": SYSTEM, "history": [[BEFORE, SAID]], "tools": TOOLS},
        [system(SYSTEM), *MULTI],
    ),
    "llamafactory: sharegpt": (
        {"conversations": [human(Q), gpt(GOOD)], "system": SYSTEM, "tools": json.dumps(TOOLS)},
        TOLD,
    ),
    "llamafactory: openai": ({"messages": [*TOLD, said(GOOD)]}, TOLD),
    "swift: messages": ({"messages": [*CALLED, said(GOOD)], "tools": json.dumps(TOOLS)}, CALLED),
    "swift: conversation": ({"system": SYSTEM, "conversation": [{"human": Q, "assistant": GOOD}]}, TOLD),
    "swift: query and response": ({"query": Q, "response": GOOD, "history": [[BEFORE, SAID]]}, MULTI),
    "openrlhf: unpaired": ({"input": Q, "output": GOOD}, ASKED),
}


@pytest.mark.parametrize("tag", ["label", "kto_tag"])
@pytest.mark.parametrize("layout", LABELS)
def test_a_layout_of_labels_is_read_as_its_documentation_says(layout, tag, tmp_path):
    row, prompt = LABELS[layout]
    worse = json.loads(json.dumps(row).replace(GOOD, BAD))
    pairs, labels, report = read(tmp_path, {**row, tag: True}, {**worse, tag: False})
    assert not report["lines"]["broken"]
    # Of one prompt, what is good is a pair with what is bad.
    assert len(pairs) == 1
    assert [(one["prompt"], one["completion"], one["label"]) for one in labels] == [
        (prompt, [said(GOOD)], True),
        (prompt, [said(BAD)], False),
    ]
    assert [one.get("tools") for one in labels] == [TOOLS if "tools" in row else None] * 2


@pytest.mark.parametrize(
    ("given", "label"),
    [(True, True), (1, True), (1.0, True), ("true", True), ("good", True), (False, False), (0, False), (-1, False)],
)
def test_labels_have_several_forms(given, label, tmp_path):
    assert [one["label"] for one in read(tmp_path, {"prompt": Q, "completion": GOOD, "label": given})[1]] == [label]


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
