"""The kit on two techniques, and its examples of the built-in ones."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from transformers import TrainerCallback

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import ConflictError, UnknownTechniqueError
from hf_ft_plugins.registry import DISTRIBUTION, offers
from hf_ft_plugins.testing import (
    Example,
    check_pair,
    check_technique,
    example_of,
    setting_of,
    tiny_dataset,
    tiny_model,
)
from tests.testing.sound import Sound, acted


@dataclass(frozen=True, kw_only=True)
class Other(Sound):
    name: ClassVar[str] = "other"

    def ft_callbacks(self):
        return []

    def ft_param_groups(self, groups):
        for group in groups:
            group[lr_scale.KEY] = {**group.get(lr_scale.KEY, {}), "other": 0.25}


def other_acted(technique, trainer):
    return all(group.get(lr_scale.KEY, {}).get("other") == 0.25 for group in trainer.optimizer.param_groups)


@dataclass(frozen=True, kw_only=True)
class Undoing(Other):
    """Takes away the factors of the others."""

    def ft_callbacks(self):
        return [TakingAway()]


class TakingAway(TrainerCallback):
    def on_step_end(self, args, state, control, *, optimizer, **kwargs):
        lr_scale.take_up(optimizer, ["other"])


@dataclass(frozen=True, kw_only=True)
class RefusingWhenSecond(Other):
    def ft_trainer(self, trainer):
        if trainer._ft_techniques[0] is not self:
            raise ConflictError("other: planted came first.")


@dataclass(frozen=True, kw_only=True)
class RefusingWithoutNames(Other):
    def ft_trainer(self, trainer):
        if len(trainer._ft_techniques) > 1:
            raise ConflictError("other: not in company.")


PAIRS = {
    "the effect is lost": (Undoing(), r"planted \+ other: the effect of planted does not show"),
    "refused in one order": (RefusingWhenSecond(), r"planted \+ other: they refuse each other in one order only"),
    "refused without names": (RefusingWithoutNames(), r"planted \+ other: the refusal does not name planted"),
}


@pytest.mark.parametrize("mistake", PAIRS)
def test_a_mistake_in_a_pair_is_caught(mistake, tmp_path):
    planted, message = PAIRS[mistake]
    with pytest.raises(AssertionError, match=message):
        check_pair(Example(Sound(), acted), Example(planted, other_acted), tmp_path)


# ---- examples ----


def test_every_built_in_technique_has_an_example_of_its_own():
    names = [offer.name for offer in offers() if offer.distribution == DISTRIBUTION]
    assert names
    for name in names:
        example = example_of(name)
        assert example.name == name
        assert type(example.technique) is next(offer for offer in offers() if offer.name == name).load()


def test_the_nearest_built_in_example_is_named():
    with pytest.raises(UnknownTechniqueError, match="adaptive-lr"):
        example_of("adaptive-rl")


def test_a_setting_is_made_anew_and_the_first_that_there_is_counts():
    bare, full = (
        Example(Sound(), acted),
        Example(Sound(), acted, lambda: {"model": tiny_model(), "train_dataset": tiny_dataset()}),
    )
    assert setting_of(bare) == {}
    assert setting_of(bare, full)["model"] is not setting_of(bare, full)["model"]
    assert replace(full, technique=Sound(strength=0.1)).setting is full.setting


def test_a_technique_instead_of_an_example_is_refused_in_words(tmp_path):
    with pytest.raises(AssertionError, match=r"takes an Example\(technique, acted, setting\)"):
        check_technique(Sound(), tmp_path)


def test_importing_the_kit_imports_no_more_of_others_than_trainer_does():
    code = (
        "import sys; from transformers import Trainer; before = set(sys.modules); import hf_ft_plugins.testing; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new & {'trl', 'peft', 'datasets', 'sklearn', 'pytest', 'bitsandbytes', 'torchjd'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"
