"""Preferences on two ranks."""

import contextlib

import pytest

from tests.two_processes import resumes_on_two_ranks, trained


def preferences_trainer(folder, technique, contract, **changes):
    from hf_ft_plugins.testing import tiny_trainer
    from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

    setting = tiny_setting(contract, ddp_backend="gloo", eval_strategy="no", save_steps=1, **changes)
    # Of several turns, one of which does not fit; as many that two ranks have unequal last batches.
    setting |= {"train_dataset": tiny_preferences(21, turns=3), "eval_dataset": None, "max_length": 48}
    return tiny_trainer(folder, *technique, **setting)


def resumed_preferences(rank, folder, contract):
    from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome

    technique = ["behavioral:share_prefixes=on" if contract == "dpo" else "behavioral"]
    straight = preferences_trainer(folder / "straight", technique, contract)
    straight.train()
    cut = preferences_trainer(folder / "cut", technique, contract, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = preferences_trainer(folder / "cut", technique, contract)
    again.train(resume_from_checkpoint=True)
    without = preferences_trainer(folder / "without", ["behavioral:weights=false,noise=off"], contract)
    without.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(without)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
    }


@resumes_on_two_ranks
@pytest.mark.parametrize("contract", ["dpo", "kto"])
def test_preferences_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, contract):
    pytest.importorskip("trl")
    first, second = on_both_ranks(resumed_preferences, contract)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert first["trained"]["finite"]
    assert not first["control"]
