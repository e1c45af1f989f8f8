"""Techniques that order the training rows, and trainers whose classes order or load them themselves."""

import pytest
from torch.utils.data import SequentialSampler
from transformers import Trainer

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.own_order import own_order
from hf_ft_plugins.testing import example_of, setting_of, tiny_trainer
from hf_ft_plugins.testing.examples.task import tiny_rows

DRAWING = "task:imbalance=sampler"


class Ordered(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


class Loading(Trainer):
    def get_train_dataloader(self):
        return self.get_eval_dataloader(self.train_dataset)


class Watching(Trainer):
    """Its loader is Trainer's."""

    loads = 0

    def get_train_dataloader(self):
        self.loads += 1
        return super().get_train_dataloader()


def data():
    return {"train_dataset": tiny_rows(24), "eval_dataset": tiny_rows(8, seed=1)}


@pytest.mark.parametrize("cls", [Ordered, Loading])
def test_an_order_that_would_be_lost_is_refused_before_the_first_step(cls, tmp_path):
    trainer = tiny_trainer(tmp_path, DRAWING, trainer_class=cls, **data())
    with pytest.raises(PluginError, match=rf"^task: it orders the training rows, and {cls.__name__} has") as refusal:
        trainer.train()
    assert refusal.value.code == "trainer-unsuited"
    assert trainer.state.global_step == 0


def test_batches_of_a_technique_are_not_lost_either(tmp_path):
    setting = setting_of(example_of("text2text"))
    base = setting.pop("trainer_class", Trainer)
    ordered = type("Ordered", (base,), {"_get_train_sampler": Ordered._get_train_sampler, "__module__": __name__})
    trainer = tiny_trainer(tmp_path, example_of("text2text").technique, trainer_class=ordered, **setting)
    with pytest.raises(PluginError, match=r"^text2text: it orders the training rows, and Ordered has"):
        trainer.train()


@pytest.mark.parametrize("cls", [Ordered, Loading])
def test_without_a_technique_that_orders_they_train(cls, tmp_path):
    trainer = tiny_trainer(tmp_path, "task", trainer_class=cls, **data())
    trainer.train()
    assert trainer.state.global_step > 0


def test_a_loader_that_is_trainers_after_all_is_drawn_by_the_technique(tmp_path):
    trainer = tiny_trainer(tmp_path, DRAWING, trainer_class=Watching, **data())
    trainer.train()
    assert trainer.loads
    assert type(trainer.train_order).__module__.startswith("hf_ft_plugins")


@pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer"])
def test_trls_trainers_that_draw_each_prompt_several_times_are_known(name):
    trl = pytest.importorskip("trl")
    cls, methods = own_order(getattr(trl, name))
    assert cls.__name__ == name
    assert "_get_train_sampler" in methods


@pytest.mark.parametrize("name", ["SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer"])
def test_trls_others_leave_the_order_to_trainer(name):
    trl = pytest.importorskip("trl")
    assert own_order(getattr(trl, name)) is None
