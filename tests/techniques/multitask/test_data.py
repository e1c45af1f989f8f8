"""Several data sets as one, what is refused of them, and batches with the labels of several tasks."""

import pytest
from torch.utils.data import IterableDataset

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask import (
    MultiTask,
    MultiTaskCollator,
    TaskSpec,
    multitask_dataset,
    with_labels,
)
from hf_ft_plugins.testing import tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.multitask import (
    TASKS,
    tiny_moods,
    tiny_multitask_model,
    tiny_setting,
    tiny_tagged,
    tiny_tokenizer,
)

datasets = pytest.importorskip("datasets")


def test_labels_are_read_from_the_data_in_a_sure_order():
    tasks = {"tag": TaskSpec(kind="token"), "parse": TaskSpec(kind="dependency"), "mood": TaskSpec(kind="sequence")}
    found = with_labels(tasks, {"trees": tiny_tagged(), "moods": tiny_moods()})
    assert found["tag"].labels == ("ADJ", "ADV", "DET", "NAME", "NOUN", "VERB")
    assert found["parse"].labels == ("dep", "root")
    named = datasets.Dataset.from_dict({"tokens": [["a"]], "tag": [[1]]}).cast_column(
        "tag", datasets.List(datasets.ClassLabel(names=["Z", "A"]))
    )
    assert with_labels({"tag": TaskSpec(kind="token")}, named)["tag"].labels == ("Z", "A")


def test_data_sets_become_one_without_a_copy():
    trees, moods = tiny_tagged(5), tiny_moods(3)
    rows = multitask_dataset({"trees": trees, "moods": moods}, TASKS)
    assert rows.sizes == [5, 3]
    assert [rows[position].source for position in range(8)] == ["trees"] * 5 + ["moods"] * 3
    assert rows[6].row is moods[1]
    assert rows[0].tasks == ("tag", "parse")
    # A data set named as a task teaches this task alone.
    assert multitask_dataset({"tag": trees, "parse": trees, "mood": moods}, TASKS).tasks["parse"] == ("parse",)


def changed(rows, index, **columns):
    return [row | columns if place == index else row for place, row in enumerate(rows)]


BAD_ROWS = {
    "has 3 words and 2 labels in column 'tag'": {
        "tokens": ["a", "the", "Rome"],
        "tag": ["DET"] * 2,
    },
    "the label 'NUON'.*Did you mean 'NOUN'": {"tag": ["NUON"] * 3},
    "2 roots": {"head": [0, 0, 1]},
    "a cycle": {"head": [0, 3, 2]},
    "no words|empty": {"tokens": [], "tag": [], "head": [], "deprel": []},
}


@pytest.mark.parametrize("words", BAD_ROWS)
def test_bad_rows_are_named_before_training_begins(words, tmp_path):
    plain = {
        "tokens": ["a", "the", "Rome"],
        "tag": ["DET", "DET", "NAME"],
        "head": [0, 1, 2],
        "deprel": ["root", "dep", "dep"],
    }
    rows = changed(tiny_tagged(6), 2, **plain)
    setting = tiny_setting()
    setting["train_dataset"] = {"trees": rows, "moods": tiny_moods()}
    tiny_trainer(tmp_path / "good", MultiTask(), **setting)
    setting["train_dataset"] = {"trees": changed(rows, 2, **BAD_ROWS[words]), "moods": tiny_moods()}
    with pytest.raises(PluginError, match=words) as refusal:
        tiny_trainer(tmp_path / "bad", MultiTask(), **setting)
    assert "row 2 of the train data 'trees'" in str(refusal.value)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_tagged(3))


REFUSED = {
    "no train data for task 'mood'": {"train_dataset": {"trees": tiny_tagged()}},
    "have no row": {"train_dataset": {"trees": tiny_tagged(), "moods": []}},
    "are streamed": {"train_dataset": {"trees": Stream(), "moods": tiny_moods()}},
    "the labels of no task": {
        "train_dataset": {"trees": tiny_tagged(), "moods": [{"tokens": ["a"], "feeling": "sad"}]}
    },
    "has one task. Make a model of several": {"model": tiny_model()},
    "has no tokenizer": {"processing_class": None, "data_collator": None},
    "the trainer has a compute_loss_func or": {"label_smoothing_factor": 0.1},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_when_the_trainer_is_built(words, tmp_path):
    with pytest.raises(PluginError, match=words):
        tiny_trainer(tmp_path, MultiTask(), **(tiny_setting() | REFUSED[words]))


def test_label_sets_that_differ_between_splits_are_refused(tmp_path):
    setting = tiny_setting()
    setting["eval_dataset"] = {
        "trees": [row | {"deprel": ["root"] + ["obj"] * (len(row["tokens"]) - 1)} for row in tiny_tagged(4)],
        "moods": tiny_moods(),
    }
    with pytest.raises(PluginError, match=r"row 0 of the trees data has the label 'obj' for task 'parse'"):
        tiny_trainer(tmp_path, MultiTask(), **setting)


def test_kinds_and_names_of_tasks_are_checked():
    with pytest.raises(PluginError, match="Did you mean 'dependency'"):
        TaskSpec(kind="dependancy")
    with pytest.raises(PluginError, match="two tasks of one name"):
        with_labels({"ner": TaskSpec(kind="token", labels=("O",)), "NER": TaskSpec(kind="token", labels=("O",))})


# ---- batches ----


def test_a_batch_has_the_labels_of_every_task_that_a_row_of_it_teaches():
    model = tiny_multitask_model()
    rows = multitask_dataset({"trees": tiny_tagged(), "moods": tiny_moods()}, model.specs)
    batch = MultiTaskCollator(tiny_tokenizer(), model)([rows[0], rows[25]])
    assert list(batch["labels"]) == ["tag", "parse", "mood"]
    assert (batch["labels"]["tag"][1] == -100).all()
    assert batch["labels"]["mood"].tolist()[0] == -100
    alone = MultiTaskCollator(tiny_tokenizer(), model)([rows[25]])
    assert list(alone["labels"]) == ["mood"]


def test_words_of_several_tokens_and_words_without_any_keep_their_places():
    collator = MultiTaskCollator(tiny_tokenizer(), tiny_multitask_model())
    batch = collator([{"tokens": ["the", "cat", "", "sees"], "tag": ["DET", "NOUN", "ADV", "VERB"]}])
    # [CLS] the c ##at [UNK] sees [SEP]
    assert batch["word_ids"].tolist() == [[-1, 0, 1, 1, 2, 3, -1]]


def test_a_row_that_is_too_long_is_cut_and_counted(caplog):
    row = {"tokens": ["cat"] * 40, "tag": ["NOUN"] * 40, "head": list(range(40)), "deprel": ["root"] + ["dep"] * 39}
    collator = MultiTaskCollator(tiny_tokenizer(), tiny_multitask_model(), max_length=12)
    batch = collator([row])
    # Two tokens a word, between [CLS] and [SEP].
    assert (batch["labels"]["tag"] != -100).sum() == 5
    assert (batch["labels"]["parse"] == -100).all()
    assert sum(collator.too_long.values()) == 1
    assert "more than 12 tokens" in caplog.text
    collator.training = False
    assert (collator([row])["labels"]["tag"] != -100).sum() == 40
