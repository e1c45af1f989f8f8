"""How often signals are wrong, and what rows weigh."""

import random

import numpy as np
import pytest

from hf_ft_plugins.feedback import signal_noise as noise
from tests.feedback.written_logs import conversation, found, weigh


def test_estimated_epsilon_recovers_planted_rates(log):
    draw = random.Random(0)
    planted = {"thumbs": 0.1, "copy": 0.3, "regenerate": 0.15}
    messages, acts = [], []
    for n in range(4000):
        messages += conversation(f"answer {n}", name=f"c{n}", prompt=f"question {n}")
        good = draw.random() < 0.5
        for kind, rate in planted.items():
            says = good == (draw.random() >= rate)
            if kind == "thumbs":
                acts += [
                    {"type": kind, "message_id": f"c{n}.0", "value": 1 if good == (draw.random() >= rate) else -1,
                     "user": f"u{n}-{k}"}
                    for k in range(2)
                ]  # fmt: skip
            elif says == (kind == "copy"):
                acts.append({"type": kind, "message_id": f"c{n}.0", "user": f"{kind}{n}"})
    _, _, report = found(log(messages, acts), estimate_noise=True)
    estimated = {kind: report["noise"][kind]["estimated"] for kind in planted}
    # What was not done says nothing: of copied answers those that are good make up 1 - rate.
    assert estimated == pytest.approx(planted, abs=0.02)
    # Control: the table's are off by more.
    assert any(abs(report["noise"][kind]["prior"] - rate) > 0.04 for kind, rate in planted.items())


def test_few_overlaps_leave_the_tables_epsilon():
    few = noise.estimated_epsilons({("copy", "thumbs"): [0, 1]})["copy"]
    many = noise.estimated_epsilons({("copy", "thumbs"): [0, 1000]})["copy"]
    assert 0.25 < few < 0.35 < many < 0.5
    assert noise.estimated_epsilons({}) == noise.prior_epsilons()


def test_flip_probability_of_one_vote_is_its_own_and_stays_below_a_half():
    assert noise.flip_probability({"copy": 1}, 0, noise.prior_epsilons()) == pytest.approx(0.25)
    for votes in range(1, 30):
        for against in range(votes):
            assert 0 <= noise.flip_probability({"copy": votes}, against, {"copy": 0.49}) < 0.5


def test_users_weigh_as_the_root_of_their_rows(log):
    acts = [{"user": "busy"}] * 16 + [{"user": "rare"}]
    weights = weigh(log, acts)
    assert sum(weights[:16]) == pytest.approx(4 * weights[16], rel=1e-4)
    assert np.mean(weights) == pytest.approx(1, abs=1e-4)
    assert weigh(log, acts, user_cap=False) == pytest.approx([1.0] * 17)


def test_age_and_propensity_weigh_when_asked_for(log):
    acts = [{"user": "a", "ts": 1.7e9}, {"user": "b", "ts": 1.7e9 + 30 * 86_400}]
    old, new = weigh(log, acts, half_life_days=30)
    assert old == pytest.approx(new / 2, rel=1e-4)
    acts = [{"user": "a", "propensity": 0.01}, {"user": "b", "propensity": 0.5}, {"user": "c"}]
    rare, half, unknown = weigh(log, acts, ips=True)
    assert (rare / unknown, half / unknown) == pytest.approx((5, 2), rel=1e-4)
    assert weigh(log, acts) == pytest.approx([1, 1, 1])


def test_weight_is_the_information_left(log):
    acts = [{"user": "a"}, {"user": "b", "type": "thumbs", "value": 1}]
    copied, thumbs = weigh(log, acts)
    assert copied / thumbs == pytest.approx((1 - 2 * 0.25) ** 2 / (1 - 2 * 0.1) ** 2, rel=1e-4)
