"""The end of a run has phases: what changes the model, then what reports on it, then what exports it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.endings import END_PHASES, in_phases
from hf_ft_plugins.technique import Technique
from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer
from tests.host.test_preemption import preempted

ended = []


class Ends(TrainerCallback):
    def __init__(self, name, phase=None):
        self.name, self.end_phase = name, phase

    def on_train_end(self, args, state, control, **kwargs):
        ended.append(self.name)


@dataclass(frozen=True, kw_only=True)
class ExportsFirst(Technique):
    name: ClassVar[str] = "exports-first"
    summary: ClassVar[str] = "callbacks of all phases, in the wrong order"

    def ft_callbacks(self):
        return [Ends(phase, phase) for phase in reversed(END_PHASES)]


@dataclass(frozen=True, kw_only=True)
class PutsBack(Technique):
    name: ClassVar[str] = "puts-back"
    summary: ClassVar[str] = "a callback of no phase"

    def ft_callbacks(self):
        return [Ends("put back")]


@pytest.fixture(autouse=True)
def _afresh():
    ended.clear()


@pytest.mark.parametrize("techniques", [(ExportsFirst(), PutsBack()), (PutsBack(), ExportsFirst())])
def test_the_phases_come_in_order_whatever_the_order_listed_and_exports_after_the_script(techniques, tmp_path):
    trainer = tiny_trainer(tmp_path, *techniques, callbacks=[Ends("the script's")], max_steps=2)
    before = list(trainer.callback_handler.callbacks)
    trainer.train()
    assert ended == ["put back", "gate", "calibrate", "report", "the script's", "export"]
    assert trainer.callback_handler.callbacks == before


def test_control_without_phases_the_order_is_the_one_of_the_callbacks(tmp_path):
    callbacks = [*ExportsFirst().ft_callbacks(), Ends("the script's")]
    tiny_trainer(tmp_path, callbacks=callbacks, max_steps=2).train()
    assert ended == [*reversed(END_PHASES), "the script's"]


def test_a_callback_that_comes_or_goes_at_the_end_has_come_or_gone(tmp_path):
    class Leaves(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            trainer.remove_callback(self)
            trainer.add_callback(arrived)

    leaves, arrived = Leaves(), Ends("arrived")
    trainer = tiny_trainer(tmp_path, ExportsFirst(), callbacks=[leaves], max_steps=2)
    trainer.train()
    assert leaves not in trainer.callback_handler.callbacks
    assert arrived in trainer.callback_handler.callbacks


def test_two_equal_callbacks_stay_two():
    class Equal:
        end_phase = None

        def __eq__(self, other):
            return True

        __hash__ = None

    first, second = Equal(), Equal()
    ordered = in_phases([first, second], [second])
    assert [id(one) for one in ordered] == [id(first), id(second)]


def test_an_unknown_phase_is_refused_when_the_trainer_is_built(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Later(PutsBack):
        def ft_callbacks(self):
            return [Ends("later", "later")]

    with pytest.raises(PluginError, match="puts-back: Ends has end_phase='later'; there are gate, calibrate"):
        tiny_trainer(tmp_path, Later())


def test_a_run_that_was_told_to_end_reaches_no_phase(tmp_path):
    preempted(tmp_path, "on_step_begin", 4, ExportsFirst(), PutsBack())
    assert ended == ["put back"]


def test_a_pruned_trial_reaches_no_phase(tmp_path):
    class Prunes(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    trainer = tiny_trainer(tmp_path, ExportsFirst(), PutsBack(), model_init=lambda: tiny_model(), save_strategy="no")
    search = {"hp_space": lambda trial: {}, "backend": "optuna", "n_trials": 1, "direction": "minimize"}
    with pytest.raises(ValueError, match="No trials are completed"):
        trainer.hyperparameter_search(pruner=Prunes(), **search)
    assert ended == ["put back"]


class Doubles(TrainerCallback):
    """A script that changes its weights when training ends, as averaging callbacks do."""

    def on_train_end(self, args, state, control, *, model, **kwargs):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(2)


@pytest.mark.parametrize("techniques", [("peft:export=both", "task"), ("task", "peft:export=both")])
def test_what_is_exported_is_what_the_run_ends_with(techniques, tmp_path):
    def rows(size, seed):
        columns = tiny_dataset(size, seed=seed)
        data = {name: [row[name].tolist() for row in columns] for name in ("input_ids", "attention_mask")}
        # Some labels are wrong, so that a temperature other than 1 helps.
        wrong = np.random.default_rng(seed).random(size) < 0.3
        labels = [int(row["labels"]) ^ int(flip) for row, flip in zip(columns, wrong, strict=True)]
        return Dataset.from_dict({**data, "labels": labels}).cast_column("labels", ClassLabel(names=["no", "yes"]))

    trainer = tiny_trainer(
        tmp_path,
        *techniques,
        train_dataset=rows(64, 0),
        eval_dataset=rows(200, 1),
        callbacks=[Doubles()],
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=3e-2,
        save_strategy="no",
        eval_strategy="no",
    )
    trainer.train()
    assert trainer.model.config.hf_ft_task["temperature"] != 1.0
    batch = torch.tensor(rows(8, 2)["input_ids"])
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        wanted, found = (model.eval()(input_ids=batch).logits for model in (trainer.model, merged))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
