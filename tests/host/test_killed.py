"""Killed (SIGKILL) at any moment, then `resume_from_checkpoint=True`: the run ends bit-equal. Stock runs do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_runs.py"
MOMENTS = 12


def killed_and_resumed(folder, kind, where):
    command = [sys.executable, str(SCRIPT), str(folder), kind, where, str(MOMENTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert [end["killed"] for end in ends] == [True] * MOMENTS
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "between"])
def test_killed_inside_or_between_saves_every_run_ends_equal(where, tmp_path):
    ends = killed_and_resumed(tmp_path, "host", where)
    assert [end for end in ends if not end["equal"]] == []


@pytest.mark.slow
def test_control_stock_runs_killed_inside_a_save_mostly_crash_or_differ(tmp_path):
    ends = killed_and_resumed(tmp_path, "stock", "inside")
    assert sum(not end["equal"] for end in ends) > MOMENTS // 2
    assert any(end["error"] for end in ends)
