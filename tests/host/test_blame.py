"""An exception out of a technique's part says whose part it is; a host class can be made twice."""

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler
from transformers import DefaultDataCollator, Trainer, TrainerCallback

from hf_ft_plugins import AdaptiveLR, with_plugins
from hf_ft_plugins.errors import ConflictError
from hf_ft_plugins.technique import Technique, option
from hf_ft_plugins.testing import tiny_trainer


class Breaking(TrainerCallback):
    def __init__(self, where):
        self.where = where

    def on_step_end(self, args, state, control, **kwargs):
        if self.where == "on_step_end":
            raise ZeroDivisionError

    def on_evaluate(self, args, state, control, **kwargs):
        if self.where == "on_evaluate":
            raise ZeroDivisionError

    def state_dict(self):
        if self.where == "state_dict":
            raise ZeroDivisionError
        return {}

    def load_state_dict(self, state):
        pass


@dataclass(frozen=True, kw_only=True)
class Breaks(Technique):
    name: ClassVar[str] = "breaks"
    summary: ClassVar[str] = "raises an error"

    where: str = option("nowhere", help="in which event")
    other: int = option(1, help="left as it is")

    def ft_callbacks(self):
        return [Breaking(self.where)]


@pytest.mark.parametrize("where", ["on_step_end", "on_evaluate", "state_dict"])
def test_an_error_in_a_part_names_its_technique_once(tmp_path, where):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(), Breaks(where=where), max_steps=3)
    with pytest.raises(ZeroDivisionError) as broken:
        trainer.train()
    (note,) = broken.value.__notes__
    assert note.startswith(f"in Breaking.{where} of technique breaks (")
    assert note.endswith(f"options {{'where': '{where}'}}")


class BreakingSampler(SequentialSampler):
    def __iter__(self):
        raise ZeroDivisionError


class BreakingBatches(BatchSampler):
    def __iter__(self):
        yield [0, 1]
        raise ZeroDivisionError


class BreakingStream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield [self.rows[0]]
        raise ZeroDivisionError


class BreakingDataset(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        raise ZeroDivisionError


class BreakingCollator(DefaultDataCollator):
    def __call__(self, features, return_tensors=None):
        raise ZeroDivisionError


class BreakingScheduler(torch.optim.lr_scheduler.LambdaLR):
    def step(self, epoch=None):
        if self.last_epoch > 0:
            raise ZeroDivisionError
        super().step(epoch)


def breaking_loss(outputs, labels, num_items_in_batch=None, scale=1):
    raise ZeroDivisionError


def breaking_metrics(predictions):
    raise ZeroDivisionError


def breaking_collate(features):
    raise ZeroDivisionError


class BreakingContext(contextlib.AbstractContextManager):
    def __init__(self, event):
        self.event = event

    def __enter__(self):
        if self.event == "enter":
            raise ZeroDivisionError

    def __exit__(self, kind, error, trace):
        if self.event == "exit":
            raise ZeroDivisionError


@contextlib.contextmanager
def passing_through():
    yield


@dataclass(frozen=True, kw_only=True)
class BreaksIn(Technique):
    name: ClassVar[str] = "breaks-in"
    summary: ClassVar[str] = "supplies a part that raises an error"

    part: str = option("none", help="which part")

    def ft_sampler(self, dataset):
        return BreakingSampler(dataset) if self.part == "sampler" else None

    def ft_batch_sampler(self, dataset, sampler):
        if self.part == "batch sampler":
            return BreakingBatches(SequentialSampler(dataset), 2, True)
        return BreakingStream(dataset) if self.part == "stream" else None

    def ft_dataset(self, dataset, split):
        return BreakingDataset(dataset) if self.part == f"{split} data" else None

    def ft_collator(self, collator, split):
        if self.part == "function":
            return breaking_collate
        return BreakingCollator() if self.part == f"{split} collator" else collator

    def ft_loss_function(self):
        return {"loss": breaking_loss, "partial loss": partial(breaking_loss, scale=2)}.get(self.part)

    def ft_metrics(self):
        return breaking_metrics if self.part == "metrics" else None

    def ft_scheduler(self, optimizer):
        return BreakingScheduler(optimizer, lambda step: 1.0) if self.part == "scheduler" else None

    def ft_eval_sampler(self, dataset):
        return BreakingSampler(dataset) if self.part == "eval sampler" else None

    def ft_loss(self):
        kind, _, event = self.part.partition(" context ")
        return BreakingContext(event) if kind == "loss" else passing_through()

    def ft_evaluation(self):
        kind, _, event = self.part.partition(" context ")
        return BreakingContext(event) if kind == "evaluation" else passing_through()


PARTS = {
    "sampler": "BreakingSampler.__iter__",
    "batch sampler": "BreakingBatches.__iter__",
    "train data": "BreakingDataset.__getitem__",
    "eval data": "BreakingDataset.__getitem__",
    "train collator": "BreakingCollator.__call__",
    "eval collator": "BreakingCollator.__call__",
    "function": "breaking_collate",
    "loss": "breaking_loss",
    "partial loss": "breaking_loss",
    "metrics": "breaking_metrics",
    "scheduler": "BreakingScheduler.step",
    "eval sampler": "BreakingSampler.__iter__",
    "loss context enter": "the context of ft_loss",
    "loss context exit": "the context of ft_loss",
    "evaluation context enter": "the context of ft_evaluation",
    "evaluation context exit": "the context of ft_evaluation",
}
WORKERS = {
    "train data": "BreakingDataset.__getitem__",
    "eval collator": "BreakingCollator.__call__",
    "function": "breaking_collate",
    "stream": "BreakingStream.__iter__",
}


def note_of(trainer):
    with pytest.raises(ZeroDivisionError) as broken:
        trainer.train()
    (note,) = broken.value.__notes__
    return note


@pytest.mark.parametrize("part", PARTS)
def test_an_error_in_what_a_hook_returned_names_its_technique_once(tmp_path, part):
    note = note_of(tiny_trainer(tmp_path, AdaptiveLR(), BreaksIn(part=part), max_steps=3))
    assert note.startswith(f"in {PARTS[part]} of technique breaks-in (")
    assert note.endswith(f"options {{'part': '{part}'}}")


@pytest.mark.parametrize("part", WORKERS)
def test_an_error_in_a_worker_of_the_data_loader_names_its_technique_once(tmp_path, part):
    workers = {"max_steps": 3, "dataloader_num_workers": 1}
    note = note_of(tiny_trainer(tmp_path, AdaptiveLR(), BreaksIn(part=part), **workers))
    assert note.startswith(f"in {WORKERS[part]} of technique breaks-in (")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_scripts_parts_beside_a_techniques_is_nobodys(tmp_path, workers):
    class Theirs(DefaultDataCollator):
        def __call__(self, features, return_tensors=None):
            raise ZeroDivisionError

    settings = {"max_steps": 3, "dataloader_num_workers": workers, "data_collator": Theirs()}
    trainer = tiny_trainer(tmp_path, BreaksIn(), **settings)
    with pytest.raises(ZeroDivisionError) as broken:
        trainer.train()
    assert not getattr(broken.value, "__notes__", [])


def test_an_error_of_the_model_within_a_techniques_context_is_nobodys(tmp_path):
    trainer = tiny_trainer(tmp_path, BreaksIn(), max_steps=3)

    def forward(*args, **kwargs):
        raise ZeroDivisionError

    trainer.model.forward = forward
    with pytest.raises(ZeroDivisionError) as broken:
        trainer.train()
    assert not getattr(broken.value, "__notes__", [])


def test_the_scripts_own_error_is_nobodys(tmp_path):
    class Theirs(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ZeroDivisionError

    trainer = tiny_trainer(tmp_path, Breaks(), max_steps=3, callbacks=[Theirs()])
    with pytest.raises(ZeroDivisionError) as broken:
        trainer.train()
    assert not getattr(broken.value, "__notes__", [])


def test_the_line_that_makes_a_host_may_be_run_again_with_other_options(caplog):
    once = with_plugins(Trainer, "adaptive-lr:patience=1", "peft")
    again = with_plugins(once, "adaptive-lr:patience=2")
    assert [str(technique) for technique in again._ft_techniques] == ["peft", "adaptive-lr:patience=2"]
    assert "adaptive-lr:patience=2 replaces adaptive-lr:patience=1" in caplog.text
    with pytest.raises(ConflictError, match="named twice"):
        with_plugins(Trainer, "adaptive-lr:patience=1", "adaptive-lr")
