"""Kept rows come back from the disk as they were: types, shapes, pixels; what cannot is refused."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as MapStyle
from torch.utils.data import IterableDataset

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.arrow_rows import like
from hf_ft_plugins.techniques.sequential.kept_rows import keep_rows, load_rows, save_rows
from hf_ft_plugins.testing import tiny_dataset

datasets = pytest.importorskip("datasets")


def through_the_disk(rows, folder):
    save_rows(rows, folder / "replay")
    return load_rows(folder / "replay")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        return (
            type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if hasattr(one, "getdata"):
        return one.mode == other.mode and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


def rows_of_every_type():
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    return [
        {
            "ids": torch.randint(50, (4 + row,)),
            "mask": torch.ones(4 + row, dtype=torch.int8),
            "flags": torch.tensor([True, False]),
            "pixels": torch.randn(3, 2, 5, dtype=torch.float64),
            "half": torch.randn(2, 3).half(),
            "brain": torch.randn(3).bfloat16(),
            "scalar": torch.tensor(row + 0.1),
            "array": random.normal(size=(2, row + 1)).astype(np.float32),
            "number": np.float32(0.1 * row),
            "label": row,
            "share": 0.1 * row,
            "yes": row % 2 == 0,
            "text": f"row {row}",
            "nothing": None,
            "perhaps": None if row % 2 else "some",
            "list": [row, row + 1],
            "pair": (0.5, 1.5),
            "nested": [[1, 2], [3]],
            "tensors": [torch.arange(row + 1), torch.arange(2)],
            "messages": [{"role": "user", "content": f"hello {row}"}, {"role": "assistant", "content": "yes"}],
            "settings": {"depth": row, "kind": "a"},
        }
        for row in range(5)
    ]


def test_every_value_comes_back_with_its_type_and_shape(tmp_path):
    rows = rows_of_every_type()
    back = like(through_the_disk(keep_rows(rows, 9, seed=0), tmp_path), rows[1])
    assert len(back) == len(rows)
    for row, (before, after) in enumerate(zip(rows, back, strict=False)):
        for name in before:
            assert same(before[name], after[name]), (row, name, before[name], after[name])
    assert not same(rows[0]["pixels"], back[0]["pixels"].float().double()), "rounding is seen"


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "CMYK", "F", "I"])
def test_pictures_keep_every_pixel(mode, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    rows = [{"picture": image.fromarray(pixels).convert(mode), "both": [image.fromarray(pixels)] * 2, "label": 1}]
    back = like(through_the_disk(keep_rows(rows, 1, seed=0), tmp_path), rows[0])[0]
    assert same(rows[0]["picture"], back["picture"])
    assert same(rows[0]["both"], back["both"])


def test_pictures_of_a_compressed_format_are_not_compressed_again(tmp_path):
    import io

    image = pytest.importorskip("PIL.Image")
    written = io.BytesIO()
    image.fromarray(np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)).save(written, "JPEG")
    opened = image.open(written)
    rows = keep_rows([{"picture": opened}], 1, seed=0)
    assert same(opened.convert("RGB"), through_the_disk(rows, tmp_path)[0]["picture"])


def test_the_draw_is_without_replacement_in_order_and_keyed_by_the_seed():
    rows = [{"label": row} for row in range(200)]
    drawn = keep_rows(rows, 30, seed=1)["label"][:]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 30
    assert drawn == keep_rows(rows, 30, seed=1)["label"][:]
    assert drawn != keep_rows(rows, 30, seed=2)["label"][:]
    assert keep_rows(rows, 500, seed=1)["label"][:] == list(range(200))
    assert drawn == keep_rows(datasets.Dataset.from_list(rows), 30, seed=1)["label"][:], (
        "of whichever kind the data are"
    )


def test_a_data_set_is_kept_as_it_is_stored(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"text": list("abcdef"), "label": [0, 1] * 3}, features=features).shuffle(seed=1)
    data.set_transform(lambda rows: {"length": [random.random() for _ in rows["text"]]})
    back = through_the_disk(keep_rows(data, 4, seed=0), tmp_path)
    assert back.features == features
    assert back.format["type"] is None
    stored = data.with_format(None)[:]
    assert set(zip(*back[:].values(), strict=True)) < set(zip(*stored.values(), strict=True))


def test_a_torch_format_is_left_out_of_what_is_kept():
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "extra": [0.1]}).with_format(
        "torch", columns=["input_ids"]
    )
    assert keep_rows(data, 1, seed=0)[0] == {"input_ids": [1, 2], "extra": 0.1}


def test_a_map_style_data_set_is_read_without_a_draw_of_the_runs(tmp_path):
    class Augmented(MapStyle):
        def __len__(self):
            return 6

        def __getitem__(self, row):
            return {"value": torch.rand(2), "row": row, "noise": random.random()}

    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate()
    assert keep_rows(Augmented(), 3, seed=0).num_rows == 3
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_kept_rows_are_read_like_the_new_data_whatever_they_were(tmp_path):
    lists = [{name: torch.as_tensor(value).tolist() for name, value in row.items()} for row in tiny_dataset()]
    kept = through_the_disk(keep_rows(datasets.Dataset.from_list(lists), 99, seed=0), tmp_path)
    back = like(kept, tiny_dataset()[0])
    assert all(same(before, after) for before, after in zip(tiny_dataset(), back, strict=False))
    arrays = like(kept, {"input_ids": np.zeros(1, np.int32), "labels": np.float32(0)})[3]
    assert arrays["input_ids"].dtype == np.int32
    assert type(arrays["labels"]) is np.float32


def test_none_is_no_tensor():
    rows = datasets.Dataset.from_dict({"labels": [[1, None]], "label": [None]}, features=None)
    for name in ("labels", "label"):
        with pytest.raises(PluginError, match=f"^sequential: .*None in the column '{name}'.*replay=0"):
            like(rows, {name: torch.zeros(1)})[0]


class Stream(IterableDataset):
    def __iter__(self):
        yield {"label": 0}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Stream(), "a Stream is a stream"),
        (datasets.Dataset.from_list([{"a": 1}]).to_iterable_dataset(), "IterableDataset is a stream"),
        ([], "keep_rows=5 of 0"),
        ([(1, 2)], "a training row is a tuple"),
        ([{"a": 1}, (1, 2)], "a training row is a tuple"),
        ([{"a": 1}, {"a": 1, "b": 2}], "some have b"),
        ([{"call": len}], "column 'call' of a builtin_function"),
        ([{"any": object()}], "column 'any'"),
        ([{"any": {1, 2}}], "column 'any'"),
        ([{"ids": torch.zeros(2)}, {"ids": torch.zeros(2, 2)}], "column 'ids' of a Tensor"),
        ([{"ids": torch.zeros(2)}, {"ids": None}], "column 'ids' of a Tensor"),
        ([{"ids": torch.zeros(2, dtype=torch.complex64)}], "column 'ids' of a Tensor"),
        ([{"ids": torch.zeros(2, 0)}], "column 'ids' of a Tensor"),
        ([{"mixed": 1}, {"mixed": "5"}], "column 'mixed'"),
        ([{"number": 2**70}], "column 'number'"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_a_mend(data, says):
    with pytest.raises(PluginError, match=f"^sequential: .*{says}.*(replay=0|all columns)"):
        keep_rows(data, 5, seed=0)


def test_mappings_of_different_keys_come_back_with_their_own(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "name": "search"}]}] * 2
    assert through_the_disk(keep_rows(rows, 2, seed=0), tmp_path)[1] == rows[1]


def test_a_folder_without_rows_is_said(tmp_path):
    with pytest.raises(PluginError, match=r"^sequential: folder: no kept rows.*Run that stage again"):
        load_rows(tmp_path / "nowhere")
    save_rows(keep_rows([{"a": 1}], 1, seed=0), tmp_path / "rows")
    (next((tmp_path / "rows").glob("*.arrow"))).write_bytes(b"cut off")
    with pytest.raises(PluginError, match="no kept rows can be read"):
        load_rows(tmp_path / "rows")
