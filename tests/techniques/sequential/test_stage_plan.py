"""Stages that have begun cannot become others unnoticed; those to come may."""

import json
from pathlib import Path

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.stage_plan import PLAN_FILE, begin

PLAN = [
    {"name": "a", "overrides": {"learning_rate": 1e-3, "betas": (0.9, 0.99)}},
    {"name": "b", "overrides": {}},
    {"name": "c", "overrides": {}},
]


@pytest.fixture
def folder(tmp_path):
    begin(tmp_path, 0, PLAN)
    begin(tmp_path, 1, PLAN)
    return tmp_path


def changed(number, **changes):
    return [{**stage, **changes} if at == number else stage for at, stage in enumerate(PLAN)]


def noted(folder):
    return [stage["name"] for stage in json.loads((folder / PLAN_FILE).read_text())]


def test_the_same_stages_begin_again_and_further(folder):
    for number, names in ((0, "ab"), (1, "ab"), (2, "abc"), (0, "abc"), (2, "abc")):
        begin(folder, number, PLAN)
        assert noted(folder) == list(names)


@pytest.mark.parametrize(
    "plan",
    [changed(2, name="d"), changed(2, overrides={"seed": 1}), PLAN[:2], [*PLAN, {"name": "d"}]],
    ids=["name", "overrides", "fewer", "more"],
)
def test_stages_that_have_not_begun_may_change(plan, folder):
    begin(folder, 1, plan)
    assert noted(folder) == ["a", "b"]


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (
            changed(0, overrides={"learning_rate": 1e-4, "betas": (0.9, 0.99)}),
            "! a: overrides: learning_rate was 0.001",
        ),
        (changed(0, overrides={"learning_rate": 1e-3}), "! a: overrides: betas was [0.9, 0.99], is (unset)"),
        (changed(1, rows=3), "! b: rows was (unset), is 3"),
        (changed(1, name="x"), "! stage 2 was b, and is x"),
        ([PLAN[1], PLAN[0], PLAN[2]], "! stage 1 was a, and is b"),
        (PLAN[:1], "! stage 2 was b, and is not there"),
    ],
    ids=["value", "gone", "new", "name", "order", "fewer"],
)
def test_a_stage_that_has_begun_is_refused_as_another_with_the_difference(plan, line, folder):
    with pytest.raises(PluginError, match="were other ones when they began") as refused:
        begin(folder, 1, plan)
    assert line in str(refused.value)


def test_every_difference_is_told(folder):
    with pytest.raises(PluginError) as refused:
        begin(folder, 1, [{"name": "a", "overrides": {}}, {"name": "b", "overrides": {"seed": 2}}])
    assert str(refused.value).count("\n  !") == 3


def test_ranks_behind_the_first_compare_and_write_nothing(tmp_path):
    begin(tmp_path / "new", 0, PLAN, writes=False)
    assert not (tmp_path / "new").exists()
    begin(tmp_path, 0, PLAN)
    with pytest.raises(PluginError):
        begin(tmp_path, 0, PLAN[1:], writes=False)


def test_what_json_cannot_hold_is_compared_as_text(tmp_path):
    begin(tmp_path, 0, [{"name": "a", "file": Path("x")}])
    begin(tmp_path, 0, [{"name": "a", "file": Path("x")}])
    with pytest.raises(PluginError, match="! a: file was x, is y"):
        begin(tmp_path, 0, [{"name": "a", "file": Path("y")}])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "a", "name": "b"}]'])
def test_a_plan_that_cannot_be_read_is_a_message(text, folder):
    (folder / "hf_ft_plan.json").write_text(text)
    with pytest.raises(PluginError, match=r"hf_ft_plan\.json cannot be read: .* or remove it"):
        begin(folder, 1, PLAN)
