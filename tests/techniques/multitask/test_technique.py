"""Multi-task: several data sets as one, batches with the labels of several tasks, one model, and the whole run."""

import copy
import math

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model, Trainer

from hf_ft_plugins.errors import ConflictError, PluginError
from hf_ft_plugins.techniques.multitask import (
    MultiTask,
    MultiTaskCollator,
    MultiTaskMetrics,
    MultiTaskModel,
    TaskSpec,
    multitask_dataset,
    with_labels,
)
from hf_ft_plugins.techniques.multitask.tiny import (
    TASKS,
    tiny_moods,
    tiny_multitask_model,
    tiny_setting,
    tiny_tagged,
    tiny_tokenizer,
)
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_model, tiny_trainer

datasets = pytest.importorskip("datasets")


def quiet(model):
    """Without dropout, so that two orders of the same work give the same numbers."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def both_evaluated():
    """Each data set evaluated by itself, under its name."""
    sets = {"trees": tiny_tagged(8, seed=1), "moods": tiny_moods(6, seed=1)}
    return {name: multitask_dataset(rows, TASKS, name, need_all=False) for name, rows in sets.items()}


# ---- tasks and data ----


def test_labels_are_read_from_the_data_in_a_sure_order():
    tasks = {"tag": TaskSpec(kind="token"), "parse": TaskSpec(kind="dependency"), "mood": TaskSpec(kind="sequence")}
    found = with_labels(tasks, {"trees": tiny_tagged(), "moods": tiny_moods()})
    assert found["tag"].labels == ("ADJ", "ADV", "DET", "NAME", "NOUN", "VERB")
    assert found["parse"].labels == ("dep", "root")
    named = datasets.Dataset.from_dict({"tokens": [["a"]], "tag": [[1]]}).cast_column(
        "tag", datasets.List(datasets.ClassLabel(names=["Z", "A"]))
    )
    assert with_labels({"tag": TaskSpec(kind="token")}, named)["tag"].labels == ("Z", "A")


def test_data_sets_become_one_without_a_copy():
    trees, moods = tiny_tagged(5), tiny_moods(3)
    rows = multitask_dataset({"trees": trees, "moods": moods}, TASKS)
    assert rows.sizes == [5, 3]
    assert [rows[position].source for position in range(8)] == ["trees"] * 5 + ["moods"] * 3
    assert rows[6].row is moods[1]
    assert rows[0].tasks == ("tag", "parse")
    # A data set named as a task teaches this task alone.
    assert multitask_dataset({"tag": trees, "parse": trees, "mood": moods}, TASKS).tasks["parse"] == ("parse",)


def changed(rows, index, **columns):
    return [row | columns if place == index else row for place, row in enumerate(rows)]


BAD_ROWS = {
    "has 3 words and 2 labels in column 'tag'": {
        "tokens": ["a", "the", "Rome"],
        "tag": ["DET"] * 2,
    },
    "the label 'NUON'.*Did you mean 'NOUN'": {"tag": ["NUON"] * 3},
    "2 roots": {"head": [0, 0, 1]},
    "a cycle": {"head": [0, 3, 2]},
    "no words|empty": {"tokens": [], "tag": [], "head": [], "deprel": []},
}


@pytest.mark.parametrize("words", BAD_ROWS)
def test_bad_rows_are_named_before_training_begins(words, tmp_path):
    plain = {
        "tokens": ["a", "the", "Rome"],
        "tag": ["DET", "DET", "NAME"],
        "head": [0, 1, 2],
        "deprel": ["root", "dep", "dep"],
    }
    rows = changed(tiny_tagged(6), 2, **plain)
    setting = tiny_setting()
    setting["train_dataset"] = {"trees": rows, "moods": tiny_moods()}
    tiny_trainer(tmp_path / "good", MultiTask(), **setting)
    setting["train_dataset"] = {"trees": changed(rows, 2, **BAD_ROWS[words]), "moods": tiny_moods()}
    with pytest.raises(PluginError, match=words) as refusal:
        tiny_trainer(tmp_path / "bad", MultiTask(), **setting)
    assert "row 2 of the train data 'trees'" in str(refusal.value)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_tagged(3))


REFUSED = {
    "no train data for task 'mood'": {"train_dataset": {"trees": tiny_tagged()}},
    "have no row": {"train_dataset": {"trees": tiny_tagged(), "moods": []}},
    "are streamed": {"train_dataset": {"trees": Stream(), "moods": tiny_moods()}},
    "the labels of no task": {
        "train_dataset": {"trees": tiny_tagged(), "moods": [{"tokens": ["a"], "feeling": "sad"}]}
    },
    "has one task. Make a model of several": {"model": tiny_model()},
    "has no tokenizer": {"processing_class": None, "data_collator": None},
    "the trainer has a compute_loss_func or": {"label_smoothing_factor": 0.1},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_when_the_trainer_is_built(words, tmp_path):
    with pytest.raises(PluginError, match=words):
        tiny_trainer(tmp_path, MultiTask(), **(tiny_setting() | REFUSED[words]))


def test_label_sets_that_differ_between_splits_are_refused(tmp_path):
    setting = tiny_setting()
    setting["eval_dataset"] = {
        "trees": [row | {"deprel": ["root"] + ["obj"] * (len(row["tokens"]) - 1)} for row in tiny_tagged(4)],
        "moods": tiny_moods(),
    }
    with pytest.raises(PluginError, match=r"row 0 of the trees data has the label 'obj' for task 'parse'"):
        tiny_trainer(tmp_path, MultiTask(), **setting)


def test_kinds_and_names_of_tasks_are_checked():
    with pytest.raises(PluginError, match="Did you mean 'dependency'"):
        TaskSpec(kind="dependancy")
    with pytest.raises(PluginError, match="two tasks of one name"):
        with_labels({"ner": TaskSpec(kind="token", labels=("O",)), "NER": TaskSpec(kind="token", labels=("O",))})


# ---- batches ----


def test_a_batch_has_the_labels_of_every_task_that_a_row_of_it_teaches():
    model = tiny_multitask_model()
    rows = multitask_dataset({"trees": tiny_tagged(), "moods": tiny_moods()}, model.specs)
    batch = MultiTaskCollator(tiny_tokenizer(), model)([rows[0], rows[25]])
    assert list(batch["labels"]) == ["tag", "parse", "mood"]
    assert (batch["labels"]["tag"][1] == -100).all()
    assert batch["labels"]["mood"].tolist()[0] == -100
    alone = MultiTaskCollator(tiny_tokenizer(), model)([rows[25]])
    assert list(alone["labels"]) == ["mood"]


def test_words_of_several_tokens_and_words_without_any_keep_their_places():
    collator = MultiTaskCollator(tiny_tokenizer(), tiny_multitask_model())
    batch = collator([{"tokens": ["the", "cat", "", "sees"], "tag": ["DET", "NOUN", "ADV", "VERB"]}])
    # [CLS] the c ##at [UNK] sees [SEP]
    assert batch["word_ids"].tolist() == [[-1, 0, 1, 1, 2, 3, -1]]


def test_a_row_that_is_too_long_is_cut_and_counted(caplog):
    row = {"tokens": ["cat"] * 40, "tag": ["NOUN"] * 40, "head": list(range(40)), "deprel": ["root"] + ["dep"] * 39}
    collator = MultiTaskCollator(tiny_tokenizer(), tiny_multitask_model(), max_length=12)
    batch = collator([row])
    # Two tokens a word, between [CLS] and [SEP].
    assert (batch["labels"]["tag"] != -100).sum() == 5
    assert (batch["labels"]["parse"] == -100).all()
    assert sum(collator.too_long.values()) == 1
    assert "more than 12 tokens" in caplog.text
    collator.training = False
    assert (collator([row])["labels"]["tag"] != -100).sum() == 40


# ---- the model ----


def test_joint_heads_give_the_losses_that_each_task_has_alone():
    model = quiet(tiny_multitask_model())
    rows = tiny_tagged(6)
    collator = MultiTaskCollator(tiny_tokenizer(), model)
    joint = model(**collator(rows))
    for task in ("tag", "parse"):
        batch = collator(rows)
        batch["labels"] = {task: batch["labels"][task]}
        assert torch.equal(model(**batch).task_sums[task], joint.task_sums[task])


def test_a_saved_model_is_the_same_model_and_keeps_its_labels(tmp_path):
    model = tiny_multitask_model().train(False)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.specs == model.specs
    batch = MultiTaskCollator(tiny_tokenizer(), model)(tiny_tagged(4))
    for task, predicted in model(**batch).predictions.items():
        assert torch.equal(predicted, again(**batch).predictions[task])
    assert isinstance(AutoModel.from_pretrained(tmp_path), MultiTaskModel)


def test_a_head_that_a_checkpoint_lacks_is_made_anew(tmp_path):
    model = tiny_multitask_model()
    model.save_pretrained(tmp_path)
    config = copy.deepcopy(model.config)
    config.tasks["topic"] = TaskSpec(kind="sequence", labels=("x", "y")).to_dict()
    again = MultiTaskModel.from_pretrained(tmp_path, config=config)
    assert 0 < again.heads["topic"].linear.weight.std() < 0.1
    assert torch.equal(again.heads["mood"].linear.weight, model.heads["mood"].linear.weight)


def test_a_model_that_reads_forward_reads_last_tokens_and_keeps_its_language_head(tmp_path):
    """Its sequences are read where everything before is seen; tied embeddings stay tied."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        tie_word_embeddings=True,
    )
    plain = LlamaForCausalLM(config).train(False)
    tasks = {"text": TaskSpec(kind="causal_lm"), "mood": TaskSpec(kind="sequence", labels=("x", "y"))}
    model = MultiTaskModel.from_encoder(plain.model, tasks).train(False)
    assert model.config.word_pooling == "last"
    ids = torch.arange(1, 7)[None]
    labels = {"text": ids, "mood": torch.tensor([1])}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    expected = plain(input_ids=ids, labels=ids)
    assert torch.equal(out.predictions["text"], expected.logits.argmax(-1))
    assert (out.task_sums["text"] / out.task_items["text"]).item() == pytest.approx(float(expected.loss), rel=1e-5)
    other = ids.clone()
    other[0, -1] = 9
    changed_end = model(input_ids=other, attention_mask=torch.ones_like(ids)).predictions["mood"]
    assert not torch.equal(changed_end, out.predictions["mood"])
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path).train(False)
    assert again.heads["text"].linear.weight is again.get_input_embeddings().weight
    found = again(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    assert torch.equal(found.loss, out.loss)


def test_an_encoder_with_a_decoder_is_refused_with_the_mend():
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(PluginError, match="T5EncoderModel"):
        MultiTaskModel.from_encoder(T5Model(config), {"mood": TaskSpec(kind="sequence", labels=("x", "y"))})


@pytest.mark.parametrize(
    ("task", "made"), [("tag", "BertForTokenClassification"), ("mood", "BertForSequenceClassification")]
)
def test_an_exported_task_is_a_plain_model_with_the_same_outputs(task, made, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    model = tiny_multitask_model().train(False)
    plain = model.export(task)
    assert type(plain).__name__ == made
    assert tuple(plain.config.id2label.values()) == TASKS[task].labels
    plain.save_pretrained(tmp_path)
    auto = AutoModelForTokenClassification if task == "tag" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(tmp_path)
    batch = MultiTaskCollator(tiny_tokenizer(), model)([{"tokens": ["the", "old", "Rome"]}])
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    ours = model(**batch)
    if task == "tag":
        assert torch.equal(logits[:, 1:4].argmax(-1), ours.predictions["tag"])
    else:
        assert torch.allclose(logits, ours.predictions["mood"], atol=1e-6)
    with pytest.raises(PluginError, match="transformers has no class"):
        model.export("parse")


def test_adapters_train_with_whole_heads_and_keep_them(tmp_path):
    peft = pytest.importorskip("peft")
    setting = tiny_setting()
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=list(TASKS))
    setting["model"] = peft.get_peft_model(setting["model"], config)
    trainer = tiny_trainer(tmp_path, MultiTask(mix="uniform"), **setting)
    trainer.train()
    assert MultiTask.example().acted(trainer)
    trainer.model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_multitask_model(), tmp_path / "adapter")
    batch = MultiTaskCollator(tiny_tokenizer(), TASKS)(tiny_tagged(4))
    trained, loaded = trainer.model.train(False)(**batch), again.train(False)(**batch)
    assert torch.allclose(trained.loss, loaded.loss)


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
