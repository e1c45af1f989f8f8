"""Killed (SIGKILL) at any moment, then `resume_from_checkpoint=True`: the run ends bit-equal. Stock runs do not."""

import json

import pytest

from tests.host.kill_runs import kill_and_resume

MOMENTS = 12


@pytest.fixture
def killed_and_resumed(processes, tmp_path):
    def run(kind, where):
        # In a process that has imported nothing but what the runs need, since each run is a fork of it.
        driver = processes.Process(target=write_ends, args=(tmp_path, kind, where))
        driver.start()
        driver.join()
        assert driver.exitcode == 0
        ends = json.loads((tmp_path / "ends.json").read_text())
        assert [end["killed"] for end in ends] == [True] * MOMENTS
        return ends

    return run


def write_ends(folder, kind, where):
    (folder / "ends.json").write_text(json.dumps(kill_and_resume(folder, kind, where, MOMENTS)))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "between"])
def test_killed_inside_or_between_saves_every_run_ends_equal(where, killed_and_resumed):
    ends = killed_and_resumed("host", where)
    assert [end for end in ends if not end["equal"]] == []


@pytest.mark.slow
def test_control_stock_runs_killed_inside_a_save_mostly_crash_or_differ(killed_and_resumed):
    ends = killed_and_resumed("stock", "inside")
    assert sum(not end["equal"] for end in ends) > MOMENTS // 2
    assert any(end["error"] for end in ends)
