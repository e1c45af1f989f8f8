"""Models without layers on two ranks."""

import json

import pytest

from tests.two_processes import (
    assert_both_resumed,
    build,
    compared_on_a_rank,
    resumes_on_two_ranks,
    straight_and_resumed,
    trained,
)


def language_trainer(folder, technique, make=build, **changes):
    import torch

    from hf_ft_plugins.testing.examples.behavioral import tiny_llama

    ids = torch.randint(3, 380, (24, 16), generator=torch.Generator().manual_seed(1))
    # As many scored tokens as the row's number says, so that a mean of the ranks' means is another.
    rows = [
        {"input_ids": row, "labels": row.masked_fill(torch.arange(16) >= 4 + number % 9, -100)}
        for number, row in enumerate(ids)
    ]
    data = {"train_dataset": rows, "eval_dataset": rows[:6]}
    return make(folder, technique, model=tiny_llama(num_hidden_layers=5), **data, **changes)


def resumed_without_layers(rank, folder, options):
    technique = f"layer-removal:number=2,max_degradation=none,{options}"

    def make(folder, **changes):
        return language_trainer(folder, technique, **changes)

    straight, again = straight_and_resumed(folder, make)
    other = make(folder / "other", seed=1)
    other.train()
    return compared_on_a_rank(straight, again, other) | {
        "removed": again.model.config.removed_layers[""],
        "report": json.loads((folder / "cut" / "layer_removal_report.json").read_text()),
    }


@resumes_on_two_ranks
@pytest.mark.parametrize("options", ["method=perplexity", "method=taylor,distill=0.5"])
def test_without_layers_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, options):
    first, second = on_both_ranks(resumed_without_layers, options)
    assert_both_resumed(first, second)
    assert len(first["removed"]) == 2
    assert first["removed"] == second["removed"] == first["report"]["removed"]


def healed(rank, folder, per_device, weight):
    import torch

    from hf_ft_plugins.testing import tiny_trainer

    technique = f"layer-removal:layers=2,max_degradation=none,distill={weight}"
    trainer = language_trainer(
        folder / f"{weight}",
        technique,
        make=tiny_trainer if rank is None else build,
        per_device_train_batch_size=per_device,
        optim="sgd",
        learning_rate=0.1,
        max_steps=4,
        eval_strategy="no",
    )
    trainer.train()
    return torch.cat([tensor.flatten() for tensor in trainer.model.state_dict().values()]).tolist()


def test_two_ranks_learn_from_the_original_as_one(on_both_ranks, tmp_path):
    import torch

    first, second = (torch.tensor(weights) for weights in on_both_ranks(healed, 2, 2.0))
    assert torch.equal(first, second)
    alone = torch.tensor(healed(None, tmp_path / "alone", 4, 2.0))
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
    undistilled = torch.tensor(healed(None, tmp_path / "alone", 4, 0.0))
    assert not torch.allclose(first, undistilled, rtol=1e-4, atol=1e-6)


def a_gate_fails(rank, folder):
    from hf_ft_plugins.errors import PluginError

    trainer = language_trainer(folder / "run", "layer-removal:number=1", learning_rate=3.0, optim="sgd")
    try:
        trainer.train()
    except PluginError as error:
        return {"raised": str(error), "layers": len(trainer.model.model.layers), "trained": trained(trainer)}
    return {"raised": None}


def test_both_ranks_end_when_the_gate_fails(on_both_ranks):
    first, second = on_both_ranks(a_gate_fails)
    assert "original again" in first["raised"]
    assert first == second
    assert first["layers"] == 5
