"""What was learned and forgotten: the matrix and its measures, against numbers worked out by hand."""

import json
import math

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.matrix_picture import draw_matrix
from hf_ft_plugins.techniques.sequential.stage_records import FinishedStage
from hf_ft_plugins.techniques.sequential.transfer_matrix import matrix_of, set_name, stage_of, write_matrix

nan = math.nan


def stage(name, after, before=None):
    return FinishedStage(name=name, steps=1, options={}, model={}, before=before or {}, after=after)


def of(metric, **values):
    return {name: {metric: value} for name, value in values.items()}


def three(metric="accuracy"):
    """start: 0.1 0.2 0.3; after a: 0.9 0.3 0.4; after b: 0.7 0.8 0.5; after c: 0.5 0.85 0.95."""
    return [
        stage("a", of(metric, a=0.9, b=0.3, c=0.4), of(metric, a=0.1, b=0.2, c=0.3)),
        stage("b", of(metric, a=0.7, b=0.8, c=0.5)),
        stage("c", of(metric, a=0.5, b=0.85, c=0.95)),
    ]


def test_measures_of_three_stages_are_those_of_the_papers():
    matrix = matrix_of(three())
    assert (matrix.metric, matrix.greater, matrix.rows) == ("accuracy", True, ("start", "a", "b", "c"))
    assert matrix.values == ((0.1, 0.2, 0.3), (0.9, 0.3, 0.4), (0.7, 0.8, 0.5), (0.5, 0.85, 0.95))
    assert matrix.average() == pytest.approx((0.5 + 0.85 + 0.95) / 3)
    assert matrix.backward_transfer() == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    assert matrix.forward_transfer() == pytest.approx(((0.3 - 0.2) + (0.5 - 0.3)) / 2)
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)


def test_of_a_loss_less_is_a_gain():
    matrix = matrix_of(three("loss"))
    assert not matrix.greater
    assert matrix.average() == pytest.approx((0.5 + 0.85 + 0.95) / 3)
    assert matrix.backward_transfer() == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    assert matrix.forward_transfer() == pytest.approx(((0.2 - 0.3) + (0.3 - 0.5)) / 2)
    # The best of b is 0.3, before it was trained: what later stages undid of that counts, too.
    assert matrix.forgetting() == pytest.approx(((0.5 - 0.7) + (0.85 - 0.3)) / 2)


def test_the_best_before_the_last_stage_counts_as_what_could_be_forgotten():
    stages = [
        stage("a", of("accuracy", a=0.6)),
        stage("b", of("accuracy", a=0.9, b=0.5)),
        stage("c", of("accuracy", a=0.7, b=0.5, c=0.5)),
    ]
    matrix = matrix_of(stages)
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.7) + 0) / 2)
    assert matrix.backward_transfer() == pytest.approx(((0.7 - 0.6) + 0) / 2)


def test_what_was_not_measured_is_left_out_of_each_mean():
    # b is unknown until it begins, where it is measured beside what a has left.
    stages = [
        stage("a", of("accuracy", a=0.9), of("accuracy", a=0.1)),
        stage("b", of("accuracy", a=0.4, b=0.8), of("accuracy", b=0.2)),
    ]
    matrix = matrix_of(stages)
    assert matrix.values[1] == (0.9, 0.2)
    assert math.isnan(matrix.values[0][1])
    assert matrix.forward_transfer() is None
    assert matrix.backward_transfer() == pytest.approx(-0.5)
    assert matrix.average() == pytest.approx(0.6)


def test_one_stage_has_an_average_alone():
    matrix = matrix_of([stage("a", of("accuracy", a=0.9))])
    assert matrix.summary() == {
        "average": 0.9,
        "backward_transfer": None,
        "forward_transfer": None,
        "forgetting": None,
    }


def test_several_sets_of_one_stage_each_have_a_column_and_count_alone():
    names = [set_name("a", one, only=False) for one in ("dev", "hard")]
    assert names == ["a:dev", "a:hard"]
    assert [stage_of(name) for name in [*names, "a"]] == ["a"] * 3
    first = {names[0]: {"f1": 0.9}, names[1]: {"f1": 0.5}}
    last = {"b": {"f1": 0.8}, names[0]: {"f1": 0.6}, names[1]: {"f1": 0.6}}
    matrix = matrix_of([stage("a", first), stage("b", last)])
    assert matrix.sets == (("a:dev", "a"), ("a:hard", "a"), ("b", "b"))
    assert matrix.average() == pytest.approx((0.6 + 0.6 + 0.8) / 3)
    assert matrix.backward_transfer() == pytest.approx(((0.6 - 0.9) + (0.6 - 0.5)) / 2)


def test_sets_of_stages_to_come_are_no_column_until_they_are_finished():
    matrix = matrix_of(three()[:2])
    assert [name for name, _ in matrix.sets] == ["a", "b"]
    assert matrix.average() == pytest.approx((0.7 + 0.8) / 2)


@pytest.mark.parametrize(
    ("measured", "metric"),
    [
        ({"loss": 1.0, "accuracy": 0.5, "f1": 0.5}, "accuracy"),
        ({"loss": 1.0, "thing": 0.5}, "loss"),
        ({"loss": 1.0}, "loss"),
    ],
)
def test_the_metric_is_the_first_whose_direction_is_known_else_the_loss(measured, metric):
    assert matrix_of([stage("a", {"a": measured})]).metric == metric


def test_the_metric_is_one_that_all_sets_have():
    last = {"a": {"loss": 1.0, "accuracy": 0.5}, "b": {"loss": 2.0, "bleu": 3.0}}
    assert matrix_of([stage("a", {"a": last["a"]}), stage("b", last)]).metric == "loss"


def test_a_metric_may_be_named_as_trainer_logs_it_and_must_be_there_and_have_a_direction():
    stages = [stage("a", {"a": {"loss": 1.0, "thing": 0.5}})]
    assert matrix_of(stages, "eval_loss").metric == "loss"
    assert matrix_of(stages, "accuracy") is None
    assert matrix_of([]) is None
    assert matrix_of([stage("a", {})]) is None
    assert matrix_of(stages, "thing", True).greater
    with pytest.raises(PluginError, match=r"metric=thing does not tell.*greater_is_better=true"):
        matrix_of(stages, "thing")


def test_written_files_hold_the_matrix_and_nothing_that_json_lacks(tmp_path):
    stages = [
        stage("a", of("loss", a=math.inf), of("loss", a=1.0)),
        stage("b", of("loss", a=2.0, b=nan), of("loss", b=1.0)),
    ]
    matrix = matrix_of(stages)
    picture = write_matrix(matrix, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")

    def refused(text):
        raise AssertionError(text)

    content = json.loads((tmp_path / "hf_ft_forgetting.json").read_text(), parse_constant=refused)
    assert content["values"][2] == [2.0, None]
    assert content["sets"] == [{"name": "a", "stage": "a"}, {"name": "b", "stage": "b"}]
    assert "-" in matrix.as_text().splitlines()[-2].split()


def test_a_picture_of_one_stage_and_of_equal_values_can_be_drawn(tmp_path):
    for number, stages in enumerate(
        ([stage("a", of("loss", a=1.0))], [stage("a", of("loss", a=1.0), of("loss", a=1))])
    ):
        assert draw_matrix(matrix_of(stages), tmp_path / f"{number}.png").stat().st_size > 1000
