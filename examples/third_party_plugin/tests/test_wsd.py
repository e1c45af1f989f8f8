"""The schedule's numbers against transformers' own, and the contract of a technique."""

import pytest
import torch
from hf_ft_plugins import OptionError
from hf_ft_plugins.registry import find
from hf_ft_plugins.testing import (
    Example,
    InterruptAt,
    Interruption,
    check_pair,
    check_technique,
    difference,
    example_of,
    outcome,
    tiny_trainer,
)
from transformers import get_wsd_schedule

from hf_ft_wsd import WSDSchedule, wsd_factor


def acted(technique, trainer):
    """The scheduler is ours, and the optimizer's base rate is what it says for the last step."""
    factors = getattr(trainer.lr_scheduler, "lr_lambdas", [])
    if not all(getattr(factor, "func", None) is wsd_factor for factor in factors):
        return False
    scheduled = [
        group["initial_lr"] * factor(trainer.state.global_step)
        for group, factor in zip(trainer.optimizer.param_groups, factors, strict=False)
    ]
    return bool(scheduled) and scheduled == [group["lr"] for group in trainer.optimizer.param_groups]


# Ends on a rate that neither a constant nor a linear schedule ends on.
EXAMPLE = Example(WSDSchedule(warmup=0.2, decay=0.4, shape="sqrt", floor=0.25), acted)


def test_it_holds_to_the_contract(tmp_path):
    check_technique(EXAMPLE, tmp_path)


def test_it_works_together_with_an_adaptive_rate(tmp_path):
    assert check_pair(EXAMPLE, example_of("adaptive-lr"), tmp_path) == "together"


def test_it_is_offered_under_its_name():
    assert find("wsd-schedule").load() is WSDSchedule


@pytest.mark.parametrize(("shape", "theirs"), [("linear", "linear"), ("sqrt", "1-sqrt")])
@pytest.mark.parametrize(("warmup", "decay", "floor"), [(0, 20, 0.1), (10, 40, 0.0), (60, 40, 0.0), (10, 0, 0.0)])
def test_factors_equal_those_of_transformers(shape, theirs, warmup, decay, floor):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=100, decay_type=theirs, min_lr_ratio=floor
    ).lr_lambdas[0]
    for step in range(100):
        ours = wsd_factor(step, total_steps=100, warmup_steps=warmup, decay_steps=decay, shape=shape, floor=floor)
        assert ours == pytest.approx(schedule(step), abs=1e-12)


def test_the_floor_is_reached_and_kept():
    phases = {"total_steps": 10, "warmup_steps": 2, "decay_steps": 5, "floor": 0.3}
    assert wsd_factor(10, **phases) == wsd_factor(11, **phases) == pytest.approx(0.3)


def test_shares_become_steps_of_the_run(tmp_path):
    trainer = tiny_trainer(tmp_path, WSDSchedule(decay=0.5), max_steps=10, warmup_steps=3)
    phases = trainer.create_scheduler(10, torch.optim.SGD(trainer.model.parameters(), lr=1.0)).lr_lambdas[0].keywords
    assert (phases["warmup_steps"], phases["decay_steps"], phases["total_steps"]) == (3, 5, 10)
    # 0.55 * 100 is a little more than 55.
    phases = WSDSchedule(warmup=0.55, decay=0.45).factor_by_step(trainer.args, 100).keywords
    assert (phases["warmup_steps"], phases["decay_steps"]) == (55, 45)


def test_a_checkpoint_of_the_constant_phase_can_be_trained_for_longer(tmp_path):
    schedule = WSDSchedule(decay=0.25)
    longer = {"max_steps": 20, "warmup_steps": 2}
    straight = tiny_trainer(tmp_path / "straight", schedule, **longer)
    straight.train()
    short = tiny_trainer(tmp_path / "resumed", schedule, callbacks=[InterruptAt(9)], **longer | {"max_steps": 14})
    with pytest.raises(Interruption):
        short.train()
    resumed = tiny_trainer(tmp_path / "resumed", schedule, **longer)
    resumed.train(resume_from_checkpoint=True)
    assert difference(outcome(straight), outcome(resumed)) is None


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"warmup": 0.5, "decay": 0.6}, {"floor": -1}, {"shape": "cosine"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match=f"wsd-schedule: option {list(options)[-1]}="):
        WSDSchedule(**options)


def test_a_warm_up_that_leaves_no_room_for_the_decay_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, WSDSchedule(decay=0.5), warmup_steps=10)
    with pytest.raises(OptionError, match="option decay=0.5 is 7 of 14 steps, and the warm-up takes 10"):
        trainer.train()
