"""Several tasks on two ranks."""

import contextlib

import pytest

from tests.two_processes import RANKS, trained


def tasks_trainer(folder, ranks, option, **changes):
    import torch

    from hf_ft_plugins.techniques.multitask import MultiTask
    from hf_ft_plugins.testing import tiny_trainer
    from hf_ft_plugins.testing.examples.multitask import tiny_setting

    setting = tiny_setting()
    for module in setting["model"].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    backend = {"ddp_backend": "gloo"} if ranks > 1 else {}
    setting |= {"per_device_train_batch_size": 4 // ranks, **backend, **changes}
    return tiny_trainer(folder / f"run-{ranks}", MultiTask(update_every=2, **option), **setting)


def tasks_learned(rank, folder, option, changes):
    trainer = tasks_trainer(folder, RANKS, option, **changes)
    trainer.train()
    return trained(trainer) | {"losses": losses_of_tasks(trainer)}


def losses_of_tasks(trainer):
    names = ("loss", "loss_tag", "loss_parse", "loss_mood")
    return [entry.get(name, 0.0) for entry in trainer.state.log_history if "loss_tag" in entry for name in names]


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ({"mix": "uniform"}, {}),
        ({"mix": "uniform"}, {"gradient_checkpointing": True}),
        ({"mix": "uniform", "batches": "mixed"}, {}),
        ({"mix": "loss_ratio"}, {}),
        ({"mix": "round_robin", "balance": "pcgrad"}, {}),
        ({"mix": "round_robin", "balance": "gradnorm"}, {}),
    ],
    ids=str,
)
def test_several_tasks_on_two_ranks_have_the_losses_of_one(on_both_ranks, tmp_path, option, changes):
    first, second = on_both_ranks(tasks_learned, option, changes)
    assert first == second
    alone = tasks_trainer(tmp_path, 1, option, **changes)
    alone.train()
    assert first["losses"] == pytest.approx(losses_of_tasks(alone), rel=1e-4)


def resumed_tasks(rank, folder, option):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    small = {"max_steps": 12, "save_steps": 1}
    straight = tasks_trainer(folder / "straight", RANKS, option, **small)
    straight.train()
    cut = tasks_trainer(folder / "cut", RANKS, option, callbacks=[InterruptAt(7)], **small)
    with contextlib.suppress(Interruption):
        cut.train()
    again = tasks_trainer(folder / "cut", RANKS, option, **small)
    again.train(resume_from_checkpoint=True)
    return {
        "straight": trained(straight)["weights"],
        "again": trained(again)["weights"],
        "epoch": 7 / (straight.state.max_steps / straight.state.num_train_epochs),
        "losses": losses_of_tasks(again) == losses_of_tasks(straight),
    }


@pytest.mark.parametrize("option", [{"mix": "uniform"}, {"mix": "progress"}], ids=str)
def test_several_tasks_resume_in_the_middle_of_a_later_epoch_on_two_ranks(on_both_ranks, option):
    first, second = on_both_ranks(resumed_tasks, option)
    assert first == second
    assert first["again"] == first["straight"]
    assert first["losses"]
