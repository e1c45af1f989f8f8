import math

import numpy as np
import pytest

from hf_ft_plugins.techniques.sequential.matrix_picture import changes_since_learned, draw_matrix
from hf_ft_plugins.techniques.sequential.transfer_matrix import TransferMatrix

NAN = math.nan


def matrix(*values, sets=("a", "b"), stages=("a", "b")):
    return TransferMatrix("loss", False, stages, tuple((name, name.partition(":")[0]) for name in sets), values)


def test_only_what_comes_after_a_sets_own_stage_is_a_change():
    changes = changes_since_learned(matrix((6.0, NAN), (2.0, 5.0), (3.5, 1.0)))
    assert np.array_equal(changes, [[NAN, NAN], [NAN, NAN], [1.5, NAN]], equal_nan=True)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_there_is_no_change_from_or_to_what_is_no_number(value):
    assert np.isnan(changes_since_learned(matrix((6.0, NAN), (value, 5.0), (3.5, 1.0)))).all()
    assert np.isnan(changes_since_learned(matrix((6.0, NAN), (2.0, 5.0), (value, 1.0)))).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "drawn",
    [
        matrix((1.0,), (1.0,), sets=("a",), stages=("a",)),
        matrix((NAN, NAN), (NAN, NAN), (NAN, NAN)),
        matrix((6.0, NAN), (math.inf, 5.0), (3.5, -math.inf)),
        matrix((6.0, 5.0, 4.0), (1.0, 2.0, 3.0), sets=("a:a long name of a set", "a:b", "a:c"), stages=("a",)),
        matrix(*([[1.0] * 12] * 13), sets=tuple("abcdefghijkl"), stages=tuple("abcdefghijkl")),
    ],
    ids=["one stage", "nothing measured", "infinite", "several sets of a stage", "many stages"],
)
def test_every_matrix_can_be_drawn(tmp_path, drawn):
    assert draw_matrix(drawn, tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
