"""Weighted classes and calibration on two ranks."""

import pytest

from tests.two_processes import RANKS, trained


def classifier(folder, ranks):
    from hf_ft_plugins.techniques.task import Task
    from hf_ft_plugins.testing import tiny_model, tiny_trainer
    from hf_ft_plugins.testing.examples import task

    model = tiny_model()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    setting = task.setting() | {"model": model, "max_steps": 4, "per_device_train_batch_size": 4 // ranks}
    backend = {"ddp_backend": "gloo"} if ranks > 1 else {}
    trainer = tiny_trainer(folder / f"run-{ranks}", Task(imbalance="weights"), **setting, **backend)
    trainer.train()
    return trainer


def weighted_classes(rank, folder):
    trainer = classifier(folder, RANKS)
    return trained(trainer) | {
        "calibration": trainer.model.config.hf_ft_task,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "report": (folder / "run-2" / "task" / "report.json").is_file() if rank == 0 else None,
    }


def test_the_loss_of_weighted_classes_and_the_calibration_are_those_of_one_process(on_both_ranks, tmp_path):
    first, second = on_both_ranks(weighted_classes)
    assert (first.pop("report"), second.pop("report")) == (True, None)
    assert first == second
    alone = classifier(tmp_path, ranks=1)
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert first["losses"] == pytest.approx(losses, rel=1e-4)
