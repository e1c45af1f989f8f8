"""Adapters on two ranks."""

import contextlib

import pytest

from tests.two_processes import build, resumes_on_two_ranks, trained


def resumed_adapter(rank, folder, options):
    from hf_ft_plugins.techniques.peft import Peft
    from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome

    technique = Peft(r=4, export="both", **options)
    straight = build(folder / "straight", technique)
    straight.train()
    cut = build(folder / "cut", technique, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = build(folder / "cut", technique)
    again.train(resume_from_checkpoint=True)
    other = build(folder / "other", technique, seed=1)
    other.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(other)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
        "exported": sorted(path.name for path in (folder / "cut").glob("[am]*/*.safetensors")),
    }


@resumes_on_two_ranks
@pytest.mark.parametrize("options", [{"method": "adalora"}, {"method": "eva"}, {"quant": "nf4"}], ids=str)
def test_adapters_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, options):
    pytest.importorskip("bitsandbytes")
    first, second = on_both_ranks(resumed_adapter, options)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert first["exported"] == ["adapter_model.safetensors", "model.safetensors"]
    assert not first["control"]
