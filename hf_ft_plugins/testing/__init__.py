"""The kit for authors of techniques: tiny models and data, and `check_technique`, which holds one to the contract.

    from hf_ft_plugins.testing import check_technique

    def test_my_technique(tmp_path):
        check_technique(MyTechnique.example(), tmp_path)

Needs no network and no GPU; a check takes a few seconds. Our own tests use nothing else.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from .. import hookspecs, lr_scale
from ..errors import ConflictError, OptionError
from ..host.trainer import with_plugins
from ..technique import Technique, parse_spec
from .equality import difference as difference

VOCABULARY = 32
LENGTH = 8
OWN_ARGUMENTS = (
    *("model", "model_init", "callbacks", "train_dataset", "eval_dataset"),
    *("data_collator", "processing_class", "compute_metrics", "ref_model"),
)
# Of a log entry: what depends on the clock.
TIMED = ("_runtime", "_per_second")


def tiny_dataset(size: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of eight random tokens, labelled 1 when the first token is from the upper half: learnable, not trivial.

    Returns:
        `size` dicts of `input_ids` (int64 [8]), `attention_mask` (int64 [8]) and `labels` (int 0 or 1).
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(size):
        tokens = [generator.randrange(VOCABULARY) for _ in range(LENGTH)]
        rows.append(
            {
                "input_ids": torch.tensor(tokens),
                "attention_mask": torch.ones(LENGTH, dtype=torch.long),
                "labels": int(tokens[0] >= VOCABULARY // 2),
            }
        )
    return rows


def tiny_model(seed: int = 0) -> BertForSequenceClassification:
    """A BERT classifier of three layers, hidden size 16, with dropout, about 8,000 parameters, freshly initialised."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def tiny_trainer(
    output_dir: Path,
    *techniques: Technique | str,
    trainer_class: type = Trainer,
    args_class: type = TrainingArguments,
    **changes: Any,
) -> Trainer:
    """A trainer of the tiny model: 14 steps of 2 x 2 examples (6 steps an epoch), evaluated every 3, saved every 2.

    Args:
        output_dir: where its checkpoints go.
        techniques: what it is made a host of; none leaves the class as it is.
        trainer_class, args_class: the trainer's class to start from, and the class of its arguments.
        changes: overrides of the arguments, or of the trainer's own arguments `model`, `callbacks`, `train_dataset`,
            `eval_dataset`, `data_collator`, `processing_class`, `compute_metrics`, `ref_model` and `model_init`.
    """
    # A different number of threads changes the last bits of a sum.
    torch.set_num_threads(1)
    own = {"model": None, "train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(12, seed=1)}
    for name in OWN_ARGUMENTS:
        if name in changes:
            own[name] = changes.pop(name)
    if own["model"] is None and "model_init" not in own:
        own["model"] = tiny_model()
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 14,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    host = with_plugins(trainer_class, *techniques) if techniques else trainer_class
    return host(args=args_class(**(settings | changes)), **own)


class Interruption(BaseException):
    """Ends a run where a killed process would; no handler of ordinary errors catches it."""


@dataclass
class InterruptAt(TrainerCallback):
    """Ends the run in the middle of the accumulation that follows optimizer step `step`."""

    step: int

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


def outcome(trainer: Any) -> dict[str, Any]:
    """What two equal runs have in common, bit for bit: weights, optimizer, rates, logs without times."""
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "rates": lr_scale.effective_lrs(trainer.optimizer),
        "log": [
            {key: value for key, value in entry.items() if not key.endswith(TIMED)}
            for entry in trainer.state.log_history
            if "train_runtime" not in entry
        ],
        "steps": trainer.state.global_step,
    }


def resumed(
    output_dir: Path,
    *techniques: Technique | str,
    stop_at: int = 9,
    make_setting: Callable[[], dict[str, Any]] = dict,
    **changes: Any,
) -> Trainer:
    """A run ended in the middle of an epoch and of an accumulation, then resumed by a new trainer to its end.

    `make_setting` gives further `changes` for each of the two trainers, such as a new model.
    """
    callbacks = list(changes.pop("callbacks", None) or [])
    stopping = [*callbacks, InterruptAt(stop_at)]
    trainer = tiny_trainer(output_dir, *techniques, callbacks=stopping, **changes, **make_setting())
    with pytest.raises(Interruption):
        trainer.train()
    trainer = tiny_trainer(output_dir, *techniques, callbacks=callbacks, **changes, **make_setting())
    trainer.train(resume_from_checkpoint=True)
    return trainer


def setting_of(*techniques: Technique) -> dict[str, Any]:
    """The first `example_setting` among these techniques, made anew: its model is trained in place."""
    return next(filter(None, (technique.example_setting() for technique in techniques)), {})


def check_technique(technique: Technique, folder: Path) -> None:
    """Hold a technique to the contract; an AssertionError says where it falls short.

    Its options survive the string, mapping and YAML forms and are refused when unknown; it trains, and its effect
    (`acted`) shows, and does not show without it; a run that was cut off resumes exactly; its parts pickle.
    """
    check_options(technique)
    check_parts_pickle(technique, folder / "pickle")
    check_trains_and_resumes(technique, folder=folder)


def check_options(technique: Technique) -> None:
    """Name, summary and help are there; every form of the options gives an equal technique; unknown ones fail."""
    cls = type(technique)
    assert technique.name, f"{cls.__name__} has no name"
    assert technique.summary, f"{technique.name} has no summary"
    for info in cls.option_infos():
        assert info.help, f"{technique.name}: option {info.name} has no help"
    for made in (technique, cls()):
        for form in (
            str(made),
            {made.name: made.options()},
            yaml.safe_load(yaml.safe_dump({made.name: made.changed_options()})),
        ):
            name, options = parse_spec(form)
            assert name == made.name, f"{form!r} names {name!r}"
            assert cls.from_options(options) == made, f"{form!r} does not give {made!r} back"
    with pytest.raises(OptionError, match="no_such_option"):
        cls.from_options({"no_such_option": 1})


def check_parts_pickle(technique: Technique, folder: Path) -> None:
    """What the technique supplies survives pickling, as data-loader workers and launchers need it."""
    trainer = tiny_trainer(folder, technique, **setting_of(technique))
    for part in (*trainer._ft_parts.values(), trainer.data_collator):
        pickle.loads(pickle.dumps(part))


def check_trains_and_resumes(*techniques: Technique, folder: Path) -> dict[str, Any]:
    """These techniques train together, each one's effect shows, and a run that was cut off resumes exactly.

    Returns:
        The `outcome` of the uninterrupted run.
    """
    names = " + ".join(technique.name for technique in techniques)
    straight = tiny_trainer(folder / "straight", *techniques, **setting_of(*techniques))
    straight.train()
    for technique in techniques:
        assert technique.acted(straight), f"{names}: the effect of {technique.name} does not show"
    expected = outcome(straight)
    again = resumed(folder / "resumed", *techniques, make_setting=lambda: setting_of(*techniques))
    where = difference(expected, outcome(again))
    assert where is None, f"{names}: the resumed run differs from the uninterrupted one at {where}"
    setting = {"trainer_class": Trainer, **setting_of(*techniques)}
    stock = with_plugins(setting.pop("trainer_class"))
    without = tiny_trainer(folder / "without", trainer_class=stock, **setting)
    without.train()
    for technique in techniques:
        assert not technique.acted(without), f"{technique.name}: its effect also shows in a run without it"
    assert difference(expected["weights"], outcome(without)["weights"]), (
        f"{names}: the weights are those of no technique"
    )
    return expected


def check_pair(first: Technique, second: Technique, folder: Path) -> str:
    """Two techniques train and resume together in either order with equal weights, or refuse with the same reason.

    Returns:
        "together", or the reason of the conflict.
    """
    try:
        tiny_trainer(folder / "built", first, second, **setting_of(first, second))
    except ConflictError as conflict:
        with pytest.raises(ConflictError):
            tiny_trainer(folder / "built", second, first, **setting_of(first, second))
        return str(conflict)
    one = check_trains_and_resumes(first, second, folder=folder / "one")
    other = tiny_trainer(folder / "other", second, first, **setting_of(first, second))
    other.train()
    where = difference(one["weights"], outcome(other)["weights"])
    assert where is None, f"{first.name} and {second.name}: the order in which they are listed changes {where}"
    return "together"


def composition_table(techniques: Iterable[Technique], results: dict[frozenset[str], str]) -> str:
    """The results of `check_pair` as a Markdown table, a conflict's reason below it."""
    names = sorted(technique.name for technique in techniques)
    lines = ["| | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    reasons = {}
    for row in names:
        cells = []
        for column in names:
            result = results.get(frozenset((row, column)), "")
            cells.append({"together": "yes", "": "-"}.get(result, "no"))
            if cells[-1] == "no":
                reasons[frozenset((row, column))] = result
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{reason}" for reason in reasons.values())])


@dataclass(frozen=True, kw_only=True)
class LogEverything(Technique):
    """Answers every hook and remembers the order in which they fired; changes nothing."""

    name: ClassVar[str] = "log-everything"
    summary: ClassVar[str] = "record when each hook fires"
    fired: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def ft_model(self, model: Any) -> None:
        self.fired.append(("ft_model", {"model": model}))

    def ft_adapter(self, model: Any) -> Any:
        self.fired.append(("ft_adapter", {"model": model}))
        return None

    def ft_raw_dataset(self, dataset: Any, split: str) -> Any:
        self.fired.append(("ft_raw_dataset", {"dataset": dataset, "split": split}))
        return None

    def ft_dataset(self, dataset: Any, split: str) -> Any:
        self.fired.append(("ft_dataset", {"dataset": dataset, "split": split}))
        return None

    def ft_collator(self, collator: Any, split: str) -> Any:
        self.fired.append(("ft_collator", {"collator": collator, "split": split}))
        return None

    def ft_metrics(self, processing_class: Any) -> Any:
        self.fired.append(("ft_metrics", {"processing_class": processing_class}))
        return None

    def ft_callbacks(self, args: Any) -> list[Any]:
        self.fired.append(("ft_callbacks", {"args": args}))
        return []

    def ft_trainer(self, trainer: Any) -> None:
        self.fired.append(("ft_trainer", {"trainer": trainer}))

    def ft_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_batch_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_batch_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_batches(self, trainer: Any, batches: list[Any]) -> None:
        self.fired.append(("ft_batches", {"trainer": trainer, "batches": batches}))

    def ft_loss(self, trainer: Any, inputs: Any) -> Any:
        self.fired.append(("ft_loss", {"trainer": trainer, "inputs": inputs}))
        return None

    def ft_training_step(self, trainer: Any, model: Any, inputs: Any) -> Any:
        self.fired.append(("ft_training_step", {"trainer": trainer, "model": model, "inputs": inputs}))
        return None

    def ft_param_groups(self, trainer: Any, groups: list[dict[str, Any]]) -> None:
        self.fired.append(("ft_param_groups", {"trainer": trainer, "groups": groups}))

    def ft_scheduler(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any:
        arguments = {"trainer": trainer, "optimizer": optimizer, "num_training_steps": num_training_steps}
        self.fired.append(("ft_scheduler", arguments))
        return None

    def ft_eval_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_eval_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_evaluation(self, trainer: Any, dataloader: Any, prefix: str) -> Any:
        arguments = {"trainer": trainer, "dataloader": dataloader, "prefix": prefix}
        self.fired.append(("ft_evaluation", arguments))
        return None


def hook_names() -> list[str]:
    """All hooks of the contract, in the order of `hookspecs.py`."""
    return [name for name in vars(hookspecs) if name.startswith(hookspecs.PREFIX)]
