"""Adapters on two ranks."""

import pytest

from tests.two_processes import (
    assert_both_resumed,
    build,
    compared_on_a_rank,
    resumes_on_two_ranks,
    straight_and_resumed,
)


def resumed_adapter(rank, folder, options):
    from hf_ft_plugins.techniques.peft import Peft

    technique = Peft(r=4, export="both", **options)

    def make(folder, **changes):
        return build(folder, technique, **changes)

    straight, again = straight_and_resumed(folder, make)
    other = make(folder / "other", seed=1)
    other.train()
    exported = sorted(path.name for path in (folder / "cut").glob("[am]*/*.safetensors"))
    return compared_on_a_rank(straight, again, other) | {"exported": exported}


@resumes_on_two_ranks
@pytest.mark.parametrize("options", [{"method": "adalora"}, {"method": "eva"}, {"quant": "nf4"}], ids=str)
def test_adapters_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, options):
    pytest.importorskip("bitsandbytes")
    first, second = on_both_ranks(resumed_adapter, options)
    assert_both_resumed(first, second)
    assert first["exported"] == ["adapter_model.safetensors", "model.safetensors"]
