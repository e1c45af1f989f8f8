"""Preferences that are made to fit max_length, and the turns that are scored."""

import pytest

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402
from trl.data_utils import _tokenize  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral.fit_to_length import (  # noqa: E402
    CUT,
    DROPPED,
    TRIMMED,
    WHOLE,
    Fitter,
    fitted_dataset,
    shorter_prompts,
)
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_preferences,
    tiny_tokenizer,
)
from tests.techniques.behavioral.trainers import a_batch, assistant, built, user  # noqa: E402


def fitter(max_length, contract="dpo"):
    return Fitter(tiny_tokenizer(), contract, max_length)


LONG = [{"role": "system", "content": "s"}, user("a" * 30), assistant("b" * 30), user("c" * 10)]


def test_the_oldest_turns_of_a_prompt_go_first_and_system_and_last_turn_stay():
    row = {"prompt": LONG, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    assert fitter(200)(row)["prompt"] == LONG
    fitted = fitter(50)(row)
    assert fitted["prompt"] == [LONG[0], LONG[3]]
    assert fitted["behavior_fitted"] == TRIMMED
    assert list(shorter_prompts([user("a"), assistant("b")])) == [[user("a"), assistant("b")]]


def test_a_cut_leaves_a_difference_or_the_pair_is_dropped():
    chosen, rejected = [assistant("x" * 40 + "good")], [assistant("x" * 40 + "bad!")]
    row = {"prompt": [user("hi")], "chosen": chosen, "rejected": rejected}
    assert fitter(60)(row)["behavior_fitted"] == WHOLE
    assert fitter(30)(row)["behavior_fitted"] == DROPPED + "the completions differ only past max_length"
    differing = row | {"rejected": [assistant("y" * 50)]}
    assert fitter(30)(differing)["behavior_fitted"] == CUT
    assert fitter(30, "reward")(differing)["behavior_fitted"] == DROPPED + "longer than max_length"
    assert fitter(5)(differing)["behavior_fitted"] == DROPPED + "the last turn of the prompt fills max_length"
    assert fitter(60)(row | {"rejected": chosen})["behavior_fitted"] == DROPPED + "both completions are equal"
    assert fitter(60)(row | {"rejected": []})["behavior_fitted"] == DROPPED + "an empty completion"


def test_turns_of_the_user_are_not_scored(tmp_path):
    rows = [
        {
            "chosen": [user("q"), assistant("one"), user("why?"), assistant("so")],
            "rejected": [user("q"), assistant("two"), user("hm"), assistant("no")],
        }
    ] * 4
    data = Dataset.from_list(rows)

    def scored(trainer):
        batch = a_batch(trainer)
        tokenizer = trainer.processing_class
        return [
            tokenizer.decode(ids[mask == 1])
            for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
        ]

    ours = scored(built(tmp_path / "a", "behavioral", train_dataset=data, eval_dataset=None))
    assert ours[0] == "one\nso\n"
    assert ours[4] == "two\nno\n"
    stock = scored(built(tmp_path / "b", train_dataset=data, eval_dataset=None))
    assert stock[0] == "one\n<u>why?\n<a>so\n"


def test_kto_does_not_score_turns_of_the_user(tmp_path):
    rows = [
        {"prompt": [user("q")], "completion": [assistant(text), user("why?"), assistant("so")], "label": label}
        for text, label in (("one", True), ("two", False))
    ] * 2
    trainer = built(tmp_path, "behavioral", contract="kto", train_dataset=Dataset.from_list(rows), eval_dataset=None)
    batch = a_batch(trainer)
    decode = trainer.processing_class.decode
    for prefix in ("", "KL_"):
        ids, masks = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        texts = {decode(row[mask == 1]) for row, mask in zip(ids, masks, strict=True)}
        assert texts == {"one\nso\n", "two\nso\n"}


def test_what_was_dropped_is_counted_and_said(tmp_path, caplog):
    rows = [
        {"prompt": [user("hi")], "chosen": [assistant(chosen)], "rejected": [assistant("no")]}
        for chosen in ("yes", "no", "maybe", "no")
    ]
    data, counts = fitted_dataset(Dataset.from_list(rows), fitter(64))
    assert counts == {WHOLE: 2, DROPPED + "both completions are equal": 2}
    assert [row["chosen"][0]["content"] for row in data] == ["yes", "maybe"]
    built(tmp_path, "behavioral", train_dataset=Dataset.from_list(rows))
    assert "2 dropped: both completions are equal" in caplog.text
    with pytest.raises(PluginError, match="no preference is left"):
        fitted_dataset(Dataset.from_list([rows[1]] * 2), fitter(64))


def test_data_that_are_given_later_are_fitted_too(tmp_path):
    trainer = built(tmp_path, "behavioral:share_prefixes=on")
    rows = tiny_preferences(4).to_list()
    rows.append(rows[0] | {"rejected": rows[0]["chosen"]})
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert metrics["eval_loss"] > 0
    assert "eval_rewards/accuracies" in metrics


def test_a_tokenizer_without_a_chat_template_is_named(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PluginError, match="ByT5Tokenizer has no chat_template"):
        built(tmp_path, "behavioral", processing_class=tokenizer)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(PluginError, match="no column chosen and none rejected; it has prompt, text"):
        built(tmp_path, "behavioral", train_dataset=Dataset.from_list([{"prompt": "a", "text": "b"}]))


def test_lengths_are_those_of_trl():
    tokenizer = tiny_tokenizer()
    assert len(_tokenize(tokenizer, [user("c" * 10)])["input_ids"]) == len(fitter(1)._tokens([user("c" * 10)], {}))
