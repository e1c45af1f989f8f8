"""The kit catches mistakes: a sound technique passes, and each planted mistake is caught with the technique's name."""

import itertools
import random
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import lr_scale
from hf_ft_plugins.testing import (
    Example,
    check_run,
    check_technique,
)
from hf_ft_plugins.testing.checks import check_options
from tests.testing.sound import NAME, Counting, Sound, acted, always, technique, with_callback


def test_a_sound_technique_passes(tmp_path):
    check_technique(Example(Sound(words=("a", "b")), acted), tmp_path)


# ---- planted mistakes: options ----


@dataclass(frozen=True, kw_only=True)
class WithoutHelp(Sound):
    bare: int = 3


@dataclass(frozen=True, kw_only=True)
class Rounding(Sound):
    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "strength", self.strength / 2)


@dataclass(frozen=True, kw_only=True)
class Lenient(Sound):
    @classmethod
    def from_options(cls, options):
        known = {"strength", "words"}
        return super().from_options({key: value for key, value in options.items() if key in known})


OPTIONS = {
    "no name": (technique(name=""), "Planted has no name"),
    "a name that no command line takes": (technique(name="Planted:x"), "Planted:x: its name is to be lower-case"),
    "no summary": (technique(summary=""), "planted has no summary"),
    "a summary of two lines": (technique(summary="a\nb"), "planted: its summary is more than one line"),
    "an option without help": (WithoutHelp(), "planted: option bare has no help"),
    "an option that changes each time": (Rounding(), "planted: .* does not give"),
    "unknown options are taken": (Lenient(), "planted: an unknown option, no_such_option, is not refused"),
}


# ---- planted mistakes: questions and building ----


def raises_on_strength(self, other):
    return other.strength


def draws(self):
    torch.rand(1)
    return [Counting()]


def seeds(self):
    random.seed(0)
    return [Counting()]


def writes(self, trainer):
    from pathlib import Path

    Path(trainer.args.output_dir, "notes.txt").write_text("built")


SHARED = Counting()


class Locked(Counting):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def with_default(self, trainer, more=None):
    """A default that pluggy never overrides."""


def with_unknown(self, planet):
    """An argument that the hook does not have."""


def plan_in_numbers(self, model):
    return 3


BUILDING = {
    "a conflict that raises": (technique(conflict=raises_on_strength), "planted: check_questions: AttributeError"),
    "a conflict that answers True": (technique(conflict=lambda self, other: True), "planted: conflict answers True"),
    "a plan that is no text": (technique(plan_for=plan_in_numbers), "planted: plan_for answers 3"),
    "memory effects that raise": (
        technique(memory_effects=lambda self, config: {"removed": config.no_such_attribute}),
        "planted: check_questions: AttributeError: .*no_such_attribute",
    ),
    "it draws random numbers": (technique(ft_callbacks=draws), "planted: building a trainer draws .*: /torch"),
    "it seeds the random numbers": (technique(ft_callbacks=seeds), "planted: building a trainer draws .*: /random"),
    "it writes when it is built": (technique(ft_trainer=writes), r"planted: building a trainer writes \['notes.txt'\]"),
    "one callback for all trainers": (
        technique(ft_callbacks=lambda self: [SHARED]),
        "planted: two trainers share one Counting",
    ),
    "a callback that cannot be pickled": (
        technique(ft_callbacks=lambda self: [Locked()]),
        "planted: pickling its Locked: TypeError: .*lock.* inherit from WithTrainer",
    ),
    "a callback instead of a list": (
        technique(ft_callbacks=lambda self: Counting()),
        "planted: ft_callbacks answers one Counting, which is not iterable. Return a list",
    ),
    "a class instead of a callback": (
        technique(ft_callbacks=lambda self: [Counting]),
        r"planted: ft_callbacks answers the class Counting .* Return \[Counting\(\.\.\.\)\]",
    ),
    "two parts of one class": (
        technique(ft_callbacks=lambda self: [Counting(), Counting()]),
        "planted: it supplies two parts of class Counting",
    ),
    "a hook's argument with a default": (
        technique(ft_trainer=with_default),
        "planted: ft_trainer gives more a default",
    ),
    "an argument that the hook has not": (
        technique(ft_trainer=with_unknown),
        r"planted .*: ft_trainer has no argument planet; it has trainer,",
    ),
    "a hook that there is not": (
        technique(ft_trainr=writes),
        r"planted .*: there is no hook ft_trainr\. Did you mean 'ft_trainer'",
    ),
}


# ---- planted mistakes: the run ----


def write_rate(self, args, state, control, *, optimizer, **kwargs):
    Counting.on_step_begin(self, args, state, control, optimizer=optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def write_first_rate(self, groups):
    for group in groups:
        group["lr"] *= 0.5


def lose_a_parameter(self, groups):
    groups[0]["params"] = groups[0]["params"][1:]


def leave_an_empty_group(self, groups):
    groups.append({**groups[0], "params": []})


def shrink_weights(self, args, state, control, *, model, **kwargs):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)


def forget(self, state):
    """Takes over nothing."""


def state_of_a_set(self):
    return {"steps": {self.steps}}


def state_that_counts(self):
    self.steps += 1
    return {"steps": self.steps}


def step_at_random(self, args, state, control, *, optimizer, **kwargs):
    Counting.on_step_begin(self, args, state, control, optimizer=optimizer)
    lr_scale.set_scale(optimizer, f"{NAME}/noise", random.SystemRandom().uniform(0.5, 1.0))


def step_by_the_class(self, args, state, control, *, optimizer, **kwargs):
    # As a module's global would: what one trainer counted the next one finds.
    type(self).seen = getattr(type(self), "seen", 0) + 1
    lr_scale.set_scale(optimizer, NAME, 0.5 if type(self).seen > 4 else 1.0)


class Stateless(TrainerCallback):
    """Counts as `Counting` does, and keeps no state."""

    steps = 0
    on_step_begin = Counting.on_step_begin


class Drawn(torch.utils.data.Sampler):
    """An order that does not depend on the epoch alone."""

    made = itertools.count()

    def __init__(self, dataset):
        self.size, self.seed = len(dataset), next(Drawn.made)

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(random.Random(self.seed).sample(range(self.size), self.size))


def stop_early(self, args, state, control, **kwargs):
    control.should_training_stop = state.global_step >= 6


@dataclass(frozen=True, kw_only=True)
class Remembering(Sound):
    seen: ClassVar[list[int]] = []

    def ft_batches(self, batches):
        self.seen.append(len(batches))


@dataclass(frozen=True, kw_only=True)
class Spoiling(Sound):
    """Changes rows of the script's own data set."""

    def ft_dataset(self, dataset, split):
        for row in dataset:
            row["labels"] = 1 - row["labels"]


@dataclass(frozen=True, kw_only=True)
class Patching(Sound):
    """Changes Trainer itself, and so every later run."""

    def ft_trainer(self, trainer):
        original = Trainer.create_optimizer

        def halved(self, *args, **kwargs):
            optimizer = original(self, *args, **kwargs)
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            return optimizer

        halved.once = True
        if not hasattr(original, "once"):
            Trainer.create_optimizer = halved


@dataclass(frozen=True, kw_only=True)
class Swapping(Sound):
    """Leaves its own metrics on the trainer after an evaluation."""

    def ft_evaluation(self, trainer):
        trainer.compute_metrics = lambda predictions: {}


def keep_the_graph(self, trainer, model, inputs):
    loss = model(**inputs).loss
    loss.backward(retain_graph=True)
    return loss


RUN = {
    'it writes group["lr"]': (with_callback(on_step_begin=write_rate), acted, r'planted: it writes group\["lr"\]'),
    'it writes group["lr"] at first': (
        technique(ft_param_groups=write_first_rate),
        acted,
        r'planted: it writes group\["lr"\]: 0.005 when',
    ),
    "a parameter is lost": (technique(ft_param_groups=lose_a_parameter), acted, "planted: 1 of the optimizer's"),
    "an empty group": (technique(ft_param_groups=leave_an_empty_group), acted, "planted: .* is empty"),
    "a loss with its graph": (technique(ft_training_step=keep_the_graph), acted, "planted: ft_training_step returns"),
    "an evaluation changes weights": (
        with_callback(on_evaluate=shrink_weights),
        acted,
        "planted: evaluate\\(\\) after training changes the weights",
    ),
    "an evaluation changes the trainer": (Swapping(), acted, "planted: evaluate.* leaves another compute_metrics"),
    "no effect": (with_callback(on_step_begin=TrainerCallback.on_step_begin), acted, "planted: the effect of planted"),
    "an effect that shows without it": (Sound(), always, "planted: its effect also shows in a run without it"),
    "an effect that cannot be looked for": (
        Sound(),
        lambda technique, trainer: trainer.no_such_attribute,
        "planted: acted.*: AttributeError",
    ),
    "nothing is changed": (
        with_callback(on_step_begin=lambda self, *args, **kwargs: None),
        lambda technique, trainer: len(trainer._ft_callbacks) == 1,
        "planted: the weights are those of no technique",
    ),
    "the state is not taken over": (
        with_callback(load_state_dict=forget),
        acted,
        "planted: the resumed run differs",
    ),
    "the state is not kept": (
        technique(ft_callbacks=lambda self: [Stateless()]),
        acted,
        "planted: the resumed run differs",
    ),
    "a state that JSON cannot keep": (with_callback(state_dict=state_of_a_set), acted, "planted.*holds a set"),
    "a state that changes when it is asked for": (
        with_callback(state_dict=state_that_counts),
        acted,
        "planted: state_dict.* of planted/Callback changes what it gives",
    ),
    "chance of its own": (with_callback(on_step_begin=step_at_random), acted, "planted: the resumed run differs"),
    "what one trainer counts another finds": (
        with_callback(on_step_begin=step_by_the_class),
        acted,
        "planted: the resumed run differs",
    ),
    "an order that each trainer draws anew": (
        technique(ft_sampler=lambda self, dataset: Drawn(dataset)),
        acted,
        "planted: the resumed run differs",
    ),
    "a callback that raises": (
        with_callback(on_save=lambda self, args, state, control, **kwargs: state.no_such_attribute),
        acted,
        "planted: .*AttributeError",
    ),
    "the technique keeps something": (Remembering(), acted, "planted: the technique itself keeps .*Remembering.seen"),
    "the script's data are changed": (Spoiling(), acted, "planted: it changes the script's own data in place"),
    "the run ends too early": (
        with_callback(on_evaluate=stop_early),
        acted,
        "planted: .*ended by itself after step",
    ),
    "a loss context that is none": (technique(ft_loss=lambda self, inputs: inputs), acted, "planted: .*TypeError"),
}


@pytest.fixture(autouse=True)
def _stock_trainer(monkeypatch):
    # What a planted mistake patches is put back.
    monkeypatch.setattr(Trainer, "create_optimizer", Trainer.create_optimizer)


@pytest.mark.parametrize("mistake", OPTIONS)
def test_a_mistake_in_the_options_is_caught(mistake):
    planted, message = OPTIONS[mistake]
    with pytest.raises(AssertionError, match=message):
        check_options(planted)


@pytest.mark.parametrize("mistake", BUILDING)
def test_a_mistake_in_what_it_answers_is_caught(mistake, tmp_path):
    planted, message = BUILDING[mistake]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_technique(Example(planted, acted), tmp_path)


@pytest.mark.parametrize("mistake", RUN)
def test_a_mistake_in_the_run_is_caught(mistake, tmp_path):
    planted, looks, message = RUN[mistake]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_run(Example(planted, looks), tmp_path)


def test_a_change_of_later_runs_is_caught(tmp_path):
    with pytest.raises(AssertionError, match="planted: it changes later runs that do not name it, at /bert"):
        check_technique(Example(Patching(), acted), tmp_path)


def test_at_least_two_dozen_mistakes_are_planted():
    assert len(OPTIONS) + len(BUILDING) + len(RUN) >= 24
