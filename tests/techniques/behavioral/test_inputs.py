"""Data as scripts hand them to TRL's trainers: transformed, streaming, tokenized, in several sets, too large."""

import json
import logging

import pytest

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict, IterableDataset  # noqa: E402
from trl.data_utils import unpair_preference_dataset  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting, tiny_tokenizer  # noqa: E402

SETTINGS = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 4,
    "dataloader_pin_memory": False,
}


def built(folder, contract="dpo", technique="behavioral", **changes):
    return tiny_trainer(folder, *([technique] if technique else []), **tiny_setting(contract, **(SETTINGS | changes)))


def tokens_of(trainer, split="train"):
    columns = {"prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"}
    data = trainer.train_dataset if split == "train" else trainer.eval_dataset
    return [{name: row[name] for name in sorted(columns & row.keys())} for row in data]


# Another form of the same rows, for `tiny_preferences`.


def by_number(data):
    """Rows that only `set_transform` makes."""
    rows = list(data)
    made = Dataset.from_dict({"number": list(range(len(rows)))})
    made.set_transform(lambda batch: {name: [rows[n][name] for n in batch["number"]] for name in rows[0]})
    return made


def louder(batch):
    """Of rows as `set_transform` gets them: done twice, it shows."""
    loud = [[{**turn, "content": turn["content"] + "!"} for turn in turns] for turns in batch.get("chosen", ())]
    return {**batch, "chosen": loud} if loud else batch


def changed(data):
    data = data.map(lambda row: row)
    data.set_transform(louder)
    return data


def repeated_prompt(data):
    rows = [
        {
            "prompt": row["prompt"][-1]["content"],
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
        }
        for row in data
    ]
    return Dataset.from_list(rows)


FORMS = {
    "set_transform that makes the rows": by_number,
    "set_transform that changes them": changed,
    "with_format torch": lambda data: data.with_format("torch"),
    "with_format numpy": lambda data: data.with_format("numpy"),
    "a prompt beside whole conversations": repeated_prompt,
    "a stream": lambda data: data.to_iterable_dataset(),
    "a stream without known columns": lambda data: IterableDataset.from_generator(lambda: iter(list(data))),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The tokens of the plain rows, as each trainer makes them."""
    known = {}

    def tokens(contract, data, name):
        if (contract, name) not in known:
            known[contract, name] = tokens_of(built(tmp_path_factory.mktemp("plain"), contract, train_dataset=data))
        return known[contract, name]

    return tokens


@pytest.mark.parametrize(
    ("contract", "form"),
    [*(("dpo", form) for form in FORMS), *((other, form) for other in ("kto", "reward") for form in list(FORMS)[:5:4])],
)
def test_another_form_of_the_same_rows_gives_the_same_tokens(form, contract, expected, tmp_path):
    data = tiny_preferences(8)
    plain = data.map(louder, batched=True) if FORMS[form] is changed else data
    wanted = expected(contract, plain, "louder" if plain is not data else "plain")
    trainer = built(tmp_path, contract, train_dataset=FORMS[form](data), max_steps=1)
    assert tokens_of(trainer) == wanted
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("form", ["a stream", "a stream without known columns"])
def test_weights_and_doubts_of_a_stream_reach_the_loss(form, tmp_path):
    """A stream may not know its columns, and has them all the same."""
    trainer = built(tmp_path, train_dataset=FORMS[form](tiny_preferences(8)), max_steps=1)
    assert trainer.loss_types == ["robust"]
    assert {"behavior_weight", "behavior_eps"} <= next(iter(trainer.get_train_dataloader())).keys()
    with pytest.raises(PluginError, match=r"rows have weights, and loss_type=aot"):
        built(tmp_path, train_dataset=FORMS[form](tiny_preferences(8)), max_steps=1, loss_type=["aot"])


def test_streams_for_kto_keep_their_order_and_that_is_said(tmp_path, caplog):
    data = unpair_preference_dataset(tiny_preferences(8)).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        built(tmp_path, "kto", train_dataset=data, max_steps=1)
    assert "batches hold one label only. Shuffle it" in caplog.text


def test_tokenized_rows_run_where_stock_runs_them_and_are_named_elsewhere(tmp_path):
    def ids(turns):
        return tiny_tokenizer().apply_chat_template(turns, return_dict=True)["input_ids"]

    data = tiny_preferences(8)
    rows = [
        {f"{side}_ids": ids(row["prompt"] + row[side]) for side in ("chosen", "rejected")} | {"prompt_ids": [1]}
        for row in data
    ]
    tokenized = Dataset.from_list(rows)
    stock = built(tmp_path, "reward", None, train_dataset=tokenized.remove_columns("prompt_ids"), max_steps=2)
    ours = built(tmp_path, "reward", train_dataset=tokenized.remove_columns("prompt_ids"), max_steps=2)
    assert ours.train().training_loss == stock.train().training_loss
    for contract in ("dpo", "kto"):
        with pytest.raises(PluginError, match=r"tokenized already \(chosen_ids.*Give it texts or conversations"):
            built(tmp_path, contract, train_dataset=tokenized)


@pytest.mark.parametrize("contract", ["dpo", "kto", "reward"])
def test_several_evaluation_sets_are_each_fitted(contract, tmp_path):
    sets = {"near": tiny_preferences(6, seed=1), "train": by_number(tiny_preferences(4, seed=2))}
    trainer = built(tmp_path, contract, eval_dataset=DatasetDict(sets))
    metrics = trainer.evaluate()
    assert {"eval_near_loss", "eval_train_loss"} <= metrics.keys()
    stock = built(tmp_path, contract, None, eval_dataset=sets["near"])
    # Weights are the gradient's, doubts the robust loss's.
    if contract != "dpo":
        assert metrics["eval_near_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)


def test_an_evaluation_set_is_not_taken_for_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps({"prompt": f"q {n}", "chosen": "a b", "rejected": "c"}) + "\n" for n in range(40))
    )
    with pytest.raises(PluginError, match="evaluation set is named 'train'"):
        built(tmp_path, technique=f"behavioral:log={log}", eval_dataset={"train": tiny_preferences(4)})
    # Control: any other name.
    trainer = built(tmp_path, technique=f"behavioral:log={log}", eval_dataset={"held": tiny_preferences(4)})
    assert len(trainer.eval_dataset["held"]) == 4
    assert len(trainer.train_dataset) > 20


@pytest.mark.parametrize("contract", ["dpo", "kto", "reward"])
def test_data_that_trl_cannot_prepare_are_named(contract, tmp_path):
    with pytest.raises(PluginError, match=r"the data are a list\. Make one of them, .*from_list"):
        built(tmp_path, contract, eval_dataset=list(tiny_preferences(4)))


def test_rows_without_a_prompt_are_dropped_and_counted(tmp_path, caplog):
    rows = list(tiny_preferences(6))
    rows[2]["prompt"] = None
    with caplog.at_level(logging.WARNING):
        trainer = built(tmp_path, train_dataset=Dataset.from_list(rows))
    assert len(trainer.train_dataset) == 5
    assert "1 dropped: no prompt" in caplog.text


def test_rows_that_the_chat_template_refuses_are_dropped_and_counted(tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('No system, please') }}"
        "{% endif %}{{ message['content'] }}{% endfor %}"
    )
    rows = list(tiny_preferences(6))
    rows[1]["prompt"].insert(0, {"role": "system", "content": "Be short."})
    with caplog.at_level(logging.WARNING):
        trainer = built(tmp_path, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    assert len(trainer.train_dataset) == 5
    assert "1 dropped: the chat template refuses it (No system, please)" in caplog.text
    with pytest.raises(PluginError, match=r"no preference is left.*No system, please"):
        built(tmp_path, train_dataset=Dataset.from_list(rows[1:2]), processing_class=tokenizer)


class TooLarge:
    """A trainer that runs out of memory with more than so many rows."""

    fits = 4

    def training_step(self, model, inputs, *args, **kwargs):
        rows = len(inputs["label"])
        self.sizes.append(rows)
        self.labels.append(inputs["label"].tolist())
        if rows > self.fits:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


def too_large(fits):
    seen = {"__module__": "trl.trainer.kto_trainer", "sizes": [], "labels": [], "fits": fits}
    return type("KTOTrainer", (TooLarge, trl.KTOTrainer), seen)


@pytest.fixture
def no_collection(monkeypatch):
    """The stock Trainer collects garbage before each try, a second each in a process with all these libraries."""
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda *args: 0)


def test_mixed_batches_follow_the_batch_size_that_fits(tmp_path, no_collection):
    trainer = built(
        tmp_path,
        "kto",
        trainer_class=too_large(fits=6),
        train_dataset=tiny_preferences(24),
        per_device_train_batch_size=8,
        auto_find_batch_size=True,
        num_train_epochs=1,
        max_steps=-1,
    )
    trainer.train()
    # As the stock Trainer tries them: nine tenths, rounded down.
    assert trainer.sizes == [8, 7, *[6] * 8]
    assert trainer.train_order.batch_size == 6
    assert all(len(set(labels)) == 2 for labels in trainer.labels[2:])


def test_a_batch_size_that_shrinks_to_one_is_refused_with_the_reason(tmp_path, no_collection):
    trainer = built(
        tmp_path, "kto", trainer_class=too_large(fits=0), per_device_train_batch_size=2, auto_find_batch_size=True
    )
    with pytest.raises(PluginError, match="auto_find_batch_size has come down to 1"):
        trainer.train()


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ '[' + tool['function']['name'] + ']' }}{% endfor %}"
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' + message['content'] }}"
    "{% if message['tool_calls'] is defined %}{% for call in message['tool_calls'] %}"
    "{{ '!' + call['function']['name'] + (call['function']['arguments'] | tojson) }}{% endfor %}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
SEA = {"type": "function", "function": {"name": "look", "arguments": {"of": "sea"}}}
ANSWERS = {
    "chosen": [
        {"role": "assistant", "content": "", "tool_calls": [SEA]},
        {"role": "tool", "content": "blue"},
        {"role": "assistant", "content": "Blue."},
    ],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}
TOLD = "[look]<s>Be short.\n<u>Colour {n}?\n"
CHOSEN = '<a>!look{"of": "sea"}\n<t>blue\n<a>Blue.\n'


@pytest.mark.parametrize("contract", ["dpo", "kto", "reward"])
def test_a_chat_template_sees_system_tools_calls_and_results_of_a_log(contract, tmp_path):
    """By what the tokenizer of bytes reads in the trainer's rows."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    tools = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    log = tmp_path / "log.jsonl"
    rows = [
        {"system": "Be short.", "question": f"Colour {n}?", **ANSWERS, "tools": json.dumps(tools)} for n in range(30)
    ]
    if contract == "kto":
        rows = [
            {"system": "Be short.", "prompt": row["question"], "completion": row[side], "label": side == "chosen"}
            | {"tools": row["tools"]}
            for row in rows
            for side in ("chosen", "rejected")
        ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = built(
        tmp_path,
        contract,
        f"behavioral:log={log}",
        processing_class=tokenizer,
        max_length=256,
        eval_dataset=None,
        max_steps=1,
    )
    texts = set()
    for row in trainer.train_dataset:
        prompt = row.get("prompt_ids", [])
        sides = [row[side] for side in ("chosen_ids", "rejected_ids", "completion_ids") if row.get(side)]
        texts |= {tokenizer.decode(prompt + side) for side in sides}
    told = {TOLD.format(n=n) + said for n in range(30) for said in (CHOSEN, "<a>No idea.\n")}
    assert texts <= told
    assert len(texts) >= 40
    assert trainer.train().global_step == 1
    if contract == "dpo":
        # What its tools returned is not the assistant's, and not scored.
        row = trainer.train_dataset[0]
        tokens = zip(row["prompt_ids"] + row["chosen_ids"], row["chosen_assistant_mask"], strict=True)
        scored = tokenizer.decode([token for token, keep in tokens if keep])
        assert "blue" not in scored
        assert "Blue." in scored
