"""`hf-ft stages RECIPE`: its form, the command of each stage, and three stages in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml
from rich.console import Console

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host import manifest
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.techniques.sequential.script_stages import read_stages, run_scripts
from hf_ft_plugins.testing import difference

STAGES = [{"name": "a", "arguments": {"model": "base"}}, {"name": "b", "arguments": {"model": "{previous}"}}]


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        content = {"folder": str(tmp_path / "stages"), "script": "train.py", "stages": STAGES, **changes}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
        return file

    return write


def commands(recipe):
    records, stages = read_stages(recipe)
    names = [None, *(stage.name for stage in stages)]
    return [stage.command(records, previous) for stage, previous in zip(stages, names, strict=False)]


def after(command, word):
    return [command[at + 1] for at, one in enumerate(command) if one == word]


def test_a_stage_runs_its_script_with_the_technique_its_folder_and_the_model_before(recipe, tmp_path):
    first, second = commands(recipe(arguments={"lr": 1e-4, "model": "unset", "flag": None, "betas": [0.9, 0.99]}))
    folder = tmp_path / "stages"
    assert first[:4] == [sys.executable, "-m", "hf_ft_plugins", "run"]
    assert "train.py" in first
    assert after(first, "--output_dir") == [str(folder / "runs" / "a")]
    assert after(second, "--output_dir") == [str(folder / "runs" / "b")]
    assert after(first, "--model") == ["base"]
    assert after(second, "--model") == [str(folder / "a" / "model")]
    assert after(first, "--lr") == ["0.0001"]
    assert first[first.index("--betas") :][:3] == ["--betas", "0.9", "0.99"]
    assert "--flag" not in first
    (technique,) = [resolve(one) for one in after(second, "--with")]
    assert (technique.stage, technique.folder, technique.replay) == ("b", str(folder), 0.1)


def test_a_technique_of_a_stage_replaces_the_one_that_all_have(recipe):
    stages = [STAGES[0], {**STAGES[1], "techniques": [{"sequential": {"replay": 0.5}}, "low-memory:fused=false"]}]
    file = recipe(techniques=["sequential:lwf=0.1", "low-memory", "adaptive-lr"], stages=stages)
    first, second = ([resolve(one) for one in after(command, "--with")] for command in commands(file))
    assert [one.name for one in first] == ["low-memory", "adaptive-lr", "sequential"]
    assert [one.name for one in second] == ["low-memory", "adaptive-lr", "sequential"]
    assert (first[-1].replay, first[-1].lwf) == (0.1, 0.1)
    assert (second[-1].replay, second[-1].lwf) == (0.5, 0.0)
    assert not second[0].fused


def test_a_launcher_stands_before_the_module_and_a_module_may_be_the_script(recipe):
    first, _ = commands(recipe(launch="torchrun --nproc-per-node 2", script="-m my.module"))
    assert first[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "hf_ft_plugins", "run"]
    assert " -m my.module " in " ".join(first)


def test_a_folder_of_any_name_comes_to_the_script_as_it_is(recipe, tmp_path):
    folder = str(tmp_path / "a, b=c: d")
    first, _ = commands(recipe(folder=folder))
    assert resolve(after(first, "--with")[0]).folder == folder


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stages": None}, "a recipe of stages is a mapping with 'folder' and 'stages'"),
        ({"folder": None}, "a recipe of stages is a mapping with 'folder'"),
        ({"stages": []}, "a list of mappings with 'name'"),
        ({"stages": ["a"]}, "a list of mappings with 'name'"),
        ({"more": 1}, "a recipe of stages is a mapping"),
        ({"stages": [{"name": "a", "epochs": 1}]}, "a stage has the keys epochs, name"),
        ({"stages": [{"arguments": {}}]}, "a stage has the keys arguments"),
        ({"script": None}, "stage a: it needs a script"),
        ({"stages": [{"name": "a", "arguments": ["x"]}]}, "stage a: it needs a script, and arguments by name"),
        ({"techniques": "low-memory"}, "stage a: its techniques must be a list"),
        ({"stages": [STAGES[0], STAGES[0]]}, "two stages have one name, of a, a"),
        ({"stages": [{"name": "a/b"}]}, "option stage=a/b is not allowed"),
        ({"techniques": ["sequental"]}, "sequential"),
        ({"techniques": ["sequential:repaly=1"]}, "replay"),
        ({"arguments": {"output_dir": "out"}}, "two stages have one output_dir, of out, out"),
    ],
)
def test_a_recipe_of_another_form_is_refused_before_anything_runs(changes, text, recipe, tmp_path):
    with pytest.raises(PluginError) as refused:
        read_stages(recipe(**changes))
    assert text in str(refused.value)
    assert not (tmp_path / "stages").exists()


def test_the_first_stage_has_no_model_before_it(recipe, tmp_path):
    file = recipe(stages=[{"name": "a", "arguments": {"model": "{previous}"}}])
    with pytest.raises(PluginError, match=r"stage a is the first, and its argument model=\{previous\}"):
        run_scripts(file, Console(quiet=True))
    assert not (tmp_path / "stages").exists()


# ---- processes ----

SCRIPT = """
    import os
    import sys
    from pathlib import Path

    from hf_ft_plugins.host.state import RESUME_VARIABLE
    from tests.techniques.sequential.stage_runs import CHANGES, model_from, stage_rows
    from hf_ft_plugins.testing import tiny_trainer
    from transformers import TrainerCallback

    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))


    class Trip(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trip = Path(given["--trip"])
            if state.global_step == 5 and trip.read_text() == given["--output_dir"].rpartition("/")[2]:
                trip.write_text("")
                raise ValueError("a bad batch")


    assert os.environ[RESUME_VARIABLE] == "1"
    start = given["--start"]
    trainer = tiny_trainer(
        given["--output_dir"],
        model=model_from(None if start == "none" else start),
        callbacks=[Trip()],
        **{**CHANGES, **stage_rows(int(given["--number"])), "max_steps": int(given["--steps"])},
    )
    trainer.train()
    print("trained", trainer.state.global_step)
"""


def hf_ft(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins", *map(str, words)],
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **more,
    )


@pytest.fixture
def project(tmp_path, recipe):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "trip").write_text("")
    return tmp_path


def three(recipe, project, folder, **changes):
    common = {"steps": 6, "trip": str(project / "trip")}
    names = ("general", "medical", "answers")
    return recipe(
        folder=str(folder),
        script=str(project / "train.py"),
        techniques=["sequential:replay=0.25"],
        arguments=common,
        stages=[
            {"name": name, "arguments": {"number": at, "start": "{previous}" if at else "none"} | changes.get(name, {})}
            for at, name in enumerate(names)
        ],
    )


@pytest.mark.slow
def test_three_scripts_one_after_the_other_go_on_where_one_has_failed(recipe, project):
    from tests.techniques.sequential.stage_runs import left_in, run_all

    (project / "trip").write_text("medical")
    file = three(recipe, project, project / "stages")
    failed = hf_ft("stages", file)
    assert failed.returncode != 0
    assert "a bad batch" in failed.stderr
    assert "stage 2 of 3: medical ended with status 1. The stages before it are kept" in failed.stderr

    changed = three(recipe, project, project / "stages", general={"steps": 7})
    with pytest.raises(PluginError, match="! general: arguments: steps was 6, is 7"):
        run_scripts(changed, Console(quiet=True))
    refused = hf_ft("stages", changed, "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["code"] == "stages"

    again = hf_ft("stages", three(recipe, project, project / "stages"))
    assert again.returncode == 0, again.stderr
    assert "stage 1 of 3: general is finished" in again.stdout
    assert again.stdout.count("trained 6") == 2
    assert "hf_ft_forgetting.png" in again.stdout
    told = json.loads(hf_ft("stages", project / "recipe.yaml", "--json").stdout)
    assert [stage["name"] for stage in told["stages"]] == ["general", "medical", "answers"]
    assert told["picture"].endswith("hf_ft_forgetting.png")
    run_all(project / "one script")
    ours, theirs = left_in(project / "one script"), left_in(project / "stages")
    assert difference(ours["weights"], theirs["weights"]) is None
    assert ours["matrix"]["values"][-1] == theirs["matrix"]["values"][-1]


SLEEPER = """
    import signal
    import sys
    import time
    from pathlib import Path

    def told(*_):
        Path("told").write_text("")
        sys.exit(0)

    signal.signal(signal.SIGTERM, told)
    Path("began").write_text("")
    time.sleep(60)
"""


def waits_for(file):
    for _ in range(600):
        if file.exists():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_sigterm_comes_to_the_script_and_ends_the_sequence(recipe, tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SLEEPER))
    command = [sys.executable, "-m", "hf_ft_plugins", "stages", str(recipe())]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as stages:
        assert waits_for(tmp_path / "began")
        stages.send_signal(signal.SIGTERM)
        _, told = stages.communicate(timeout=60)
    assert (tmp_path / "told").exists()
    assert stages.returncode != 0
    assert "stage 1 of 2: a ended" in " ".join(told.split())


def test_matrix_of_a_folder_is_a_table_or_a_message(tmp_path):
    from typer.testing import CliRunner

    from hf_ft_plugins.cli.app import app
    from hf_ft_plugins.techniques.sequential.stage_records import FinishedStage, StageRecords

    records = StageRecords(tmp_path)
    for name, after_it in (("a", {"a": 1.0}), ("b", {"a": 2.0, "b": 0.5})):
        measured = {one: {"loss": value, "thing": value} for one, value in after_it.items()}
        records.begin(name)
        records.finish(FinishedStage(name=name, steps=1, options={}, model={}, after=measured))

    def shown(*words):
        return CliRunner().invoke(app, ["sequential", "matrix", *words])

    found = shown(str(tmp_path))
    assert found.exit_code == 0, found.output
    assert "loss, lower is better" in found.stdout
    assert "backward transfer -1" in found.stdout
    assert manifest.read_json(tmp_path / "hf_ft_forgetting.json")["backward_transfer"] == -1
    found = json.loads(shown(str(tmp_path), "--metric", "thing", "--greater", "--json").stdout)
    assert (found["metric"], found["backward_transfer"]) == ("thing", 1.0)
    for words, text in [
        ((str(tmp_path), "--metric", "f1"), "nothing was measured as f1. Of 2 stages there is loss, thing: --metric"),
        ((str(tmp_path), "--metric", "thing"), "does not tell whether it is better when greater"),
        ((str(tmp_path / "else"),), "nothing was measured. Name stages' folder"),
    ]:
        refused = shown(*words)
        assert isinstance(refused.exception, PluginError)
        assert text in str(refused.exception)


def test_stages_alone_is_the_shortcut(recipe, tmp_path):
    from typer.testing import CliRunner

    from hf_ft_plugins.cli.app import app

    for words in (["stages"], ["sequential", "stages"]):
        refused = CliRunner().invoke(app, [*words, str(recipe(script=None))])
        assert "stage a: it needs a script" in str(refused.exception)
