"""`hf-ft compare` as a command: two runs of one script, seeded alike, each in files of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_ft_plugins.cli.compare.running import comparison_folder
from hf_ft_plugins.errors import PluginError

from .test_cli import hf_ft

SCRIPTS = Path(__file__).parents[1] / "scripts"
CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    script = SCRIPTS / "train_tiny.py"
    options = ("--output_dir", "runs", "--save_strategy", "steps", "--save_steps", "12")
    # 16 rows to evaluate on.
    options += ("--per_device_eval_batch_size", "5", "--label_smoothing_factor", "0.1")
    process = hf_ft("compare", "--output", "seen", "--with", CUTTING, script, *options, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, json.loads((folder / "seen" / "compare.json").read_text())["rows"], process.stdout


def test_compare_shows_both_runs_side_by_side(compared):
    folder, rows, _ = compared
    by_name = {row["name"]: row for row in rows}
    assert (by_name["optimizer steps"]["without"], by_name["optimizer steps"]["with"]) == (12, 12)
    assert {"eval_loss", "best eval_loss", "wall time, s", "CPU time, s", "peak memory, MB"} <= set(by_name)
    for which in ("without", "with"):
        result = json.loads((folder / "runs" / which / "result-0.json").read_text())
        losses = [entry["eval_loss"] for entry in result["log"] if "eval_loss" in entry]
        assert by_name["eval_loss"][which] == losses[-1]
        assert by_name["best eval_loss"][which] == min(losses)
    row = by_name["eval_loss"]
    assert row["without"] != row["with"], "the technique does nothing in this run"
    assert (row["better"], row["greater_is_better"]) == (None, False)
    assert "--seeds 3" in row["why"]


def test_a_run_records_how_its_evaluation_loss_is_computed(compared):
    folder, _, _ = compared
    for which in ("without", "with"):
        (training,) = json.loads((folder / "seen" / f"{which}.json").read_text())["trainings"]
        true = {"smoothed", "in_float32"}
        false = {"grouped_by_length", "generates", "is_encoder_decoder", "fills_batches"}
        assert training["setting"] == dict.fromkeys(true, True) | dict.fromkeys(false, False)


def test_compare_keeps_both_runs_files_apart(compared):
    folder, _, _ = compared
    logs = {}
    for which in ("without", "with"):
        assert (folder / "runs" / which / "checkpoint-12").is_dir()
        result = json.loads((folder / "runs" / which / "result-0.json").read_text())
        logs[which] = (folder / "seen" / f"{which}.log").read_text()
        assert result["weights"] in logs[which]
        cuts = [entry for entry in result["log"] if entry.get("adaptive_lr/action") == "cut"]
        assert len(cuts) == {"without": 0, "with": 2}[which]
    assert logs["without"] != logs["with"]
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir()) == ["with", "without"]


def test_compare_draws_a_picture(compared):
    folder, _, _ = compared
    picture = (folder / "seen" / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000


def test_compare_prints_a_table_a_verdict_and_where_the_files_are(compared):
    _, rows, text = compared
    assert all(row["name"] in text for row in rows)
    assert CUTTING.partition(":")[0] in text
    assert "12 → 12 steps" in text
    assert all(name in text for name in ("seen/compare.png", "seen/compare.json", "seen/*.log"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('before'); raise SystemExit('no data here')", ["status 1", "before", "no data here"]),
        ("print('nothing to do')", ["trained nothing", "nothing to do"]),
    ],
)
def test_compare_of_a_script_that_fails_ends_with_its_last_lines(tmp_path, script, said):
    (tmp_path / "script.py").write_text(script)
    process = hf_ft("compare", "--output", "seen", "--with", "adaptive-lr", "script.py", cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert all(word in process.stderr for word in ["without the techniques", *said]), process.stderr
    assert "seen/without.log" in process.stderr


# ---- seeds ----


def test_a_script_that_seeds_nothing_is_seeded(tmp_path):
    script = SCRIPTS / "train_unseeded.py"
    process = hf_ft(
        "compare", "--with", "adaptive-lr:controller=plateau,patience=99", "--output", "seen", script, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    told = json.loads((tmp_path / "seen" / "compare.json").read_text())
    assert told["identical"]
    assert told["notes"] == []
    assert process.stdout.count("no difference") == 1
    records = [json.loads((tmp_path / "seen" / f"{which}.json").read_text()) for which in ("without", "with")]
    assert records[0]["trainings"][0]["initial"] == records[1]["trainings"][0]["initial"] is not None


def test_weights_that_cannot_be_seeded_are_told_of(tmp_path):
    script = (SCRIPTS / "train_unseeded.py").read_text()
    changed = script.replace("# The weights", "torch.manual_seed(int.from_bytes(os.urandom(4)))  # The weights")
    assert changed != script
    (tmp_path / "script.py").write_text(changed)
    arguments = ("--seeds", "2", "--with", "adaptive-lr:controller=plateau,patience=99", "--json", "script.py")
    process = hf_ft("compare", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert "did not begin with the same weights" in told["notes"][0]
    assert not told["identical"]
    row = next(row for row in told["rows"] if row["name"] == "eval_loss")
    assert len(row["values"][0]) == len(row["values"][1]) == 2
    assert row["interval"][0] < row["with"] - row["without"] < row["interval"][1]


def test_what_a_process_of_the_scripts_own_trains_is_compared(tmp_path):
    script = SCRIPTS / "train_in_children.py"
    process = hf_ft(
        "compare", "--json", "--with", "adaptive-lr:controller=plateau,patience=99", script, "spawn", cwd=tmp_path
    )
    # The script looks for its child's result where it would be without a comparison.
    assert "spawn/result-0.json" in process.stdout
    record = json.loads(next((tmp_path / "hf-ft-compare").glob("without.*.json")).read_text())
    assert record["trainings"][0]["step"] == 6


# ---- the folder of a comparison ----


def test_a_folder_with_files_of_others_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("techniques: []")
    with pytest.raises(PluginError, match="no comparison wrote"), comparison_folder(tmp_path):
        pass
    assert (tmp_path / "recipe.yaml").read_text() == "techniques: []"


def test_a_folder_is_emptied_of_the_comparison_before(tmp_path):
    with comparison_folder(tmp_path / "seen") as folder:
        for name in ("compare.png", "recipe.yaml", "with-seed1.json", "without.log", "without.123.json", "mine.txt"):
            (folder / name).touch()
    with comparison_folder(folder):
        assert sorted(file.name for file in folder.iterdir()) == [".hf-ft-compare", "mine.txt"]
        with pytest.raises(PluginError, match="another comparison runs"), comparison_folder(folder):
            pass


@pytest.mark.parametrize("output", ["a_file", "a_file/below"])
def test_an_output_that_cannot_be_written_is_refused_in_words(tmp_path, output):
    (tmp_path / "a_file").touch()
    with pytest.raises(PluginError, match=r"cannot be written .* --output"), comparison_folder(tmp_path / output):
        pass


RESUMING = """
import sys
from pathlib import Path
from transformers import TrainingArguments
args = TrainingArguments(output_dir="runs", report_to="none", use_cpu=True)
print("found", sorted(path.name for path in Path(args.output_dir).glob("*")))
sys.exit(3)
"""


def test_a_second_comparison_finds_nothing_of_the_first(tmp_path):
    (tmp_path / "script.py").write_text(RESUMING)
    arguments = ("compare", "--with", "adaptive-lr", "script.py")
    (tmp_path / "runs" / "without" / "checkpoint-3").mkdir(parents=True)
    refused = hf_ft(*arguments, cwd=tmp_path)
    assert "no comparison wrote" in refused.stderr
    (tmp_path / "runs" / "without" / "checkpoint-3").rmdir()
    for _ in range(2):
        assert "found []" in hf_ft(*arguments, cwd=tmp_path).stderr
        (tmp_path / "runs" / "without").mkdir(exist_ok=True)
        (tmp_path / "runs" / "without" / "checkpoint-3").mkdir()


# ---- its end ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_comparison_that_is_told_to_end_leaves_nothing_running(tmp_path, number):
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "open('ids.tmp', 'w').write(f'{os.getpid()} {other.pid}')\n"
        "os.rename('ids.tmp', 'ids')\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_ft_plugins", "compare", "--with", "adaptive-lr", "script.py"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    wait_for((tmp_path / "ids").is_file)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    for identity in (tmp_path / "ids").read_text().split():
        wait_for(lambda identity=identity: not is_running(int(identity)))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(identity):
    try:
        os.kill(identity, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for is no process that runs.
    return Path(f"/proc/{identity}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
