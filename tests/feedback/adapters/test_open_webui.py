"""Open WebUI's feedback as its exports hold it: arena votes, thoughts, calls of tools, system prompts, files."""

import html
import json

import pytest

from hf_ft_plugins.feedback.preferences import preferences_from_log

Q, GOOD, BAD = "Name a colour.", "Blue is one.", "I know none."
USER = {"role": "user", "content": Q}


def said(text):
    return [{"role": "assistant", "content": text}]


def details(kind, body="", **attributes):
    """As its server writes a block into an answer's text."""
    shown = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    return f'<details type="{kind}" done="true"{shown}>\n<summary>Done</summary>\n{body}\n</details>\n'


def quoted(value):
    # The arguments are JSON already when they are written as JSON.
    return json.dumps(json.dumps(value))


CALL = details("tool_calls", id="c1", name="look", arguments=quoted({"of": 'the "sea"'}), result=json.dumps("blue"))
CALLED = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"of": 'the "sea"'}}},
        ],
    },
    {"role": "tool", "content": "blue", "name": "look", "tool_call_id": "c1"},
]


def feedback(*answers, rating=1, before=(), models=None, **chat):
    """`answers`: each a message's fields; the first is rated. `before`: messages above the question."""
    messages = {}
    for number, message in enumerate([*before, {"role": "user", "content": Q}]):
        parent = f"m{number - 1}" if number else None
        messages[f"m{number}"] = {"id": f"m{number}", "parentId": parent, **message}
    question = f"m{len(before)}"
    for number, answer in enumerate(answers):
        messages[f"a{number}"] = {"parentId": question, "role": "assistant", "model": f"model{number}", **answer}
    names = [f"model{number}" for number in range(1, len(answers))] if models is None else models
    return {
        "id": "f",
        "user_id": "u",
        "data": {"rating": rating, "sibling_model_ids": names},
        "meta": {"message_id": "a0", "chat_id": "c"},
        "snapshot": {"chat": {"id": "c", "chat": {"history": {"messages": messages}, **chat}}},
    }


@pytest.fixture
def read(tmp_path):
    def reading(*records):
        path = tmp_path / "feedback.json"
        path.write_text(json.dumps(records))
        made = preferences_from_log(path, eval_share=0.0, estimate_noise=False)
        return list(made.pairs()), list(made.labels()), made.report

    return reading


@pytest.mark.parametrize("rating", [1, -1])
def test_a_vote_in_the_arena_is_a_choice(rating, read):
    answers = [{"content": text, "model": "arena"} for text in ((GOOD, BAD) if rating == 1 else (BAD, GOOD))]
    names = ["llama", "qwen"]
    answers = [{**answer, "selectedModelId": name} for answer, name in zip(answers, names, strict=True)]
    ((pair,), _, _) = read(feedback(*answers, rating=rating, models=["qwen"]))
    assert (pair["chosen"], pair["rejected"]) == (said(GOOD), said(BAD))
    # Control: an answer of a model that was not shown beside it is none of the choice.
    assert not read(feedback(*answers, rating=rating, models=["mistral"]))[0]


@pytest.mark.parametrize(
    ("content", "prompt", "text"),
    [
        (details("reasoning", "&gt; hm", duration="3") + GOOD, [], GOOD),
        (GOOD + "\n" + details("reasoning", "> so"), [], GOOD),
        ("Blue\n" + details("reasoning", "> so") + "is one.", [], "Blue\n\nis one."),
        (CALL + GOOD, CALLED, GOOD),
        ("Let me look.\n" + CALL + GOOD, [{**CALLED[0], "content": "Let me look."}, CALLED[1]], GOOD),
        (details("reasoning", "> hm") + CALL + CALL + GOOD, CALLED + CALLED, GOOD),
        (f"<details><summary>More</summary>{GOOD}</details>", [], f"<details><summary>More</summary>{GOOD}</details>"),
        ("  kept as it is\n", [], "  kept as it is\n"),
        ('<details type="reasoning" done="false">\n<summary>Thinking', [], ""),
    ],
)
def test_what_the_page_shows_beside_an_answer_is_no_text_of_it(content, prompt, text, read):
    _, labels, report = read(feedback({"content": content}))
    if not text:
        assert not labels
        assert report["events"]["thumbs"]["dropped"] == {"about an empty answer": 1}
        return
    assert [(row["prompt"], row["completion"]) for row in labels] == [([USER, *prompt], said(text))]
    thought = 'type="reasoning"' in content
    assert any("thoughts, which were left out" in warning for warning in report["warnings"]) == thought


def test_code_that_was_run_is_a_call_with_its_output(read):
    block = details("code_interpreter", "```python\nprint(6 * 7)\n```", output=json.dumps({"stdout": "42"}))
    (_, (label,), _) = read(feedback({"content": block + "It is 42."}))
    call, result = label["prompt"][1:]
    assert call["tool_calls"][0]["function"] == {
        "name": "code_interpreter",
        "arguments": {"language": "python", "code": "print(6 * 7)"},
    }
    assert json.loads(result["content"]) == {"stdout": "42"}
    assert label["completion"] == said("It is 42.")


def test_answers_that_called_tools_are_compared_whole(read):
    ((pair,), labels, _) = read(feedback({"content": CALL + GOOD}, {"content": BAD}))
    assert pair["prompt"] == [USER]
    assert pair["chosen"] == [*CALLED, *said(GOOD)]
    assert pair["rejected"] == said(BAD)
    assert [row["completion"] for row in labels] == [said(GOOD)]


def test_calls_and_thoughts_of_earlier_answers_are_turns_of_the_prompt(read):
    before = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": details("reasoning", "> hm") + CALL + "Hi."},
    ]
    (_, (label,), _) = read(feedback({"content": GOOD}, before=before))
    assert label["prompt"] == [{"role": "user", "content": "Hello."}, *CALLED, *said("Hi."), USER]


@pytest.mark.parametrize("where", [{"params": {"system": "Be short."}}, {"system": "Be short."}])
def test_the_system_prompt_of_a_chat_comes_first(where, read):
    (_, (label,), _) = read(feedback({"content": GOOD}, **where))
    assert label["prompt"] == [{"role": "system", "content": "Be short."}, USER]
    own = [{"role": "system", "content": "Be kind."}]
    (_, (label,), _) = read(feedback({"content": GOOD}, before=own, **where))
    assert [turn["content"] for turn in label["prompt"]] == ["Be kind.", Q]


@pytest.mark.parametrize(
    "file", [{"type": "image", "url": "x"}, {"type": "file", "content_type": "image/png"}, {"type": "audio"}]
)
def test_pictures_and_sounds_are_counted_and_left_out(file, read):
    record = feedback({"content": GOOD})
    record["snapshot"]["chat"]["chat"]["history"]["messages"]["m0"]["files"] = [file]
    _, labels, report = read(record)
    assert not labels
    assert report["lines"]["left_out"] == {"conversations with parts that are no text": 1}
    assert any("parts that are no text" in warning for warning in report["warnings"])
    # A picture in another branch of the chat is none of it.
    messages = record["snapshot"]["chat"]["chat"]["history"]["messages"]
    messages["elsewhere"] = {"parentId": None, "role": "user", "content": "?", "files": messages["m0"].pop("files")}
    assert len(read(record)[1]) == 1


def test_documents_are_not_in_the_export_and_that_is_said(read):
    record = feedback({"content": GOOD})
    record["snapshot"]["chat"]["chat"]["history"]["messages"]["m0"]["files"] = [{"type": "collection", "name": "x"}]
    _, labels, report = read(record)
    assert len(labels) == 1
    assert any("1 feedback on answers to turns with documents" in warning for warning in report["warnings"])
