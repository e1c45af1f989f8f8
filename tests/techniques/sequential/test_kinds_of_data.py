"""Stages whose data are of other kinds than lists of rows: transforms, torch data sets, streams, workers, columns."""

import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.testing import difference, outcome, tiny_dataset, tiny_trainer
from tests.techniques.sequential.stage_pairs import (
    Pair,
    answering,
    classifying,
    preferring,
    recorded,
    replayed_share,
    stage_trainer,
    trained,
    with_class_names,
)

datasets = pytest.importorskip("datasets")


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        return self.rows[position]


def in_arrow(rows):
    return datasets.Dataset.from_list(
        [{name: torch.as_tensor(one).tolist() for name, one in row.items()} for row in rows]
    )


def of_kind(change, **changes):
    """Tiny classification whose data sets are changed by `change`."""

    def setting(stage):
        given = classifying(stage)
        return {**given, **{name: change(given[name]) for name in ("train_dataset", "eval_dataset")}, **changes}

    return setting


def made_on_reading(rows):
    def made(batch):
        return {"input_ids": [torch.tensor(ids) for ids in batch["words"]], "labels": batch["class"]}

    stored = in_arrow(rows).remove_columns("attention_mask").rename_columns({"input_ids": "words", "labels": "class"})
    return stored.with_transform(made)


KINDS = {
    "a torch data set": of_kind(Rows),
    "in batches of like length": of_kind(in_arrow, train_sampling_strategy="group_by_length"),
    "made on reading": of_kind(made_on_reading, remove_unused_columns=False),
    "tensors by format": of_kind(lambda rows: in_arrow(rows).with_format("torch"), remove_unused_columns=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_are_replayed_and_measured_and_the_stage_resumes_exactly(kind, tmp_path):
    pair = Pair(None, KINDS[kind])
    straight, resumed = trained(pair, tmp_path / "one"), trained(pair, tmp_path / "two", cut_off=True)
    assert difference(outcome(straight)["weights"], outcome(resumed)["weights"]) is None
    assert replayed_share(straight) == pytest.approx(0.3, abs=0.02)
    first, second = recorded(tmp_path / "one")
    # What the model of a stage is measured by equals what the run has evaluated.
    evaluated = [entry["eval_loss"] for entry in straight.state.log_history if "eval_loss" in entry][-1]
    assert second["after"]["second"]["loss"] == evaluated
    assert first["after"]["first"]["loss"] != second["after"]["first"]["loss"]


def test_penalties_read_rows_that_a_transform_makes(tmp_path):
    trainer = trained(Pair(None, KINDS["made on reading"], {"ewc": 1.0}), tmp_path)
    assert trainer.state.global_step == 4


def test_persistent_workers_give_each_set_its_own_rows(tmp_path):
    def setting(stage):
        given = classifying(stage)
        return {**given, "eval_dataset": {"near": given["eval_dataset"], "far": tiny_dataset(6, seed=33)}}

    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "no"}
    after = []
    for name, changes in (("workers", workers), ("none", {"eval_strategy": "no"})):
        stage_trainer(Pair(None, setting, changes=changes), tmp_path / name, 0).train()
        after.append(recorded(tmp_path / name)[0]["after"])
    assert after[0]["first:near"]["loss"] != after[0]["first:far"]["loss"]
    assert after[0].keys() == after[1].keys()


def test_a_stream_is_trained_without_replay_alone_and_is_not_measured(tmp_path, caplog):
    setting = of_kind(lambda rows: in_arrow(rows).to_iterable_dataset())
    with pytest.raises(PluginError, match=r"replay needs training data.*Set replay=0"):
        stage_trainer(Pair(None, setting), tmp_path, 0)
    trained(Pair(None, setting, {"replay": 0}), tmp_path)
    assert [stage["after"] for stage in recorded(tmp_path)] == [{}, {}]
    assert "the evaluation set eval is not measured or kept" in caplog.text


def with_columns(first=None, second=None):
    """Data of named classes whose evaluation sets lack a column each."""

    def setting(stage):
        given = with_class_names(stage)
        column = (first, second)[stage]
        return given if column is None else {**given, "eval_dataset": given["eval_dataset"].remove_columns(column)}

    return setting


def test_an_earlier_set_without_a_column_that_is_read_now_is_left_out_with_the_reason(tmp_path, caplog):
    trained(Pair(None, with_columns(first="attention_mask")), tmp_path)
    first, second = recorded(tmp_path)
    assert (list(first["after"]), list(second["after"])) == (["first"], ["second"])
    assert "evaluation set first is not measured" in caplog.text
    assert "attention_mask" in caplog.text


def test_an_earlier_set_with_a_column_that_nobody_reads_is_measured(tmp_path):
    def setting(stage):
        given = with_class_names(stage)
        name, rows = "number", given["eval_dataset"]
        return given if stage else {**given, "eval_dataset": rows.add_column(name, list(range(len(rows))))}

    trained(Pair(None, setting), tmp_path)
    assert list(recorded(tmp_path)[1]["after"]) == ["first", "second"]


def test_sets_of_several_names_are_measured_each_and_without_a_set_the_earlier_ones_are(tmp_path):
    def setting(stage):
        given = classifying(stage)
        several = {"near": given["eval_dataset"], "far": tiny_dataset(6, seed=33)}
        return {**given, "eval_dataset": None if stage else several, "eval_strategy": "no"}

    trained(Pair(None, setting), tmp_path)
    assert [list(stage["after"]) for stage in recorded(tmp_path)] == [
        ["first:near", "first:far"],
        ["first:far", "first:near"],
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_trl_has_tokenized_are_replayed_with_own_answers(packing, tmp_path):
    pytest.importorskip("trl")
    pair = Pair(None, answering, {"own_answers": True}, {"packing": packing})
    trainer = trained(pair, tmp_path)
    assert 0 < replayed_share(trainer) < 0.5
    assert list(recorded(tmp_path)[1]["after"]) == ["first", "second"]


def test_replayed_preferences_are_refused_where_their_reference_was_another(tmp_path):
    pytest.importorskip("trl")
    pair = Pair(None, preferring, changes={"precompute_ref_log_probs": True})
    stage_trainer(pair, tmp_path, 0).train()
    with pytest.raises(PluginError, match=r"replay=0.3 and precompute_ref_log_probs=True.*replay=0"):
        stage_trainer(pair, tmp_path, 1)


def test_the_kit_trains_without_a_second_stage_as_without_a_folder(tmp_path):
    def weights(*techniques):
        trainer = tiny_trainer(tmp_path / f"run{len(techniques)}", *techniques, **classifying(0), max_steps=2)
        trainer.train()
        return outcome(trainer)["weights"]

    folder = tmp_path / "stages"
    assert difference(weights(), weights(f"sequential:folder={folder}")) is None
