"""`check_technique` and `check_pair`: whether a technique holds to the contract; the message names it and the fault.

Every check is a function of its own, so that it can be called alone while one is written.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers import Trainer

from ..errors import ConflictError, OptionError, PluginError
from ..host.stash import stash_of
from ..host.state import read_state, write_state
from ..host.trainer import with_plugins
from ..registry import DISTRIBUTION, offers
from ..technique import Technique, parse_spec
from .equality import difference
from .example import Example, setting_of
from .resuming import outcome, resumed
from .run_faults import Watch, WeightsAfter, attributes_of, class_state, random_states, watched_host
from .tiny_run import tiny_dataset, tiny_model, tiny_trainer

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Steps of a stock run before and after that of the technique: past the first warm values of Adam, before an evaluation
# has decided anything.
STOCK_STEPS = 4


@contextlib.contextmanager
def _named(name: str, doing: str) -> Iterator[None]:
    """Whatever is raised in the block says whose fault it is and what was being done."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (AssertionError, PluginError)) and name in str(error):
            if isinstance(error, AssertionError):
                raise
            raise AssertionError(str(error)) from error
        raise AssertionError(f"{name}: {doing}: {type(error).__name__}: {error}") from error


def _naming(check: Callable[..., Any]) -> Callable[..., Any]:
    """The check, whose every error names the technique of the example that it is given first."""

    @functools.wraps(check)
    def naming(example: Example, *args: Any) -> Any:
        with _named(example.name, check.__name__):
            return check(example, *args)

    return naming


def check_technique(example: Example, folder: Path) -> None:
    """Hold a technique to the contract; an AssertionError names it and says where it falls short.

    Its options survive the string, mapping, JSON and YAML forms and are refused when unknown. Its parts pickle, belong
    to one trainer and give back the state that they gave. Building a trainer draws no random numbers and writes
    nothing. It trains, and its effect (`acted`) shows, and does not show without it. It writes no rate of the
    optimizer, loses no parameter, changes nothing in an evaluation, leaves the script's data, itself and later runs
    without it as they were. A run that was cut off resumes exactly.

    Args:
        example: the technique, what it is tried on, and how its effect shows.
        folder: an empty folder to train in.
    """
    assert isinstance(example, Example), (
        f"check_technique takes an Example(technique, acted, setting), and was given {example!r}"
    )
    with _named(example.name or type(example.technique).__name__, "check_options"):
        check_options(example.technique)
    check_questions(example)
    with _named(example.name, "a run without it, before"):
        before = _stock_weights(example, folder / "stock-before")
    check_building(example, folder / "built")
    check_run(example, folder)
    with _named(example.name, "a run without it, after"):
        after = _stock_weights(example, folder / "stock-after")
        where = difference(before, after)
        assert where is None, f"{example.name}: it changes later runs that do not name it, at {where}"


def check_pair(first: Example, second: Example, folder: Path) -> str:
    """Two techniques train and resume together in either order with equal weights, or refuse in either order.

    Returns:
        "together", or the reason of the conflict, which names both.
    """
    names = f"{first.name} + {second.name}"
    refusals = []
    for one, other in ((first, second), (second, first)):
        with _named(names, "building a trainer"):
            try:
                tiny_trainer(folder / "built", one.technique, other.technique, **setting_of(first, second))
            except ConflictError as conflict:
                refusals.append(str(conflict))
    if refusals:
        assert len(refusals) == 2, f"{names}: they refuse each other in one order only: {refusals[0]}"
        for name in (first.name, second.name):
            assert name in refusals[0], f"{names}: the refusal does not name {name}: {refusals[0]}"
        return refusals[0]
    in_order = check_trains_and_resumes(first, second, folder=folder / "one")
    with _named(names, "in the other order"):
        swapped = tiny_trainer(folder / "other", second.technique, first.technique, **setting_of(first, second))
        swapped.train()
        where = difference(in_order["weights"], outcome(swapped)["weights"])
        assert where is None, f"{names}: the order in which they are listed changes {where}"
    return "together"


def check_options(technique: Technique) -> None:
    """Name, summary and help are there; every form of the options gives an equal technique; unknown ones fail."""
    cls = type(technique)
    assert technique.name, f"{cls.__name__} has no name"
    assert NAME.fullmatch(technique.name), f"{technique.name}: its name is to be lower-case words joined by hyphens"
    assert technique.summary, f"{technique.name} has no summary"
    assert "\n" not in technique.summary, f"{technique.name}: its summary is more than one line"
    for info in cls.option_infos():
        assert info.help, f"{technique.name}: option {info.name} has no help"
    for made in (technique, cls()):
        for form in (
            str(made),
            {made.name: made.options()},
            json.loads(json.dumps({made.name: made.options()})),
            yaml.safe_load(yaml.safe_dump({made.name: made.changed_options()})),
        ):
            name, options = parse_spec(form)
            assert name == made.name, f"{technique.name}: {form!r} names {name!r}"
            assert cls.from_options(options) == made, f"{technique.name}: {form!r} does not give {made!r} back"
    refusal = _refusal_of(cls, "no_such_option")
    assert refusal is not None, f"{technique.name}: an unknown option, no_such_option, is not refused"
    assert "no_such_option" in refusal, (
        f"{technique.name}: the refusal of an unknown option does not name it: {refusal}"
    )


def _refusal_of(cls: type[Technique], option: str) -> str | None:
    try:
        cls.from_options({option: 1})
    except OptionError as error:
        return str(error)
    return None


@_naming
def check_questions(example: Example) -> None:
    """What `hf-ft` asks a technique before anything is trained is answered, for any company and for its own model."""
    technique = example.technique
    for offer in offers():
        if offer.distribution == DISTRIBUTION:
            reason = technique.conflict(offer.load()())
            assert reason is None or (isinstance(reason, str) and reason), (
                f"{technique.name}: conflict answers {reason!r} about {offer.name}; it gives a reason or None"
            )
    model = example.setting().get("model")
    model = tiny_model() if model is None else model
    plan = technique.plan_for(copy.deepcopy(model).to("meta"))
    assert plan is None or isinstance(plan, str), f"{technique.name}: plan_for answers {plan!r}; it gives text or None"
    effects = technique.memory_effects(model.config)
    assert isinstance(effects, dict), f"{technique.name}: memory_effects answers {effects!r}; it gives a dict"


@_naming
def check_building(example: Example, folder: Path) -> None:
    """A trainer is built without drawing random numbers or writing files, with parts of its own that pickle."""
    name = example.name
    built, files, states = [], [], []
    for part in ("stock", "first", "second"):
        setting = {"trainer_class": Trainer, **example.setting()}
        techniques = () if part == "stock" else (example.technique,)
        host = with_plugins(setting.pop("trainer_class"), *techniques)
        built.append(tiny_trainer(folder / part, trainer_class=host, **setting))
        states.append(random_states())
        files.append({str(path.relative_to(folder / part)) for path in (folder / part).rglob("*") if path.is_file()})
    where = difference(states[0], states[1])
    assert where is None, f"{name}: building a trainer draws from the global random numbers, or seeds them: {where}"
    assert files[1] <= files[0], f"{name}: building a trainer writes {sorted(files[1] - files[0])}"
    stock, first, second = built
    for trainer in (first, second):
        trainer.get_train_dataloader()
    for part in _supplied(first, stock):
        assert not any(part is other for other in _supplied(second, stock)), (
            f"{name}: two trainers share one {type(part).__name__}. Make a new one each time that a hook is asked."
        )
    for part in (*first._ft_callbacks, first.data_collator):
        try:
            pickle.loads(pickle.dumps(part))
        except Exception as error:
            raise AssertionError(
                f"{name}: pickling its {type(part).__name__}: {type(error).__name__}: {error}. Define its class at the "
                "top of a module, inherit from WithTrainer (hf_ft_plugins.host.stash) to know the trainer, and leave "
                "out in __getstate__ what belongs to a run."
            ) from error


def _supplied(trainer: Any, stock: Any) -> list[Any]:
    """What techniques gave this trainer and may keep something: callbacks, samplers, a collator."""
    supplied = [*trainer._ft_callbacks, trainer.train_order, trainer.train_batches]
    if type(trainer.data_collator) is not type(stock.data_collator):
        supplied.append(trainer.data_collator)
    return [part for part in supplied if hasattr(part, "__dict__")]


@_naming
def check_run(example: Example, folder: Path) -> dict[str, Any]:
    """The technique alone trains, acts, resumes exactly, and does nothing on the way that no technique may.

    Returns:
        The `outcome` of the uninterrupted run.
    """
    name, technique = example.name, example.technique
    data = {"train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(12, seed=1)}
    setting = {"trainer_class": Trainer, **data, **example.setting()}
    given = {key: setting[key] for key in data if isinstance(setting[key], list)}
    kept, state = copy.deepcopy(given), class_state(technique)
    watch = Watch()
    host = watched_host(setting.pop("trainer_class"), technique, watch)
    straight = tiny_trainer(folder / "straight", trainer_class=host, callbacks=[watch], **setting)
    straight.train()
    assert not watch.faults, f"{name}: {watch.faults[0]}"
    assert technique_acted(example, straight), f"{name}: the effect of {name} does not show"
    expected = outcome(straight)
    check_evaluation(name, straight, expected)
    check_states(example, straight, folder / "states")
    where = difference(kept, given)
    assert where is None, f"{name}: it changes the script's own data in place: {where}"
    again = resumed(folder / "resumed", technique, make_setting=example.setting)
    _refuse_difference(name, expected, again)
    changed = difference(state, class_state(technique))
    assert changed is None, f"{name}: the technique itself keeps something of a run: {changed}. Keep it in a part."
    _check_without([example], expected, folder / "without")
    return expected


def check_evaluation(name: str, trainer: Any, trained: dict[str, Any]) -> None:
    """An evaluation that the script asks for after training changes neither weights nor what the trainer works with."""
    before = attributes_of(trainer)
    with _named(name, "evaluate() after training"):
        trainer.evaluate()
    where = difference(trained["weights"], outcome(trainer)["weights"])
    assert where is None, f"{name}: evaluate() after training changes the weights, at {where}"
    changed = [key for key, value in attributes_of(trainer).items() if value is not before[key]]
    assert not changed, f"{name}: evaluate() leaves another {', '.join(changed)} on the trainer"


def check_states(example: Example, trained: Any, folder: Path) -> None:
    """Each part's state survives a checkpoint's file, giving it changes nothing, and a new part takes it."""
    if not stash_of(trained).parts:
        return
    name = example.name
    fresh = tiny_trainer(folder / "fresh", example.technique, **example.setting())
    for key, part in stash_of(trained).parts.items():
        with _named(name, f"the state of {key}"):
            first, second = (_kept_state(part, folder / f"{number}") for number in range(2))
            where = difference(first, second)
            assert where is None, f"{name}: state_dict() of {key} changes what it gives: {where}"
            stash_of(fresh).parts[key].load_state_dict(first)


def _kept_state(part: Any, folder: Path) -> Any:
    """The state as a checkpoint keeps it: JSON values and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder, [], {"part": part.state_dict()})
    content = read_state(folder)
    assert content is not None
    return content["states"]["part"]


def check_trains_and_resumes(*examples: Example, folder: Path) -> dict[str, Any]:
    """These techniques train together, each one's effect shows, and a run that was cut off resumes exactly.

    Returns:
        The `outcome` of the uninterrupted run.
    """
    names = " + ".join(example.name for example in examples)
    techniques = [example.technique for example in examples]
    with _named(names, "training together"):
        straight = tiny_trainer(folder / "straight", *techniques, **setting_of(*examples))
        straight.train()
        for example in examples:
            assert technique_acted(example, straight), f"{names}: the effect of {example.name} does not show"
        expected = outcome(straight)
        again = resumed(folder / "resumed", *techniques, make_setting=lambda: setting_of(*examples))
        _refuse_difference(names, expected, again)
        _check_without(list(examples), expected, folder / "without")
    return expected


def technique_acted(example: Example, trainer: Any) -> bool:
    """The example's `acted`; an AssertionError that names the technique where it raises."""
    with _named(example.name, "acted(technique, trainer)"):
        return bool(example.acted(example.technique, trainer))


def _refuse_difference(names: str, expected: dict[str, Any], resumed_run: Any) -> None:
    where = difference(expected, outcome(resumed_run))
    assert where is None, (
        f"{names}: the resumed run differs from the uninterrupted one at {where}. What later steps depend on is to be "
        "in the state_dict() of a callback (what a stash holds is not saved); a factor on the rate is to be set in "
        "ft_param_groups or in each on_train_begin; random numbers are to come from seed, epoch and position."
    )


def _check_without(examples: list[Example], expected: dict[str, Any], folder: Path) -> None:
    names = " + ".join(example.name for example in examples)
    setting = {"trainer_class": Trainer, **setting_of(*examples)}
    without = tiny_trainer(folder, trainer_class=with_plugins(setting.pop("trainer_class")), **setting)
    without.train()
    for example in examples:
        assert not technique_acted(example, without), f"{example.name}: its effect also shows in a run without it"
    assert difference(expected["weights"], outcome(without)["weights"]), (
        f"{names}: the weights are those of no technique"
    )


def _stock_weights(example: Example, folder: Path) -> dict[str, Any]:
    setting = {"trainer_class": Trainer, **example.setting()}
    after = WeightsAfter(STOCK_STEPS)
    trainer = tiny_trainer(folder, callbacks=[after], eval_strategy="no", save_strategy="no", **setting)
    trainer.train()
    return after.weights
