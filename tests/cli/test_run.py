"""`hf-ft run`: a script sees what plain Python shows it, and its trainers get the techniques."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
# An improvement that no value can be: every evaluation after the first cuts.
CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"
RUN = ["-m", "hf_ft_plugins", "run"]


def start(*command, cwd, **environment):
    """A Python process and what it left behind: exit status, stdout, stderr."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "400", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def at_once(**calls):
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = {name: pool.submit(call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


@pytest.fixture
def project(tmp_path):
    """A folder with the script and its neighbour, and the same two files as a package."""
    for folder in (tmp_path / "project", tmp_path / "package"):
        folder.mkdir()
        for name in ("observe.py", "sibling.py", "ends.py"):
            shutil.copy(SCRIPTS / name, folder)
    (tmp_path / "package" / "__init__.py").touch()
    return tmp_path


# ---- what the script sees ----

THEIR_OPTIONS = ["--with", "theirs", "-m", "--json", "--debug", "--", "--recipe=x", "--help"]


def test_script_sees_what_plain_python_shows_it(project):
    plain = start("project/observe.py", *THEIR_OPTIONS, cwd=project)
    hosted = start(*RUN, "--with", "adaptive-lr", "project/observe.py", *THEIR_OPTIONS, cwd=project)
    assert (hosted.returncode, hosted.stdout, hosted.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    report, farewell = hosted.stdout.splitlines()
    seen = json.loads(report)
    assert seen["argv"] == ["project/observe.py", *THEIR_OPTIONS]
    assert seen["path"] == str((project / "project").resolve())
    assert (seen["name"], seen["package"], seen["spec"]) == ("__main__", None, None)
    assert seen["main"]
    assert seen["pickled"]
    assert seen["spawned"]
    assert farewell == "goodbye"


def test_module_sees_what_python_m_shows_it(project):
    plain = start("-m", "package.observe", *THEIR_OPTIONS, cwd=project)
    hosted = start(*RUN, "--with", "adaptive-lr", "-m", "package.observe", *THEIR_OPTIONS, cwd=project)
    assert (hosted.returncode, hosted.stdout, hosted.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    seen = json.loads(hosted.stdout.splitlines()[0])
    assert seen["argv"] == [str((project / "package" / "observe.py").resolve()), *THEIR_OPTIONS]
    assert (seen["package"], seen["spec"]) == ("package", "package.observe")
    assert seen["path"] == str(project.resolve())


def test_nothing_heavy_is_imported_before_the_scripts_first_line(project):
    hosted = start(*RUN, "--with", "adaptive-lr", "project/observe.py", "--help", cwd=project)
    assert json.loads(hosted.stdout.splitlines()[0])["heavy"] == []


@pytest.mark.parametrize("how", ["status", "text", "error", "chained", "interrupt"])
def test_script_ends_as_under_plain_python(project, how):
    plain = start("project/ends.py", how, cwd=project)
    hosted = start(*RUN, "--with", "adaptive-lr", "project/ends.py", how, cwd=project)
    assert plain.returncode == {"status": 3, "interrupt": -signal.SIGINT}.get(how, 1)
    assert (hosted.returncode, hosted.stdout, hosted.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_traceback_of_a_module_shows_no_frame_of_ours(project):
    hosted = start(*RUN, "--with", "adaptive-lr", "-m", "package.ends", "error", cwd=project)
    plain = start("-m", "package.ends", "error", cwd=project)
    runpys_frames = [line for line in plain.stderr.splitlines() if "<frozen runpy>" not in line]
    assert hosted.returncode == plain.returncode == 1
    assert hosted.stderr.splitlines() == runpys_frames


def test_syntax_error_is_shown_as_by_plain_python(project):
    (project / "broken.py").write_text("x = (\n")
    plain = start("broken.py", cwd=project)
    hosted = start(*RUN, "--with", "adaptive-lr", "broken.py", cwd=project)
    assert (hosted.returncode, hosted.stderr) == (plain.returncode, plain.stderr)


# ---- what cannot be run ----


def refused(process):
    """The one paragraph with which `hf-ft` refused."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("hf-ft: ")
    assert "\n\n" not in process.stderr
    return process.stderr


@pytest.mark.parametrize("arguments", [["project/sibling.py"], ["project/ends.py", "well"]])
def test_script_that_builds_no_trainer_is_an_error(project, arguments):
    text = refused(start(*RUN, "--with", "adaptive-lr", *arguments, cwd=project))
    assert "built no Trainer" in text
    assert "adaptive-lr" in text
    assert start(*RUN, "--with", "adaptive-lr", *arguments, "--help", cwd=project).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such.py"], ["no_such.py", "-m"]),
        (["-m", "no_such"], ["no_such"]),
        (["-m", "no_such.part"], ["no_such"]),
        (["-m", "package"], ["package"]),
    ],
)
def test_missing_script_or_module_is_refused_in_one_paragraph(project, arguments, said):
    text = refused(start(*RUN, "--with", "adaptive-lr", *arguments, cwd=project))
    assert all(word in text for word in said), text


BAD_TECHNIQUES = {
    "unknown technique": (["--with", "adaptive-ls"], ["adaptive-ls", "'adaptive-lr'"]),
    "unknown option": (["--with", "adaptive-lr:patiense=3"], ["adaptive-lr", "patiense", "'patience'"]),
    "wrong type": (["--with", "adaptive-lr:patience=much"], ["adaptive-lr", "patience='much'", "a whole number"]),
    "no such choice": (["--with", "adaptive-lr:controller=x"], ["adaptive-lr", "controller='x'", "plateau"]),
    "out of range": (["--with", "adaptive-lr:factor=2"], ["adaptive-lr", "factor=2", "between 0 and 1"]),
    "no value": (["--with", "adaptive-lr:patience"], ["adaptive-lr", "patience", "option=value"]),
    "same twice": (
        ["--with", "adaptive-lr:controller=plateau,patience=1", "--with", "adaptive-lr"],
        ["adaptive-lr", "named twice", "patience=1", "Keep one"],
    ),
    "none at all": ([], ["--with"]),
    "missing recipe": (["--recipe", "none.yaml"], ["none.yaml", "'techniques'"]),
    "recipe is not YAML": (["--recipe", "broken.yaml"], ["broken.yaml", "YAML"]),
    "recipe is a list": (["--recipe", "list.yaml"], ["list.yaml", "'techniques'"]),
    "unknown key in recipe": (["--recipe", "key.yaml"], ["key.yaml", "'techniques'"]),
    "unknown option in recipe": (["--recipe", "option.yaml"], ["adaptive-lr", "patiense", "'patience'"]),
    "a recipe's item is no technique": (["--recipe", "item.yaml"], ["3", "name"]),
}
RECIPES = {
    "broken.yaml": "techniques: [",
    "list.yaml": "- adaptive-lr",
    "key.yaml": "techniques: [adaptive-lr]\nseed: 3",
    "option.yaml": "techniques:\n- adaptive-lr: {patiense: 3}",
    "item.yaml": "techniques: [3]",
}


@pytest.mark.parametrize("case", BAD_TECHNIQUES)
def test_bad_technique_is_refused_before_anything_is_run(tmp_path, case):
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "script.py").write_text("open('was_run', 'w').close()")
    arguments, said = BAD_TECHNIQUES[case]
    text = refused(start(*RUN, *arguments, "script.py", cwd=tmp_path))
    assert all(word in text for word in said), text
    assert not (tmp_path / "was_run").exists()


def test_debug_shows_the_traceback_too(tmp_path):
    process = start(*RUN, "--debug", "--with", "adaptive-lr:factor=2", "script.py", cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" in process.stderr
    *_, said, hint = process.stderr.splitlines()
    assert said.startswith("hf-ft: adaptive-lr: option factor=2")
    assert hint == "(hf-ft explain option-value)"


# ---- trainers ----

IMPORTS = ("by_attribute", "from_the_package", "from_the_module", "for_sequences")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What the trainers did that one script built in several ways: under techniques, and narrowed to one class."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("all", "only", "none"):
        (folder / name).mkdir()
    script = SCRIPTS / "build_trainers.py"
    ended = at_once(
        all=lambda: start(*RUN, "--with", CUTTING, script, "all", cwd=folder),
        only=lambda: start(*RUN, "--with", CUTTING, "--only", "Their", script, "only", cwd=folder),
    )
    seen = {
        name: {file.stem: json.loads(file.read_text()) for file in (folder / name).glob("*.json")} for name in ended
    }
    return ended, seen


@pytest.mark.parametrize("way", IMPORTS)
def test_trainer_is_hosted_however_the_script_imports_it(built, way):
    ended, seen = built
    assert ended["all"].returncode == 0, ended["all"].stderr
    assert seen["all"][way]["cuts"] == 2


def test_class_of_the_scripts_own_is_hosted_and_keeps_what_it_overrides_without_super(built):
    _, seen = built
    assert seen["all"]["of_their_own"] == {"class": "Their", "cuts": 2, "theirs": True, "verbosity": 40}


def test_variables_that_the_script_sets_before_its_imports_are_seen_by_them(built):
    _, seen = built
    assert {report["verbosity"] for report in seen["all"].values()} == {40}


def test_only_narrows_to_trainers_of_one_class(built):
    ended, seen = built
    assert ended["only"].returncode == 0, ended["only"].stderr
    assert seen["only"]["of_their_own"]["cuts"] == 2
    assert {seen["only"][way]["cuts"] for way in IMPORTS} == {0}


def test_script_whose_trainers_are_all_of_another_class_is_an_error(tmp_path):
    script = "from transformers import Trainer\nclass Ours(Trainer):\n    def __init__(self): pass\nOurs()\nOurs()"
    (tmp_path / "script.py").write_text(script)
    done = start(*RUN, "--with", "adaptive-lr", "--only", "Their", "script.py", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "built 2 trainers, none of class Their" in done.stderr


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_plugin(folder, name, code):
    """A distribution with one technique, as pip would have left it in `folder`."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_ft_plugins]\n{name} = {module}:Plugin\n")


EXPLODING = """
from dataclasses import dataclass
from hf_ft_plugins import Technique, option

@dataclass(frozen=True, kw_only=True)
class Plugin(Technique):
    name = "exploding"
    summary = "raises an error"
    strength: int = option(1, help="how much")

    def ft_trainer(self, trainer):
        raise ZeroDivisionError("it exploded")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same training in every way in: each one's digest and log, and the processes that ran the command."""
    folder = tmp_path_factory.mktemp("trained")
    write_plugin(folder, "exploding", EXPLODING)
    script = SCRIPTS / "train_tiny.py"

    def here():
        import torch
        from transformers import Trainer

        from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, with_plugins

        options = {"controller": "plateau", "patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
        train, threads = load("train_tiny").train, torch.get_num_threads()
        try:
            return {
                "stock": train(["--output_dir", str(folder / "stock")]),
                "host": train(["--output_dir", str(folder / "host")], with_plugins(Trainer)),
                "part": train(
                    ["--output_dir", str(folder / "part")],
                    callbacks=[AdaptiveLRCallback(**options)],
                ),
                "line": train(
                    ["--output_dir", str(folder / "line")],
                    with_plugins(Trainer, AdaptiveLR(**options)),
                ),
            }
        finally:
            torch.set_num_threads(threads)

    done = at_once(
        command=lambda: start(*RUN, "--with", CUTTING, script, "--output_dir", "command", cwd=folder),
        exploding=lambda: start(
            *RUN,
            "--with",
            "exploding:strength=3",
            script,
            "--output_dir",
            "exploding",
            cwd=folder,
            PYTHONPATH=str(folder),
        ),
        here=here,
    )
    assert done["command"].returncode == 0, done["command"].stderr
    results = {**done["here"], "command": json.loads((folder / "command" / "result-0.json").read_text())}
    return folder, results, done["exploding"]


def decisions(result):
    return [entry for entry in result["log"] if "adaptive_lr/action" in entry]


def test_all_three_ways_in_train_the_same_weights_by_the_same_decisions(trained):
    _, results, _ = trained
    ways = [results[way] for way in ("part", "line", "command")]
    assert len({result["weights"] for result in ways}) == 1
    assert decisions(ways[0]) == decisions(ways[1]) == decisions(ways[2])
    assert [entry["adaptive_lr/action"] for entry in decisions(ways[0])] == ["cut", "cut"]
    assert results["stock"]["weights"] != ways[0]["weights"], "the technique does nothing in this run"


def test_host_without_techniques_trains_the_stock_weights(trained):
    _, results, _ = trained
    assert results["host"]["weights"] == results["stock"]["weights"]
    assert results["line"]["weights"] != results["stock"]["weights"], "this run cannot tell the two apart"


def test_error_in_a_hook_names_technique_distribution_version_hook_and_options(trained):
    folder, _, process = trained
    assert process.returncode == 1
    *_, error, note = process.stderr.strip().splitlines()
    assert error == "ZeroDivisionError: it exploded"
    assert note == "in hook ft_trainer of technique exploding (exploding 1.0), options {'strength': 3}"
    assert "train_tiny.py" in process.stderr
    assert not list((folder / "exploding").iterdir()), "something was trained"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_trainer_in_a_process_of_multiprocessing_is_hosted(tmp_path, method):
    process = start(*RUN, "--with", CUTTING, SCRIPTS / "train_in_children.py", method, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "cuts 1" in process.stdout


@pytest.mark.slow
def test_resume_goes_on_from_the_newest_checkpoint_of_a_script_that_never_does(tmp_path):
    script = [*RUN, "--with", CUTTING, "--resume", SCRIPTS / "train_tiny.py", "--output_dir", tmp_path / "run"]
    script += ["--save_strategy", "steps", "--save_steps", "4"]
    first = start(*script, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    result = tmp_path / "run" / "result-0.json"
    whole = json.loads(result.read_text())
    result.unlink()
    for step in (12, 8):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    again = start(*script, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "checkpoint-4" in again.stderr
    assert json.loads(result.read_text())["weights"] == whole["weights"]
