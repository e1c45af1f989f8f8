"""Whatever a technique raises, and in whichever hook: model and arguments are as they were, whoever changed them."""

import contextlib
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch

from hf_ft_plugins import registry
from hf_ft_plugins.errors import ConflictError
from hf_ft_plugins.host import adapter
from hf_ft_plugins.technique import Technique
from hf_ft_plugins.testing import example_of, tiny_trainer

ASKED = ("ft_model", "ft_adapter", "ft_dataset", "ft_collator", "ft_metrics", "ft_callbacks", "ft_trainer")
BUILT_IN = sorted(offer.name for offer in registry.offers() if offer.distribution == "hf-ft-plugins")


class Broken(Exception):
    """Of no class that anybody expects."""


def breaks_in(hook, error=Broken):
    """A technique that raises in one hook, and answers no other."""

    def broken(self, args):
        raise error

    def broken_without_arguments(self):
        raise error

    method = broken_without_arguments if hook == "ft_trainer" else broken
    space = {
        "name": "breaks",
        "summary": "raises",
        "__annotations__": {"name": ClassVar[str], "summary": ClassVar[str]},
    }
    return dataclass(frozen=True, kw_only=True)(type("Breaks", (Technique,), {**space, hook: method}))()


def shape_of(model):
    """Everything but the values of weights, by identity where there is one."""
    modules = {name: (id(module), type(module), module.training) for name, module in model.named_modules()}
    weights = {
        name: (id(parameter), parameter.requires_grad, parameter.dtype, tuple(parameter.shape))
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    numbers = {name: getattr(module, "layer_idx", None) for name, module in model.named_modules()}
    return modules, weights, numbers, model.config.to_dict(), str(model)


def values_of(args):
    return {field.name: getattr(args, field.name) for field in fields(args)}


def build(folder, name, hook, error=Broken):
    example = example_of(name)
    setting = example.setting()
    # Trainer's own `__init__`, and TRL's, change the model too; that has happened before.
    model = tiny_trainer(folder / "stock", **setting).model
    setting["model"] = model
    before = shape_of(model)
    # Two that own the same hook are refused before anything is asked.
    with pytest.raises((error, ConflictError)):
        tiny_trainer(folder / "run", example.technique, breaks_in(hook, error), **setting)
    return before, shape_of(model)


@pytest.mark.parametrize("hook", ASKED)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_technique_that_raises_leaves_what_the_ones_before_it_found(name, hook, tmp_path):
    before, after = build(tmp_path, name, hook)
    assert after == before


def test_an_interrupt_does_too(tmp_path):
    before, after = build(tmp_path, "layer-removal", "ft_trainer", KeyboardInterrupt)
    assert after == before


@pytest.mark.parametrize("name", ["layer-removal", "peft"])
def test_control_without_the_undoing_it_does_not(name, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "unchanged_on_error", lambda model, **_: contextlib.nullcontext())
    before, after = build(tmp_path, name, "ft_trainer")
    assert after != before


def test_weights_that_an_adapter_changed_hold_what_they_held(tmp_path):
    model = tiny_trainer(tmp_path / "stock").model
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in model.named_parameters()}
    with pytest.raises(Broken):
        tiny_trainer(tmp_path / "run", "peft:method=pissa,r=2", breaks_in("ft_trainer"), model=model)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_arguments_are_as_they_were(tmp_path):
    from transformers import Trainer, TrainingArguments

    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.testing import tiny_dataset, tiny_model

    @dataclass(frozen=True, kw_only=True)
    class Sets(Technique):
        name: ClassVar[str] = "sets"
        summary: ClassVar[str] = "changes the arguments"

        def ft_trainer(self, trainer):
            trainer.args.metric_for_best_model = "accuracy"
            trainer.args.load_best_model_at_end = True

    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    before = values_of(args)
    with pytest.raises(Broken):
        with_plugins(Trainer, Sets(), breaks_in("ft_trainer"))(
            model=tiny_model(), args=args, train_dataset=tiny_dataset()
        )
    assert values_of(args) == before
    with_plugins(Trainer, Sets())(model=tiny_model(), args=args, train_dataset=tiny_dataset())
    assert values_of(args) != before
