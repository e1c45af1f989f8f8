"""An exception out of a technique's part says whose part it is; a host class can be made twice."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from transformers import Trainer, TrainerCallback

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
