"""A verdict is given where one can be known, and otherwise the reason why not."""

import io
import json
import random
from math import inf, nan

import pytest
from rich.console import Console

from hf_ft_plugins.cli.compare import comparison, picture
from hf_ft_plugins.cli.compare.outcomes import Outcome
from hf_ft_plugins.cli.compare.picture import draw
from hf_ft_plugins.cli.compare.table import sentences, table_of
from hf_ft_plugins.cli.compare.verdicts import ONE_SEED, WITH, WITHOUT, interval_of, judge, row
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.training_log import Training

HARMLESS = [resolve("adaptive-lr")]


def runs(*metrics, **changes):
    """An outcome a seed, each with one training that evaluated `metrics`."""
    return [
        Outcome([Training([{"step": 1, "eval_runtime": 1.0, **found}], steps=1, **changes)], wall=1.0, cpu=1.0)
        for found in metrics
    ]


def judged(before, after, techniques=HARMLESS):
    found = judge({WITHOUT: runs(*before), WITH: runs(*after)}, techniques)
    return {one.name: one for one in found.rows}


def verdict(before, after, name, techniques=HARMLESS):
    found = judged([{name: value} for value in before], [{name: value} for value in after], techniques)[name]
    return found.better, found.why


NOISY, CLEARLY_MORE = (0.50, 0.52, 0.48), (0.61, 0.62, 0.60)


@pytest.mark.parametrize(
    ("name", "before", "after", "better"),
    [
        ("eval_accuracy", NOISY, CLEARLY_MORE, True),
        ("eval_accuracy", CLEARLY_MORE, NOISY, False),
        ("eval_loss", NOISY, CLEARLY_MORE, False),
        ("eval_bpc", NOISY, CLEARLY_MORE, False),
        ("eval_rewards/accuracies", NOISY, CLEARLY_MORE, True),
        ("eval_loss", (0.5,), (nan,), False),
        ("eval_loss", (nan, nan), (0.5, 0.6), True),
    ],
)
def test_what_lies_outside_of_the_noise_is_better_or_worse(name, before, after, better):
    assert verdict(before, after, name) == (better, None)


@pytest.mark.parametrize(
    ("name", "before", "after", "why"),
    [
        ("eval_accuracy", (0.5,), (0.6,), "one seed"),
        ("eval_accuracy", NOISY, (0.52, 0.50, 0.50), "within the noise"),
        ("eval_accuracy", NOISY, NOISY, "the same"),
        ("eval_accuracy", (1 / 148, 2 / 148), (2 / 148, 3 / 148), "the same difference"),
        ("eval_thing", NOISY, CLEARLY_MORE, "its name does not say"),
        ("eval_rewards/chosen", NOISY, CLEARLY_MORE, "the objective's own"),
        ("eval_rewards/margins", NOISY, CLEARLY_MORE, "the objective's own"),
        ("eval_margin", NOISY, CLEARLY_MORE, "the objective's own"),
        ("eval_logps/chosen", NOISY, CLEARLY_MORE, "the objective's own"),
        ("eval_entropy", NOISY, CLEARLY_MORE, "the objective's own"),
        ("accuracy", NOISY, CLEARLY_MORE, "on training batches"),
        ("train_loss", CLEARLY_MORE, NOISY, "all steps taken"),
        ("eval_loss", (0.5, 0.6), (nan, 0.6), "not a number in some"),
        ("eval_loss", (nan,), (nan,), "not a number in any"),
    ],
)
def test_where_a_verdict_cannot_be_known_the_reason_is_told(name, before, after, why):
    better, reason = verdict(before, after, name)
    assert better is None
    assert why in reason


OTHER_LOSSES = ["text2text:objective=prefix_lm", "text2text:max_target_length=8", "text2text:max_source_length=8"]


@pytest.mark.parametrize("name", ["behavioral", "multitask", *OTHER_LOSSES, "task:imbalance=focal"])
def test_a_loss_of_another_objective_is_not_compared(name):
    technique = resolve(name)
    better, reason = verdict((0.52, 0.50, 0.51), (-0.55, -0.50, -0.52), "eval_loss", [technique])
    assert better is None
    assert f"{technique.name} may change what the loss measures" in reason
    assert verdict(NOISY, CLEARLY_MORE, "eval_accuracy", [technique]) == (True, None)


def test_a_loss_that_stock_computes_otherwise_is_not_compared():
    def found(**setting):
        before, after = (
            runs(*[{"eval_loss": value} for value in values], setting=setting) for values in (NOISY, CLEARLY_MORE)
        )
        row = judge({WITHOUT: before, WITH: after}, [resolve("text2text")]).rows[0]
        return row.better, row.why

    assert found(grouped_by_length=False) == (False, None)
    better, why = found(grouped_by_length=True)
    assert better is None
    assert "a mean over batches, which stock groups by length" in why


def test_what_one_side_did_not_measure_is_not_the_same():
    found = judged([{"eval_accuracy": 0.5}], [{"eval_f1": 0.5}])
    assert (found["eval_accuracy"].why, found["eval_f1"].why) == (
        "measured only without the techniques",
        "measured only with the techniques",
    )


def test_a_best_of_more_evaluations_is_no_fair_best():
    def run(losses):
        entries = [{"step": step, "eval_loss": loss, "eval_runtime": 1.0} for step, loss in enumerate(losses)]
        return Outcome([Training(entries)])

    fair = judge({WITHOUT: [run((3, 2, 1))] * 2, WITH: [run((2, 1, 0.5)), run((2, 1, 0.6))]}, HARMLESS)
    more = judge({WITHOUT: [run((3, 2, 1))] * 2, WITH: [run((2, 1, 0.5, 0.6)), run((2, 1, 0.6, 0.6))]}, HARMLESS)
    whys = [{one.name: one.why for one in found.rows}["best eval_loss"] for found in (fair, more)]
    assert "more evaluations" not in str(whys[0])
    assert "more evaluations" in whys[1]


def test_costs_are_neither_better_nor_worse():
    found = judge({WITHOUT: runs({"eval_loss": 1.0}), WITH: runs({"eval_loss": 1.0})}, HARMLESS)
    costs = [one for one in found.rows if one.is_cost]
    assert len(costs) == 4
    assert {one.better for one in costs} == {None}


def test_seeds_that_change_nothing_give_no_verdict():
    before, after = (
        runs(*[{"eval_accuracy": 0.5}] * 3, final="x"),
        runs(*[{"eval_accuracy": v} for v in (0.6, 0.7, 0.8)]),
    )
    found = judge({WITHOUT: before, WITH: after}, HARMLESS)
    assert "sets its own" in found.rows[0].why
    assert "Every seed gave the same run" in found.notes[0]


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draw = random.Random(0)
    for count in (2, 3, 5, 12, 40):
        held = 0
        for _ in range(2000):
            low, high = interval_of([draw.gauss(0, 1) for _ in range(count)])
            held += low <= 0 <= high
        assert 0.935 < held / 2000 < 0.965, count
    assert interval_of([1.0]) is interval_of([1.0, inf]) is None


def test_two_trainings_are_told_apart(tmp_path):
    def run(first, second):
        trainings = [
            Training([{"step": s, "loss": v, "eval_loss": v, "eval_runtime": 1.0} for s in (1, 2)], steps=2)
            for v in (first, second)
        ]
        return Outcome(trainings)

    outcomes = {WITHOUT: [run(1.0, 2.0)], WITH: [run(1.0, 3.0)]}
    found = judge(outcomes, HARMLESS)
    by_name = {one.name: (one.without, one.with_) for one in found.rows}
    assert by_name["training 1: eval_loss"] == (1.0, 1.0)
    assert by_name["training 2: eval_loss"] == (2.0, 3.0)
    assert by_name["optimizer steps"] == (4, 4)
    both = draw(outcomes, tmp_path / "picture.png", title="x")
    single = draw({WITHOUT: [run(1.0, 1.0)][:1], WITH: [run(1.0, 1.0)]}, tmp_path / "other.png", title="x")
    assert both.stat().st_size > 0 < single.stat().st_size


def test_the_sentence_is_of_metrics_that_both_runs_have():
    def said(before, after):
        return sentences(judge({WITHOUT: runs(before), WITH: runs(after)}, HARMLESS))[0]

    # Rows that one run held out are evaluated by that one alone, and after what both are.
    shared = said({"test_loss": 1.0}, {"test_loss": 0.5, "eval_loss": 0.7})
    assert "test_loss 1 → 0.5" in shared
    assert "eval_loss" not in shared
    assert said({}, {"eval_loss": 0.7}).startswith("no metric was measured in both: ")
    assert said({}, {}).startswith("[bold]no difference")


def test_the_picture_shows_a_metric_that_both_runs_share():
    names = ("eval_loss", "eval_entropy", "eval_num_tokens", "eval_rewards/chosen", "eval_rewards/accuracies")
    training = Training([{"step": step, **dict.fromkeys(names, 1.0)} for step in (1, 2)])
    assert picture._evaluated(training) == ["eval_loss", "eval_rewards/accuracies"]
    alone = Training([{"step": step, "eval_entropy": 1.0} for step in (1, 2)])
    assert picture._evaluated(alone) == ["eval_entropy"]


@pytest.mark.parametrize("text", ["[/INST]", "$", "$x^$", "[/x]", "[red]", "\\", "{}", "a\nb", "%s", "\x1b[0m", "漢🙂"])
def test_any_text_is_text_to_table_and_picture(tmp_path, text):
    history = [{"step": s, "loss": 1.0, f"eval_{text}": 0.5, f"{text}/action": text} for s in (1, 2)]
    outcomes = {which: [Outcome([Training(history)])] for which in (WITHOUT, WITH)}
    found = judge(outcomes, HARMLESS)
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(found.rows, f"text2text:source_prefix={text}", 1))
    for sentence in sentences(found):
        console.print(sentence)
    drawn = draw(outcomes, tmp_path / "picture.png", title=f"text2text:source_prefix={text}")
    assert drawn.stat().st_size > 0


def test_the_verdict_is_printed_as_json_and_written_before_the_picture(tmp_path, monkeypatch, capsys):
    outcomes = {WITHOUT: runs({"eval_loss": 1.0}), WITH: runs({"eval_loss": 0.5})}
    monkeypatch.setattr(comparison, "_both", lambda *_: outcomes)
    # There are no runs behind these.
    monkeypatch.setattr(comparison, "write_report", lambda *_: (tmp_path / "report.html", None))
    comparison.compare_runs(HARMLESS, ["x.py"], tmp_path / "seen", console=None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "seen" / "compare.json").read_text())
    assert told["rows"][0]["why"] == ONE_SEED

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(comparison, "draw", fail)
    with pytest.raises(ZeroDivisionError):
        comparison.compare_runs(HARMLESS, ["x.py"], tmp_path / "seen", console=None, as_json=True)
    assert (tmp_path / "seen" / "compare.json").is_file()
    assert not (tmp_path / "seen" / "compare.png").exists()


def test_a_row_names_its_values():
    one = row("eval_loss", [1, 2], [2, 2], greater=False)
    assert one.as_dict()["values"] == ((1, 2), (2, 2))
    assert one.as_dict()["with"] == 2
