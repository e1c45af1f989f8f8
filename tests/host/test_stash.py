"""The state of one run: each trainer has its own, keys are found by identity, and copies leave the trainer out."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from transformers import Trainer

from hf_ft_plugins import Technique, with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.stash import Stash, StashKey, WithTrainer, parts_of, stash_of
from hf_ft_plugins.testing import tiny_trainer

FOUND = StashKey[int]("the number that was found")


@dataclass(frozen=True, kw_only=True)
class Finding(Technique):
    name: ClassVar[str] = "finding"
    summary: ClassVar[str] = "find a number in the data and use it at the end"

    def ft_dataset(self, dataset: Any, split: str, stash: Stash) -> Any:
        if split == "train":
            stash[FOUND] = len(dataset)
        return None

    def ft_trainer(self, trainer: Any) -> None:
        trainer.found_at_the_end = stash_of(trainer)[FOUND]


class Part(WithTrainer):
    def __init__(self):
        self.count = 3

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_one_hook_keeps_a_later_one_of_the_same_run_finds(tmp_path):
    first = tiny_trainer(tmp_path, Finding())
    second = tiny_trainer(tmp_path, Finding(), train_dataset=first.train_dataset[:5])
    assert first.found_at_the_end == len(first.train_dataset)
    assert second.found_at_the_end == 5
    assert stash_of(first)[FOUND] == len(first.train_dataset)


def test_keys_of_one_name_are_two_keys():
    stash = Stash()
    stash[FOUND] = 1
    other = StashKey[int](FOUND.name)
    assert other not in stash
    assert stash.get(other) is None
    assert stash.get(other, 7) == 7
    assert list(stash) == [FOUND]


def test_what_was_never_found_is_an_error_that_names_it():
    with pytest.raises(PluginError, match="the number that was found is not known yet"):
        Stash()[FOUND]


def test_a_stock_trainer_has_a_stash_of_its_own(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_class=Trainer)
    assert not isinstance(trainer, with_plugins(Trainer).__mro__[1])
    stash_of(trainer)[FOUND] = 2
    assert stash_of(trainer)[FOUND] == 2
    assert parts_of(trainer) == {}
    assert parts_of(None) == {}


def test_two_parts_of_one_class_with_state_are_refused():
    stash = Stash()
    stash.keep_part("finding", object())
    assert not stash.parts
    stash.keep_part("finding", Part())
    assert list(stash.parts) == ["finding/Part"]
    with pytest.raises(PluginError, match="two parts of class Part"):
        stash.keep_part("finding", Part())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_of_a_part_are_without_the_trainer(copied):
    part = Part()
    part.set_trainer(object())
    other = copied(part)
    assert (other.count, other._trainer) == (3, None)
    assert part._trainer is not None
