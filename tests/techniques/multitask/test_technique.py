"""A whole run of several tasks: losses, balances, mixes, resuming, logs, and what the technique refuses."""

import math

import pytest
import torch
from transformers import Trainer

from hf_ft_plugins.errors import ConflictError, PluginError
from hf_ft_plugins.host.stash import stash_of
from hf_ft_plugins.techniques.multitask import (
    MultiTask,
    MultiTaskCollator,
    MultiTaskMetrics,
    MultiTaskModel,
    TaskSpec,
)
from hf_ft_plugins.techniques.multitask.callback import CALLBACK
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer
from hf_ft_plugins.testing.examples.multitask import (
    TASKS,
    tiny_moods,
    tiny_multitask_model,
    tiny_setting,
    tiny_tagged,
    tiny_tokenizer,
)
from tests.techniques.multitask.small_runs import both_evaluated, quiet

datasets = pytest.importorskip("datasets")


# ---- the loss ----


def gradients(accumulation, technique, tmp_path, scale=1.0, **changes):
    """All gradients of the first optimizer step, on eight rows of two tasks, however they are cut up."""
    found = {}

    class Looks(Trainer):
        def _get_grad_norm(self, model, *args, **kwargs):
            found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            return super()._get_grad_norm(model, *args, **kwargs)

    setting = tiny_setting() | {
        "train_dataset": tiny_tagged(8),
        "eval_dataset": None,
        "model": quiet(tiny_multitask_model(("tag", "parse"))),
    }
    techniques = [technique] if technique is not None else []
    setting["data_collator"] = MultiTaskCollator(tiny_tokenizer(), setting["model"])
    trainer = tiny_trainer(
        tmp_path / f"run-{accumulation}-{technique}",
        *techniques,
        trainer_class=Looks,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=1e9,
        eval_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        **(setting | changes),
    )
    trainer.train()
    return found


def far(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_gradients_do_not_depend_on_how_the_batch_is_accumulated(tmp_path):
    whole = gradients(1, MultiTask(), tmp_path)
    assert far(whole, gradients(4, MultiTask(), tmp_path)) < 1e-6
    # Sentences differ in length, so the mean of means, as stock takes it, is another.
    assert far(whole, gradients(4, None, tmp_path)) > 1e-4


def test_a_task_of_many_labels_does_not_drown_a_task_of_few(tmp_path):
    """Each task's gradient in its head is that of its own mean loss, whatever else is in the step."""
    setting = tiny_setting() | {"model": quiet(tiny_multitask_model())}
    found = {}

    class Looks(Trainer):
        def _get_grad_norm(self, model, *args, **kwargs):
            found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            return super()._get_grad_norm(model, *args, **kwargs)

    technique = MultiTask(mix="round_robin")
    trainer = tiny_trainer(
        tmp_path,
        technique,
        trainer_class=Looks,
        max_steps=1,
        max_grad_norm=1e9,
        eval_strategy="no",
        save_strategy="no",
        **setting,
    )
    trainer.train()
    rows = [trainer.train_dataset[position] for batch in list(trainer.train_batches)[:2] for position in batch]
    model = quiet(tiny_multitask_model())
    batches = [trainer.data_collator(rows[:2]), trainer.data_collator(rows[2:])]
    losses = {}
    for batch in batches:
        out = model(**batch)
        losses |= {task: out.task_sums[task] / out.task_items[task] for task in out.task_sums}
    sum(losses.values()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert far(expected, found) < 1e-6


def test_an_idle_head_stays_as_it_is(tmp_path):
    setting = tiny_setting()
    technique = MultiTask(mix="weights", weights=(1.0, 1e-9))
    trainer = tiny_trainer(tmp_path, technique, weight_decay=0.5, **setting)
    idle = trainer.model.idle_parameters(["tag", "parse"])
    before = [parameter.detach().clone() for parameter in idle]
    trainer.train()
    assert len(idle) == 4, "head and pooler"
    assert all(torch.equal(old, new) for old, new in zip(before, idle, strict=True))


# ---- whole runs ----


def test_what_is_idle_in_a_step_has_no_gradient_when_the_optimizer_steps(tmp_path):
    """On several ranks it has one of 0, which momentum and weight decay would make a change of."""
    trainer = tiny_trainer(tmp_path, MultiTask(mix="uniform"), **tiny_setting())
    callback = stash_of(trainer)[CALLBACK]
    callback.weigh([trainer.data_collator([row for row in trainer.train_dataset if "mood" in row.tasks][:2])])
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    callback.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    heads = trainer.model.heads
    assert all(parameter.grad is None for name in ("tag", "parse") for parameter in heads[name].parameters())
    assert all(parameter.grad is not None for parameter in heads["mood"].parameters())


BALANCED = ["sum", "uncertainty", "dwa", "gradnorm", "famo", "pcgrad", "cagrad"]


@pytest.mark.parametrize("balance", BALANCED)
def test_each_balance_trains_all_tasks_and_resumes_exactly(balance, tmp_path):
    technique = MultiTask(mix="round_robin", balance=balance, update_every=2)
    straight = tiny_trainer(tmp_path / "straight", technique, **tiny_setting())
    straight.train()
    again = resumed(tmp_path / "resumed", technique, make_setting=tiny_setting)
    assert difference(outcome(straight), outcome(again)) is None
    log = [entry for entry in straight.state.log_history if "loss" in entry]
    weights = {entry["weight_tag"] for entry in log}
    assert (len(weights) == 1) == (balance in ("sum", "pcgrad", "cagrad"))
    assert all(math.isfinite(entry[f"loss_{task}"]) for entry in log for task in TASKS)


@pytest.mark.parametrize("mix", ["temperature", "annealed", "loss_ratio", "progress"])
def test_each_mix_resumes_exactly_in_the_middle_of_an_epoch(mix, tmp_path):
    technique = MultiTask(mix=mix, update_every=4)
    straight = tiny_trainer(tmp_path / "straight", technique, **tiny_setting())
    straight.train()
    again = resumed(tmp_path / "resumed", technique, make_setting=tiny_setting)
    assert difference(outcome(straight), outcome(again)) is None


def test_control_without_its_state_an_adaptive_mix_differs(tmp_path, monkeypatch):
    from hf_ft_plugins.techniques.multitask import MultiTaskCallback

    technique = MultiTask(mix="uniform", balance="famo", batches="mixed")
    straight = tiny_trainer(tmp_path / "straight", technique, **tiny_setting())
    straight.train()
    monkeypatch.setattr(MultiTaskCallback, "load_state_dict", lambda self, state: None)
    again = resumed(tmp_path / "resumed", technique, make_setting=tiny_setting)
    assert difference(outcome(straight), outcome(again))


def test_gone_on_with_in_steps_of_another_size_no_row_is_passed_over_or_read_again(tmp_path, caplog):
    seen = []

    class Looks(MultiTaskCollator):
        def __call__(self, rows):
            seen.extend((row.source, row.index) for row in rows)
            return super().__call__(rows)

    def trainer_of(folder, rows, **changes):
        setting = tiny_setting()
        setting |= {
            "train_dataset": tiny_tagged(48),
            "model": tiny_multitask_model(("tag", "parse")),
            "eval_dataset": None,
        }
        setting["data_collator"] = Looks(tiny_tokenizer(), setting["model"])
        settings = {"save_strategy": "steps", "eval_strategy": "no", "gradient_accumulation_steps": 1}
        return tiny_trainer(folder, MultiTask(), per_device_train_batch_size=rows, **(setting | settings | changes))

    trainer_of(tmp_path, 4, max_steps=6, save_steps=6).train()
    first = seen[: 6 * 4]
    seen.clear()
    trainer_of(tmp_path, 2, max_steps=12, save_steps=12).train(resume_from_checkpoint=True)
    assert "goes on after the 24 rows" in caplog.text
    second = seen[: 6 * 2]
    seen.clear()
    trainer_of(tmp_path, 2, max_steps=18, save_steps=18).train(resume_from_checkpoint=True)
    assert sorted(first + second + seen[: 6 * 2]) == sorted(("", index) for index in range(48))


def test_the_log_says_each_tasks_loss_and_share_and_evaluation_one_score(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        MultiTask(mix="round_robin"),
        metric_for_best_model="multitask_score",
        load_best_model_at_end=True,
        save_steps=3,
        **(tiny_setting() | {"eval_dataset": both_evaluated()}),
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss_tag" in entry)
    assert entry["share_tag"] == entry["share_parse"]
    assert entry["share_tag"] + entry["share_mood"] == pytest.approx(1.0)
    total = entry["loss_tag"] + entry["loss_parse"] + entry["loss_mood"]
    assert total == pytest.approx(entry["loss"], rel=1e-5)
    scores = [entry["eval_multitask_score"] for entry in trainer.state.log_history if "eval_multitask_score" in entry]
    assert trainer.state.best_metric == max(scores)


def test_data_given_later_are_scored_and_predicted_without_further_words(tmp_path):
    trainer = tiny_trainer(tmp_path, MultiTask(), **tiny_setting())
    rows = tiny_tagged(6, seed=2)
    as_rows = trainer.evaluate(rows, metric_key_prefix="test")
    as_arrow = trainer.evaluate(datasets.Dataset.from_list(rows), metric_key_prefix="test")
    assert as_rows["test_parse_las"] == as_arrow["test_parse_las"]
    predicted = trainer.predict([{"tokens": row["tokens"]} for row in rows])
    assert predicted.label_ids is None
    assert predicted.predictions["mood"].shape == (6, 2)
    assert predicted.predictions["parse"].shape == (6, max(len(row["tokens"]) for row in rows), 2)


def test_parts_work_in_a_stock_trainer(tmp_path):
    setting = tiny_setting()
    setting["eval_dataset"] = both_evaluated()
    trainer = tiny_trainer(tmp_path, compute_metrics=MultiTaskMetrics(TASKS), **setting)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_trees_loss"] < before["eval_trees_loss"]
    assert {"eval_trees_tag_accuracy", "eval_trees_parse_las", "eval_moods_mood_accuracy"} <= after.keys()


@pytest.mark.parametrize("trainer", ["GRPOTrainer", "RLOOTrainer", "SFTTrainer"])
def test_trls_trainers_are_refused_by_name(trainer, tmp_path):
    from hf_ft_plugins.techniques.multitask.refusals import refuse_unfit

    trl = pytest.importorskip("trl")
    with pytest.raises(PluginError, match=f"multitask: {trainer} is TRL's"):
        refuse_unfit(object.__new__(getattr(trl, trainer)), mix="uniform", balance="sum", batches="homogeneous")


def test_transfer_leaves_the_heads_of_several_tasks_alone(tmp_path):
    rows = [{"tokens": row["tokens"], "label": row["mood"]} for row in tiny_moods()]
    labelled = datasets.Dataset.from_list(rows).cast_column(
        "label", datasets.ClassLabel(names=["sad", "glad", "mixed"])
    )
    config = TaskSpec(kind="sequence", columns=("label",), labels=("sad", "glad", "mixed"))
    setting = tiny_setting()
    setting["model"] = MultiTaskModel.from_encoder(setting["model"].encoder, {"mood": config})
    setting |= {"train_dataset": labelled, "eval_dataset": None, "eval_strategy": "no", "data_collator": None}
    trainer = tiny_trainer(tmp_path, "transfer", MultiTask(), **setting)
    trainer.train()
    assert trainer.model.specs["mood"] == config


def test_two_that_supply_heads_refuse_each_other(tmp_path):
    with pytest.raises(ConflictError, match="takes heads, labels and metrics"):
        tiny_trainer(tmp_path, MultiTask(), "task", **tiny_setting())


# ---- the heads' rate ----


def rates_of(trainer):
    from hf_ft_plugins import lr_scale

    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    trainer.create_optimizer()
    return {
        names[id(weight)].startswith("heads."): lr_scale.scale_of(group)
        for group in trainer.optimizer.param_groups
        for weight in group["params"]
    }


@pytest.mark.parametrize(
    ("spec", "learning_rate", "factor"),
    [
        ("multitask", 5e-5, 8.0),
        ("multitask", 1e-3, 4.0),
        ("multitask", 1e-2, 1.0),
        ("multitask:head_rate=1", 5e-5, 1.0),
        ("multitask:head_rate=3", 1e-2, 3.0),
    ],
)
def test_the_heads_learn_faster_than_the_encoder_up_to_a_rate(spec, learning_rate, factor, tmp_path, caplog):
    from hf_ft_plugins.testing import example_of, tiny_trainer

    trainer = tiny_trainer(tmp_path, spec, **example_of("multitask").setting() | {"learning_rate": learning_rate})
    assert rates_of(trainer) == {True: pytest.approx(factor), False: 1.0}
    assert ("the heads are new" in caplog.text) == (factor != 1.0 and "head_rate" not in spec)


def test_every_parameter_is_still_in_one_group(tmp_path):
    from hf_ft_plugins.testing import example_of, tiny_trainer

    trainer = tiny_trainer(tmp_path, "multitask:head_rate=2", **example_of("multitask").setting())
    trainer.create_optimizer()
    held = [id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert sorted(held) == sorted(id(weight) for weight in trainer.model.parameters() if weight.requires_grad)
