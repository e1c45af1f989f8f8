"""The folder of a sequence: a stage is finished when it is listed, and nothing that ends one early loses another."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_ft_plugins.cli.app import app
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host import manifest
from hf_ft_plugins.techniques.sequential import Sequential
from hf_ft_plugins.techniques.sequential.stage_records import FinishedStage, StageRecords


@pytest.fixture
def records(tmp_path):
    return StageRecords(tmp_path / "stages")


def finished(records, name, text="weights"):
    stage = FinishedStage(name=name, steps=3, options={"replay": 0.1}, model={}, after={name: {"loss": 1.0}})
    records.begin(name)
    records.model_of(name).mkdir()
    (records.model_of(name) / "model.safetensors").write_text(text)
    records.finish(stage)
    return stage


def test_stages_are_listed_in_the_order_in_which_they_ended(records):
    assert records.finished() == []
    stages = [finished(records, name) for name in ("b", "a", "c")]
    assert records.finished() == stages
    records.refuse_damage(stages)


def test_a_stage_that_was_begun_is_not_finished_and_begins_empty_again(records):
    first = finished(records, "a")
    records.begin("b")
    (records.of("b") / "rest").write_text("of an end that was cut off")
    assert records.finished() == [first]
    records.begin("b")
    assert [file.name for file in records.of("b").iterdir()] == [manifest.MANIFEST_FILE]
    assert manifest.damage(records.of("b")) == manifest.CUT_OFF


def test_changed_files_of_a_stage_are_refused_until_they_are_signed(records):
    stage = finished(records, "a")
    (records.model_of("a") / "model.safetensors").write_text("others!")
    with pytest.raises(PluginError, match=r"stage a .* is finished, and model/model.safetensors has") as refused:
        records.refuse_damage([stage])
    command = str(refused.value).partition("hf-ft ")[2].split()
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "model/model.safetensors has changed since it was written" in shown.output
    records.refuse_damage([stage])


def test_what_was_cut_off_or_has_no_manifest_cannot_be_signed(records):
    records.begin("a")
    assert CliRunner().invoke(app, ["checkpoint", "sign", str(records.of("a"))]).exception is not None
    (records.of("a") / manifest.MANIFEST_FILE).unlink()
    shown = CliRunner().invoke(app, ["checkpoint", "sign", str(records.of("a"))])
    assert "is no checkpoint" in str(shown.exception)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 2, "stages": []}', '{"format": 1, "stages": [{"name": 1}]}']
)
def test_a_list_of_another_form_is_refused_with_its_place(text, records):
    finished(records, "a")
    (records.folder / "hf_ft_stages.json").write_text(text)
    with pytest.raises(
        PluginError, match=r"sequential: .*hf_ft_stages\.json cannot be read: .*another folder="
    ) as refused:
        records.finished()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "runs", "upcoming", "a:b", "a b"])
def test_names_that_are_no_folder_of_their_own_are_refused(name):
    with pytest.raises(PluginError, match="stage="):
        Sequential(folder="stages", stage=name)


@pytest.mark.parametrize("name", ["stage-1", "a.b", "evaluation", "model"])
def test_other_names_are_taken(name):
    assert Sequential(folder="stages", stage=name).stage == name


# ---- a full disk ----


FLUSH = os.fsync


class FullDisk:
    """From its call `fails_at` on, every flush of a file fails as on a full disk; the others are counted."""

    def __init__(self, fails_at):
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, handle):
        self.calls += 1
        if self.calls >= self.fails_at:
            raise OSError(28, "No space left on device")
        FLUSH(handle)


def test_a_disk_that_is_full_at_any_flush_loses_no_finished_stage(records, monkeypatch):
    first = finished(records, "a")
    listed = (records.folder / "hf_ft_stages.json").read_bytes()
    disk = FullDisk(fails_at=10**9)
    monkeypatch.setattr(os, "fsync", disk)
    whole = finished(StageRecords(records.folder.parent / "other"), "b")
    flushes, ends = disk.calls, []
    for fails_at in range(1, flushes + 1):
        monkeypatch.setattr(os, "fsync", FullDisk(fails_at))
        with pytest.raises(OSError, match="No space left"):
            finished(records, "b")
        ends.append([stage.name for stage in records.finished()])
        records.refuse_damage(records.finished())
        if ends[-1] == ["a"]:
            assert (records.folder / "hf_ft_stages.json").read_bytes() == listed
    # The last flush is of the folder, after the list has its name.
    assert ends == [["a"]] * (flushes - 1) + [["a", "b"]]
    (records.folder / "hf_ft_stages.json").write_bytes(listed)
    monkeypatch.setattr(os, "fsync", FLUSH)
    assert finished(records, "b") == whole
    assert records.finished() == [first, whole]


def test_a_list_cut_in_half_by_a_write_that_fails_stays_the_old_one(records, monkeypatch):
    first = finished(records, "a")
    opened = Path.open

    def half(self, *args, **kwargs):
        handle = opened(self, *args, **kwargs)
        if self.name == "hf_ft_stages.json.tmp":
            write = handle.write

            def fails(text):
                write(text[: len(text) // 2])
                handle.flush()
                raise OSError(28, "No space left on device")

            handle.write = fails
        return handle

    monkeypatch.setattr(Path, "open", half)
    with pytest.raises(OSError, match="No space left"):
        finished(records, "b")
    monkeypatch.undo()
    assert records.finished() == [first]
    assert [stage.name for stage in (first, finished(records, "b"))] == [stage.name for stage in records.finished()]


def test_recorded_stages_are_plain_json(records):
    stage = finished(records, "a")
    (entry,) = json.loads((records.folder / "hf_ft_stages.json").read_text())["stages"]
    assert entry == dataclasses.asdict(stage)
