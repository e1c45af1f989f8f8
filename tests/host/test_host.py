"""The host: what `with_plugins` makes, on every kind of Trainer, and what it refuses before anything is trained."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, get_constant_schedule

from hf_ft_plugins import AdaptiveLR, AdaptiveLRCallback, with_plugins
from hf_ft_plugins.errors import ConflictError, OptionError, PluginError
from hf_ft_plugins.technique import Technique, option
from hf_ft_plugins.testing import LogEverything, difference, hook_names, outcome, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.adaptive_lr import EXAMPLE


class OwnTrainer(Trainer):
    """A user's subclass; overrides a method that the host needs, without calling super."""

    def _get_learning_rate(self):
        return 123.0

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.own_losses = getattr(self, "own_losses", 0) + 1
        return super().compute_loss(model, inputs, *args, **kwargs)


def decisions(trainer):
    return [entry for entry in trainer.state.log_history if "adaptive_lr/action" in entry]


def test_a_host_without_techniques_is_a_stock_trainer_bit_for_bit(tmp_path):
    def trained(folder, *techniques, **changes):
        # Built and trained one after the other: a trainer seeds the global generators when it is built.
        trainer = tiny_trainer(tmp_path / folder, *techniques, **changes)
        trainer.train()
        return outcome(trainer)

    stock = trained("stock")
    assert difference(stock, trained("host", trainer_class=with_plugins(Trainer))) is None
    assert difference(stock, trained("control", EXAMPLE.technique))


@pytest.mark.parametrize("trainer_class", [Trainer, Seq2SeqTrainer, OwnTrainer])
def test_every_kind_of_trainer_is_hosted(trainer_class, tmp_path):
    changes = {}
    if trainer_class is Seq2SeqTrainer:
        from transformers import Seq2SeqTrainingArguments

        plain = tiny_trainer(tmp_path / "arguments").args
        arguments = Seq2SeqTrainingArguments(**{**vars_of(plain), "output_dir": str(tmp_path)})
        trainer = with_plugins(Seq2SeqTrainer, EXAMPLE.technique)(
            model=tiny_model(), args=arguments, **datasets_of(tmp_path)
        )
    else:
        trainer = tiny_trainer(tmp_path, EXAMPLE.technique, trainer_class=trainer_class, **changes)
    trainer.train()
    assert EXAMPLE.acted(EXAMPLE.technique, trainer)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[-1] < rates[0] * 0.1


def vars_of(arguments):
    names = ("max_steps", "eval_strategy", "eval_steps", "save_strategy", "logging_steps", "use_cpu", "report_to")
    return {name: getattr(arguments, name) for name in names}


def datasets_of(folder):
    trainer = tiny_trainer(folder / "datasets")
    return {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}


def test_a_host_keeps_name_module_signature_and_type():
    host = with_plugins(OwnTrainer, "adaptive-lr")
    assert (host.__name__, host.__module__) == ("OwnTrainer", __name__)
    assert inspect.signature(host) == inspect.signature(OwnTrainer)
    assert issubclass(host, OwnTrainer)


def test_a_users_subclass_of_a_host_keeps_the_techniques(tmp_path):
    class Mine(with_plugins(Trainer, EXAMPLE.technique)):
        pass

    trainer = tiny_trainer(tmp_path, trainer_class=Mine)
    trainer.train()
    assert decisions(trainer)


def test_made_a_host_twice_the_lists_join():
    twice = with_plugins(with_plugins(Trainer, LogEverything()), "adaptive-lr:patience=3")
    assert [technique.name for technique in twice._ft_techniques] == ["log-everything", "adaptive-lr"]


def test_a_technique_named_twice_in_one_line_is_refused():
    with pytest.raises(ConflictError, match="adaptive-lr: named twice"):
        with_plugins(Trainer, AdaptiveLR(), "adaptive-lr:patience=3")


def test_every_hook_fires_in_the_order_of_the_contract(tmp_path):
    LogEverything.fired.clear()
    trainer = tiny_trainer(tmp_path, LogEverything())
    built = [
        "ft_model",
        "ft_adapter",
        "ft_dataset",
        "ft_dataset",
        "ft_collator",
        "ft_collator",
        "ft_metrics",
        "ft_callbacks",
        "ft_loss_function",
        "ft_trainer",
    ]
    assert [name for name, _ in LogEverything.fired] == built
    calls = dict(LogEverything.fired)
    assert [arguments["split"] for name, arguments in LogEverything.fired if name == "ft_dataset"] == ["train", "eval"]
    assert calls["ft_callbacks"]["args"] is trainer.args
    assert calls["ft_trainer"]["trainer"] is trainer
    assert trainer.optimizer is None
    trainer.train()
    training = ["ft_sampler", "ft_batch_sampler", "ft_columns", "ft_optimizer", "ft_param_groups", "ft_scheduler"]
    # Two batches a step, evaluated after each third and the last.
    stepping = ["ft_batches", *["ft_training_step", "ft_parts", "ft_loss"] * 2]
    evaluating = ["ft_eval_sampler", "ft_evaluation", *["ft_loss"] * 2]
    steps = [hook for step in range(1, 15) for hook in stepping + evaluating * (step % 3 == 0 or step == 14)]
    moved = "a new hook has its place in these lists, and the same one in hookspecs.py"
    assert [name for name, _ in LogEverything.fired] == [*built, *training, *steps, "ft_report"], moved
    # One of TRL's trainers, `hf-ft`, and a trainer without evaluation data.
    others_ask = {"ft_raw_dataset", "ft_commands", "ft_held_out"}
    assert {*built, *training, *stepping, *evaluating, "ft_report"} == set(hook_names()) - others_ask, moved
    assert dict(LogEverything.fired)["ft_evaluation"]["prefix"] == "eval"
    scheduler_call = dict(LogEverything.fired)["ft_scheduler"]
    assert scheduler_call["num_training_steps"] == 14
    assert scheduler_call["optimizer"] is trainer.optimizer


def test_without_evaluation_data_a_technique_may_hold_training_rows_out(tmp_path):
    given = {}

    @dataclass(frozen=True, kw_only=True)
    class HoldsOut(Technique):
        name: ClassVar[str] = "holds-out"
        summary: ClassVar[str] = "keep the last four rows"

        def ft_held_out(self, dataset: Any) -> Any:
            return dataset[:-4], dataset[-4:]

        def ft_dataset(self, dataset: Any, split: str) -> Any:
            given[split] = dataset

    rows = tiny_dataset()
    trainer = tiny_trainer(tmp_path, HoldsOut(), train_dataset=rows, eval_dataset=None, eval_strategy="no")
    assert given == {"train": rows[:-4], "eval": rows[-4:]}
    assert (trainer.train_dataset, trainer.eval_dataset) == (rows[:-4], rows[-4:])
    tiny_trainer(tmp_path, HoldsOut(), train_dataset=rows, eval_dataset=rows[:2])
    assert given == {"train": rows, "eval": rows[:2]}
    with pytest.raises(ConflictError, match="holds-out and adaptive-lr both answer ft_held_out"):
        with_plugins(Trainer, HoldsOut(), "adaptive-lr:hold_out=0.1")


def test_training_and_evaluation_may_be_collated_differently(tmp_path):
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Collating(Technique):
        name: ClassVar[str] = "collating"
        summary: ClassVar[str] = "remember which collator made each batch"

        def ft_collator(self, collator: Any, split: str) -> Any:
            def collate(examples):
                seen.append(split)
                return collator(examples)

            return collate

    trainer = tiny_trainer(tmp_path, Collating(), max_steps=1, eval_strategy="no", save_strategy="no")
    trainer.train()
    assert set(seen) == {"train"}
    seen.clear()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert set(seen) == {"eval"}


def test_works_with_model_init_and_a_second_training_starts_afresh(tmp_path):
    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, model_init=lambda: tiny_model())
    trainer.train()
    first = outcome(trainer)
    trainer.train()
    assert difference(first["weights"], outcome(trainer)["weights"]) is None
    assert decisions(trainer)


def test_works_with_hyperparameter_search(tmp_path):
    pytest.importorskip("optuna")
    seen = []

    def space(trial):
        seen.append(trial.number)
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)}

    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, model_init=lambda: tiny_model())
    best = trainer.hyperparameter_search(space, n_trials=2, direction="minimize", backend="optuna")
    assert len(seen) == 2
    assert "learning_rate" in best.hyperparameters
    for trial in range(2):
        assert list((tmp_path / f"run-{trial}").glob("checkpoint-*/hf_ft_manifest.json"))


def test_works_without_training_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = with_plugins(Trainer, "adaptive-lr")(model=tiny_model(), train_dataset=[])
    assert trainer.args.output_dir == Trainer(model=tiny_model()).args.output_dir
    assert [type(part) for part in trainer.ft_stash.parts.values()] == [AdaptiveLRCallback]


def test_trackers_that_come_first_see_the_applied_rate_and_the_decisions(tmp_path):
    class Tracker(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs, **kwargs):
            self.seen.append(dict(logs))

    tracker = Tracker()
    trainer = tiny_trainer(tmp_path, EXAMPLE.technique, callbacks=[tracker])
    trainer.train()
    in_history = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert [logs["learning_rate"] for logs in tracker.seen if "learning_rate" in logs] == in_history
    assert [logs for logs in tracker.seen if "adaptive_lr/reason" in logs]


@dataclass(frozen=True, kw_only=True)
class Broken(Technique):
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "raises in its hook"
    amount: int = option(3, help="an option that the note must show")

    def ft_trainer(self, trainer: Any) -> None:
        raise RuntimeError("deliberate")


def test_an_error_in_a_hook_carries_a_note_with_technique_hook_and_options(tmp_path):
    with pytest.raises(RuntimeError, match="deliberate") as raised:
        tiny_trainer(tmp_path, Broken(amount=5))
    note = " ".join(raised.value.__notes__)
    assert all(word in note for word in ("broken", "ft_trainer", __name__, "'amount': 5"))


@dataclass(frozen=True, kw_only=True)
class Misspelt(Technique):
    name: ClassVar[str] = "misspelt"
    summary: ClassVar[str] = "answers a hook that does not exist"

    def ft_calbacks(self, args: Any) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class WrongArgument(Technique):
    name: ClassVar[str] = "wrong-argument"
    summary: ClassVar[str] = "asks a hook for an argument that it does not have"

    def ft_callbacks(self, arguments: Any) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class WithDefault(Technique):
    name: ClassVar[str] = "with-default"
    summary: ClassVar[str] = "gives a hook's argument a default"

    def ft_callbacks(self, args: Any = None) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("technique", "word"),
    [(Misspelt(), "ft_calbacks"), (WrongArgument(), "arguments"), (WithDefault(), "args a default")],
)
def test_a_hook_that_does_not_fit_the_contract_is_refused_when_the_class_is_made(technique, word):
    with pytest.raises(PluginError, match=word) as refused:
        with_plugins(Trainer, technique)
    assert technique.name in str(refused.value)


@dataclass(frozen=True, kw_only=True)
class Schedule(Technique):
    name: ClassVar[str] = "schedule"
    summary: ClassVar[str] = "a constant schedule"

    def ft_scheduler(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True, kw_only=True)
class SecondSchedule(Schedule):
    name: ClassVar[str] = "second-schedule"


def test_two_owners_of_one_hook_are_refused_by_name_before_a_trainer_exists():
    with pytest.raises(ConflictError, match="schedule and second-schedule both answer ft_scheduler"):
        with_plugins(Trainer, Schedule(), SecondSchedule())


def test_an_owner_and_the_scripts_own_scheduler_are_refused(tmp_path):
    class WithScheduler(Trainer):
        def __init__(self, model, **kwargs):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
            super().__init__(model=model, optimizers=(optimizer, scheduler), **kwargs)

    with pytest.raises(ConflictError, match=r"schedule: it supplies the learning-rate scheduler.*ConstantLR"):
        tiny_trainer(tmp_path, Schedule(), trainer_class=WithScheduler)


def test_a_technique_may_refuse_the_company_of_another():
    @dataclass(frozen=True, kw_only=True)
    class Loner(Technique):
        name: ClassVar[str] = "loner"
        summary: ClassVar[str] = "works alone"

        def conflict(self, other: Technique) -> str | None:
            return "it works alone."

    for order in ((Loner(), AdaptiveLR()), (AdaptiveLR(), Loner())):
        with pytest.raises(ConflictError, match="it works alone"):
            with_plugins(Trainer, *order)


def test_a_bad_option_is_refused_before_a_trainer_exists():
    with pytest.raises(OptionError, match=r"adaptive-lr: option factor=1\.5"):
        with_plugins(Trainer, "adaptive-lr:factor=1.5")


def test_the_part_beside_the_technique_is_refused(tmp_path):
    with pytest.raises(PluginError, match="adds an AdaptiveLRCallback itself"):
        tiny_trainer(tmp_path, "adaptive-lr", callbacks=[AdaptiveLRCallback()])
    assert not list(tmp_path.glob("checkpoint-*"))


def test_which_techniques_run_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_ft_plugins.host.trainer"):
        tiny_trainer(tmp_path, "adaptive-lr:patience=4")
    assert "adaptive-lr:patience=4 (hf-ft-plugins" in caplog.text


def test_a_schedule_that_the_scripts_class_would_overrule_is_refused(tmp_path):
    class Their(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = get_constant_schedule(self.optimizer)
            return self.lr_scheduler

    trainer = tiny_trainer(tmp_path, Schedule(), trainer_class=Their)
    with pytest.raises(ConflictError, match="the script has its own, a LambdaLR"):
        trainer.train()
