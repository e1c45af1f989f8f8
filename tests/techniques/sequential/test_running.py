"""`run_stages`: stage after stage, skipped where finished, resumed where begun, refused where changed."""

import dataclasses
import json

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential import Stage, StageCallback, run_stages, running
from hf_ft_plugins.techniques.sequential.stage_records import StageRecords
from hf_ft_plugins.testing import InterruptAt, Interruption, difference, tiny_dataset, tiny_trainer
from tests.techniques.sequential.stage_runs import (
    CHANGES,
    NAMES,
    build,
    left_in,
    model_from,
    run_all,
    stage_rows,
    stages,
)

OPTIONS = "replay=0.25,wise=0.8"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sequence that nothing has stopped, what `run_stages` returned, and the stages that a trainer was built for."""
    folder, built = tmp_path_factory.mktemp("whole"), []

    def factory(run):
        built.append(run)
        return build(run)

    return folder, run_all(folder, OPTIONS, factory), built


def test_each_stage_starts_from_the_model_of_the_one_before(whole):
    folder, ended, built = whole
    models = [str(folder / name / "model") for name in NAMES]
    assert [run.start for run in built] == [None, *models[:2]]
    assert [run.output_dir for run in built] == [str(folder / "runs" / name) for name in NAMES]
    assert ended.model == models[-1]
    assert [stage.name for stage in ended.stages] == list(NAMES)
    assert [stage.steps for stage in ended.stages] == [6] * 3


def test_the_matrix_is_of_all_stages_and_all_of_it_was_measured(whole):
    folder, ended, _ = whole
    assert [name for name, _ in ended.matrix.sets] == list(NAMES)
    assert torch.tensor(ended.matrix.values).isfinite().all()
    assert json.loads((folder / "hf_ft_forgetting.json").read_text()) == ended.matrix.as_dict()


def test_what_was_measured_of_a_stage_is_what_its_model_gives_of_its_rows(whole, tmp_path):
    folder, ended, _ = whole
    for at, name in enumerate(NAMES):
        trainer = tiny_trainer(tmp_path, model=model_from(folder / name / "model"), **stage_rows(at))
        assert ended.stages[at].after[name]["loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)


def test_finished_stages_are_skipped(whole):
    folder, ended, _ = whole
    before = left_in(folder)

    def factory(run):
        raise AssertionError(run.stage.name)

    again = run_all(folder, OPTIONS, factory)
    assert again == ended
    assert difference(before, left_in(folder)) is None


def test_a_stage_is_added_behind_finished_ones(tmp_path):
    given = stages()
    run_all(tmp_path, given=given[:2])
    ended = run_all(tmp_path, given=given)
    assert [stage.name for stage in ended.stages] == list(NAMES)
    # What the first stage could not know was measured when the last one began.
    assert [torch.tensor(row).isnan().tolist() for row in ended.matrix.values] == [
        *([[False, False, True]] * 2),
        *([[False] * 3] * 2),
    ]


def test_scripts_of_one_stage_each_give_the_same(whole, tmp_path):
    for at, name in enumerate(NAMES):
        start = tmp_path / NAMES[at - 1] / "model" if at else None
        host = f"sequential:folder={tmp_path},stage={name},{OPTIONS}"
        settings = {"model": model_from(start), **stage_rows(at), **CHANGES}
        tiny_trainer(tmp_path / "elsewhere" / name, host, **settings).train()
    ours, theirs = left_in(whole[0]), left_in(tmp_path)
    assert difference(ours["weights"], theirs["weights"]) is None
    # A script alone does not know the evaluation sets of those to come.
    for one, other in zip(ours["all"], theirs["all"], strict=True):
        assert {name: one["after"][name] for name in other["after"]} == other["after"]


# ---- resume ----


def cut_at(stage, step):
    def factory(run):
        stops = run.stage.name == stage
        return build(run, callbacks=[InterruptAt(step)] if stops else None)

    return factory


@pytest.mark.parametrize(("stage", "step"), [("general", 1), ("medical", 5)])
def test_cut_off_in_any_stage_it_goes_on_bit_equal(stage, step, whole, tmp_path):
    with pytest.raises(Interruption):
        run_all(tmp_path, OPTIONS, cut_at(stage, step))
    begun = []

    def factory(run):
        begun.append(run.stage.name)
        trainer = build(run)
        trainer.add_callback(Began(run.stage.name == stage and step // 2 * 2))
        return trainer

    run_all(tmp_path, OPTIONS, factory)
    assert begun == list(NAMES[NAMES.index(stage) :])
    assert difference(left_in(whole[0]), left_in(tmp_path)) is None


class Began(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_train_begin(self, args, state, control, **kwargs):
        assert state.global_step == self.step


@pytest.mark.parametrize("place", ["save_model", "save_rows", "write_matrix"])
def test_cut_off_while_a_stage_is_kept_it_is_kept_again(place, whole, tmp_path, monkeypatch):
    from hf_ft_plugins.techniques.sequential import stage_callback

    work, calls = getattr(stage_callback, place), []

    def fails(*args, **kwargs):
        calls.append(place)
        if len(calls) == {"save_model": 2, "save_rows": 3, "write_matrix": 3}[place]:
            raise OSError(28, "No space left on device")
        return work(*args, **kwargs)

    monkeypatch.setattr(stage_callback, place, fails)
    with pytest.raises(OSError, match="No space left"):
        run_all(tmp_path, OPTIONS)
    # The matrix is drawn when the last stage is finished.
    kept = NAMES if place == "write_matrix" else NAMES[:1]
    assert [stage.name for stage in StageRecords(tmp_path).finished()] == list(kept)
    monkeypatch.undo()
    run_all(tmp_path, OPTIONS)
    assert difference(left_in(whole[0]), left_in(tmp_path)) is None


def test_a_stage_whose_trainer_raises_leaves_the_others_and_goes_on_there(whole, tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise ValueError("a bad batch")

    with pytest.raises(ValueError, match="a bad batch"):
        run_all(tmp_path, OPTIONS, lambda run: build(run, callbacks=[Fails()] if run.stage.name == "medical" else None))
    assert [stage.name for stage in StageRecords(tmp_path).finished()] == ["general"]
    run_all(tmp_path, OPTIONS)
    assert difference(left_in(whole[0]), left_in(tmp_path)) is None


def test_a_stage_that_is_told_to_end_says_so_and_goes_on_bit_equal(whole, tmp_path):
    class Sigterm(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.manager.is_checkpoint_requested = True

    def factory(run):
        told = run.stage.name == "medical"
        trainer = build(run, enable_jit_checkpoint=True, callbacks=[Sigterm()] if told else None)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Sigterm):
                callback.manager = trainer._jit_manager
        return trainer

    with pytest.raises(PluginError, match=r"stage 2/3 medical was told to stop\. Run the same again"):
        run_all(tmp_path, OPTIONS, factory)
    assert (tmp_path / "runs" / "medical" / "checkpoint-3").is_dir()
    run_all(tmp_path, OPTIONS)
    assert difference(left_in(whole[0]), left_in(tmp_path)) is None


# ---- what is refused ----


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """One stage finished and the second begun."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Interruption):
        run_all(folder, factory=cut_at("medical", 3))
    return folder


def other(at, **changes):
    return [dataclasses.replace(stage, **changes) if at == number else stage for number, stage in enumerate(stages())]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (other(0, overrides={"learning_rate": 1.0}), "general: overrides: learning_rate was (unset), is 1.0"),
        (other(1, train_dataset=tiny_dataset(20, seed=9)), "medical: train_dataset: digest was"),
        (other(1, train_dataset=tiny_dataset(21, seed=1)), "medical: train_dataset: rows was 20, is 21"),
        (other(1, eval_dataset={"dev": tiny_dataset(8)}), "medical: eval_dataset: dev was (unset), is"),
        (other(0, name="basics"), "stage 1 was general, and is basics"),
        ([stages()[at] for at in (1, 0, 2)], "stage 1 was general, and is medical"),
        (stages()[:1], "stage 2 was medical, and is not there"),
    ],
    ids=["overrides", "rows", "number of rows", "evaluation", "name", "order", "fewer"],
)
def test_changed_stages_are_refused_with_the_difference(given, line, begun):
    before = (begun / "hf_ft_plan.json").read_bytes()
    with pytest.raises(PluginError, match="were other ones when they began") as refused:
        run_all(begun, given=given)
    assert line in str(refused.value)
    assert (begun / "hf_ft_plan.json").read_bytes() == before


def test_options_changed_in_the_middle_of_a_stage_are_refused_with_the_difference(begun):
    with pytest.raises(PluginError, match=r"! sequential: replay was 0.25, is 0.5"):
        run_all(begun, "replay=0.5")


def test_stages_that_were_finished_otherwise_are_refused(whole, tmp_path):
    (tmp_path / "hf_ft_stages.json").write_bytes((whole[0] / "hf_ft_stages.json").read_bytes())
    with pytest.raises(PluginError, match=r"has the finished stages general, medical, answers, and"):
        run_all(tmp_path, given=[stages()[0], stages()[2]])


def test_data_that_are_made_as_they_are_read_are_known_by_their_number(tmp_path):
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            row = dict(tiny_dataset(20)[index])
            row["input_ids"] = torch.randint(0, 32, (8,))
            return row

    given = other(0, train_dataset=Augmented())
    with pytest.raises(Interruption):
        run_all(tmp_path, factory=cut_at("general", 3), given=given)
    torch.manual_seed(3)
    with pytest.raises(Interruption):
        run_all(tmp_path, factory=cut_at("medical", 1), given=given)


def test_evaluation_rows_of_a_stage_to_come_may_change_and_are_measured_anew(tmp_path, caplog):
    run_all(tmp_path, given=stages()[:1])
    given = [*stages()[:1], dataclasses.replace(stages()[1], eval_dataset=tiny_dataset(6, seed=30)), stages()[2]]
    with pytest.raises(Interruption):
        run_all(tmp_path, factory=cut_at("medical", 1), given=given)
    given[2] = dataclasses.replace(given[2], name="last", eval_dataset=tiny_dataset(5, seed=31))
    ended = run_all(tmp_path, given=given)
    assert sorted(one.name for one in (tmp_path / "upcoming").glob("*/*")) == ["eval"] * 3
    assert ended.matrix.stages == ("general", "medical", "last")
    assert "answers" not in ended.stages[-1].after


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda run: tiny_trainer(run.output_dir, max_steps=1), "does not train stage general. Build it of the class"),
        (lambda run: build(dataclasses.replace(run, output_dir="elsewhere")), "has output_dir=elsewhere"),
    ],
    ids=["a stock trainer", "another folder"],
)
def test_a_factory_that_does_not_keep_to_its_run_is_refused(factory, text, tmp_path):
    with pytest.raises(PluginError, match="sequential: ") as refused:
        run_all(tmp_path, factory=factory)
    assert text in str(refused.value)
    assert StageRecords(tmp_path).finished() == []


def test_the_trainer_of_another_stage_is_refused(tmp_path):
    run_all(tmp_path, given=stages()[:1])
    kept = []

    def factory(run):
        kept.append(dataclasses.replace(run, technique=dataclasses.replace(run.technique, stage="else")))
        return build(kept[0])

    with pytest.raises(PluginError, match="does not train stage medical"):
        run_all(tmp_path, factory=factory)


@pytest.mark.parametrize(
    ("given", "technique", "text"),
    [
        ([], "sequential:folder=x", "needs stages of different names, and has []"),
        ([Stage(name="a"), Stage(name="a")], "sequential:folder=x", "different names"),
        ([Stage(name="a")], "sequential", "needs a folder"),
        ([Stage(name="a")], "low-memory", "needs a folder"),
        ([Stage(name="runs")], "sequential:folder=x", "stage=runs is not allowed"),
    ],
)
def test_what_cannot_be_a_sequence_is_refused(given, technique, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError) as refused:
        run_stages(build, given, technique)
    assert text in str(refused.value)
    assert not list(tmp_path.rglob("hf_ft_plan.json"))


def test_overrides_and_what_all_stages_have_in_common_are_arguments(tmp_path):
    run = running.StageRun(Stage(name="a", overrides={"seed": 3}), None, str(tmp_path), None)
    assert run.arguments(seed=1, max_steps=2) == {"output_dir": str(tmp_path), "seed": 3, "max_steps": 2}


def test_hosted_puts_the_stage_behind_other_techniques(tmp_path):
    from hf_ft_plugins.registry import resolve

    run = running.StageRun(Stage(name="a"), None, str(tmp_path), resolve(f"sequential:folder={tmp_path},stage=a"))
    host = run.hosted(Trainer, "low-memory")
    assert [one.name for one in host._ft_techniques] == ["low-memory", "sequential"]
    trainer = tiny_trainer(tmp_path / "run", trainer_class=host)
    assert [type(one) for one in trainer.callback_handler.callbacks].count(StageCallback) == 1
