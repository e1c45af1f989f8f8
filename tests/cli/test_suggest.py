"""`hf-ft suggest`: a script is run until its first training step, leaves no trace, and what would help is printed."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

from .test_cli import add_plugin, hf_ft

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_to_look_at.py"
RARE = ["--counts", "90", "6"]
TASK = "task:imbalance=logit_adjust,frequencies=equal"


def paragraphs(process):
    return " ".join(process.stdout.split())


def untouched(folder):
    """Whether the script has left nothing in the folder that it was run in."""
    return [path.name for path in folder.iterdir() if path.name != "__pycache__"] == []


def test_what_would_help_is_shown_with_the_reason_and_the_command_to_paste(tmp_path):
    process = hf_ft("suggest", SCRIPT, *RARE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "the script prints" in process.stdout
    text = paragraphs(process)
    assert "90 training rows are 'c0' and 6 are 'c1': 15 to 1" in text
    assert f"hf-ft run --with {TASK} {SCRIPT} --counts 90 6" in process.stdout.splitlines()[-4].strip()
    assert f"hf-ft compare --seeds 3 --with {TASK} {SCRIPT} --counts 90 6" == process.stdout.splitlines()[-1].strip()
    assert untouched(tmp_path)


def test_nothing_to_find_is_one_sentence_and_what_was_looked_at(tmp_path):
    process = hf_ft("suggest", SCRIPT, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    text = paragraphs(process)
    assert "Nothing to suggest" in text
    assert "96 examples of 2 classes, 12 steps, 1.0 passes, 2 evaluations" in text
    assert "hf-ft run" not in text
    assert untouched(tmp_path)


def test_json_is_alone_on_stdout_with_facts_reasons_and_the_command(tmp_path):
    process = hf_ft("suggest", "--json", SCRIPT, *RARE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert "the script prints" in process.stderr
    assert told["facts"]["labels"]["counts"] == {"c0": 90, "c1": 6}
    (found,) = told["suggestions"]
    assert (found["technique"], found["with"]) == ("task", TASK)
    assert found["because"] == [
        {"fact": "labels.imbalance", "value": 15.0, "text": found["because"][0]["text"]},
    ]
    assert found["not_when"]
    assert told["command"] == ["hf-ft", "run", "--with", TASK, str(SCRIPT), *RARE]


@pytest.mark.slow
def test_the_command_that_is_printed_runs(tmp_path):
    longer = ["--max_steps", "80", "--eval_steps", "10"]
    told = json.loads(hf_ft("suggest", "--json", SCRIPT, *RARE, *longer, cwd=tmp_path).stdout)
    program, *arguments = told["command"]
    assert (program, arguments.count("--with")) == ("hf-ft", 2)
    process = hf_ft(*arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "trained").exists()


@pytest.mark.parametrize("how", ["saving whatever happens", "catching", "catching all"])
def test_a_script_that_holds_on_is_stopped_and_leaves_nothing(tmp_path, how):
    process = hf_ft("suggest", "--json", SCRIPT, "--how", how, *RARE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["suggestions"][0]["with"] == TASK
    left = {path.name for path in tmp_path.iterdir()}
    # Whoever catches everything goes on, with a trainer that has not trained, and outside of what can be kept away.
    assert left == ({"trained"} if how == "catching all" else set())


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    kept = tmp_path / "out" / "checkpoint-2"
    kept.mkdir(parents=True)
    (kept / "model.safetensors").write_bytes(b"kept")
    process = hf_ft("suggest", SCRIPT, "--output_dir", "out", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        *("out", "out/checkpoint-2", "out/checkpoint-2/model.safetensors"),
    ]


def refused(process):
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    return " ".join(process.stderr.split())


def test_a_script_that_trains_nothing_is_an_error_that_says_what_it_did(tmp_path):
    assert "built no Trainer" in refused(hf_ft("suggest", SCRIPT, "--how", "without a trainer", cwd=tmp_path))
    text = refused(hf_ft("suggest", SCRIPT, "--how", "evaluating", cwd=tmp_path))
    assert "built 1 trainer and called train() on none" in text
    assert "--do_train" in text
    assert "no script 'none.py'" in refused(hf_ft("suggest", "none.py", cwd=tmp_path))
    assert "--budget" in refused(hf_ft("suggest", "--budget", "0", SCRIPT, cwd=tmp_path))


def test_nothing_heavy_is_imported_before_the_scripts_first_line(tmp_path):
    process = hf_ft("suggest", SCRIPT.with_name("observe.py"), "--help", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[0])["heavy"] == []


def test_a_script_that_fails_ends_as_it_does_alone(tmp_path):
    process = hf_ft("suggest", SCRIPT, "--how", "failing", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == "RuntimeError: no data here"


def test_a_script_that_trains_in_another_process_is_stopped_there(tmp_path):
    process = hf_ft("suggest", SCRIPT, "--how", "in a child", cwd=tmp_path)
    assert process.returncode == 1
    assert "the script trains in a process that it starts" in " ".join(process.stderr.split())
    assert untouched(tmp_path)


def test_a_module_is_named_as_one_in_the_command(tmp_path):
    (tmp_path / "looked_at.py").write_text(SCRIPT.read_text())
    told = json.loads(hf_ft("suggest", "--json", "-m", "looked_at", *RARE, cwd=tmp_path).stdout)
    assert told["command"] == ["hf-ft", "run", "--with", TASK, "-m", "looked_at", *RARE]


def test_what_the_script_has_already_is_not_suggested_again(tmp_path):
    told = json.loads(hf_ft("suggest", "--json", SCRIPT, "--how", "with a technique", *RARE, cwd=tmp_path).stdout)
    assert told["facts"]["techniques"] == ["task"]
    assert told["suggestions"] == told["command"] == []


@pytest.mark.slow
def test_the_output_on_the_page_is_what_is_printed():
    process = hf_ft("suggest", "examples/sentiment.py", cwd=ROOT, COLUMNS="112", FT_DATA="none")
    assert process.returncode == 0, process.stderr
    page = (ROOT / "docs" / "guide" / "suggest.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # The machine's memory is another elsewhere.
    plain = [re.sub(r"Memory of a step.*?memory\)\.", "", " ".join(text.split())) for text in (process.stdout, shown)]
    assert plain[0] == plain[1]
    assert "24 to 1" in plain[0]


THIRD = """
from dataclasses import dataclass
from hf_ft_plugins import Technique
from hf_ft_plugins.suggest import Because, Suggestion

@dataclass(frozen=True, kw_only=True)
class Plugin(Technique):
    name = "third"
    summary = "a third party's"

    @classmethod
    def suggestion(cls, facts):
        examples = facts.data.examples {fault}
        reason = Because("data.examples", examples, f"There are [{{examples}}] rows.")
        return Suggestion(spec="third", does="Something.", because=(reason,), not_when="Never.")
"""


def test_a_third_partys_technique_is_asked_and_its_error_says_whose_it_is(tmp_path):
    add_plugin(tmp_path, "third-dist", "third", THIRD.format(fault=""))
    assert "There are [96] rows." in hf_ft("suggest", SCRIPT, cwd=tmp_path).stdout
    assert "third" not in hf_ft("suggest", "--only-builtin", SCRIPT, cwd=tmp_path).stdout
    (tmp_path / "third_dist.py").write_text(THIRD.format(fault="/ 0"))
    process = hf_ft("suggest", "--json", SCRIPT, cwd=tmp_path)
    assert process.returncode == 2
    error = json.loads(process.stdout)["error"]
    assert "third: its suggestion failed (ZeroDivisionError: division by zero)" in error
    assert "in the suggestion of technique third (third-dist 1.0)" in error
