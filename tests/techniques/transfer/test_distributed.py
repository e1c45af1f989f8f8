"""Unfreezing and the cached probe on two ranks."""

import pytest

from tests.two_processes import build, trained


def unfrozen(folder, strategy, **changes):
    import torch

    from hf_ft_plugins.testing import tiny_model, tiny_trainer

    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    technique = f"transfer:strategy={strategy},cache_features=never,probe_learning_rate=0.02"
    changes |= {"model": model, "save_strategy": "no", "eval_strategy": "no", "train_sampling_strategy": "sequential"}
    trainer = tiny_trainer(folder, technique, **changes)
    # Else Trainer takes BERT's mean for one over all micro-batches and ranks, and scales it up with their number.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return trained(trainer) | {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def unfrozen_on_ranks(rank, folder, strategy):
    return unfrozen(folder / "run", strategy, ddp_backend="gloo")


@pytest.mark.parametrize("strategy", ["gradual", "lpft", "full"])
def test_unfreezing_trains_two_ranks_as_one(on_both_ranks, tmp_path, strategy):
    first, second = on_both_ranks(unfrozen_on_ranks, strategy)
    assert first == second
    alone = unfrozen(tmp_path / "alone", strategy, per_device_train_batch_size=4)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)


def probed_on_ranks(rank, folder, options, note):
    trainer = build(folder / "run", f"transfer:{options}", save_strategy="no", eval_strategy="no")
    trainer.train()
    return trained(trainer) | {"note": trainer.state.log_history[0][note]}


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ("probe_steps=30,read_out=keep", "transfer/probe_loss"),
        ("read_out=auto", "transfer/left_out_accuracy"),
    ],
)
def test_a_cached_probe_and_a_solved_head_leave_both_ranks_with_one(on_both_ranks, options, note):
    first, second = on_both_ranks(probed_on_ranks, options, note)
    assert first == second
