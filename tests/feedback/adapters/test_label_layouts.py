"""The layouts in which people's tools write labels, one row each, with what it says written out by hand."""

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
