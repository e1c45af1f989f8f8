"""Preferences as strangers bring them: every name of a question and of answers, roles, platforms, data, trainers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.strangers.situation import Situation, Wrong

Q, GOOD, BAD, SYSTEM = "Name a colour.", "Blue is one.", "I know none.", "Be short."
USER = {"role": "user", "content": Q}
ASKED = [USER]
TOLD = [{"role": "system", "content": SYSTEM}, USER]
TOOLS = [{"type": "function", "function": {"name": "colour", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "colour", "arguments": {"of": "sea"}}}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def written(*rows: dict[str, Any]) -> Path:
    path = Path("log.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def hold(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {str(found)[:200]} instead of {str(wanted)[:200]}")


# ---- layouts: names of the question x names of the answers x a system prompt or none ----

QUESTIONS: dict[str, dict[str, Any]] = {
    **{name: {name: Q} for name in ("prompt", "question", "query", "instruction", "input", "messages")},
    "instruction, input": {"instruction": "Name", "input": "a colour."},
    "prompt as turns": {"prompt": ASKED},
    "messages as turns": {"messages": ASKED},
    "conversations, role": {"conversations": ASKED},
    "conversations, from": {"conversations": [{"from": "human", "value": Q}]},
    "context": {"context": ASKED},
    "prompt in ChatML": {"prompt": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"},
    "prompt in a transcript": {"prompt": f"\n\nHuman: {Q}\n\nAssistant:"},
    "none": {},
}
SIDES: dict[str, Callable[[str], Any]] = {
    "text": lambda text: text,
    "turn": said,
    "turn, from": lambda text: {"from": "gpt", "value": text},
    "turns": lambda text: [said(text)],
    "whole": lambda text: [USER, said(text)],
}
NAMES = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_messages", "rejected_messages"))


def check_pair(question: dict[str, Any], names: tuple[str, str], side: Callable[[str], Any], system: bool) -> None:
    from hf_ft_plugins.techniques.behavioral import preferences_from_log

    row = {**question, names[0]: side(GOOD), names[1]: side(BAD), **({"system": SYSTEM} if system else {})}
    (pair,) = preferences_from_log(written(row), eval_share=0.0).pairs()
    prompt = [{**turn, "content": turn["content"].replace("\n", " ")} for turn in pair["prompt"]]
    hold(prompt, TOLD if system else ASKED, "prompt")
    hold((pair["chosen"], pair["rejected"]), ([said(GOOD)], [said(BAD)]), "answers")


def check_label(question: dict[str, Any], answer: str, tag: str) -> None:
    from hf_ft_plugins.techniques.behavioral import load_feedback

    rows = [{**question, answer: text, tag: good, "tools": json.dumps(TOOLS)} for text, good in ((GOOD, 1), (BAD, 0))]
    data = load_feedback(written(*rows), "labels", eval_share=0.0)
    prompts = [[turn["content"].replace("\n", " ") for turn in row["prompt"]] for row in data]
    hold(prompts, [[Q], [Q]], "prompts")
    hold([(row["completion"], row["label"]) for row in data], [([said(GOOD)], True), ([said(BAD)], False)], "answers")
    hold(data["tools"][0], TOOLS, "tools")


def layouts() -> Iterator[Situation]:
    for (name, question), (form, side), names, system in itertools.product(
        QUESTIONS.items(), SIDES.items(), NAMES, (False, True)
    ):
        if (name == "none") != (form == "whole") and name == "none":
            continue
        title = f"{name}; {names[0]} as {form}{'; system' if system else ''}"
        run = partial(check_pair, question, names, side, system)
        yield Situation("layouts of pairs", title, run, quick=names == NAMES[0] and not system)
    for (name, question), answer, tag in itertools.product(
        QUESTIONS.items(), ("completion", "response", "output"), ("label", "kto_tag")
    ):
        if name == "none":
            continue
        run = partial(check_label, question, answer, tag)
        yield Situation("layouts of labels", f"{name}; {answer}, {tag}", run, quick=answer == "completion")


# ---- roles of turns ----

USERS = ("user", "human", "prompter", "Human", "HumanMessage")
ASSISTANTS = ("assistant", "gpt", "chatgpt", "bot", "ai", "model", "chatbot", "Assistant", "GPT4", "gpt-3.5-turbo")
RESULTS = ("tool", "function", "observation", "tool_response", "function_response")


def check_roles(user: str, assistant: str, result: str, calling: str) -> None:
    from hf_ft_plugins.techniques.behavioral import preferences_from_log

    function = json.dumps(CALL["function"])
    turns = [(user, Q), (calling, function), (result, "blue"), (assistant, GOOD)]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns], "kto_tag": True}
    (label,) = preferences_from_log(written(row), eval_share=0.0).labels()
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    hold(label["prompt"], [USER, called, {"role": "tool", "content": "blue"}], "prompt")
    hold(label["completion"], [said(GOOD)], "answer")


def check_call(call: dict[str, Any]) -> None:
    from hf_ft_plugins.techniques.behavioral import load_feedback

    chosen = [{"role": "assistant", "content": None, **call}]
    data = load_feedback(written({"prompt": ASKED, "chosen": chosen, "rejected": [said(BAD)]}), eval_share=0.0)
    calls = [{key: one[key] for key in ("type", "function")} for one in data[0]["chosen"][0]["tool_calls"]]
    hold(calls, [CALL], "calls")
    hold(data[0]["rejected"], [said(BAD)], "the other answer")


CALLS: dict[str, dict[str, Any]] = {
    "tool_calls": {"tool_calls": [CALL]},
    "tool_calls, arguments as JSON": {
        "tool_calls": [{**CALL, "id": "1", "function": {"name": "colour", "arguments": '{"of": "sea"}'}}]
    },
    "tool_calls without a frame": {"tool_calls": [CALL["function"]]},
    "tool_calls as JSON": {"tool_calls": json.dumps([CALL])},
    "function_call": {"function_call": {"name": "colour", "arguments": '{"of": "sea"}'}},
}


def roles() -> Iterator[Situation]:
    for number, user in enumerate(USERS):
        run = partial(check_roles, user, "gpt", "observation", "function_call")
        yield Situation("roles", f"user: {user}", run, quick=number < 2)
    for assistant in ASSISTANTS:
        yield Situation(
            "roles", f"assistant: {assistant}", partial(check_roles, "human", assistant, "tool", "tool_call")
        )
    for result in RESULTS:
        yield Situation("roles", f"tool: {result}", partial(check_roles, "human", "gpt", result, "function_call"))
    mend = "unknown role"
    yield Situation("roles", "unknown", partial(check_refused, {"prompt": [{"role": "critic", "content": Q}]}), mend)
    for name, call in CALLS.items():
        yield Situation("calls of tools", name, partial(check_call, call))


# ---- tables without lists, and data sets with columns of their own ----


def shown(form: str) -> dict[str, Any]:
    """A row of texts in a template's markup, question and answer together."""
    return {side: form.format(q=Q, a=answer) for side, answer in (("chosen", GOOD), ("rejected", BAD))}


def turned(write: Callable[[Any], Any]) -> dict[str, Any]:
    return {side: write([USER, said(text)]) for side, text in (("chosen", GOOD), ("rejected", BAD))}


TABLES: dict[str, dict[str, Any]] = {
    "JSON": turned(json.dumps),
    "JSON with line breaks": turned(partial(json.dumps, indent=1)),
    "Python's": turned(repr),
    "ChatML": shown("<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n"),
    "Gemma": shown("<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n{a}<end_of_turn>\n"),
    "Phi": shown("<|user|>\n{q}<|end|>\n<|assistant|>\n{a}<|end|>\n"),
    "Llama 2": shown("<s>[INST] {q} [/INST] {a} </s>"),
    "webgpt": {"question": {"full_text": Q}, "answer_0": BAD, "score_0": "-0.5", "answer_1": GOOD, "score_1": "0.5"},
    "helpsteer2": {"prompt": Q, "response_1": BAD, "response_2": GOOD, "preference_strength": 3},
    "arena": {
        **{"prompt": json.dumps([Q]), "response_a": json.dumps([GOOD]), "response_b": json.dumps([BAD])},
        **{"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    },
    "scores as text": {"prompt": Q, "responses": [BAD, GOOD], "scores": ["9", "10"]},
    "stack exchange": {"question": Q, "answers": [{"text": GOOD, "pm_score": 5}, {"text": BAD, "pm_score": 1}]},
    "label studio": {
        "data": {"prompt": Q, "answer1": BAD, "answer2": GOOD},
        "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "right"}, "to_name": "a,b"}]}],
    },
    "several rejected": {"prompt": Q, "chosen": [said(GOOD)], "rejected": [[said(BAD)], [said(BAD)]]},
    "openai, a text": {"input": Q, "preferred_output": GOOD, "non_preferred_output": BAD},
}
REACTIONS = {"thumbs_up": True, "Thumbs Down": False, ":+1:": True, ":-1:": False, "\U0001f44e": False, "1.0": True}


def check_table(row: dict[str, Any]) -> None:
    from hf_ft_plugins.techniques.behavioral import preferences_from_log

    (pair,) = preferences_from_log(written(row), eval_share=0.0).pairs()
    hold((pair["prompt"], pair["chosen"], pair["rejected"]), (ASKED, [said(GOOD)], [said(BAD)]), "pair")


def check_reaction(column: str, given: str) -> None:
    from hf_ft_plugins.techniques.behavioral import preferences_from_log

    (label,) = preferences_from_log(written({"messages": [USER, said(GOOD)], column: given}), eval_share=0.0).labels()
    hold((label["prompt"], label["label"]), (ASKED, REACTIONS[given]), "label")


def tables() -> Iterator[Situation]:
    for name, row in TABLES.items():
        yield Situation("tables", name, partial(check_table, row), quick=name != "Phi")
    for column, given in itertools.product(("label", "feedback", "thumbs", "reaction", "vote"), REACTIONS):
        yield Situation("reactions", f"{column}: {given}", partial(check_reaction, column, given))


# ---- rows that cannot be read ----

UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "pictures": ({"prompt": Q, "images": ["a.png"]}, "parts that are no text"),
    "a picture in a turn": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are no text"),
    "no question": ({"prompt": None, "chosen": [said(GOOD)], "rejected": [said(BAD)]}, "without a question"),
    "no chosen answer": ({"prompt": Q, "chosen": None}, "without a chosen answer"),
    "no rejected answer": ({"prompt": Q, "rejected": None}, "without a rejected answer"),
    "nothing in common": ({}, "no common beginning"),
    "tools that are no JSON": ({"prompt": Q, "tools": "colour()"}, "tools that are no JSON"),
    "an empty conversation": ({"prompt": Q, "chosen": []}, "empty conversation"),
    "turns as NumPy shows them": (
        {"chosen": "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"},
        "no JSON",
    ),
    "a turn without a role": ({"prompt": [{"who": "user", "content": Q}]}, "without a role"),
    "the user last": ({"prompt": Q, "chosen": [said(GOOD), USER], "rejected": [said(BAD), USER]}, "do not end with"),
    "no answers": ({"prompt": Q, "chosen": "", "rejected": ""}, "answer"),
}


def check_refused(row: dict[str, Any]) -> None:
    from hf_ft_plugins.techniques.behavioral import load_feedback

    load_feedback(written({"chosen": GOOD, "rejected": BAD, **row}), eval_share=0.0)
    raise Wrong("it was read")


def check_unknown(row: dict[str, Any]) -> None:
    from hf_ft_plugins.techniques.behavioral import load_feedback

    load_feedback(written(row), eval_share=0.0)
    raise Wrong("it was read")


def unreadable() -> Iterator[Situation]:
    for name, (row, mend) in UNREADABLE.items():
        yield Situation("rows that cannot be read", name, partial(check_refused, row), mend)
    for name in ("text", "sentence, label", "id, input, output"):
        row = dict.fromkeys(name.split(", "), "x")
        yield Situation("unknown layouts", name, partial(check_unknown, row), r"keys .*(--format|prompt, chosen)")


# ---- Open WebUI ----

THOUGHT = '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n&gt; hm\n</details>\n'
CALLED = (
    '<details type="tool_calls" done="true" id="c" name="colour" arguments="&quot;{\\&quot;of\\&quot;: \\&quot;sea\\'
    '&quot;}&quot;" result="&quot;blue&quot;" files="" embeds="">\n<summary>Tool Executed</summary>\n</details>\n'
)


def feedback(*answers: dict[str, Any], rating: int = 1, params: Any = None, files: Any = None) -> dict[str, Any]:
    messages = {"q": {"id": "q", "parentId": None, "role": "user", "content": Q, "files": files or []}}
    for number, answer in enumerate(answers):
        messages[f"a{number}"] = {"id": f"a{number}", "parentId": "q", "role": "assistant", "model": "arena", **answer}
    others = [answer.get("selectedModelId", "arena") for answer in answers[1:]]
    return {
        "id": "f",
        "user_id": "u",
        "data": {"rating": rating, "sibling_model_ids": others},
        "meta": {"message_id": "a0", "chat_id": "c"},
        "snapshot": {"chat": {"id": "c", "chat": {"params": params or {}, "history": {"messages": messages}}}},
    }


def check_webui(record: dict[str, Any], kind: str, wanted: list[Any]) -> None:
    from hf_ft_plugins.techniques.behavioral import preferences_from_log

    found = preferences_from_log(written(record), eval_share=0.0)
    rows = list(found.pairs() if kind == "pairs" else found.labels())
    hold([(row["prompt"], row.get("chosen", row.get("completion"))) for row in rows], wanted, "rows")
    if not wanted:
        hold(list(found.report["lines"]["left_out"].values()), [1], "records left out")


def webui() -> Iterator[Situation]:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", **CALL}]}
    result = {"role": "tool", "content": "blue", "name": "colour", "tool_call_id": "c"}
    two = [{"content": GOOD, "selectedModelId": "x"}, {"content": BAD, "selectedModelId": "y"}]
    cases = {
        "a vote in the arena": (feedback(*two), "pairs", [(ASKED, [said(GOOD)])]),
        "a vote against": (feedback(*two[::-1], rating=-1), "pairs", [(ASKED, [said(GOOD)])]),
        "thoughts": (feedback({"content": THOUGHT + GOOD}), "labels", [(ASKED, [said(GOOD)])]),
        "a call": (feedback({"content": CALLED + GOOD}), "labels", [([USER, call, result], [said(GOOD)])]),
        "a call, compared": (
            feedback({"content": CALLED + GOOD, "selectedModelId": "x"}, two[1]),
            "pairs",
            [(ASKED, [call, result, said(GOOD)])],
        ),
        "a system prompt": (feedback({"content": GOOD}, params={"system": SYSTEM}), "labels", [(TOLD, [said(GOOD)])]),
        "a picture": (feedback({"content": GOOD}, files=[{"type": "image", "url": "x"}]), "labels", []),
        "a chat with ratings": (
            {
                "id": "c",
                "chat": {
                    "history": {
                        "messages": {
                            "q": USER,
                            "a": {**said(GOOD), "parentId": "q", "annotation": {"rating": 1}, "model": "x"},
                            "b": {**said(BAD), "parentId": "q", "model": "y"},
                        }
                    }
                },
            },
            "pairs",
            [(ASKED, [said(GOOD)])],
        ),
        "a dump of the table": (
            {
                name: json.dumps(one) if isinstance(one, dict) else one
                for name, one in feedback({"content": GOOD}).items()
            },
            "labels",
            [(ASKED, [said(GOOD)])],
        ),
        "a document": (feedback({"content": GOOD}, files=[{"type": "file"}]), "labels", [(ASKED, [said(GOOD)])]),
    }
    for name, case in cases.items():
        yield Situation("open webui", name, partial(check_webui, *case))


# ---- data as scripts hand them to the trainers ----


def numbered(data: Any) -> Any:
    from datasets import Dataset

    rows = list(data)
    made = Dataset.from_dict({"number": list(range(len(rows)))})
    made.set_transform(lambda batch: {name: [rows[n][name] for n in batch["number"]] for name in rows[0]})
    return made


def repeated(data: Any) -> Any:
    rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in data]
    texts = [row["prompt"][-1]["content"] for row in data]
    return data.from_list([{"prompt": text, **row} for text, row in zip(texts, rows, strict=True)])


FORMS: dict[str, Callable[[Any], Any]] = {
    "Dataset": lambda data: data,
    "IterableDataset": lambda data: data.to_iterable_dataset(),
    "IterableDataset, columns unknown": lambda data: data.to_iterable_dataset().map(dict),
    "set_transform": numbered,
    "with_format torch": lambda data: data.with_format("torch"),
    "with_format numpy": lambda data: data.with_format("numpy"),
    "a prompt repeated": repeated,
    "tokenized": lambda data: data.map(lambda row: {"prompt_ids": [1], "chosen_ids": [2]}).remove_columns(["prompt"]),
    "list": list,
}


def check_form(contract: str, form: Callable[[Any], Any], part: str) -> None:
    from hf_ft_plugins.testing import tiny_trainer
    from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

    def made(data: Any) -> Any:
        settings = {part: data, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
        return tiny_trainer(Path("out"), "behavioral", **tiny_setting(contract, **settings))

    def tokens(trainer: Any) -> list[Any]:
        ids = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")
        return [[row.get(name) for name in ids] for row in getattr(trainer, part)]

    trainer = made(form(tiny_preferences(8)))
    hold(tokens(trainer), tokens(made(tiny_preferences(8))), "tokens")
    hold(trainer.train().global_step, 1, "steps")


def forms() -> Iterator[Situation]:
    mends = {"tokenized": "texts or conversations", "list": r"from_list|must be a `Dataset`"}
    for contract, (name, form) in itertools.product(("dpo", "kto", "reward"), FORMS.items()):
        mend = mends.get(name)
        # A list of rows for training is refused by TRL itself.
        part = "eval_dataset" if name == "list" else "train_dataset"
        run = partial(check_form, contract, form, part)
        yield Situation("forms of data", f"{contract}: {name}", run, mend, quick=contract == "dpo")


def situations() -> list[Situation]:
    return [*layouts(), *roles(), *tables(), *unreadable(), *webui(), *forms()]
