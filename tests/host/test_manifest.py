"""A manifest or state of another form is a message, never a raw error; what was changed on purpose can be signed."""

import copy
import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from typer.testing import CliRunner

from hf_ft_plugins import AdaptiveLR, with_plugins
from hf_ft_plugins.cli.app import app
from hf_ft_plugins.cli.checkpoint import sign
from hf_ft_plugins.errors import CheckpointError
from hf_ft_plugins.host import manifest
from hf_ft_plugins.host.checkpoints import _load
from hf_ft_plugins.host.manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    TENSORS_FILE,
    UNFINISHED_MARKER,
    begin_manifest,
    damage,
    newest_whole_checkpoint,
    read_manifest,
    set_aside,
)
from hf_ft_plugins.host.state import read_state
from hf_ft_plugins.testing import difference, outcome, tiny_trainer

# With rollback the techniques' state holds tensors, too.
ROLLBACK = {"controller": "rollback", "patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(folder, AdaptiveLR(**ROLLBACK), max_steps=8, save_steps=4).train()
    return folder


@pytest.fixture
def checkpoint(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run" / "checkpoint-8"


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def deformed(content, chosen):
    """JSON of other shapes: at each place another type, or another key."""
    for path in chosen:
        for other in (None, 7, "x", [], {}, [1], {"x": 1}):
            changed = copy.deepcopy(content)
            if not path:
                changed = other
            else:
                at(changed, path[:-1])[path[-1]] = other
            yield path, changed
        if isinstance(at(content, path), dict) and at(content, path):
            changed = copy.deepcopy(content)
            inside = at(changed, path)
            key = sorted(inside)[0]
            inside[key[:-1] + chr(ord(key[-1]) ^ 1)] = inside.pop(key)
            yield path, changed


def test_a_manifest_of_any_other_shape_is_damage(checkpoint):
    file = checkpoint / MANIFEST_FILE
    content = json.loads(file.read_text())
    chosen = [path for path in places(content) if len(path) < 2 or "optimizer.pt" in path]
    for path, changed in deformed(content, chosen):
        file.write_text(json.dumps(changed))
        if changed == content:
            continue
        said = damage(checkpoint)
        # Fewer files, or none, is another manifest, and holds.
        if path == ("files",) and changed["files"] == {}:
            continue
        assert said is not None, (path, changed)
    file.write_text(json.dumps(content))
    assert damage(checkpoint) is None


def test_a_manifest_names_nothing_outside_of_its_folder(checkpoint):
    entry = {"size": 0, "sha256": "0" * 64}
    for name in ("/etc/hostname", "../trainer_state.json"):
        (checkpoint / MANIFEST_FILE).write_text(json.dumps({"format": 1, "files": {name: entry}}))
        assert "lies outside of the checkpoint" in damage(checkpoint)


def test_a_state_of_any_other_shape_is_a_message(checkpoint):
    file = checkpoint / STATE_FILE
    content = json.loads(file.read_text())
    found = [path for path in places(content) if path != ("techniques", 0, "options")]
    chosen = [path for path in found if len(path) < 4]
    for path, changed in deformed(content, chosen):
        file.write_text(json.dumps(changed))
        sign_anyway(checkpoint)
        trainer = tiny_trainer(checkpoint.parent, AdaptiveLR(**ROLLBACK), max_steps=8)
        try:
            trainer._checkpoint_to_resume(str(checkpoint))
            trainer.create_optimizer_and_scheduler(8)
            trainer._load_optimizer_and_scheduler(str(checkpoint))
        except CheckpointError:
            continue
        assert "states" in path or path[-1] in ("version", "distribution"), (path, changed)


def sign_anyway(folder):
    from hf_ft_plugins.host.manifest import write_manifest

    write_manifest(folder)


@pytest.mark.parametrize("name", [STATE_FILE, MANIFEST_FILE, TENSORS_FILE])
def test_a_flipped_bit_anywhere_ends_in_a_message_or_in_the_same_run(name, run, tmp_path):
    draw = random.Random(0)
    expected = None
    for _ in range(12):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run, tmp_path / "run")
        file = tmp_path / "run" / "checkpoint-8" / name
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        trainer = tiny_trainer(tmp_path / "run", AdaptiveLR(**ROLLBACK), max_steps=9)
        trainer.train(resume_from_checkpoint=True)
        expected = expected or outcome(trainer)
        assert difference(expected, outcome(trainer)) is None


def flipped(file, every):
    """The file with one bit flipped of each `every`th byte, one after the other; then as it was.

    `benchmarks/compare.py` flips every byte.
    """
    content = file.read_bytes()
    for position in range(0, len(content), every):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        yield position
    file.write_bytes(content)


@pytest.mark.parametrize("name", [STATE_FILE, MANIFEST_FILE])
def test_whatever_byte_is_flipped_the_older_whole_checkpoint_is_taken(name, run, checkpoint):
    taken = []
    for _ in flipped(checkpoint / name, 11):
        newest, passed_over = newest_whole_checkpoint(checkpoint.parent)
        taken.append(newest.name)
        assert len(passed_over) == (newest.name == "checkpoint-4")
    # White space of one kind for another says the same.
    assert taken.count("checkpoint-8") <= (name == MANIFEST_FILE) * 0.3 * len(taken)
    assert taken.count("checkpoint-4") > 0.7 * len(taken)
    assert newest_whole_checkpoint(checkpoint.parent)[0].name == "checkpoint-8"


def test_a_state_edited_by_hand_under_a_manifest_that_holds_is_read_or_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("hf_ft_plugins.host.manifest.set_aside", lambda folder: folder)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    trainer = tiny_trainer(checkpoint.parent, AdaptiveLR(**ROLLBACK), max_steps=8)
    trainer.create_optimizer_and_scheduler(8)
    whole = read_state(checkpoint)
    older = refused = 0
    for _ in flipped(checkpoint / STATE_FILE, 17):
        sign_anyway(checkpoint)
        try:
            chosen = trainer._checkpoint_to_resume(True)
            older += chosen.endswith("-4")
            for key, part in trainer.ft_stash.parts.items():
                content = read_state(Path(chosen))
                _load(part, key, content["states"].get(key, whole["states"][key]), Path(chosen))
        except CheckpointError:
            refused += 1
    assert older > 5
    assert refused > 5


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": 1, "format": 1, "files": null}', "\ud800", '{"a": 1e999}']
)
def test_json_that_python_would_not_read_or_not_read_whole_is_damage(checkpoint, content):
    for name in (MANIFEST_FILE, STATE_FILE):
        before = (checkpoint / name).read_bytes()
        (checkpoint / name).write_text(content, errors="surrogatepass")
        assert newest_whole_checkpoint(checkpoint.parent)[0].name == "checkpoint-4"
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_manifest(checkpoint) if name == MANIFEST_FILE else read_state(checkpoint)
        (checkpoint / name).write_bytes(before)


@pytest.mark.parametrize("mark", [[], {}, 3, None, "elsewhere"])
def test_a_tensor_that_is_named_by_no_name_is_a_message(checkpoint, mark):
    content = json.loads((checkpoint / STATE_FILE).read_text())
    content["states"] = {"adaptive-lr/AdaptiveLRCallback": {"weights": {"__tensor__": mark}}}
    (checkpoint / STATE_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tensor"):
        read_state(checkpoint)


def test_a_part_whose_state_is_gone_does_not_start_afresh_unasked(checkpoint, monkeypatch):
    content = json.loads((checkpoint / STATE_FILE).read_text())
    (checkpoint / STATE_FILE).write_text(json.dumps({**content, "states": {}}))
    sign_anyway(checkpoint)

    def resume():
        tiny_trainer(checkpoint.parent, AdaptiveLR(**ROLLBACK), max_steps=9).train(
            resume_from_checkpoint=str(checkpoint)
        )

    with pytest.raises(CheckpointError, match="would start afresh"):
        resume()
    monkeypatch.setenv("HF_FT_ALLOW_CHANGED_PLUGINS", "1")
    resume()


def test_saves_that_were_cut_off_do_not_pile_up(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for step in (12, 16, 20):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        begin_manifest(folder)
        (folder / "half.bin").write_bytes(bytes(100))
        set_aside(folder)
    broken = shutil.copytree(run / "checkpoint-8", tmp_path / "run" / "checkpoint-24")
    (broken / STATE_FILE).unlink()
    set_aside(broken)
    begin_manifest(tmp_path / "run" / "checkpoint-28")
    set_aside(tmp_path / "run" / "checkpoint-28")
    # One that was whole may still be of use.
    assert sorted(path.name for path in (tmp_path / "run").glob("damaged-*")) == [
        "damaged-checkpoint-24",
        "damaged-checkpoint-28",
    ]


def test_a_manifest_that_is_damaged_while_the_run_goes_on_does_not_end_it(tmp_path, caplog):
    class Damages(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                (tmp_path / "checkpoint-2" / MANIFEST_FILE).write_text("{")

    trainer = tiny_trainer(tmp_path, AdaptiveLR(), max_steps=4, save_steps=2, callbacks=[Damages()])
    trainer.train()
    assert "checkpoint-2 is damaged" in caplog.text
    assert damage(tmp_path / "checkpoint-4") is None


def test_an_optimizer_of_other_groups_is_refused_even_where_changes_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_FT_ALLOW_CHANGED_PLUGINS", "1")
    tiny_trainer(tmp_path, "transfer:layer_decay=0.5,strategy=full", max_steps=2, save_steps=2).train()
    with pytest.raises(CheckpointError, match="divide the parameters differently"):
        tiny_trainer(tmp_path, AdaptiveLR(), max_steps=4).train(resume_from_checkpoint=True)


def test_a_script_that_trains_afresh_where_nothing_can_be_resumed_still_does(tmp_path):
    words = []
    for trainer_class in (Trainer, with_plugins(Trainer)):
        trainer = tiny_trainer(tmp_path / "none", trainer_class=trainer_class, max_steps=1, save_strategy="no")
        try:
            trainer.train(resume_from_checkpoint=True)
        except ValueError as error:
            words.append(str(error))
            trainer.train()
        assert trainer.state.global_step == 1
    assert words[0] in words[1].replace(").", ")")


def test_a_named_checkpoint_that_is_none_is_told_in_stocks_words(tmp_path):
    words = []
    for trainer_class in (Trainer, with_plugins(Trainer)):
        trainer = tiny_trainer(tmp_path, trainer_class=trainer_class, max_steps=1, save_strategy="no")
        with pytest.raises(ValueError, match="Can't find a valid checkpoint at") as refused:
            trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
        words.append(str(refused.value))
    assert words[0] in words[1]


def reshard(folder):
    """As somebody does who moves a checkpoint to other shards, here by hand."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, folder / shard, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in weights.values())
    places = {name: shard for shard, inside in shards.items() for name in inside}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_a_checkpoint_changed_on_purpose_is_accepted_once_signed_with_its_techniques_state(run, checkpoint, tmp_path):
    def go_on(folder):
        trainer = tiny_trainer(folder.parent, AdaptiveLR(**ROLLBACK), max_steps=12)
        trainer.train(resume_from_checkpoint=str(folder))
        return outcome(trainer)

    shutil.copytree(run, tmp_path / "untouched")
    expected = go_on(tmp_path / "untouched" / "checkpoint-8")
    reshard(checkpoint)
    with pytest.raises(CheckpointError, match=r"on purpose: hf-ft checkpoint sign .*checkpoint-8"):
        go_on(checkpoint)
    shown = CliRunner().invoke(app, ["checkpoint", "sign", str(checkpoint)])
    assert shown.exit_code == 0, shown.output
    assert "model.safetensors is missing" in shown.output
    assert "model-00001-of-00002.safetensors is new" in shown.output
    assert read_state(checkpoint)["states"]
    assert difference(expected, go_on(checkpoint)) is None


def test_what_cannot_be_signed(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"is no checkpoint: there is no trainer_state\.json"):
        sign(tmp_path)
    (checkpoint / UNFINISHED_MARKER).write_text("")
    with pytest.raises(CheckpointError, match="cannot be signed: its save was cut off"):
        sign(checkpoint)
    (checkpoint / UNFINISHED_MARKER).unlink()
    (checkpoint / TENSORS_FILE).rename(tmp_path / TENSORS_FILE)
    with pytest.raises(CheckpointError, match="the state of its techniques, is not there any more"):
        sign(checkpoint)
    (tmp_path / TENSORS_FILE).rename(checkpoint / TENSORS_FILE)
    assert sign(checkpoint) == []
    begin_manifest(checkpoint)
    with pytest.raises(CheckpointError, match="cannot be signed: its save was cut off"):
        sign(checkpoint)
    (checkpoint / MANIFEST_FILE).write_text("{")
    assert "cannot be read" in sign(checkpoint)[0]
    assert damage(checkpoint) is None


def test_what_the_scripts_own_class_adds_after_its_save_belongs_to_the_checkpoint(tmp_path):
    class Their(Trainer):
        def _save_checkpoint(self, model, trial):
            super()._save_checkpoint(model, trial)
            (tmp_path / f"checkpoint-{self.state.global_step}" / "README.md").write_text("a card")

    trainer = tiny_trainer(tmp_path, trainer_class=with_plugins(Their), max_steps=2)
    trainer.train()
    # A script may also save by hand, with none of the events around it.
    (tmp_path / "checkpoint-2" / "README.md").unlink()
    trainer._save_checkpoint(trainer.model, None)
    assert "README.md" in json.loads((tmp_path / "checkpoint-2" / MANIFEST_FILE).read_text())["files"]
    (tmp_path / "checkpoint-2" / "README.md").write_text("changed")
    assert "README.md has" in damage(tmp_path / "checkpoint-2")


def test_sizes_alone_find_what_was_cut_off_and_not_what_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv(manifest.SIZES_VARIABLE, "1")
    (tmp_path / "weights").write_bytes(b"abc")
    manifest.write_manifest(tmp_path)
    assert manifest.read_manifest(tmp_path) == {"weights": {"size": 3, "sha256": None}}
    (tmp_path / "weights").write_bytes(b"abd")
    assert manifest.damage(tmp_path) is None
    (tmp_path / "weights").write_bytes(b"ab")
    assert "2 bytes instead of 3" in manifest.damage(tmp_path)
