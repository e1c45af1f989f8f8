"""The layouts in which people's tools write pairs, one row each, with what it says written out by hand."""

import json

import pytest

from tests.feedback.adapters.rows_of_turns import (
    ASKED,
    BAD,
    BEFORE,
    CALLED,
    GOOD,
    MULTI,
    SAID,
    SIDES,
    SYSTEM,
    TOLD,
    TOOLS,
    Q,
    gpt,
    human,
    read,
    said,
    system,
    user,
)

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
