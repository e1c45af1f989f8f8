"""Each technique that has a rule is suggested where it holds, and not in the case beside it."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, EarlyStoppingCallback

from hf_ft_plugins.memory.estimate import GIB
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.suggest.facts import facts_of
from hf_ft_plugins.suggest.memory_facts import MemoryFacts
from hf_ft_plugins.suggest.report import report_on
from hf_ft_plugins.testing import tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples import behavioral, multitask

from .runs import classified, classifier, pretrained, suggested, translator, writer

quiet = pytest.mark.usefixtures("no_estimate")

# Five passes over the data and more, evaluated eight times.
LONG = {"max_steps": 80, "eval_steps": 10}
# Rows of 2 to 40 tokens in random batches are mostly padding.
VARIED = [2, 3, 2, 40, 3, 2, 2, 3] * 8


@quiet
def test_nothing_is_said_of_a_run_in_which_there_is_nothing_to_find(tmp_path):
    assert suggested(classifier(tmp_path)) == {}
    assert suggested(translator(tmp_path, [8] * 64)) == {}


# ---- adaptive-lr ----


@quiet
def test_adaptive_lr_where_a_run_goes_often_over_its_data_and_nothing_heeds_its_evaluations(tmp_path):
    found = suggested(classifier(tmp_path, **LONG))
    assert set(found) == {"adaptive-lr"}
    passes, _ = found["adaptive-lr"].because
    assert (passes.fact, passes.value) == ("schedule.passes", pytest.approx(6.7))
    assert "evaluated 8 times" in passes.text


@quiet
@pytest.mark.parametrize(
    "changes",
    [
        {"eval_steps": 40},
        {"max_steps": 40},
        {"callbacks": [EarlyStoppingCallback(2)], "metric_for_best_model": "loss"},
    ],
    ids=["evaluated twice", "three passes", "early stopping"],
)
def test_no_adaptive_lr_where(tmp_path, changes):
    assert suggested(classifier(tmp_path, **(LONG | changes))) == {}


@quiet
def test_adaptive_lr_with_rows_held_out_where_a_long_run_is_never_evaluated(tmp_path):
    unevaluated = {"eval_dataset": None, "eval_strategy": "no", "train_dataset": classified(120, 120)}
    found = suggested(classifier(tmp_path, max_steps=700, **unevaluated))
    assert found["adaptive-lr"].spec == "adaptive-lr:hold_out=0.2"
    assert "times over its 240 rows and is never evaluated" in found["adaptive-lr"].because[0].text
    assert "adaptive-lr" not in suggested(classifier(tmp_path, max_steps=100, **unevaluated))


@quiet
def test_no_adaptive_lr_for_a_model_that_writes_of_which_there_is_no_figure(tmp_path):
    assert suggested(translator(tmp_path, [8] * 64, **LONG)) == {}


@quiet
def test_no_adaptive_lr_for_an_optimizer_that_it_refuses(tmp_path):
    trainer = classifier(tmp_path, **LONG)
    trainer.optimizer = torch.optim.Rprop(trainer.model.parameters())
    assert suggested(trainer) == {}


# ---- task ----


@quiet
def test_task_where_a_class_is_rare(tmp_path):
    found = suggested(classifier(tmp_path, train_dataset=classified(90, 6)))
    assert set(found) == {"task"}
    assert found["task"].spec == "task:imbalance=logit_adjust,frequencies=equal"
    (reason,) = found["task"].because
    assert (reason.fact, reason.value) == ("labels.imbalance", 15.0)
    assert "90 training rows are 'class 0' and 6 are 'class 1'" in reason.text
    assert suggested(classifier(tmp_path, train_dataset=classified(80, 16))) == {}


@quiet
def test_no_remedy_for_rare_classes_where_the_loss_is_the_scripts_own(tmp_path):
    trainer = classifier(tmp_path, train_dataset=classified(90, 6), label_smoothing_factor=0.1)
    assert suggested(trainer) == {}


@quiet
def test_task_where_nothing_but_the_loss_is_evaluated(tmp_path):
    found = suggested(classifier(tmp_path, compute_metrics=None))
    assert found["task"].spec == "task"
    assert [reason.fact for reason in found["task"].because] == ["schedule.metrics"]
    assert suggested(classifier(tmp_path, compute_metrics=None, eval_strategy="no")) == {}


@quiet
def test_task_where_accumulation_makes_the_loss_too_large(tmp_path):
    found = suggested(classifier(tmp_path, gradient_accumulation_steps=2))
    assert [(reason.fact, reason.value) for reason in found["task"].because] == [("schedule.loss_too_large", 2)]


@quiet
def test_task_where_the_head_has_too_few_outputs(tmp_path):
    found = suggested(classifier(tmp_path, train_dataset=classified(32, 32, 32)))
    assert found["task"].weight == 3
    assert "3 classes, and the head has 2 outputs" in found["task"].because[0].text


@quiet
def test_no_task_where_the_model_writes(tmp_path):
    assert "task" not in suggested(translator(tmp_path, VARIED, compute_metrics=None))


# ---- transfer ----


@quiet
def test_transfer_where_a_pretrained_encoder_gets_a_handful_of_texts_a_class(tmp_path):
    trainer = classifier(tmp_path, train_dataset=classified(8, 8))
    found = suggested(trainer, loaded=pretrained(trainer))
    assert found["transfer"].because[0].value == 8
    assert "8 a class" in found["transfer"].because[0].text


@quiet
@pytest.mark.parametrize("case", ["many examples", "not pretrained", "a trained head", "frozen layers", "not BERT"])
def test_no_transfer_where(tmp_path, case):
    rows = classified(128, 128) if case == "many examples" else classified(8, 8)
    trainer = classifier(tmp_path, train_dataset=rows)
    if case == "frozen layers":
        trainer.model.bert.embeddings.requires_grad_(False)
    if case == "not BERT":
        trainer.model.bert.pooler = torch.nn.Identity()
    loaded = pretrained(trainer, missing=() if case == "a trained head" else ["classifier.weight"])
    assert "transfer" not in suggested(trainer, loaded=None if case == "not pretrained" else loaded)


# ---- text2text ----


@quiet
def test_text2text_where_batches_of_pairs_are_mostly_padding(tmp_path):
    found = suggested(translator(tmp_path, VARIED))
    assert set(found) == {"text2text"}
    reason = found["text2text"].because[0]
    assert reason.fact == "data.padding"
    assert reason.value > 0.5
    assert f"{reason.value:.0%} of the slots" in reason.text
    prompted = [(length, length) for length in VARIED]
    assert set(suggested(writer(tmp_path, prompted))) == {"text2text"}


@quiet
def test_text2text_where_batches_are_alike_in_length(tmp_path):
    trainer = translator(tmp_path, [8] * 64, train_sampling_strategy="group_by_length")
    assert [reason.fact for reason in suggested(trainer)["text2text"].because] == ["schedule.sampling"]


@quiet
def test_text2text_where_accumulation_makes_the_loss_too_large(tmp_path):
    trainer = translator(tmp_path, [8] * 64, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    assert [reason.fact for reason in suggested(trainer)["text2text"].because] == ["schedule.loss_too_large"]


@quiet
@pytest.mark.parametrize("case", ["a loss of its own", "plain text"])
def test_no_text2text_where(tmp_path, case):
    if case == "plain text":
        trainer = writer(tmp_path, [(0, length) for length in VARIED])
    else:
        trainer = translator(tmp_path, VARIED, label_smoothing_factor=0.1)
    assert suggested(trainer) == {}


# ---- low-memory and peft ----


def in_need(trainer, forms, *, needed=10, available=8, activations=2, known=False):
    """The suggestions where a step takes `needed` GiB, of which activations are some, and each form what is said."""
    facts = facts_of(trainer, pretrained(trainer) if known else None)
    memory = MemoryFacts(
        available=available * GIB,
        device="a device",
        needed=needed * GIB,
        activations=activations * GIB,
        needed_with=lambda spec: GIB * forms[spec] if spec in forms else None,
    )
    return {one.technique.name: one.suggestion for one in report_on(replace(facts, memory=memory)).advice}


COMPACT, ADALOMO = "low-memory:algorithm=compact-adamw", "low-memory:algorithm=adalomo"


@quiet
def test_low_memory_where_a_step_does_not_fit_and_a_form_of_it_does(tmp_path):
    trainer = classifier(tmp_path)
    forms = {"low-memory": 7, COMPACT: 5, ADALOMO: 3, "peft": 2}
    found = in_need(trainer, forms)
    assert set(found) == {"low-memory"}, "the model is not pretrained, so there is no adapter for it"
    assert (found["low-memory"].spec, found["low-memory"].first) == ("low-memory", "")
    (reason,) = found["low-memory"].because
    assert (reason.fact, reason.value) == ("memory.needed", 10 * GIB)
    assert "about 10.00 GiB" in reason.text
    assert "with low-memory about 7.00" in reason.text
    assert in_need(trainer, forms, available=10) == {}


@quiet
@pytest.mark.parametrize(("available", "spec"), [(6, COMPACT), (4, ADALOMO), (2, None)])
def test_the_form_of_low_memory_that_changes_least_and_fits(tmp_path, available, spec):
    found = in_need(classifier(tmp_path), {"low-memory": 7, COMPACT: 5, ADALOMO: 3}, available=available)
    assert (found["low-memory"].spec if found else None) == spec
    if spec == ADALOMO:
        assert "ten to thirty times" in found["low-memory"].first


@quiet
@pytest.mark.parametrize("case", ["steps that accumulate", "activations", "fp16"])
def test_no_low_memory_where_it_saves_too_little_or_is_refused(tmp_path, case):
    # More micro-batches than one are what a loss may be too large by.
    trainer = classifier(tmp_path, gradient_accumulation_steps=1 + (case == "steps that accumulate"))
    trainer.args.fp16 = case == "fp16"
    assert "low-memory" not in in_need(trainer, {"low-memory": 7}, activations=6 if case == "activations" else 2)


@quiet
def test_peft_where_full_tuning_of_a_pretrained_model_does_not_fit(tmp_path):
    trainer = classifier(tmp_path)
    found = in_need(trainer, {"low-memory": 9, "peft": 7}, known=True)
    assert set(found) == {"peft"}
    assert found["peft"].spec == "peft"
    found = in_need(trainer, {"peft": 9, "peft:quant=nf4": 7, "low-memory": 7}, known=True)
    assert found["peft"].spec == "peft:quant=nf4"
    assert found["peft"].need == found["low-memory"].need != ""
    assert found["low-memory"].weight > found["peft"].weight
    assert in_need(trainer, {"peft": 9}, known=True) == {}
    assert in_need(trainer, {"peft": 7}, available=10, known=True) == {}


@pytest.mark.slow
def test_a_run_that_is_short_of_memory_by_the_estimate(tmp_path):
    size = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, **size))
    trainer = classifier(tmp_path, model=model, per_device_train_batch_size=1, max_steps=48)
    budget = 0.9 * facts_of(trainer).memory.needed / GIB
    assert suggested(trainer, budget=budget)["low-memory"].spec == "low-memory"


@quiet
def test_peft_where_the_scripts_own_adapter_learns_at_a_rate_for_full_tuning(tmp_path):
    def adapted(rate):
        model = get_peft_model(tiny_model(), LoraConfig(task_type="SEQ_CLS"))
        return suggested(classifier(tmp_path, model=model, learning_rate=rate))

    found = adapted(5e-5)
    assert set(found) == {"peft"}
    assert found["peft"].because[0].value == 5e-5
    assert "Take the adapter out" in found["peft"].first
    assert adapted(5e-4) == {}


# ---- multitask ----


@quiet
@pytest.mark.parametrize("several_sets", [False, True])
def test_multitask_where_the_script_trains_a_model_of_several_tasks_without_it(tmp_path, several_sets):
    rows = {"trees": multitask.tiny_tagged(), "moods": multitask.tiny_moods()}
    setting = multitask.tiny_setting() | {"train_dataset": rows if several_sets else rows["trees"]}
    names = ("tag", "parse") if not several_sets else ("tag", "parse", "mood")
    setting["model"] = multitask.tiny_multitask_model(names)
    setting["data_collator"] = multitask.MultiTaskCollator(setting["processing_class"], setting["model"])
    trainer = tiny_trainer(tmp_path, remove_unused_columns=False, **setting)
    found = suggested(trainer)
    assert set(found) == {"multitask"}
    assert found["multitask"].because[-1].value == list(names)
    assert [reason.fact for reason in found["multitask"].because[:-1]] == ["data.sets"] * several_sets


@quiet
def test_no_multitask_where_it_is_there_already(tmp_path):
    trainer = tiny_trainer(tmp_path, "multitask", **multitask.tiny_setting())
    assert suggested(trainer) == {}


# ---- behavioral ----


def preferences(folder, **changes):
    """A DPO trainer of a tiny Llama on pairs with long answers, which share little."""
    rows = behavioral.tiny_preferences(24).remove_columns(["behavior_weight", "behavior_eps"])
    longer = [{"role": "assistant", "content": "it is this word, or so it seems to me, and to others: "}]
    rows = rows.map(lambda row: {side: [{**longer[0], **row[side][0]}] for side in ("chosen", "rejected")})
    return tiny_trainer(folder, **(behavioral.tiny_setting("dpo", train_dataset=rows) | changes))


@quiet
def test_behavioral_where_rows_say_how_sure_they_are(tmp_path):
    trainer = preferences(tmp_path, train_dataset=behavioral.tiny_preferences(24))
    reasons = {reason.fact: reason for reason in suggested(trainer)["behavioral"].because}
    assert reasons["data.columns"].value == ["behavior_weight", "behavior_eps"]
    plain = preferences(tmp_path)
    assert "data.columns" not in {reason.fact for one in suggested(plain).values() for reason in one.because}


@quiet
def test_behavioral_where_answers_are_cut(tmp_path):
    whole, cut = (suggested(preferences(tmp_path, max_length=limit)) for limit in (64, 16))
    assert "data.cut" in [reason.fact for reason in cut["behavioral"].because]
    assert "data.cut" not in [reason.fact for one in whole.values() for reason in one.because]


@quiet
def test_behavioral_where_prompts_are_computed_twice(tmp_path):
    turns = behavioral.tiny_preferences(24, turns=4).remove_columns(["behavior_weight", "behavior_eps"])
    (reason,) = suggested(preferences(tmp_path, train_dataset=turns, max_length=256))["behavioral"].because
    assert reason.fact == "data.shared"
    # A prompt is half of what both answers share, and they are short.
    assert 0.4 < reason.value < 0.5
    short = turns.map(lambda row: {"prompt": row["prompt"][-1:], "chosen": row["chosen"] * 1})
    long_answers = short.map(
        lambda row: {
            side: [{"role": "assistant", "content": row[side][0]["content"] * 4}] for side in ("chosen", "rejected")
        }
    )
    assert suggested(preferences(tmp_path, train_dataset=long_answers, max_length=256)) == {}


@quiet
def test_behavioral_where_reactions_stand_beside_the_answers_that_are_learned(tmp_path):
    import trl
    from datasets import Dataset

    def learned(**columns):
        turns = [[{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red"}]] * 24
        rows = Dataset.from_dict({"messages": turns, **columns})
        return suggested(
            tiny_trainer(
                tmp_path,
                trainer_class=trl.SFTTrainer,
                args_class=trl.SFTConfig,
                model=behavioral.tiny_llama(),
                train_dataset=rows,
                eval_dataset=rows,
                processing_class=behavioral.tiny_tokenizer(),
                bf16=False,
                gradient_checkpointing=False,
            )
        )

    found = learned(feedback=["thumbs_up", "thumbs_down"] * 12)
    assert set(found) == {"behavioral"}
    assert found["behavioral"].first
    assert (
        "12 of the first 24 rows that they are good and of 12 that they are bad" in found["behavioral"].because[0].text
    )
    assert learned() == {}
    assert learned(feedback=["thumbs_up"] * 24) == {}


# ---- sequential, layer-removal ----


@quiet
def test_sequential_where_the_model_is_what_a_stage_has_left(tmp_path):
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    folder = tmp_path / "stages"
    rows = classified(16, 16)
    first = with_plugins(Trainer, f"sequential:folder={folder},stage=general")
    tiny_trainer(tmp_path / "run", trainer_class=first, train_dataset=rows, max_steps=2, eval_strategy="no").train()
    trainer = classifier(tmp_path / "next")
    found = suggested(trainer, loaded=pretrained(trainer, str(folder / "general" / "model"), ()))
    assert found["sequential"].spec == f"sequential:folder={folder},stage=stage2"
    assert resolve(found["sequential"].spec).folder == str(folder)
    for name in ("elsewhere/general/model", "stages/other/model"):
        assert suggested(trainer, loaded=pretrained(trainer, str(tmp_path / name), ())) == {}


@quiet
def test_layer_removal_is_never_suggested_since_nobody_can_see_that_speed_is_wanted():
    from hf_ft_plugins import LayerRemoval, Technique

    assert LayerRemoval.suggestion.__func__ is Technique.suggestion.__func__
