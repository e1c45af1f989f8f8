"""`difference`: what is equal bit for bit is equal, and nothing else; each control differs in one bit or one type."""

import math
import struct
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hf_ft_plugins.testing import difference


def nan_of(payload):
    return struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0000 | payload))[0]


def bits(dtype, *numbers):
    integers = {4: torch.int32, 2: torch.int16, 1: torch.uint8, 8: torch.int64}[dtype.itemsize]
    return torch.tensor(numbers, dtype=integers).view(dtype)


@dataclass
class Pair:
    first: object
    second: object


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EQUAL = {
    "NaN": math.nan,
    "NaN with a payload": nan_of(5),
    "infinities": [math.inf, -math.inf],
    "no values": torch.empty(0, 3),
    "one number": torch.tensor(1.5),
    "booleans": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j, complex(math.nan, -0.0)]),
    "8 bits": torch.tensor([1.0, -0.0]).to(torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
    "array of objects": np.array([None, 1.0], dtype=object),
    "nested": {"a": [1, (2.0, {"b": torch.ones(2), "c": None})], 3: "x", "d": {1, 2}},
    "data class": Pair(torch.ones(2), [math.nan]),
}


@pytest.mark.parametrize("name", EQUAL)
def test_a_value_and_its_copy_are_equal(name):
    import copy

    assert difference(EQUAL[name], copy.deepcopy(EQUAL[name])) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_of_every_float_dtype_are_themselves_alone(dtype):
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny]
    for row, first in enumerate(special):
        for column, second in enumerate(special):
            found = difference(torch.tensor([first], dtype=dtype), torch.tensor([second], dtype=dtype))
            assert (found is None) == (row == column), (first, second)


def test_a_view_equals_its_copy_wherever_it_lies():
    table = torch.arange(12.0).reshape(3, 4)
    assert difference(table.T, table.T.contiguous()) is None
    assert difference(table[:, 1], table[:, 1].clone()) is None
    assert difference(torch.zeros(3), torch.zeros(1).expand(3)) is None
    assert difference(torch.nn.Parameter(table), table) is None
    assert difference(OrderedDict(b=1, a=table), {"a": table, "b": 1}) is None


DIFFERENT = {
    "0.0 and -0.0": (0.0, -0.0),
    "NaN and 0": (torch.tensor([math.nan]), torch.tensor([0.0])),
    "infinity and the largest float": (torch.tensor([math.inf]), torch.tensor([torch.finfo(torch.float32).max])),
    "NaNs of different payloads": (nan_of(1), nan_of(2)),
    "NaNs of different payloads in a tensor": (
        bits(torch.float32, 0x7FC00001),
        bits(torch.float32, 0x7FC00002),
    ),
    "the last bit": (bits(torch.bfloat16, 0x3F80), bits(torch.bfloat16, 0x3F81)),
    "the last bit of a float": (1.0, math.nextafter(1.0, 2.0)),
    "an integer and a float": (1, 1.0),
    "a truth value and an integer": (True, 1),
    "keys of different types": ({1: "x"}, {True: "x"}),
    "a list and a tuple": ([1], (1,)),
    "an ordered dict and a list": (OrderedDict(a=1), [("a", 1)]),
    "a missing key": ({"a": 1}, {}),
    "a missing item": ([1, 2], [1]),
    "dtypes": (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    "dtypes of no values": (torch.empty(0), torch.empty(0, dtype=torch.int64)),
    "shapes": (torch.ones(2, 1), torch.ones(2)),
    "layouts": (torch.eye(2), torch.eye(2).to_sparse()),
    "complex zeros": (torch.tensor([complex(0, 0.0)]), torch.tensor([complex(0, -0.0)])),
    "a tensor and an array": (torch.ones(1), np.ones(1, dtype=np.float32)),
    "a number and an array's number": (1.0, np.float64(1.0)),
    "arrays' zeros": (np.array([0.0]), np.array([-0.0])),
    "data classes": (Pair(1, 0.0), Pair(1, -0.0)),
    "text": ("a", "b"),
    "text and bytes": ("a", b"a"),
    "None and 0": (None, 0),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_controls_differ_from_either_side_and_at_any_depth(name):
    first, second = DIFFERENT[name]
    assert difference(first, second)
    assert difference(second, first)
    found = difference({"deep": [0, first]}, {"deep": [0, second]})
    assert found.startswith("/deep[1]")


def test_the_text_says_where_and_what():
    first = {"weights": {"layer": torch.zeros(2, 2)}}
    second = {"weights": {"layer": torch.tensor([[0.0, 0.0], [-0.0, 1.0]])}}
    assert difference(first, second) == "/weights/layer: 2 of 4 values differ, the first at 2: 0.0 against -0.0"


def test_what_cannot_be_compared_is_named():
    class Odd:
        def __eq__(self, other):
            return "perhaps"

        __hash__ = None

    with pytest.raises(TypeError, match="/a: a Odd cannot be compared"):
        difference({"a": Odd()}, {"a": Odd()})
