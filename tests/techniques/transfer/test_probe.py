"""Transfer's probe on cached features where batches differ, and what a run is too short for."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Trainer,
)

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.transfer import Transfer, fit_probe
from hf_ft_plugins.techniques.transfer.head_reading import NotCacheable
from hf_ft_plugins.testing import VOCABULARY, difference, outcome, tiny_dataset, tiny_trainer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def batch_of(length, padded=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(4, length, dtype=torch.long)
    mask[:, length - padded :] = 0
    ids = torch.randint(3, VOCABULARY, (4, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(4) % 2}


def modern(pooling):
    torch.manual_seed(0)
    marks = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    return ModernBertForSequenceClassification(
        ModernBertConfig(vocab_size=VOCABULARY, classifier_pooling=pooling, **marks, **SIZES)
    ).eval()


def test_a_head_that_reads_the_mask_is_found_in_a_later_batch():
    batches = [batch_of(6), batch_of(6, padded=3, seed=1)]
    with pytest.raises(NotCacheable, match="padding mask"):
        fit_probe(modern("mean"), batches, steps=1)
    # The controls: a head that reads the first token alone, and a mean without padding.
    assert len(fit_probe(modern("cls"), batches, steps=3)) >= 3
    assert len(fit_probe(modern("mean"), batches[:1], steps=3)) >= 3


def test_a_head_of_zeros_does_not_hide_what_it_reads():
    model = modern("mean")
    with torch.no_grad():
        model.classifier.weight.zero_()
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(NotCacheable, match="padding mask"):
        fit_probe(model, [batch_of(6, padded=3)], steps=1)
    assert difference(before, dict(model.state_dict())) is None


def test_tokens_of_sentences_of_any_length_are_the_examples():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=VOCABULARY, **SIZES)).eval()
    model.dropout.p = 0.0
    batches = [batch_of(length, seed=length) for length in (6, 4)]
    for batch in batches:
        batch["labels"] = (batch["input_ids"] % 2).masked_fill(batch["input_ids"] % 5 == 0, -100)
    with torch.no_grad():
        counts = [(batch["labels"] != -100).sum() for batch in batches]
        sums = [model(**batch).loss * count for batch, count in zip(batches, counts, strict=True)]
    assert fit_probe(model, batches, steps=1)[0] == pytest.approx(float(sum(sums) / sum(counts)), abs=1e-5)


def test_a_loss_that_shifts_labels_is_not_taken_over_single_tokens():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SIZES)).eval()
    batch = batch_of(6)
    batch["labels"] = batch["input_ids"].clone()
    with torch.no_grad():
        expected = float(model(**batch).loss)
    assert fit_probe(model, [batch], steps=1)[0] == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_weighs_the_rows_of_a_later_batch_is_found():
    def weighed(model, batch):
        weights = batch.get("weights", torch.ones(len(batch["labels"])))
        logits = model(**{name: value for name, value in batch.items() if name in ("input_ids", "labels")})["logits"]
        return (torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none") * weights).mean()

    class Model(BertForSequenceClassification):
        def forward(self, input_ids=None, labels=None, attention_mask=None, weights=None):
            return super().forward(input_ids, labels=labels)

    torch.manual_seed(0)
    model = Model(BertConfig(vocab_size=VOCABULARY, **SIZES)).eval()
    even, uneven = torch.ones(4), torch.tensor([5.0, 0.0, 0.0, 0.0])
    # The control: where all weigh the same, the loss reads the labels alone.
    for weights in (even, uneven):
        batches = [batch_of(6) | {"weights": even}, batch_of(6, seed=1) | {"weights": weights}]
        if weights is even:
            assert fit_probe(copy.deepcopy(model), batches, loss=weighed, steps=1)
        else:
            with pytest.raises(NotCacheable, match="the loss reads more"):
                fit_probe(model, batches, loss=weighed, steps=1)


def test_a_multiple_choice_model_keeps_its_head_and_trains_as_stock_does(tmp_path):
    rows = [
        {"input_ids": torch.stack([row["input_ids"]] * 3), "labels": index % 3}
        for index, row in enumerate(tiny_dataset())
    ]
    from datasets import Dataset

    data = Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})

    def run(*techniques):
        torch.manual_seed(0)
        model = BertForMultipleChoice(BertConfig(vocab_size=VOCABULARY, **SIZES))
        trainer = tiny_trainer(tmp_path, *techniques, model=model, train_dataset=data, eval_strategy="no", max_steps=3)
        trainer.train()
        return dict(trainer.model.state_dict())

    stock = run()
    assert difference(stock, run(Transfer(strategy="full", layer_decay=1.0))) is None
    assert difference(stock, run(Transfer(strategy="full", layer_decay=0.5))) is not None


def test_a_short_run_whose_head_cannot_learn_first_is_stocks(tmp_path, caplog):
    class Moving(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            row = tiny_dataset(24)[index]
            return {**row, "input_ids": row["input_ids"].roll(int(torch.randint(1, 8, ())))}

    def run(*techniques, **changes):
        setting = {"train_dataset": tiny_dataset(24), "eval_strategy": "no", "save_strategy": "no", "max_steps": 4}
        trainer = tiny_trainer(tmp_path, *techniques, **(setting | changes))
        trainer.train()
        return trainer

    short = run(Transfer(), train_dataset=Moving())
    assert "4 steps are too few" in caplog.text
    assert {lr_scale.scale_of(group) for group in short.optimizer.param_groups} == {1.0}
    stock = outcome(run(trainer_class=Trainer))["weights"]
    assert difference(stock, outcome(run(Transfer(strategy="full")))["weights"]) is None
    # What the options say holds.
    slow = run(Transfer(strategy="full", layer_decay=0.8))
    assert len({lr_scale.scale_of(group) for group in slow.optimizer.param_groups}) > 2


def test_what_cannot_work_is_said_when_the_trainer_is_built(tmp_path):
    from hf_ft_plugins.testing.examples import text2text

    with pytest.raises(PluginError, match="none outside its backbone"):
        tiny_trainer(tmp_path, Transfer(), **text2text.setting())


def language_run(folder, *techniques, **changes):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SIZES))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_dataset()]
    held_out = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_dataset(12, seed=1)]
    setting = {"model": model, "train_dataset": rows, "eval_dataset": held_out, "max_steps": 6, "save_strategy": "no"}
    trainer = tiny_trainer(folder, *techniques, **{**setting, **changes})
    trainer.train()
    return trainer


def test_a_pretrained_language_head_does_not_learn_alone_by_heart(tmp_path, caplog):
    stock = language_run(tmp_path / "stock")
    ours = language_run(tmp_path / "ours", Transfer())
    assert "does not learn alone first" in caplog.text
    assert difference(outcome(stock)["weights"], outcome(ours)["weights"]) is None
    # The control: asked for, it does, and is the worse for it on other texts.
    asked = language_run(tmp_path / "asked", Transfer(unfrozen_at=0.2))
    assert asked.evaluate()["eval_loss"] > 1.1 * stock.evaluate()["eval_loss"]
