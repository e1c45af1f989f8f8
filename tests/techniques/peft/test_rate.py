"""The rate that an adapter learns at, where the script's was chosen for full tuning."""

import pytest
import torch

pytest.importorskip("peft")

from hf_ft_plugins import PluginError
from hf_ft_plugins.techniques.peft import Peft, fit_rate
from hf_ft_plugins.testing import difference, outcome, tiny_trainer


def moved(rate, method="lora", factor=None):
    """How far a step of SGD takes a weight, in units of the rate."""
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], lr=rate)
    fit_rate(optimizer, method, factor)
    optimizer.step()
    return -float(weight[0].detach()) / rate


@pytest.mark.parametrize(
    ("rate", "method", "factor", "expected"),
    [
        (5e-5, "lora", None, 10),
        (2e-5, "dora", None, 10),
        (1e-4, "lora", None, 1),
        (5e-5, "lora", 1.0, 1),
        (5e-5, "pissa", None, 1),
        (1e-3, "pissa", 3.0, 3),
    ],
)
def test_a_rate_for_full_tuning_is_ten_times_as_high_and_any_other_stays(rate, method, factor, expected, caplog):
    assert moved(rate, method, factor) == pytest.approx(expected)
    assert ("is one for full tuning" in caplog.text) == (expected == 10)


def test_it_multiplies_the_schedule_and_is_said_and_logged(tmp_path, caplog):
    def run(technique, rate):
        trainer = tiny_trainer(tmp_path / technique[-1], technique, learning_rate=rate, max_steps=6, logging_steps=1)
        trainer.train()
        return trainer

    fitted, by_hand = run("peft:r=4", 5e-5), run("peft:r=4,rate_factor=1", 5e-4)
    assert "method=lora learns at 0.0005" in caplog.text
    rates = [
        [entry["learning_rate"] for entry in one.state.log_history if "learning_rate" in entry]
        for one in (fitted, by_hand)
    ]
    assert rates[0] == pytest.approx(rates[1])
    weights = [dict(one.model.named_parameters()) for one in (fitted, by_hand)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-6)


def test_loraplus_multiplies_it(tmp_path):
    trainer = tiny_trainer(tmp_path, "peft:r=4,loraplus_ratio=4", learning_rate=5e-5, max_steps=2)
    trainer.train()
    factors = [group["hf_ft_lr_scale"] for group in trainer.optimizer.param_groups]
    assert {factor["peft/rate"] for factor in factors} == {10.0}
    assert {factor.get("peft/loraplus", 1.0) for factor in factors} == {1.0, 4.0}


def test_it_resumes_exactly(tmp_path):
    changes = {"learning_rate": 5e-5, "max_steps": 6, "save_steps": 3, "eval_strategy": "no"}
    straight = tiny_trainer(tmp_path / "run", "peft:r=4", **changes)
    straight.train()
    resumed = tiny_trainer(tmp_path / "run", "peft:r=4", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert difference(outcome(straight), outcome(resumed)) is None


def test_a_factor_that_is_none_is_refused():
    with pytest.raises(PluginError, match="rate_factor"):
        Peft(rate_factor=0.0)
