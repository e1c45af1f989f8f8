"""The controllers of the adaptive learning rate as plain functions, and what they can be set to."""

import inspect
import math

import pytest

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback
from hf_ft_plugins.errors import OptionError
from hf_ft_plugins.metrics import greater_is_better
from hf_ft_plugins.techniques.adaptive_lr.controllers import ControllerState, decide
from hf_ft_plugins.techniques.adaptive_lr.settings import ControllerSettings


def follow(settings, values, greater=False):
    """Actions and factors that a controller gives for a sequence of values."""
    state, said = ControllerState(), []
    for value in values:
        state, decision = decide(settings, state, value, greater=greater, warming_up=False)
        said.append((decision.action, round(state.scale, 6)))
    return said


def test_plateau_cuts_after_patience_and_stops_after_the_last_cut():
    said = follow(ControllerSettings(controller="plateau", patience=2, max_cuts=2), [3, 2, 2, 2, 2, 2, 2, 2])
    assert [action for action, _ in said] == ["keep", "keep", "keep", "cut", "keep", "cut", "keep", "stop"]
    assert [scale for _, scale in said][3::2] == [0.3, 0.09, 0.09]


def test_plateau_forgets_bad_values_when_the_metric_improves():
    assert {
        action for action, _ in follow(ControllerSettings(controller="plateau", patience=2), [3, 4, 2, 4, 1, 4, 0])
    } == {"keep"}


def test_plateau_without_stop_goes_on_after_the_last_cut():
    said = follow(ControllerSettings(controller="plateau", patience=1, max_cuts=1, stop=False), [1, 2, 2, 2])
    assert said == [("keep", 1.0), ("cut", 0.3), ("keep", 0.3), ("keep", 0.3)]


def test_cooldown_lets_values_pass_after_a_cut():
    said = follow(ControllerSettings(controller="plateau", patience=1, cooldown=2, max_cuts=9), [1, 2, 2, 2, 2])
    assert [action for action, _ in said] == ["keep", "cut", "keep", "keep", "cut"]


def test_the_factor_is_never_below_min_scale():
    said = follow(ControllerSettings(controller="plateau", patience=1, max_cuts=9, min_scale=0.05), [1, 2, 2, 2, 2])
    assert [scale for _, scale in said] == [1.0, 0.3, 0.09, 0.05, 0.05]
    assert said[-1][0] == "stop"


def test_climb_raises_with_every_improvement_until_it_first_goes_back():
    said = follow(ControllerSettings(), [3, 2, 1, 2, 0.5, 0.6, 0.7])
    assert said == [
        *[("keep", 1.0), ("raise", 1.5), ("raise", 2.25)],
        *[("rollback", 0.45), ("keep", 0.45), ("rollback", 0.09), ("stop", 0.09)],
    ]
    up = follow(ControllerSettings(max_scale=2), [9, 8, 7, math.nan])
    assert up == [("keep", 1.0), ("raise", 1.5), ("raise", 2.0), ("rollback", 0.4)]


def test_until_something_is_learned_only_values_that_are_far_worse_count():
    def of(values, greater=False, **settings):
        return [action for action, _ in follow(ControllerSettings(**settings), values, greater)]

    # 1.5 % better is not yet learned; 6 % worse is far, and three of them are needed.
    assert of([1, 1.01, 0.985, 1.04, 0.99, 1.0]) == ["keep"] * 6
    assert of([1, 1.06, 1.06, 1.0, 1.06, 1.06, 1.06]) == ["keep"] * 6 + ["rollback"]
    assert of([1, 1.01, 0.97, 0.98]) == ["keep", "keep", "raise", "rollback"]
    assert of([1, math.nan, math.nan, math.nan]) == ["keep"] * 3 + ["rollback"]
    # Of an accuracy, mistakes: .902 is 2 % of them fewer than .9, and .91 is ten.
    assert of([0.9, 0.9015, 0.9], greater=True) == ["keep"] * 3
    assert of([0.9, 0.91, 0.9], greater=True) == ["keep", "raise", "rollback"]
    # The others wait for it with their own patience, and what `min_delta` says goes before.
    assert of([1, 1.01, 1.01, 1.01], controller="plateau", patience=1) == ["keep"] * 4
    assert of([1, 1.06], controller="plateau", patience=1) == ["keep", "cut"]
    assert of([1, 1.01], min_delta=0.001) == ["raise", "rollback"]


def test_climb_goes_back_to_a_mean_unless_the_latest_weights_are_no_better_than_the_first():
    def shares(settings, values, greater=False):
        state, found = ControllerState(), []
        for value in values:
            state, decision = decide(settings, state, value, greater=greater, warming_up=False)
            found.append(decision.latest)
        return found

    climb, rollback = ControllerSettings(), ControllerSettings(controller="rollback", patience=1)
    assert shares(climb, [3, 2, 2.5, 1, 3.5]) == [0, 0, 0.3, 0, 0]
    assert shares(climb, [3, 2, math.nan]) == [0, 0, 0]
    assert shares(climb, [math.nan, 3, 2, 2.5]) == [0, 0, 0, 0.3]
    assert shares(climb, [0.1, 0.4, 0.3, 0.05], greater=True) == [0, 0, 0.3, 0]
    assert shares(rollback, [3, 2, 2.5]) == [0, 0, 0]


def test_only_where_nobody_named_a_controller_one_is_chosen_for_the_run():
    for evaluates, goes_back, chosen in (
        (True, True, "climb"),
        (True, False, "plateau"),
        (False, True, "plateau"),
    ):
        assert ControllerSettings().for_run(evaluates=evaluates, goes_back=goes_back).controller == chosen
        named = ControllerSettings(controller="rollback")
        assert named.for_run(evaluates=evaluates, goes_back=goes_back) == named


def test_greedy_raises_while_improving_and_lowers_while_not_within_its_bounds():
    said = follow(ControllerSettings(controller="greedy"), [3, 2, 2.5, 2.5, 1])
    assert [action for action, _ in said] == ["raise", "raise", "cut", "cut", "raise"]
    up = follow(ControllerSettings(controller="greedy", max_scale=1.2), [9, 8, 7, 6])
    assert [scale for _, scale in up] == [round(1 / 0.9, 6), 1.2, 1.2, 1.2]
    down = follow(ControllerSettings(controller="greedy", min_scale=0.8), [1, 2, 2, 2, 2, 2])
    assert down[-1] == ("keep", 0.8)


def test_greedy_forgives_as_many_values_as_its_patience():
    found = follow(ControllerSettings(controller="greedy", patience=1), [1, 2, 2, 2])
    assert [action for action, _ in found] == ["raise", "keep", "cut", "cut"]


@pytest.mark.parametrize("greater", [False, True])
def test_an_improvement_is_more_than_min_delta(greater):
    sign = 1 if greater else -1
    for change, action in ((0.5, "cut"), (0.75, "keep")):
        found = follow(
            ControllerSettings(controller="plateau", patience=1, min_delta=0.5), [1.0, 1.0 + sign * change], greater
        )
        assert found[-1][0] == action


def test_a_metric_that_is_better_when_greater_is_not_cut_while_it_rises():
    rising = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {
        action for action, _ in follow(ControllerSettings(controller="plateau", patience=1), rising, greater=True)
    } == {"keep"}
    assert "cut" in {
        action for action, _ in follow(ControllerSettings(controller="plateau", patience=1), rising, greater=False)
    }


def test_a_value_that_is_not_a_number_never_improves():
    said = follow(ControllerSettings(controller="plateau", patience=2), [math.nan, math.nan])
    assert [action for action, _ in said] == ["keep", "cut"]


def test_nothing_is_cut_during_warm_up_but_the_best_value_counts():
    state = ControllerState()
    for value in (1.0, 2.0, 3.0):
        state, decision = decide(
            ControllerSettings(controller="plateau", patience=1), state, value, greater=False, warming_up=True
        )
        assert decision.action == "keep"
    state, decision = decide(
        ControllerSettings(controller="plateau", patience=1), state, 1.5, greater=False, warming_up=False
    )
    assert decision.action == "cut"


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_loss", False),
        ("eval_accuracy", True),
        ("eval_f1", True),
        ("eval_wer", False),
        ("perplexity", False),
        ("eval_bleu", True),
        ("eval_dev-set_loss", False),
        ("eval_closset_accuracy", True),
    ],
)
def test_direction_is_inferred_from_the_name(metric, greater):
    assert greater_is_better(metric) is greater


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0},
        {"factor": 1},
        {"patience": 0},
        {"min_delta": -1},
        {"max_cuts": -1},
        {"min_scale": 0},
        {"max_scale": 0.5},
        {"cooldown": -1},
        {"ema_steps": 0},
        {"max_nonfinite_share": 0},
        {"controller": "magic"},
        {"patience": "many"},
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(OptionError, match=f"adaptive-lr: option {name}="):
        AdaptiveLRCallback(**options)


def test_the_callback_takes_the_techniques_options_with_the_same_defaults():
    parameters = inspect.signature(AdaptiveLRCallback).parameters
    options = AdaptiveLR().options()
    # Of the data, which a callback cannot change.
    del options["hold_out"]
    assert {name: parameter.default for name, parameter in parameters.items()} == options
