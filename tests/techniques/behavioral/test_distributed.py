"""Preferences on two ranks."""

import pytest

from tests.two_processes import (
    assert_both_resumed,
    compared_on_a_rank,
    resumes_on_two_ranks,
    straight_and_resumed,
)


def preferences_trainer(folder, technique, contract, **changes):
    from hf_ft_plugins.testing import tiny_trainer
    from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

    setting = tiny_setting(contract, ddp_backend="gloo", eval_strategy="no", save_steps=1, **changes)
    # Of several turns, one of which does not fit; as many that two ranks have unequal last batches.
    setting |= {"train_dataset": tiny_preferences(21, turns=3), "eval_dataset": None, "max_length": 48}
    return tiny_trainer(folder, *technique, **setting)


def resumed_preferences(rank, folder, contract):
    technique = ["behavioral:share_prefixes=on" if contract == "dpo" else "behavioral"]

    def make(folder, **changes):
        return preferences_trainer(folder, technique, contract, **changes)

    straight, again = straight_and_resumed(folder, make)
    without = preferences_trainer(folder / "without", ["behavioral:weights=false,noise=off"], contract)
    without.train()
    return compared_on_a_rank(straight, again, without)


@resumes_on_two_ranks
@pytest.mark.parametrize("contract", ["dpo", "kto"])
def test_preferences_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, contract):
    pytest.importorskip("trl")
    first, second = on_both_ranks(resumed_preferences, contract)
    assert_both_resumed(first, second)
    assert first["trained"]["finite"]
