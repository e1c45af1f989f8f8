"""What is measured of a run before its first step, against runs of which it is known."""

import json

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.suggest.facts import facts_of
from hf_ft_plugins.suggest.origins import Loaded, watch_loading
from hf_ft_plugins.testing import tiny_dataset, tiny_model

from .runs import classified, classifier, translator, writer

pytestmark = pytest.mark.usefixtures("no_estimate")


def test_padding_is_counted_in_the_batches_that_the_scripts_own_collator_makes(tmp_path):
    # In the order of the data set: two batches of four pairs, as wide as their longest, in both halves.
    lengths = [2, 4, 6, 8, 1, 1, 1, 5]
    asked = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    data = facts_of(translator(tmp_path, lengths, **asked)).data
    slots = 2 * (4 * 8 + 4 * 5)
    assert data.padding == pytest.approx(1 - 2 * sum(lengths) / slots, abs=1e-3)
    assert (data.batches, data.rows, data.width, data.target_width) == (2, 4, 8, 8)
    assert data.lengths == (1, pytest.approx(3.5), 8)


def test_rows_without_a_mask_are_read_by_the_tokenizers_padding_or_not_at_all(tmp_path):
    rows = [{"input_ids": [3, 4, 0, 0], "labels": 1}, {"input_ids": [3, 4, 5, 0], "labels": 0}] * 8
    trainer = classifier(tmp_path, train_dataset=rows)
    assert facts_of(trainer).data.padding is None
    trainer.processing_class = type("Tokenizer", (), {"pad_token_id": 0, "eos_token_id": 1})()
    assert facts_of(trainer).data.padding == pytest.approx(3 / 8)
    trainer.processing_class.eos_token_id = 0
    assert facts_of(trainer).data.padding is None, "where one token is both, padding cannot be told"


def test_rows_that_begin_with_a_prompt_are_told_from_plain_text(tmp_path):
    assert facts_of(writer(tmp_path, [(3, 5)] * 24)).data.prompts == 1
    assert facts_of(writer(tmp_path, [(0, 8)] * 12 + [(3, 5)] * 12)).data.prompts == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("asked", "steps", "passes", "evaluations"),
    [
        ({"max_steps": 24, "eval_steps": 5}, 24, 2, 5),
        ({"max_steps": 24, "eval_steps": 0.25}, 24, 2, 4),
        ({"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch"}, 36, 3, 3),
        ({"max_steps": 24, "eval_strategy": "no"}, 24, 2, 0),
        ({"max_steps": 24, "gradient_accumulation_steps": 2, "eval_steps": 24}, 24, 4, 1),
    ],
)
def test_steps_passes_and_evaluations_are_those_of_the_run(tmp_path, asked, steps, passes, evaluations):
    run = facts_of(classifier(tmp_path, **asked)).schedule
    assert (run.steps, run.passes, run.evaluations) == (steps, passes, evaluations)


def test_the_facts_of_a_short_run_are_those_that_it_shows_when_it_trains(tmp_path):
    trainer = classifier(tmp_path, max_steps=-1, num_train_epochs=2, eval_steps=5)
    run = facts_of(trainer).schedule
    trainer.train()
    evaluated = sum("eval_loss" in entry for entry in trainer.state.log_history)
    assert (run.steps, run.evaluations) == (trainer.state.global_step, evaluated)


def test_what_ends_a_run_or_lowers_its_rate_is_found(tmp_path):
    assert not facts_of(classifier(tmp_path)).schedule.early_stopping
    stops = {"callbacks": [EarlyStoppingCallback(2)], "metric_for_best_model": "loss"}
    assert facts_of(classifier(tmp_path, **stops)).schedule.early_stopping
    assert facts_of(classifier(tmp_path, lr_scheduler_type="reduce_lr_on_plateau")).schedule.early_stopping


@pytest.mark.parametrize(("accumulation", "times"), [(1, 1), (3, 3)])
def test_a_loss_that_accumulation_makes_too_large_is_found_by_trying(tmp_path, accumulation, times):
    asked = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2}
    assert facts_of(classifier(tmp_path, **asked)).schedule.loss_too_large == times
    assert facts_of(translator(tmp_path, [4] * 16, **asked)).schedule.loss_too_large == times
    assert facts_of(writer(tmp_path, [(3, 5)] * 16, **asked)).schedule.loss_too_large == 1


def test_a_loss_that_is_the_scripts_own_is_not_tried(tmp_path):
    trainer = classifier(tmp_path, gradient_accumulation_steps=3)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()
    run = facts_of(trainer).schedule
    assert (run.own_loss, run.loss_too_large) == ("compute_loss_func", 1)


def test_nothing_of_the_trainer_is_changed(tmp_path):
    trainer = classifier(tmp_path, gradient_accumulation_steps=3)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    problem = trainer.model.config.problem_type
    assert trainer.model.training
    facts_of(trainer)
    assert trainer.model.training
    assert trainer.model.config.problem_type == problem
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    assert all(weight.grad is None for weight in trainer.model.parameters())


# ---- labels ----


def test_classes_are_counted_by_name(tmp_path):
    labels = facts_of(classifier(tmp_path, train_dataset=classified(90, 6, names=["dull", "witty"]))).labels
    assert labels.counts == {"dull": 90, "witty": 6}
    assert (labels.imbalance, labels.rows_a_class, labels.declared) == (15, 48, True)


def test_labels_of_a_list_of_rows_are_counted_too(tmp_path):
    rows = tiny_dataset(24)
    labels = facts_of(classifier(tmp_path, train_dataset=rows)).labels
    assert sum(labels.counts.values()) == 24
    assert labels.counts["LABEL_1"] == sum(row["labels"] for row in rows)
    assert not labels.declared


def test_labels_that_cannot_be_learned_are_said(tmp_path):
    assert facts_of(classifier(tmp_path)).wrong_labels == ""
    rows = classified(48, 48).to_dict()
    trainer = classifier(tmp_path, train_dataset=Dataset.from_dict(rows | {"labels": [3.5] * 96}))
    trainer.model.config.problem_type = "single_label_classification"
    facts = facts_of(trainer)
    assert "3.5" in facts.wrong_labels
    assert facts.labels is None


def test_a_model_that_writes_has_no_classes(tmp_path):
    assert facts_of(translator(tmp_path, [4] * 8)).labels is None


# ---- data of other kinds ----


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_dataset(64))


def test_of_a_stream_less_is_known_and_nothing_fails(tmp_path):
    facts = facts_of(classifier(tmp_path, train_dataset=Stream()))
    assert (facts.data.examples, facts.data.streamed, facts.schedule.passes) == (None, True, None)
    assert facts.labels is None
    assert facts.data.padding == 0


def test_data_that_give_no_batch_are_an_error_that_says_so(tmp_path):
    def broken(rows):
        raise KeyError("no such column")

    with pytest.raises(PluginError, match=r"KeyError: 'no such column'.*mend it first"):
        facts_of(classifier(tmp_path, data_collator=broken))


def test_all_facts_are_plain_and_json_holds_them(tmp_path):
    facts = facts_of(classifier(tmp_path, eval_dataset={"one": classified(4, 4), "two": classified(2, 2)}))
    plain = json.loads(json.dumps(facts.as_dict()))
    assert plain["data"]["evaluation_sets"] == 2
    assert plain["data"]["evaluation"] == 12
    assert plain["labels"]["imbalance"] == 1
    assert plain["memory"]["needed"] == facts.memory.needed
    assert "trainer" not in plain


# ---- the model ----


def test_where_a_model_is_from_is_seen_as_it_is_loaded(tmp_path, monkeypatch):
    from transformers import BertForSequenceClassification, modeling_utils

    monkeypatch.setattr(
        modeling_utils.PreTrainedModel, "from_pretrained", modeling_utils.PreTrainedModel.from_pretrained
    )
    loaded = Loaded()
    watch_loading(modeling_utils, loaded)
    tiny_model().base_model.save_pretrained(tmp_path / "encoder")
    model = BertForSequenceClassification.from_pretrained(str(tmp_path / "encoder"))
    _, info = BertForSequenceClassification.from_pretrained(str(tmp_path / "encoder"), output_loading_info=True)
    assert info["missing_keys"] >= {"classifier.weight", "classifier.bias"}
    facts = facts_of(classifier(tmp_path, model=model), loaded).model
    assert (facts.pretrained, facts.new_head, facts.loaded_from) == (True, True, str(tmp_path / "encoder"))
    fresh = facts_of(classifier(tmp_path), loaded).model
    assert (fresh.pretrained, fresh.new_head, fresh.loaded_from) == (False, False, "")


def test_parameters_that_learn_are_counted(tmp_path):
    model = tiny_model()
    model.base_model.requires_grad_(False)
    facts = facts_of(classifier(tmp_path, model=model)).model
    assert facts.trained == 16 * 2 + 2
    assert facts.parameters == sum(weight.numel() for weight in model.parameters())


def test_kinds_of_models_are_told_by_what_they_do(tmp_path):
    kinds = [
        facts_of(trainer).model.kind
        for trainer in (classifier(tmp_path), translator(tmp_path, [4] * 8), writer(tmp_path, [(3, 5)] * 8))
    ]
    assert kinds == ["classifier", "encoder-decoder that writes text", "causal language model"]
