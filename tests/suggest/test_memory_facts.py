"""What a training step takes, and what the device has."""

import copy
from dataclasses import replace

import torch

from hf_ft_plugins.memory.estimate import GIB
from hf_ft_plugins.suggest.facts import facts_of
from hf_ft_plugins.testing import tiny_model, tiny_trainer

from .runs import classifier


def test_memory_is_that_of_the_widest_batch_and_less_where_weights_are_frozen(tmp_path):
    small = facts_of(classifier(tmp_path, per_device_train_batch_size=2)).memory
    large = facts_of(classifier(tmp_path, per_device_train_batch_size=32)).memory
    assert small.needed < large.needed
    model = tiny_model()
    model.base_model.requires_grad_(False)
    assert facts_of(classifier(tmp_path, per_device_train_batch_size=2, model=model)).memory.needed < small.needed


def test_a_budget_takes_the_place_of_the_devices_memory(tmp_path):
    trainer = classifier(tmp_path)
    facts = facts_of(trainer).memory
    assert facts.available > GIB
    assert not facts.is_short
    tight = facts_of(trainer, budget=0.9 * facts.needed / GIB).memory
    assert tight.is_short
    assert "per_device_train_batch_size=1" in tight.advice
    assert not replace(tight, available=tight.needed).is_short


def test_where_memory_cannot_be_estimated_it_is_said_why(tmp_path):
    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, labels=None):
            return {"loss": ((self.weight * x - labels) ** 2).mean()}

    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 16
    facts = facts_of(tiny_trainer(tmp_path, model=Line(), train_dataset=rows, eval_dataset=rows))
    assert facts.memory.needed is None
    assert "configuration" in facts.memory.why_unknown
    assert facts.model.kind == "other"


def test_nothing_of_the_trainer_is_changed(tmp_path):
    trainer = classifier(tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    args, config = copy.deepcopy(trainer.args.to_dict()), copy.deepcopy(trainer.model.config.to_dict())
    facts_of(trainer, budget=0.0001)
    assert trainer.args.to_dict() == args
    assert trainer.model.config.to_dict() == config
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
