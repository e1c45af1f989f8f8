"""New rows and kept rows as one data set: the same to the model, and refused where they are not."""

import numpy as np
import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.arrow_rows import like
from hf_ft_plugins.techniques.sequential.joined_data import joined
from hf_ft_plugins.techniques.sequential.kept_rows import keep_rows, load_rows, save_rows
from hf_ft_plugins.testing import difference, outcome, tiny_dataset, tiny_trainer

datasets = pytest.importorskip("datasets")

NAMES = ["negative", "positive"]


def arrow(rows, **features):
    data = datasets.Dataset.from_list(
        [{name: torch.as_tensor(value).tolist() for name, value in row.items()} for row in rows]
    )
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    return data


def kept(rows, folder, count=99):
    save_rows(keep_rows(rows, count, seed=0), folder)
    return load_rows(folder)


def test_a_data_set_stays_one_with_its_format(tmp_path):
    new = arrow(tiny_dataset(10)).with_format("torch", columns=["input_ids", "labels"], dtype=torch.int32)
    data, sizes = joined(new, {"a": kept(tiny_dataset(6, seed=1), tmp_path / "a"), "b": arrow(tiny_dataset(4, seed=2))})
    assert sizes == [10, 6, 4]
    assert isinstance(data, datasets.Dataset)
    assert data.format == new.format
    expected = [row["input_ids"].tolist() for seed, size in enumerate((10, 6, 4)) for row in tiny_dataset(size, seed)]
    assert data["input_ids"][:].tolist() == expected
    assert data[12].keys() == {"input_ids", "labels"}
    assert data[12]["input_ids"].dtype == torch.int32


def test_a_transform_reads_kept_rows_too(tmp_path):
    new = arrow(tiny_dataset(5)).with_transform(lambda rows: {"sum": [sum(ids) for ids in rows["input_ids"]]})
    data, _ = joined(new, {"a": kept(tiny_dataset(3, seed=1), tmp_path)}, columns=["sum"])
    assert data[6] == {"sum": int(tiny_dataset(3, seed=1)[1]["input_ids"].sum())}


def test_an_order_of_the_new_data_is_kept(tmp_path):
    new = arrow(tiny_dataset(10)).shuffle(seed=0).select(range(7))
    data, sizes = joined(new, {"a": kept(tiny_dataset(4, seed=1), tmp_path)})
    assert sizes == [7, 4]
    assert data["input_ids"][:7] == new["input_ids"][:]


def test_lists_of_tensors_stay_rows_of_tensors(tmp_path):
    pools = {"a": kept(tiny_dataset(4, seed=1), tmp_path / "a"), "b": arrow(tiny_dataset(2, seed=2))}
    data, sizes = joined(tiny_dataset(5), pools)
    expected = [row for seed, size in enumerate((5, 4, 2)) for row in tiny_dataset(size, seed)]
    assert len(data) == sum(sizes) == len(expected)
    for row, before in enumerate(expected):
        assert data[row].keys() == before.keys()
        assert data[row]["input_ids"].dtype == torch.int64
        assert torch.equal(data[row]["input_ids"], before["input_ids"])
        assert type(data[row]["labels"]) is int
        assert data[row]["labels"] == before["labels"]


@pytest.mark.parametrize("as_arrow", [True, False])
def test_a_trainer_reads_joined_rows_as_the_same_rows_of_its_own(as_arrow, tmp_path):
    new, old = tiny_dataset(16), tiny_dataset(8, seed=5)
    whole = arrow(new + old) if as_arrow else new + old
    data, _ = joined(arrow(new) if as_arrow else new, {"a": kept(old, tmp_path / "rows")})
    runs = []
    for number, rows in enumerate((whole, data, tiny_dataset(24))):
        trainer = tiny_trainer(tmp_path / f"{number}", train_dataset=rows, max_steps=4, eval_strategy="no")
        trainer.train()
        runs.append(outcome(trainer))
    assert difference(runs[0], runs[1]) is None
    assert difference(runs[0], runs[2]) is not None


def test_widths_are_cast_and_meanings_are_not(tmp_path):
    new = arrow(tiny_dataset(3)).cast_column("input_ids", datasets.List(datasets.Value("int32")))
    data, _ = joined(new, {"a": kept(tiny_dataset(3, seed=1), tmp_path)})
    assert data.features == new.features
    assert data[4]["input_ids"] == tiny_dataset(3, seed=1)[1]["input_ids"].tolist()
    narrow = arrow(tiny_dataset(3)).cast_column("labels", datasets.Value("int8"))
    with pytest.raises(PluginError, match=r"^sequential: replay: .*'labels'.*stage 'a'.*does not fit.*replay=0"):
        joined(narrow, {"a": arrow([row | {"labels": 1000} for row in tiny_dataset(2)])})
    for other in (1.0, "1", True, [1]):
        rows = datasets.Dataset.from_list([row | {"labels": other} for row in arrow(tiny_dataset(2))])
        for new in (arrow(tiny_dataset(3)), tiny_dataset(3)):
            with pytest.raises(PluginError, match=r"^sequential: .* 'labels' holds .*stage 'a'.*replay=0"):
                joined(new, {"a": rows})


def test_a_column_without_any_value_fits_every_kind():
    rows = [{"text": "a", "more": None}, {"text": "b", "more": None}]
    full = [{"text": "c", "more": ["d"]}]
    for new, old in ((rows, full), (full, rows)):
        data, _ = joined(datasets.Dataset.from_list(new), {"a": datasets.Dataset.from_list(old)})
        assert [data[row] for row in range(3)] == new + old


def test_other_columns_are_refused_with_a_diff(tmp_path):
    new = arrow([row | {"extra": 1, "more": 1} for row in tiny_dataset(3)])
    pool = kept([row | {"weight": 0.5} for row in tiny_dataset(3, seed=1)], tmp_path)
    says = r"stage 'a'.*Only the new data have extra, more; only 'a' has weight.*replay=0"
    with pytest.raises(PluginError, match=f"^sequential: replay: .*{says}"):
        joined(new, {"a": pool})
    with pytest.raises(PluginError, match="Only the new data have none; only 'a' has weight"):
        joined(new, {"a": pool}, columns=["input_ids", "weight"])
    with pytest.raises(PluginError, match=f"^sequential: replay: .*{says}"):
        joined([dict(row) for row in new], {"a": pool})


def test_columns_that_nobody_reads_may_differ(tmp_path):
    rows = [row | {"extra": 1} for row in tiny_dataset(3)]
    pool = kept([row | {"weight": 0.5} for row in tiny_dataset(3, seed=1)], tmp_path)
    read = ["input_ids", "attention_mask", "labels", "label"]
    data, _ = joined(arrow(rows), {"a": pool}, columns=read)
    assert data.column_names == ["input_ids", "attention_mask", "labels"]
    data, _ = joined(rows, {"a": pool}, columns=read)
    assert data[0].keys() == data[4].keys() == {"input_ids", "attention_mask", "labels"}


def labelled(names, in_lists=False):
    label = datasets.ClassLabel(names=names)
    value = [0, 1] if in_lists else 1
    features = datasets.Features({"labels": datasets.List(label) if in_lists else label})
    return datasets.Dataset.from_dict({"labels": [value] * 2}, features=features)


@pytest.mark.parametrize("in_lists", [False, True])
def test_other_classes_are_refused(in_lists):
    same = joined(labelled(NAMES, in_lists), {"a": labelled(NAMES, in_lists)})[0]
    assert same.features == labelled(NAMES, in_lists).features
    with pytest.raises(PluginError, match=r"stage 'a' are others\. Only the new data have good; only 'a' has positive"):
        joined(labelled(["negative", "good"], in_lists), {"a": labelled(NAMES, in_lists)})
    with pytest.raises(PluginError, match=r"in another order: negative, positive; the new data have positive, neg.*=0"):
        joined(labelled(NAMES[::-1], in_lists), {"a": labelled(NAMES, in_lists)})


def test_classes_and_their_numbers_are_one():
    numbers = datasets.Dataset.from_dict({"labels": [0, 1]})
    assert joined(labelled(NAMES), {"a": numbers})[0].features == labelled(NAMES).features
    assert joined(numbers, {"a": labelled(NAMES)})[0]["labels"][:] == [0, 1, 1, 1]
    with pytest.raises(PluginError, match=r"does not fit .*label 2 of 2 classes"):
        joined(labelled(NAMES), {"a": datasets.Dataset.from_dict({"labels": [0, 2]})})


def test_pictures_are_joined(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((2, 2, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    rows = [{"image": picture, "labels": 0} for picture in pictures]
    pool = kept(rows[1:], tmp_path)
    for new in (rows[:1], keep_rows(rows[:1], 1, seed=0)):
        data, sizes = joined(new, {"a": pool})
        assert [data[row]["image"].getpixel((0, 0))[0] for row in range(sum(sizes))] == [0, 100, 200]


@pytest.mark.parametrize(("new", "says"), [(iter([]), "stream"), ([(1, 2)], "is a tuple"), ([], "is a NoneType")])
def test_what_has_no_columns_by_position_is_refused(new, says):
    with pytest.raises(PluginError, match=f"^sequential: .*{says}.*replay=0"):
        joined(new, {"a": arrow(tiny_dataset(2))})


def test_rows_of_nothing_but_tensors_are_all_there(tmp_path):
    rows = [{name: torch.as_tensor(value) for name, value in row.items()} for row in tiny_dataset(4, seed=1)]
    again = like(kept(rows, tmp_path), rows[0])
    assert len(again) == 4
    assert difference([again[at] for at in range(4)], rows) is None
