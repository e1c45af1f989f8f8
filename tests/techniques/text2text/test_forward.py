"""What the model gets and what its loss is: as stock's collator and the model's own forward pass have it."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    Seq2SeqTrainer,
    default_data_collator,
)

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.text2text import Seq2SeqGenerationMetrics, TextPairCollator
from hf_ft_plugins.techniques.text2text.architecture import new_decoder_start
from hf_ft_plugins.techniques.text2text.loss import Asked, TokenMeanLoss
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5
from tests.techniques.text2text import small_models
from tests.techniques.text2text.small_models import SIZE, TOKENIZER, bart, seeded

datasets = pytest.importorskip("datasets")

LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"vocab_size": 384, "pad_token_id": 0, "num_key_value_heads": 2, "eos_token_id": 1}


def mbart():
    return seeded(lambda: MBartForConditionalGeneration(MBartConfig(**SIZE, max_position_embeddings=64)))


def m2m100():
    config = M2M100Config(**SIZE, max_position_embeddings=64, decoder_start_token_id=2)
    return seeded(lambda: M2M100ForConditionalGeneration(config))


def bart_decoder(**changes):
    return seeded(lambda: BartForCausalLM(BartConfig(**SIZE, max_position_embeddings=64, **changes)))


def prophetnet():
    names = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "hidden_size": 16}
    names |= {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 384}
    names |= {"max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 2, "dropout": 0.0}
    return seeded(lambda: ProphetNetForConditionalGeneration(ProphetNetConfig(**names)))


def mixtral():
    experts = {"num_local_experts": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    return seeded(lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, **experts)))


def in_languages(number=8):
    """Pairs whose targets end in the codes of different languages."""
    return [{**row, "labels": [*row["labels"], 300 + place % 3]} for place, row in enumerate(tiny_pairs(number))]


def joined(number=8, seed=0):
    return [
        {"input_ids": row["input_ids"] + row["labels"], "labels": [-100] * len(row["input_ids"]) + row["labels"]}
        for row in tiny_pairs(number, seed)
    ]


def padded(number=8):
    rows = []
    for row in tiny_pairs(number):
        width = [12 - len(row[name]) for name in ("input_ids", "labels")]
        rows.append(
            {
                "input_ids": row["input_ids"] + [0] * width[0],
                "attention_mask": [1] * len(row["input_ids"]) + [0] * width[0],
                "labels": row["labels"] + [-100] * width[1],
            }
        )
    return rows


def trainer_of(folder, model, rows, *techniques, collator=None, trainer_class=Seq2SeqTrainer, **changes):
    # Two batches to a step, which then has all rows.
    settings = {"max_steps": 1, "per_device_train_batch_size": 100, "gradient_accumulation_steps": 2}
    settings |= {"logging_steps": 1, "learning_rate": 0.0, "eval_dataset": rows} | changes
    return small_models.trainer_of(
        folder, model, rows, *techniques, collator=collator, trainer_class=trainer_class, **settings
    )


def first_loss(trainer):
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


# ---- what the decoder begins with ----


@pytest.mark.parametrize("new_model", [mbart, bart, tiny_t5])
def test_the_decoders_input_is_what_the_model_makes_of_the_labels(new_model):
    rows, model = in_languages(), new_model()
    stock = DataCollatorForSeq2Seq(TOKENIZER, model)([{k: list(v) for k, v in row.items()} for row in rows])
    batch = TextPairCollator(TOKENIZER, model)(rows)
    assert torch.equal(batch["decoder_input_ids"], stock["decoder_input_ids"])
    # Control: only where the model takes it from the labels do rows begin differently.
    assert (len(set(batch["decoder_input_ids"][:, 0].tolist())) > 1) == (new_model is mbart)


def test_the_labels_are_those_that_were_given_whatever_the_model_does_with_them():
    model = m2m100()
    batch = TextPairCollator(TOKENIZER, model)(in_languages())
    model.eval()
    made = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    given = model(**batch).loss
    assert given.item() == pytest.approx(made.item(), rel=1e-6)
    explicit = TextPairCollator(TOKENIZER, model, decoder_start_token_id=7)(in_languages())
    assert set(explicit["decoder_input_ids"][:, 0].tolist()) == {7}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("new_model", [tiny_t5, mbart])
def test_a_collator_that_makes_no_decoder_inputs_trains_as_stock(new_model, smoothing, tmp_path):
    model, rows = new_model(), padded()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    changes = {"collator": default_data_collator, "label_smoothing_factor": smoothing}
    ours = trainer_of(tmp_path, model, rows, "text2text", **changes)
    loss = first_loss(ours)
    evaluated = ours.evaluate()["eval_loss"]
    made = DataCollatorForSeq2Seq(TOKENIZER, model)
    stock = trainer_of(tmp_path, new_model(), rows, collator=made, label_smoothing_factor=smoothing)
    if new_model is tiny_t5:
        stock.model.load_state_dict(model.state_dict())
    assert evaluated == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)
    assert loss == pytest.approx(evaluated, rel=1e-5)
    ours.args.prediction_loss_only = True
    assert ours.evaluate()["eval_loss"] == pytest.approx(evaluated, rel=1e-6)


# ---- a loss of the model's own ----


@pytest.mark.parametrize(("new_model", "make"), [(prophetnet, tiny_pairs), (mixtral, joined)])
def test_what_a_model_adds_to_its_loss_stays(new_model, make, tmp_path, caplog):
    model, rows = new_model(), make(8)
    trainer = trainer_of(tmp_path, model, rows, "text2text")
    loss = first_loss(trainer)
    assert trainer.compute_loss_func.asked.own
    assert "computes a loss of its own" in caplog.text
    trainer.compute_loss_func.asked.own = False
    plain, shift = trainer.evaluate()["eval_loss"], int(new_model is mixtral)
    by_hand, tokens = 0.0, 0
    for places in trainer.train_batches.plan(0):
        batch = trainer.data_collator([rows[place] for place in places])
        scored = int((batch["labels"][:, shift:] != -100).sum())
        with torch.no_grad():
            by_hand, tokens = by_hand + scored * float(model(**batch).loss), tokens + scored
    assert loss == pytest.approx(by_hand / tokens, rel=1e-5)
    assert loss != pytest.approx(plain, rel=1e-3)


def test_control_a_plain_model_is_left_to_the_mean_over_tokens(tmp_path):
    for model, rows in ((tiny_t5(), tiny_pairs(8)), (seeded(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA))), joined())):
        trainer = trainer_of(tmp_path, model, rows, "text2text")
        trainer.train()
        assert trainer.compute_loss_func.asked.own is False
        assert not model._forward_pre_hooks


def test_asking_draws_no_random_number_and_leaves_the_model_in_its_mode(tmp_path):
    model = tiny_t5()
    trainer = trainer_of(tmp_path, model, tiny_pairs(8), "text2text")
    batch = trainer.data_collator(tiny_pairs(8))
    model.train()
    model.encoder.dropout.eval()
    torch.manual_seed(3)
    np.random.seed(3)
    trainer.compute_loss(model, dict(batch))
    asked = torch.rand(()), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    trainer.compute_loss(model, dict(batch))
    assert asked == (torch.rand(()), np.random.rand())
    assert model.training
    assert not model.encoder.dropout.training


# ---- decoders alone ----


@pytest.mark.parametrize("says", [False, True])
def test_decoders_of_encoder_decoders_families_are_causal_models(says, tmp_path):
    model = bart_decoder()
    model.config.is_encoder_decoder = says
    rows = joined()
    trainer = trainer_of(tmp_path, model, rows, "text2text")
    assert trainer.data_collator.arch == "causal"
    batch = trainer.data_collator(rows)
    model.eval()
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    by_hand = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert first_loss(trainer) == pytest.approx(by_hand.item(), rel=1e-5)
    assert trainer.compute_loss_func.asked.own is False


def test_labels_that_are_moved_already_are_refused(tmp_path):
    moved = [{**row, "labels": [*row["labels"][1:], -100]} for row in joined()]
    with pytest.raises(PluginError, match=r"moved by one already.*a copy of input_ids"):
        trainer_of(tmp_path, bart_decoder(), moved, "text2text")


# ---- evaluation loses no row ----


TEXTS = ["ab", "cd", "ef", "gh", "ij"]


@pytest.mark.parametrize("references", [["ba", " ", "fe", "", "ji"], ["ba", None, None, "hg", "ji"], [" "] * 5])
def test_each_row_has_its_prediction_whatever_its_reference(references, tmp_path):
    train = datasets.Dataset.from_dict({"source": TEXTS, "target": TEXTS})
    raw = datasets.Dataset.from_dict({"source": TEXTS, "target": references})
    changes = {"eval_dataset": {"one": raw, "two": raw}, "predict_with_generate": True, "generation_max_length": 5}
    trainer = trainer_of(tmp_path, mbart(), train, "text2text:examples=0", per_device_eval_batch_size=2, **changes)
    found = trainer.predict(trainer.eval_dataset["two"])
    assert len(found.predictions) == len(TEXTS)
    alone = [trainer.model.generate(**TOKENIZER(text, return_tensors="pt"), max_length=5)[0].tolist() for text in TEXTS]
    assert [row[: len(one)].tolist() for row, one in zip(found.predictions, alone, strict=True)] == alone
    texts = [
        None if (row <= 0).all() else TOKENIZER.decode(row[row >= 0], skip_special_tokens=True).strip()
        for row in found.label_ids
    ]
    assert texts == [None if one is None else one.strip() for one in references]
    scores = trainer.evaluate()
    assert {"eval_one_gen_len", "eval_two_gen_len"} <= scores.keys()


def test_a_set_without_references_predicts_as_stock_does(tmp_path):
    train = datasets.Dataset.from_dict({"source": TEXTS, "target": TEXTS})
    test = datasets.Dataset.from_dict({"source": TEXTS, "target": [None] * 5, "number": range(5)})
    changes = {"predict_with_generate": True, "generation_max_length": 6}
    ours = trainer_of(tmp_path, bart(), train, "text2text:metrics=false", eval_dataset=test, **changes)
    assert ours.eval_dataset.column_names == ["input_ids"]
    ids = datasets.Dataset.from_dict(dict(TOKENIZER(TEXTS)) | {"number": range(5)})
    stock = trainer_of(tmp_path, bart(), train, **changes)
    expected = stock.predict(ids)
    for dataset in (ours.eval_dataset, ids, ids.to_list()):
        found = ours.predict(dataset)
        assert np.array_equal(found.predictions, expected.predictions)
        assert found.label_ids is None
    causal = seeded(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)))
    prompts = [{"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"])} for row in tiny_pairs(4)]
    changes["generation_max_length"] = 20
    trainer = trainer_of(tmp_path, causal, joined(), "text2text:metrics=false", eval_dataset=joined(), **changes)
    assert len(trainer.predict(prompts).predictions) == 4


def test_rows_without_a_reference_have_no_score_and_it_is_said(caplog):
    pytest.importorskip("sacrebleu")
    caplog.set_level(logging.WARNING)
    generated = np.array([TOKENIZER("ab")["input_ids"]] * 2)
    labels = np.array([TOKENIZER("ab")["input_ids"], [-100] * 3])
    scores = Seq2SeqGenerationMetrics(TOKENIZER)(EvalPrediction(predictions=generated, label_ids=labels))
    assert scores["exact_match"] == 1.0
    assert "1 of 2 rows have no reference" in caplog.text
    none = Seq2SeqGenerationMetrics(TOKENIZER)(EvalPrediction(predictions=generated, label_ids=labels[[1, 1]]))
    assert none == {"gen_len": 3.0}


# ---- the batch size of the present try, and data that is read row by row ----


# Either limit alone is kept by the other one, which follows the number of pairs.
BOTH = "text2text:target_tokens=90,max_tokens=400"


@pytest.mark.parametrize("spec", ["text2text", "text2text:target_tokens=90", "text2text:max_tokens=150", BOTH])
def test_batches_shrink_with_the_batch_size_until_they_fit(spec, tmp_path, monkeypatch):
    tried = []
    # It collects Python's garbage before each attempt.
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)

    class Small(Seq2SeqTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            tokens = int((inputs["labels"] != -100).sum())
            tried.append((self._train_batch_size, tokens))
            if tokens > 0.85 * tried[0][1]:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().training_step(model, inputs, *args, **kwargs)

    size = {"per_device_train_batch_size": 16, "auto_find_batch_size": True, "max_steps": 3}
    trainer = trainer_of(tmp_path, tiny_t5(), tiny_pairs(96), spec, trainer_class=Small, **size)
    trainer.train()
    assert trainer.state.global_step == 3
    assert max(tokens for size, tokens in tried if size == tried[-1][0]) <= 0.85 * tried[0][1]
    assert tried[-1][0] < 16


def test_rows_that_a_transform_makes_are_the_rows(tmp_path):
    raw = datasets.Dataset.from_dict(
        {"a": ["ab", "cde", "f"] * 4, "b": ["xy", "z", "zzz"] * 4, "input_ids": [[9] * 9] * 12}
    )

    def tokens(batch):
        made = TOKENIZER(batch["a"])
        return dict(made) | {"labels": TOKENIZER(text_target=batch["b"])["input_ids"]}

    def texts(batch):
        return {"source": batch["a"], "target": batch["b"]}

    ready = raw.map(tokens, batched=True, remove_columns=["a", "b"])
    losses = {}
    for name, data in {
        "by hand": ready,
        "transform": raw.with_transform(tokens),
        "transform of texts": raw.with_transform(texts),
        "list": ready.to_list(),
        "list of texts": [texts(row) for row in raw],
        "tensors": ready.with_format("torch"),
        "arrays": ready.with_format("numpy", columns=["input_ids", "labels"]),
        "subset": torch.utils.data.Subset(ready, range(12)),
    }.items():
        trainer = trainer_of(tmp_path, bart(), data, "text2text", remove_unused_columns=False, eval_dataset=None)
        losses[name] = first_loss(trainer)
        assert trainer.train_batches.source_lengths.tolist() == [3, 4, 2] * 4, name
    assert losses == dict.fromkeys(losses, pytest.approx(losses["by hand"], rel=1e-6))


def test_a_batch_without_a_target_adds_nothing_to_a_loss_of_the_models_own():
    loss = TokenMeanLoss(shift=False, asked=Asked(own=True))
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), -100)
    found = loss({"loss": torch.tensor(float("nan")), "logits": logits}, labels, num_items_in_batch=4)
    found.backward()
    assert found == 0
    assert not logits.grad.any(), "DDP waits for a gradient of every parameter"


def test_labels_that_trainer_has_filled_with_padding_are_no_reference(caplog):
    pytest.importorskip("sacrebleu")
    generated = np.array([[5, 6, 1], [5, 6, 1]])
    labels = np.array([[5, 6, 1], [TOKENIZER.pad_token_id] * 3])
    scores = Seq2SeqGenerationMetrics(TOKENIZER)(EvalPrediction(predictions=generated, label_ids=labels))
    assert "1 of 2 rows have no reference" in caplog.text
    assert scores["exact_match"] == 1.0


def test_a_row_without_a_label_has_padding_behind_what_begins_it():
    labels = torch.tensor([[7, 8, 9, 3], [-100, -100, -100, -100]])
    made = new_decoder_start(mbart(), None, 0)(labels)
    assert made[0].tolist() == [3, 7, 8, 9]
    assert made[1, 1:].tolist() == [0, 0, 0]
    assert (labels[1] == -100).all(), "the labels are left as they are"
