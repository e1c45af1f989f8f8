"""Rows of the benchmarks from made-up measurements: the strongest baseline, an A/A row, gates that noise worsens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import behavioral_feedback, behavioral_speed, layer_removal, multitask, task
from benchmarks import peft as peft_benchmark
from benchmarks.adaptive_lr import rows as adaptive_lr
from benchmarks.adaptive_lr import runs as adaptive_lr_runs
from benchmarks.adaptive_lr import settings as adaptive_lr_settings
from benchmarks.report import Result
from benchmarks.transfer import comparison as transfer_comparison
from benchmarks.transfer import settings as transfer_settings
from benchmarks.transfer.images import SHIFTS


def by_metric(rows: Iterable[Result]) -> dict[str, Result]:
    found = {row.metric: row for row in rows}
    assert any("A/A" in metric for metric in found)
    return found


def test_adaptive_lr_is_held_to_early_stopping() -> None:
    setting = next(one for one in adaptive_lr_settings.settings(quick=True) if one.name == "digits, noisy dev")
    ours = {"NLL best": 0.5, "NLL end": 0.5, "accuracy best": 0.9, "accuracy end": 0.9, "steps": 100, "dev loss": 1.0}
    measured = {
        row: {
            name: np.full((3, 3), value * (1 if row in adaptive_lr_settings.OURS else 2))
            for name, value in ours.items()
        }
        for row in setting.rows
    }
    found = by_metric(adaptive_lr.headline_results(setting, measured, {}))
    row = found["digits, noisy dev: default: steps, mean over rates"]
    assert (row.ratio, row.noise, row.met) == (0.5, 0.0, True)
    assert "early stopping" in row.conditions["baseline"]
    stops = adaptive_lr_runs.early_stopping
    assert len(stops(adaptive_lr_settings.AGAIN)) == len(stops(adaptive_lr_settings.STOCK)) == 1
    assert stops("stock linear") == stops("plateau") == []
    assert len(list(adaptive_lr.detail_results(setting, measured, {}))) == 3 * 5 * len(setting.rows)


def test_adaptive_lr_without_evaluations_is_held_to_what_stock_ends_with() -> None:
    setting = next(one for one in adaptive_lr_settings.settings(quick=True) if one.eval_steps is None)
    values = {"NLL end": 0.5, "accuracy end": 0.9, "steps": 100, "dev loss": 1.0}
    measured = {
        row: {name: np.full((3, 3), value * (1 if row == setting.gated else 2)) for name, value in values.items()}
        for row in setting.rows
    }
    found = by_metric(adaptive_lr.headline_results(setting, measured, {}))
    row = found[f"{setting.name}: default, hold_out=0.2: worst-rate NLL, end against the baseline's end"]
    assert (row.ratio, row.gate, row.met) == (0.5, "ratio <= 0.93", True)
    assert row.conditions["baseline"] == "stock linear"
    assert not any("best against" in metric or "baseline's best" in metric.replace("best rate", "") for metric in found)


def test_behavioral_is_held_to_group_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(how: str, rows: Any, tokenizer: Any, device: str) -> tuple[list[float], list[float]]:
        seconds = {"stock": 4.0, "shared": 2.0}.get(how, 0.5 if how.startswith("shared") else 1.5)
        return [seconds] * 2, [0.7] * 2

    monkeypatch.setattr(behavioral_speed, "step_times", times)
    monkeypatch.setattr(behavioral_speed, "pairs_of", lambda *args: [])
    monkeypatch.setattr(behavioral_speed, "AutoTokenizer", type("T", (), {"from_pretrained": lambda name: None}))
    found = by_metric(behavioral_speed.speed("cpu", 2, 3, 256, {}))
    by_batch = "pairs a second, multi-turn, by batch: shared, group_by_length against stock, group_by_length"
    assert (found[by_batch].ratio, found[by_batch].gate, found[by_batch].met) == (3.0, "ratio >= 2", True)
    # Against stock in the data's order it would be met.
    by_pass = found["pairs a second, multi-turn, by pass: shared against stock, group_by_length"]
    assert (by_pass.ratio, by_pass.met) == (0.75, False)


def test_real_feedback_must_gain_more_than_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    again = itertools.count()

    def accuracies(jobs: list[Any], device: str) -> list[tuple[float, float]]:
        of = {"stock": 0.6, "behavioral": 0.61}
        return [(0.5, of[how] if how in of else 0.6 + (-1) ** next(again) * 0.05) for _, how, *_ in jobs]

    monkeypatch.setattr(behavioral_feedback, "_all_accuracies", accuracies)
    found = by_metric(behavioral_feedback.feedback(Path("model"), 2, 200, 200, "cpu", {}))
    above_stock = found["model, 200 pairs: held-out accuracy (%): behavioral against stock"]
    assert above_stock.met is False
    assert above_stock.conditions["met_without_noise"]
    assert found["model, 200 pairs: held-out accuracy (%): behavioral against the model before"].met is True


def test_the_power_of_an_experiment_is_that_of_its_paired_differences() -> None:
    found = behavioral_feedback.power([61.0, 63.0, 62.0, 64.0], [60.0, 60.0, 60.0, 60.0])
    deviation = (5 / 3) ** 0.5
    assert found["difference"] == 2.5
    assert found["shows"] == pytest.approx(2.8016 * deviation / 2, abs=0.01)
    assert found["seeds_needed"] == 3  # (2.8 * 1.29 / 2.5) ** 2 = 2.1
    assert behavioral_feedback.power([1.0, 2.0], [2.0, 1.0])["seeds_needed"] is None


def test_layer_removal_is_held_to_random_layers_in_several_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    after = {"auto": 12.0, "last": 20.0}
    draws = itertools.count()

    def healed(technique: Any, *args: Any, seed: int = 0) -> tuple[float, float]:
        return 50.0, 13.0 + next(draws) if technique.layers else after[technique.method]

    monkeypatch.setattr(layer_removal, "healed", healed)
    monkeypatch.setattr(layer_removal, "rows_of", lambda part, count: [None] * count)
    monkeypatch.setattr(layer_removal, "whole", lambda device: None)
    monkeypatch.setattr(layer_removal, "perplexity", lambda *args: 10.0)
    monkeypatch.setattr(layer_removal, "choose_layers", lambda *args, **kwargs: [1, 2, 3])
    found = by_metric(layer_removal.healing(True, "cpu", {}))
    last, random = (found[f"gap of perplexity, 3 of 12 layers, against {arm}"] for arm in ("last", "random"))
    assert (last.ratio, last.met) == (0.2, True)
    assert (random.baseline, random.conditions["draws"], random.met) == (3.5, [3.0, 4.0], False)


def test_multitask_counts_a_sentence_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {"joint": 6.0, "round-robin": 7.5}
    monkeypatch.setattr(multitask, "trained", lambda kind, *args, **kwargs: (read.get(kind, 9.0), {}))
    found = by_metric(multitask.speed("cpu", 2, 10, {}))
    whole = found["sentences a second, learned for all tasks: joint against a model of its own for each task"]
    assert (whole.ours, whole.baseline, whole.met) == (6.0, pytest.approx(3.0), False)
    assert found["sentences a second, read in a step: joint against upos"].ratio == pytest.approx(2 / 3)


def test_task_and_transfer_have_a_spread() -> None:
    setting = task.settings_of(True)[0]
    keys = list(itertools.product(task.READINGS, task.METRICS))
    measured = {row: {key: np.array([0.5, 0.6]) for key in keys} for row in setting.rows}
    found = by_metric(task.results_of(setting, measured, {}))
    assert found["digits, balanced: logit_adjust, equal: macro-F1"].met is False
    assert found["digits, balanced: logit_adjust, equal: macro-F1"].conditions["quartiles"] == [1.0, 1.0]
    digits = transfer_settings.settings(True)["digits"]
    parts = ("dev", "test", *SHIFTS)
    accuracies = {
        row: {part: np.full((3, 2), 80.0 if row in transfer_settings.OURS else 40.0) for part in parts}
        for row in digits.rows
    }
    found = by_metric(transfer_comparison.results_of(digits, accuracies, {}))
    assert found["digits: transfer: accuracy out of distribution"].met is True


def test_peft_chooses_a_rate_by_dev_rows_and_is_compared_with_all_linear_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The best rate on dev is the worst on test.
    def scores(task: Any, arm: str, rate: float, seed: int, *args: Any) -> tuple[float, float]:
        return (90.0, 50.0) if rate == 0.1 else (80.0, 99.0)

    monkeypatch.setattr(peft_benchmark, "run", scores)
    made_up = peft_benchmark.Task("made up", None, [], [], [], None, "SEQ_CLS", True)  # type: ignore[arg-type]
    found = by_metric(peft_benchmark.quality(made_up, 2, 1, (0.1, 0.2), "cpu", {}))
    row = found[f"made up: auto against {peft_benchmark.ALL_LINEAR}"]
    assert (row.ours, row.baseline, row.met) == (50.0, 50.0, None)
    assert found[f"made up: auto against {peft_benchmark.STOCK}"].met is False
