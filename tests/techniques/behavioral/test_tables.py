"""Preferences as tables and platforms hold them where nothing is a list: JSON, Python's or a template's text."""

import json

import pytest
from datasets import Dataset
from trl import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback import load_good_answers, preferences_from_log
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

Q, GOOD, BAD, SYSTEM = "Name a colour.", "Blue is one.", "I know none.", "Be short."


def turn(role, text):
    return {"role": role, "content": text}


def said(text):
    return turn("assistant", text)


ASKED = [turn("user", Q)]
TOLD = [turn("system", SYSTEM), *ASKED]
SIDES = {"chosen": GOOD, "rejected": BAD}


@pytest.fixture
def read(tmp_path):
    def reading(*rows):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = preferences_from_log(path, eval_share=0.0, estimate_noise=False)
        pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in made.pairs()]
        return pairs, [(row["prompt"], row["completion"], row["label"]) for row in made.labels()], made.report

    return reading


def whole(text):
    return [*ASKED, said(text)]


def markup(form):
    """A row of texts in a template's markup, question and answer together."""
    return {side: form.format(q=Q, a=answer) for side, answer in SIDES.items()}


PHI = "<|user|>\n{q}<|end|>\n<|assistant|>\n{a}<|end|>\n"
GEMMA = "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n{a}<end_of_turn>\n"
PAIRS = {
    "turns as JSON with line breaks": {side: json.dumps(whole(text), indent=1) for side, text in SIDES.items()},
    "turns as Python shows them": {side: repr(whole(text)) for side, text in SIDES.items()},
    "a turn as JSON": {"prompt": Q, **{side: json.dumps(said(text)) for side, text in SIDES.items()}},
    "turns of a question as JSON": {"prompt": json.dumps(ASKED), **SIDES},
    "Gemma's markup": markup(GEMMA),
    "Phi's markup": markup(PHI),
    "Llama 2's markup": markup("<s>[INST] {q} [/INST] {a} </s>"),
    "a prompt in Gemma's markup": {"prompt": GEMMA.format(q=Q, a="")[: -len("<end_of_turn>\n")], **SIDES},
    "a prompt in Mistral's markup": {"prompt": f"<s>[INST] {Q} [/INST]", **SIDES},
    "models' names as roles": {
        "prompt": [turn("User", Q)],
        "chosen": [turn("GPT4", GOOD)],
        "rejected": [turn("gpt-3.5-turbo", BAD)],
    },
    "speaker and text": {"messages": [{"speaker": "USER", "text": Q}], **SIDES},
    "webgpt": {
        "question": {"dataset": "eli5", "id": "x", "full_text": Q},
        **{"answer_0": BAD, "score_0": -0.5, "answer_1": GOOD, "score_1": 0.5},
    },
    "helpsteer2": {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
    "arena, texts as JSON": {
        **{"prompt": json.dumps([Q]), "response_a": json.dumps([GOOD]), "response_b": json.dumps([BAD])},
        **{"winner_model_a": "1", "winner_model_b": "0", "winner_tie": "0"},
    },
    "scores as text": {
        "instruction": Q,
        "completions": [{"response": BAD, "overall_score": "9.0"}, {"response": GOOD, "overall_score": "10.0"}],
    },
    "a verdict that names a column": {"prompt": Q, "response1": BAD, "response2": GOOD, "preference": "response2"},
    "a verdict by number, from 1": {"prompt": Q, "response_1": BAD, "response_2": GOOD, "winner": 2},
    "a verdict by number, from 0": {"prompt": Q, "response_0": GOOD, "response_1": BAD, "winner": 0},
    "a transcript of single lines": markup("Human: {q}\nAssistant: {a}"),
    "a verdict as text": {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": "1"},
    "distilabel": {"instruction": Q, "generation": [BAD, GOOD], "ratings": [1, 5]},
    "stack exchange": {"question": Q, "answers": [{"text": GOOD, "pm_score": 5}, {"text": BAD, "pm_score": 1}]},
    "label studio": {
        "data": {"prompt": Q, "answer1": BAD, "answer2": GOOD},
        "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "right"}, "to_name": "a,b"}]}],
    },
    "openai, the input a text": {"input": Q, "preferred_output": GOOD, "non_preferred_output": BAD},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_table_is_read_as_what_it_was_made_of(name, read):
    assert read(PAIRS[name])[0] == [(ASKED, [said(GOOD)], [said(BAD)])]


def test_a_number_that_names_no_answer_is_no_tie(read):
    row = {"prompt": Q, "response_a": GOOD, "response_b": BAD}
    _, _, report = read({"prompt": Q, **SIDES}, {**row, "winner": 0})
    assert report["lines"]["left_out"] == {"rows whose verdict is unknown": 1}
    # Control: on HelpSteer's scale it is one.
    row = {"context": ASKED, "response1": GOOD, "response2": BAD, "overall_preference": 0}
    assert read({"prompt": Q, **SIDES}, row)[2]["events"]["choice"]["dropped"] == {"a tie": 1}


def test_answers_that_are_json_stay_texts(read):
    """The control of the above: what only resembles turns, or a list of answers, is what the model said."""
    for chosen in (
        '{"from": "Paris", "to": "Rome"}',
        '{"role": "admin", "content": 1}',
        '[{"role": "admin"}]',
        '["a"]',
    ):
        ((_, answer, _),) = read({"prompt": Q, "chosen": chosen, "rejected": BAD})[0]
        assert answer == [said(chosen)]
    ((prompt, answer, _),) = read({"prompt": Q, "response_a": '["a"]', "response_b": '["b"]', "winner": "model_a"})[0]
    assert (prompt, answer) == (ASKED, [said('["a"]')])


def test_turns_that_cannot_be_read_are_counted(read):
    shown = "[{'content': 'Name a colour.', 'role': 'user'}\n {'content': 'Blue.', 'role': 'assistant'}]"
    _, _, report = read({"prompt": Q, **SIDES}, {"prompt": Q, "chosen": shown, "rejected": BAD})
    assert report["lines"]["left_out"] == {"conversations that are no JSON": 1}


def test_every_rejected_conversation_is_a_pair(read):
    pairs, _, _ = read({"prompt": Q, "chosen": [said(GOOD)], "rejected": [[said(BAD)], [said("Never.")]]})
    assert [(pair[1], pair[2]) for pair in pairs] == [([said(GOOD)], [said(BAD)]), ([said(GOOD)], [said("Never.")])]


@pytest.mark.parametrize("winner", ["tie (bothbad)", "both_bad"])
@pytest.mark.parametrize("apart", [True, False], ids=["in columns", "in conversations"])
def test_both_bad_is_a_label_of_each(winner, apart, read):
    names = ("response_a", "response_b") if apart else ("conversation_a", "conversation_b")
    answers = (GOOD, BAD) if apart else (whole(GOOD), whole(BAD))
    pairs, labels, _ = read({"prompt": Q, **dict(zip(names, answers, strict=True)), "winner": winner})
    assert not pairs
    assert sorted(labels, key=str) == [(ASKED, [said(GOOD)], False), (ASKED, [said(BAD)], False)]
    # Control: a tie says nothing of either.
    assert read({"prompt": Q, **dict(zip(names, answers, strict=True)), "winner": "tie"})[:2] == ([], [])


def test_conversations_of_arena_that_differ_earlier_are_no_pair(read):
    questions, first, second = ([Q, "Another."], [GOOD, "Red."], [BAD, "None."])
    row = {"prompt": questions, "response_a": first, "response_b": second, "winner_model_a": 1, "winner_model_b": 0}
    pairs, _, report = read({name: json.dumps(value) for name, value in row.items()})
    assert not pairs
    assert report["lines"]["left_out"] == {"conversations that differ before their last answer": 1}


@pytest.mark.parametrize("name", ["feedback", "thumbs", "reaction", "vote"])
@pytest.mark.parametrize(
    ("given", "label"),
    [("thumbs_up", True), ("Thumbs Down", False), (":+1:", True), (":-1:", False), ("\U0001f44d\U0001f3fd", True)],
)
def test_reactions_are_labels(name, given, label, read):
    assert read({"messages": whole(GOOD), name: given})[1] == [(ASKED, [said(GOOD)], label)]


def test_a_comment_is_no_label(read):
    with pytest.raises(PluginError, match="format is unknown"):
        read({"messages": whole(GOOD), "feedback": "Well done, but long."})


def test_a_context_that_is_a_text_is_part_of_the_question(read):
    for context in ("The sea is blue.", "[1] The sea is blue."):
        ((prompt, _, _),) = read({"context": context, "question": Q, **SIDES})[0]
        assert prompt == [turn("user", f"{Q}\n{context}")]


def test_a_refusal_is_an_answer_and_a_turn_of_nothing_is_counted(read):
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    nothing = {"role": "assistant", "content": None}
    pairs, _, report = read(
        {"prompt": Q, "chosen": GOOD, "rejected": [refused]}, {"prompt": Q, "chosen": GOOD, "rejected": [nothing]}
    )
    assert pairs == [(ASKED, [said(GOOD)], [said("No.")])]
    assert report["lines"]["left_out"] == {"turns without content": 1}


def test_a_conversation_that_goes_on_is_counted_and_breaks_no_log(read):
    on = [turn("user", "Thanks.")]
    pairs, _, report = read(
        {"prompt": Q, **SIDES}, {"prompt": ASKED, "chosen": [said(GOOD), *on], "rejected": [said(BAD), *on]}
    )
    assert len(pairs) == 1
    assert not report["lines"]["broken"]
    assert sum(report["lines"]["left_out"].values()) == 1


def test_comparisons_of_summaries_are_written_as_trl_writes_them(read):
    info = {"id": "x", "post": "A long story.", "title": "Help", "subreddit": "advice", "article": None}
    row = {"info": info, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1, "worker": "w"}
    prompt = [turn("user", "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: A long story.\n\nTL;DR:")]
    assert read(row)[0] == [(prompt, [said(GOOD)], [said(BAD)])]


# ---- platforms ----


def chat(*answers):
    messages = {"q": {"id": "q", "parentId": None, "role": "user", "content": Q}}
    for number, answer in enumerate(answers):
        messages[f"a{number}"] = {"parentId": "q", "role": "assistant", "model": f"m{number}", **answer}
    return {"id": "c", "chat": {"params": {"system": SYSTEM}, "history": {"messages": messages}}}


def test_a_chat_of_open_webui_holds_its_ratings(read):
    pairs, labels, _ = read(chat({"content": GOOD, "annotation": {"rating": 1}}, {"content": BAD}))
    assert pairs == [(TOLD, [said(GOOD)], [said(BAD)])]
    assert labels == [(TOLD, [said(GOOD)], True)]
    # Control: a chat that nobody rated says nothing.
    assert read(chat({"content": GOOD}, {"content": BAD}))[2]["lines"]["left_out"] == {"chats without a rating": 1}


def test_a_dump_of_open_webuis_table_is_read_as_its_export(read):
    snapshot = {"chat": chat({"content": f'<details done="true" type="reasoning">hm</details>\n{GOOD}'})}
    row = {"data": {"rating": 1.0}, "meta": {"message_id": "a0", "chat_id": "c"}, "snapshot": snapshot}
    dumped = {name: json.dumps(value) for name, value in row.items()}
    assert read({"id": "f", **dumped})[1] == read({"id": "f", **row})[1] == [(TOLD, [said(GOOD)], True)]


def test_langchains_classes_are_roles(read):
    def message(kind, text):
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", kind], "kwargs": {"content": text}}

    asked = [message("SystemMessage", SYSTEM), message("HumanMessage", "Hello."), message("AIMessage", "Hi.")]
    run = {
        "id": "r",
        "inputs": {"messages": [[*asked, message("HumanMessage", Q)]]},
        "outputs": {"generations": [[{"text": GOOD, "message": message("AIMessageChunk", GOOD)}]]},
    }
    _, labels, _ = read(run, {"id": "f", "run_id": "r", "key": "score", "score": "1"})
    prompt = [turn("system", SYSTEM), turn("user", "Hello."), said("Hi."), *ASKED]
    assert labels == [(prompt, [said(GOOD)], True)]


def test_langfuses_traces_may_be_written_as_json_and_its_keys_as_the_databases(read):
    trace = {"id": "t", "input": json.dumps({"messages": TOLD}), "output": json.dumps(said(GOOD))}
    score = {"id": "s", "trace_id": "t", "name": "user", "value": 0, "string_value": "Thumbs Down"}
    assert read(trace, score)[1] == [(TOLD, [said(GOOD)], False)]
    # Control: an answer that is JSON of its own stays one.
    ((_, answer, _),) = read({**trace, "output": '{"answer": "blue"}'}, score)[1]
    assert answer == [said('{"answer": "blue"}')]


# ---- a log for SFT ----


def test_sft_learns_a_logs_good_answers_each_once(tmp_path):
    """Of a pair the chosen one, of labels the good ones; a row of a pair has no `completion`."""
    rows = [{"prompt": f"{Q} {n}", "chosen": f"{GOOD} {n}", "rejected": f"{BAD} {n}"} for n in range(3)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_good_answers(log, eval_share=0.0)
    wanted = [([turn("user", row["prompt"])], [said(row["chosen"])]) for row in rows]
    assert [(row["prompt"], row["completion"]) for row in data] == wanted
    assert sum(data["behavior_weight"]) == pytest.approx(3)
    labels = [{"prompt": Q, "completion": text, "label": text == GOOD} for text in (GOOD, BAD)]
    log.write_text("".join(json.dumps(row) + "\n" for row in labels))
    # The two are a pair, too, with the same good answer.
    assert load_good_answers(log, eval_share=0.0)["completion"][:] == [[said(GOOD)]]
    log.write_text(json.dumps(labels[1]))
    with pytest.raises(PluginError, match="no answer that somebody called good"):
        load_good_answers(log)


def test_an_sft_trainer_takes_a_log(tmp_path):
    rows = [{"prompt": f"{Q} {n}", "chosen": f"{GOOD} {n}", "rejected": f"{BAD} {n}"} for n in range(40)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = SFTConfig(output_dir=tmp_path / "out", max_steps=1, report_to=[], bf16=False, use_cpu=True)
    data = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    made = with_plugins(SFTTrainer, f"behavioral:log={log}")(
        model=tiny_llama(), args=args, train_dataset=data, processing_class=tiny_tokenizer()
    )
    text = tiny_tokenizer().decode(made.train_dataset[0]["input_ids"])
    assert Q in text
    assert GOOD in text
    assert made.train().global_step == 1


# ---- labels in the script's own data ----


def kto(tmp_path, labels):
    rows = {"prompt": [Q] * len(labels), "completion": [f"{n}" for n in range(len(labels))]}
    data = Dataset.from_dict(rows | ({"label": labels} if labels[0] != "none" else {}))
    args = KTOConfig(output_dir=tmp_path, per_device_train_batch_size=2, report_to=[], bf16=False, use_cpu=True)
    trainer = with_plugins(KTOTrainer, "behavioral")
    models = {"model": tiny_llama(), "ref_model": tiny_llama()}
    return trainer(**models, args=args, train_dataset=data, processing_class=tiny_tokenizer())


@pytest.mark.parametrize("labels", [["True", "False", "true"], [1, -1, 1], ["1", "0", "1"], [True, False, True]])
def test_labels_of_kto_are_what_they_say(labels, tmp_path):
    """TRL sums up a column of truth values: a -1 is a good answer to it, a text a TypeError."""
    assert kto(tmp_path, labels).train_dataset["label"][:] == [True, False, True]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(["meh", "good"], r"holds 'meh'.*True or False"), ([None, True], "holds None"), (["none"] * 2, "no column label")],
)
def test_labels_of_kto_that_say_nothing_are_named(labels, reason, tmp_path):
    with pytest.raises(PluginError, match=reason):
        kto(tmp_path, labels)
