"""`hf-ft behavioral inspect`."""

import json
import subprocess
import sys

from tests.feedback.written_logs import conversation


def test_inspect_command(log, tmp_path):
    path = log(conversation("a", "b"), [{"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}])
    run = [sys.executable, "-m", "hf_ft_plugins", "behavioral", "inspect"]
    done = subprocess.run([*run, str(path), "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["pairs"]["rows"] == 1
    names = {"pairs.jsonl", "labels.jsonl", "behavior_report.json", "behavior_report.html"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert "<h2>One pair</h2>" in (tmp_path / "out" / "behavior_report.html").read_text()
    done = subprocess.run([*run, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hf-ft: behavioral: there is no log")
    assert "Traceback" not in done.stderr


def test_the_list_of_techniques_imports_no_numpy():
    code = "import sys, hf_ft_plugins.cli.app; print([m for m in ('numpy', 'torch', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
