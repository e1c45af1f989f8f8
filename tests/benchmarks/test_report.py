"""The frame of the benchmarks: gates, rows, exit status, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import Gate, LeftOut, Result, compared, noise_floor, row
from benchmarks.results import FIELDS, head, read_results, write_results


def one_row(gate: Gate | None = None, **changes: object) -> Result:
    values = {"ours": 1.0, "baseline": 1.0, "ratio": 1.0, "noise": None, "conditions": {}} | changes
    return row("made_up", "seconds", values.pop("ours"), values.pop("baseline"), gate=gate, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gate", "ratio", "noise", "met"),
    [
        (Gate("ratio", "<=", 1.01), 1.00, 0.005, True),
        # ratio - noise <= 1.01 would call these met.
        (Gate("ratio", "<=", 1.01), 1.005, 0.016, False),
        (Gate("ratio", "<=", 1.01), 1.02, 0.016, False),
        (Gate("ratio", ">=", 2.0), 2.3, 0.1, True),
        # A tenth of 2.2 is more than 0.2.
        (Gate("ratio", ">=", 2.0), 2.2, 0.1, False),
        (Gate("ratio", "<=", 0.15), 0.11, 0.05, True),
        (Gate("ratio", ">=", 2.0), 2.05, 0.1, False),
        (Gate("ratio", ">=", 2.0), 1.95, 0.1, False),
        (Gate("ratio", ">", 1.0), 1.0, 0.0, False),
        (Gate("ratio", "<", 1.0), 1.0, 0.0, False),
        (Gate("ratio", "=", 1.0), 1.0, 0.0, True),
        (Gate("ratio", "=", 1.0), 1.0, 0.01, False),
        (Gate("ratio", "<=", 1.0), float("nan"), 0.0, False),
        (Gate("ratio", "<=", 1.0), 0.5, float("nan"), False),
    ],
)
def test_noise_never_helps_a_gate(gate: Gate, ratio: float, noise: float, met: bool) -> None:
    assert one_row(gate, ratio=ratio, noise=noise).met is met


@pytest.mark.parametrize("relation", ["<=", "<", ">", ">="])
@pytest.mark.parametrize("ratio", [0.5, 0.99, 1.0, 1.01, 2.0])
def test_a_gate_that_is_met_with_noise_is_met_without(relation: str, ratio: float) -> None:
    gate = Gate("ratio", relation, 1.0)  # type: ignore[arg-type]
    for noise in (0.001, 0.02, 0.6):
        assert gate.is_met(ratio) or not gate.is_met(ratio, noise)


def test_a_row_says_that_only_the_noise_keeps_its_gate_from_being_met() -> None:
    gate = Gate("ratio", "<=", 1.01)
    assert one_row(gate, ratio=1.005, noise=0.016).conditions == {"met_without_noise": True}
    assert one_row(gate, ratio=1.0, noise=0.001).conditions == {}
    assert one_row(gate, ratio=1.5, noise=0.016).conditions == {}


def test_noise_is_a_share_of_the_baseline_where_the_gate_is_about_a_difference() -> None:
    gate = Gate("difference", ">=", 3.0)
    assert one_row(gate, ours=85.0, baseline=80.0, ratio=85 / 80, noise=0.02).met is True  # 5 - 1.6
    assert one_row(gate, ours=85.0, baseline=80.0, ratio=85 / 80, noise=0.03).met is False  # 5 - 2.4


def test_noise_is_in_the_unit_of_ours_where_there_is_no_ratio() -> None:
    gate = Gate("ours", "<=", 60)
    assert one_row(gate, ours=55.0, baseline=20.0, ratio=None, noise=4.0).met is True
    assert one_row(gate, ours=55.0, baseline=20.0, ratio=None, noise=6.0).met is False


def test_every_promise_of_a_gate_must_be_kept() -> None:
    gate = Gate("ours", "<=", 1e-12)
    kept = one_row(gate, ours=0.0, also={"the control is above 0.001": True})
    broken = one_row(gate, ours=0.0, also={"the control is above 0.001": False})
    assert (kept.met, broken.met) == (True, False)
    assert kept.gate == "ours <= 1e-12; the control is above 0.001"
    assert one_row(also={"none is wrong": False}, ratio=None).met is False
    assert one_row().met is None


def test_what_was_measured_in_turns_is_compared_round_by_round() -> None:
    # The third round was slow for all alike.
    values = {"stock": [10.0, 12.0, 40.0], "again": [10.0, 12.0, 40.0], "ours": [5.0, 6.0, 20.0]}
    gates = {("ours", "stock"): Gate("ratio", "<=", 0.5)}
    first, second = compared("made_up", "ms", values, gates, ("again", "stock"), {"device": "cpu"})
    assert (first.metric, first.ratio, first.gate, first.met) == ("ms: again against stock", 1.0, None, None)
    assert (second.ratio, second.noise, second.met) == (0.5, 0.0, True)
    assert second.conditions == {"device": "cpu", "rounds": 3, "quartiles": [0.5, 0.5]}


def test_the_noise_floor_grows_with_the_spread_and_ignores_its_sign() -> None:
    assert noise_floor([1.0] * 9) == 0.0
    wide, narrow = noise_floor([0.9, 1.0, 1.1] * 5), noise_floor([0.99, 1.0, 1.01] * 5)
    assert wide == pytest.approx(10 * narrow)
    assert noise_floor([1.2] * 5) == pytest.approx(noise_floor([0.8] * 5))


@pytest.mark.parametrize(
    ("gate", "status"), [(Gate("ratio", "<=", 1), 0), (Gate("ratio", "<", 1), 1), (None, 0), ("nothing", 1)]
)
def test_a_missed_gate_is_the_exit_status(gate: object, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [] if gate == "nothing" else [one_row(), one_row(gate)]  # type: ignore[arg-type]
    assert report.run("made_up", "It.", lambda asked: rows, argv=["--json"]) == status
    printed = capsys.readouterr()
    assert [tuple(json.loads(line)) for line in printed.out.splitlines()] == [FIELDS] * len(rows)
    assert ("missed" in printed.err) == (gate == Gate("ratio", "<", 1))


def test_a_whole_run_is_written_with_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        report,
        "write_results",
        lambda *args: write_results(*args, folder=tmp_path),  # never into docs/results
    )
    rows = [one_row(conditions={"curve": (1.0, float("inf"))}), one_row(ours=float("nan"), ratio=None)]
    assert report.run("made_up", "It.", lambda asked: rows, argv=["--json", "--write"]) == 0
    found = read_results(tmp_path / "made_up.json")
    assert [one["ours"] for one in found.rows] == [1.0, "nan"]
    assert found.rows[0]["conditions"]["curve"] == [1.0, "inf"]
    assert found.head["settings"] == ["--json", "--write"]
    assert set(found.head) == {"commit", "date", "settings", "seconds", "machine", "versions"}
    assert {"cpu", "cores", "memory_gib"} <= set(found.head["machine"])
    assert {"python", "torch", "transformers"} <= set(found.head["versions"])


def test_a_part_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_results", lambda *args: pytest.fail("written"))
    for part in (["--quick"], ["--only", "peft"]):
        with pytest.raises(SystemExit):
            report.run("made_up", "It.", lambda asked: [one_row()], {"--only": {}}, argv=["--write", *part])
    left_out = [one_row(), LeftOut("no data")]
    assert report.run("made_up", "It.", lambda asked: left_out, argv=["--write", "--json"]) == 1
    assert report.run("made_up", "It.", lambda asked: left_out, argv=["--json"]) == 0


def test_a_file_of_other_fields_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "made_up.json"
    write_results("made_up", "cpu", head([], 1.0), ['{"benchmark": "made_up", "met": true}'], folder=tmp_path)
    with pytest.raises(ValueError, match="a row has the fields benchmark, met, not"):
        read_results(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="it must hold `head` and `rows`"):
        read_results(file)
    assert write_results("made_up", "cuda", {}, [], folder=tmp_path).name == "made_up-cuda.json"
