"""Where the windows and counts of the adaptive learning rate begin and end, as plain functions."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_ft_plugins.techniques.adaptive_lr import nonfinite
from hf_ft_plugins.techniques.adaptive_lr.loss_average import LossAverage
from hf_ft_plugins.techniques.adaptive_lr.settings import WatchSettings
from hf_ft_plugins.techniques.adaptive_lr.watched_metric import Watch

ARGS = SimpleNamespace(eval_strategy="steps", metric_for_best_model=None, greater_is_better=None)


def dropped_at(*steps):
    state = nonfinite.GuardState()
    for step in steps:
        state = nonfinite.dropped(state, step)
    return state


def test_three_dropped_steps_of_twenty_cut_the_rate_and_count_once():
    assert not nonfinite.wants_cut(dropped_at(0, 19), 19)
    assert nonfinite.wants_cut(dropped_at(0, 10, 19), 19)
    assert not nonfinite.wants_cut(dropped_at(0, 10, 20), 20)
    after_a_cut = replace(dropped_at(0, 10, 19), last_cut=19)
    assert not nonfinite.wants_cut(nonfinite.dropped(after_a_cut, 20), 20)
    assert nonfinite.wants_cut(replace(dropped_at(19, 20, 21, 22), last_cut=19), 22)


def test_a_run_is_hopeless_past_the_share_not_at_it():
    twelve, thirteen = dropped_at(*range(12)), dropped_at(*range(13))
    assert not nonfinite.is_hopeless(twelve, 12, max_steps=60, max_share=0.2)
    assert nonfinite.is_hopeless(thirteen, 13, max_steps=60, max_share=0.2)
    # Of a long run the last hundred steps count.
    assert not nonfinite.is_hopeless(dropped_at(*range(21)), 121, max_steps=1000, max_share=0.2)
    assert nonfinite.is_hopeless(dropped_at(*range(100, 121)), 121, max_steps=1000, max_share=0.2)
    # A short run may lose as many steps as it takes to cut the rate.
    assert not nonfinite.is_hopeless(dropped_at(0, 1, 2), 2, max_steps=5, max_share=0.2)


def test_old_dropped_steps_are_forgotten_but_counted():
    state = dropped_at(0, 1, 150)
    assert (state.total, state.recent) == (3, (150,))


def test_the_average_of_the_loss_forgets_by_optimizer_steps():
    average = LossAverage()
    average.add(2.0, 1, ema_steps=10)
    assert average.value == pytest.approx(2.0)
    average.step = 1
    average.add(4.0, 3, ema_steps=10)
    first, second = math.exp(-1 / 10), math.exp(-2 / 10)
    weights = [second * (1 - first), 1 - second]
    assert average.value == pytest.approx((2.0 * weights[0] + 4.0 * weights[1]) / sum(weights))


def test_only_the_evaluation_at_the_start_of_a_resumed_run_is_repeated():
    watch = Watch(WatchSettings())
    watch.begin(ARGS, 0, ())
    assert not watch.is_repeated(0)
    watch.begin(ARGS, 5, ())
    assert watch.is_repeated(5)
    assert not watch.is_repeated(6)


def test_a_second_value_at_one_step_is_not_acted_on():
    watch = Watch(WatchSettings())
    watch.begin(ARGS, 0, ())
    assert watch.value_in({"eval_loss": 1.0}, 3) == 1.0
    watch.decided(3)
    assert watch.value_in({"eval_loss": 2.0}, 3) is None
    assert watch.value_in({"eval_loss": 2.0}, 6) == 2.0
