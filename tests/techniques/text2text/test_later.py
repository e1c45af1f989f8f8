"""Data given after the trainer was built, and rows that only the script's own collator can read."""

import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    WhisperConfig,
    WhisperForConditionalGeneration,
    default_data_collator,
)

from hf_ft_plugins.testing.examples.text2text import tiny_pairs
from tests.techniques.text2text import small_models
from tests.techniques.text2text.small_models import SIZE, TOKENIZER, bart

datasets = pytest.importorskip("datasets")

TEXTS = ["ab", "cdefg", "h", "ij", "klm"]
ROWS = {"source": TEXTS, "target": [text[::-1] for text in TEXTS]}


def trainer_of(folder, model, rows, collator=None, eval_dataset=None, **changes):
    settings = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "per_device_eval_batch_size": 2} | changes
    technique = "text2text:examples=0,metrics=false"
    return small_models.trainer_of(
        folder, model, rows, technique, collator=collator, eval_dataset=eval_dataset, **settings
    )


class Stream(torch.utils.data.IterableDataset):
    """A stream of torch's, which may be read once."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


FORMS = {
    "a data set": lambda data: data,
    "without references": lambda data: data.remove_columns("target"),
    "rows": lambda data: data.to_list(),
    "a stream": lambda data: data.to_iterable_dataset(),
    "a stream of torch's": lambda data: Stream(data.to_list()),
    "a transform": lambda data: data.with_transform(lambda rows: dict(rows)),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_given_later_have_a_prediction_each(form, tmp_path):
    raw = datasets.Dataset.from_dict(ROWS)
    trainer = trainer_of(tmp_path, bart(init_std=0.5), raw, predict_with_generate=True, generation_max_length=6)
    found = trainer.predict(FORMS[form](raw)).predictions
    assert len(found) == len(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        alone = trainer.model.generate(**TOKENIZER(text, return_tensors="pt"), max_length=6)[0].numpy()
        assert np.array_equal(row[: len(alone)], alone)


def test_texts_given_later_are_scored_as_those_given_at_the_start(tmp_path):
    raw, other = datasets.Dataset.from_dict(ROWS), datasets.Dataset.from_dict({"source": TEXTS, "target": TEXTS})
    trainer = trainer_of(tmp_path, bart(init_std=0.5), raw, eval_dataset=raw)
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(raw)["eval_loss"] == expected
    assert trainer.evaluate({"one": raw})["eval_one_loss"] == expected
    trainer.eval_dataset = raw
    assert trainer.evaluate()["eval_loss"] == expected
    # The control: what is given is what is scored.
    assert trainer.evaluate(other)["eval_loss"] != expected


def of_texts(rows):
    batch = TOKENIZER(
        [row["en"] for row in rows], text_target=[row["target"] for row in rows], padding=True, return_tensors="pt"
    )
    batch["labels"][batch["labels"] == 0] = -100
    return dict(batch)


@pytest.mark.parametrize("column", ["source", "other"])
def test_a_collator_of_the_scripts_own_reads_the_texts_itself(column, tmp_path):
    """Of the technique's column, and of one that it does not know; reference: the model's loss of that batch."""
    raw = datasets.Dataset.from_dict({"en": TEXTS, column: TEXTS, "target": ROWS["target"]})
    changes = {"remove_unused_columns": False, "per_device_train_batch_size": 5, "per_device_eval_batch_size": 5}
    trainer = trainer_of(tmp_path, bart(init_std=0.5), raw, of_texts, raw, **changes)
    model = trainer.model.eval()
    with torch.no_grad():
        expected = float(model(**of_texts(list(raw))).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(expected, rel=1e-5)]


def test_sounds_without_labels_are_predicted(tmp_path):
    sounds = {"num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 20}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZE, decoder_start_token_id=2, **sounds))
    train = datasets.Dataset.from_list([{"input_features": [[0.5] * 20] * 4, "labels": [5, 6, 1]}] * 3)
    test = train.remove_columns("labels")
    trainer = trainer_of(tmp_path, model, train, default_data_collator, test, predict_with_generate=True)
    assert trainer.predict(trainer.eval_dataset).predictions.shape[0] == 3
    assert trainer.predict(test).predictions.shape[0] == 3


@pytest.mark.parametrize("form", ["a stream", "a data set", "rows"])
def test_labels_may_be_called_label_and_a_mask_may_be_of_fractions(form, tmp_path):
    pairs = tiny_pairs(6)
    rows = [{"input_ids": [0, *row["input_ids"]], "label": row["labels"]} for row in pairs]
    rows = [{**row, "attention_mask": [0.0] + [1.0] * (len(row["input_ids"]) - 1)} for row in rows]
    stock = DataCollatorForSeq2Seq(TOKENIZER, bart(init_std=0.5))(
        [{"labels": row["label"]} | {name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    )
    with torch.no_grad():
        expected = float(bart(init_std=0.5).eval()(**stock).loss)
    # Two batches to a step, which then has all rows.
    changes = {"per_device_train_batch_size": 100, "gradient_accumulation_steps": 2}
    trainer = trainer_of(tmp_path, bart(init_std=0.5), FORMS[form](datasets.Dataset.from_list(rows)), **changes)
    trainer.train()
    assert next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry) == pytest.approx(expected)
