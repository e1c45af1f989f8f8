"""Killed (SIGKILL) at any moment of three stages, then run again: everything is bit-equal to the run never stopped."""

import json

import pytest

from benchmarks.sequential.killed import killed, left_in

MOMENTS = 6


def write_rows(folder):
    from tests.techniques.sequential.stage_runs import run_all

    rows = killed(MOMENTS, seed=1, run=lambda stages: run_all(stages, "replay=0.25,wise=0.8,l2sp=0.01"))
    (folder / "rows.json").write_text(json.dumps(rows))


@pytest.mark.slow
def test_killed_anywhere_in_three_stages_and_run_again_all_is_equal(processes, tmp_path):
    # In a process that has imported nothing but what the runs need, since each run is a fork of it.
    driver = processes.Process(target=write_rows, args=(tmp_path,))
    driver.start()
    driver.join()
    assert driver.exitcode == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row for row in rows if not (row["killed"] and row["equal"])] == []
    assert sum(row["keeping"] for row in rows) >= MOMENTS // 2
    assert len({len(row["finished"]) for row in rows}) > 1


def test_control_what_is_compared_tells_one_number_from_another(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    found = []
    for loss in (0.5, 0.25):
        (tmp_path / "hf_ft_stages.json").write_text(json.dumps({"loss": loss, "folder": str(tmp_path)}))
        (tmp_path / "a" / "model" / "model.safetensors").write_text("weights")
        found.append(left_in(tmp_path))
    assert found[0]["a/model/model.safetensors"] == found[1]["a/model/model.safetensors"]
    assert found[0]["hf_ft_stages.json"] != found[1]["hf_ft_stages.json"]
