"""Text to text: each part against its stock counterpart, then the technique in real runs."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.text2text import (
    Seq2SeqGenerationMetrics,
    Text2Text,
    TextPairCollator,
    TokenBudgetBatchSampler,
    TokenMeanLoss,
    TokenTable,
)
from hf_ft_plugins.techniques.text2text.batches import padded_tokens
from hf_ft_plugins.techniques.text2text.lengths import Lengths, measured, random_padding
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5

datasets = pytest.importorskip("datasets")

TOKENIZER = ByT5Tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def tiny_llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, **shape))


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


# ---- the collator ----


@pytest.mark.parametrize("multiple", [None, 8])
def test_encoder_decoder_batches_equal_those_of_the_stock_collator(multiple):
    model, pairs = tiny_t5(), tiny_pairs(32)
    stock = DataCollatorForSeq2Seq(TOKENIZER, model, pad_to_multiple_of=multiple)(
        [{**pair, "attention_mask": [1] * len(pair["input_ids"])} for pair in pairs]
    )
    ours = TextPairCollator(TOKENIZER, model, pad_to_multiple_of=multiple)
    same(ours(pairs), dict(stock))
    table = TokenTable(datasets.Dataset.from_list(pairs))
    same(ours(table.__getitems__(range(32))), dict(stock))


def test_arrow_rows_of_a_shuffled_selection_are_the_right_ones():
    data = datasets.Dataset.from_list(tiny_pairs(40)).shuffle(seed=1).select(range(5, 25))
    table, collate = TokenTable(data), TextPairCollator(TOKENIZER, tiny_t5())
    same(collate(table.__getitems__([3, 0, 19])), collate([data[3], data[0], data[19]]))
    assert len(table) == 20


def test_texts_are_tokenized_as_the_tokenizer_does():
    texts = [{"source": "a cat", "target": "un chat"}, {"source": "dog", "target": "un grand chien"}]
    ids = [
        {
            "input_ids": TOKENIZER("fr: " + row["source"])["input_ids"],
            "labels": TOKENIZER(text_target=row["target"])["input_ids"],
        }
        for row in texts
    ]
    collate = TextPairCollator(TOKENIZER, tiny_t5(), source_prefix="fr: ")
    same(collate(texts), collate(ids))


def test_cutting_keeps_the_end_of_sequence_and_is_counted():
    collate = TextPairCollator(TOKENIZER, tiny_t5(), max_source=4, max_target=3)
    batch = collate([{"source": "abcdefgh", "target": "xyz"}, {"source": "ab", "target": "x"}])
    assert batch["input_ids"][:, -1].tolist() == [EOS, PAD]
    assert batch["labels"].tolist()[0][-1] == EOS
    assert batch["labels"].shape == (2, 3)
    assert collate.counts == {"sources cut": 1, "targets cut": 1, "tokens cut": 5 + 1}


def test_causal_batches_mask_the_prompt_and_prompts_alone_are_padded_on_the_left():
    rows = [{"source": "ab", "target": "xyz"}, {"source": "abcd", "target": "x"}]
    batch = TextPairCollator(TOKENIZER, tiny_llama())(rows)
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        prompt, target = (TOKENIZER(row[side], add_special_tokens=False)["input_ids"] for side in ("source", "target"))
        length = len(prompt) + len(target) + 1
        assert ids[mask == 1].tolist() == [*prompt, *target, EOS]
        assert labels[:length].tolist() == [-100] * len(prompt) + [*target, EOS]
        assert set(labels[length:].tolist()) <= {-100}
    prompts = TextPairCollator(TOKENIZER, tiny_llama(), for_generation=True)(rows)
    assert prompts["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert prompts["labels"][0].tolist() == [*TOKENIZER("xyz", add_special_tokens=False)["input_ids"], EOS]


def test_causal_rows_that_the_script_has_masked_stay_as_they_are():
    rows = [{"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}, {"input_ids": [5, 1], "labels": [-100, 1]}]
    batch = TextPairCollator(TOKENIZER, tiny_llama())(rows)
    assert batch["labels"].tolist() == [[-100, -100, 7, 1], [-100, 1, -100, -100]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [5, 1, PAD, PAD]]


def test_causal_pairs_of_equal_length_are_put_one_behind_the_other():
    rows = [{"input_ids": [5, 6, 7], "labels": [8, 9, 1]}, {"input_ids": [5, 6], "labels": [8, 1]}]
    batch = TextPairCollator(TOKENIZER, tiny_llama())(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1], [5, 6, 8, 1, PAD, PAD]]
    assert batch["labels"][0].tolist() == [-100, -100, -100, 8, 9, 1]
    assert [lengths.tolist() for lengths in measured(rows, causal=True)[0][:2]] == [[3, 2], [3, 2]]


def test_another_techniques_order_is_kept_but_for_what_comes_within_a_pool():
    lengths = np.arange(1, 101) % 10 + 1
    order = [*range(50, 100), *range(50)]
    sampler = TokenBudgetBatchSampler(lengths, lengths, max_tokens=60, sampler=order, pool=25)
    batches = sampler._cut(0)
    drawn = np.concatenate([batch for pool in batches for batch in pool])
    for start in range(0, 100, 25):
        assert sorted(drawn[start : start + 25]) == sorted(order[start : start + 25])


def test_empty_targets_are_dropped_and_counted_and_all_empty_is_an_error():
    collate = TextPairCollator(TOKENIZER, tiny_t5())
    batch = collate([{"source": "a", "target": "x"}, {"source": "b", "target": "  "}])
    assert len(batch["labels"]) == 1
    assert collate.counts["empty targets dropped"] == 1
    with pytest.raises(PluginError, match="every target of the batch is empty"):
        collate([{"source": "b", "target": ""}])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"source": "a", "target": "b"}, {"source": "a", "target": None}], "example 1 of the batch has no 'target'"),
        ([{"input_ids": [1], "labels": None}], "example 0 of the batch has no 'labels'"),
        ([{"input_ids": [1], "labels": [1], "spans": [[1]]}], "the columns spans"),
    ],
)
def test_rows_that_cannot_be_batched_are_named(rows, said):
    with pytest.raises(PluginError, match=said):
        TextPairCollator(TOKENIZER, tiny_t5())(rows)


def test_missing_special_tokens_are_named():
    model = tiny_t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(PluginError, match="no decoder_start_token_id"):
        TextPairCollator(TOKENIZER, model)
    bare = ByT5Tokenizer()
    bare.pad_token = None
    with pytest.raises(PluginError, match="no padding token"):
        TextPairCollator(bare, tiny_t5())


# ---- batches ----


def lengths(number=2000, seed=0):
    random = np.random.default_rng(seed)
    source = random.lognormal(3, 0.6, number).astype(int) + 1
    return source, np.maximum(1, (source * random.lognormal(0, 0.3, number)).astype(int))


@pytest.mark.parametrize("per_step", [1, 4, 6])
def test_every_pair_comes_once_an_epoch_within_the_budget(per_step):
    source, target = lengths()
    sampler = TokenBudgetBatchSampler(source, target, max_tokens=1500, target_tokens=600, per_step=per_step)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = [np.array(batch) for batch in sampler]
        assert sorted(np.concatenate(batches)) == list(range(len(source)))
        assert len(batches) == len(sampler)
        assert len(batches) % per_step == 0
        assert max(len(b) * (source[b].max() + target[b].max()) for b in batches) <= 1500


def test_epochs_differ_seeds_differ_and_nothing_else_does():
    source, target = lengths(300)

    def batches(seed, epoch):
        sampler = TokenBudgetBatchSampler(source, target, max_tokens=500, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 1) == batches(0, 1)
    assert len({str(batches(*which)) for which in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_steps_hold_about_as_many_real_target_tokens_and_little_padding():
    source, target = lengths(5000)
    pairs = 16
    sampler = TokenBudgetBatchSampler(
        source,
        target,
        max_tokens=int(2 * pairs * (source + target).mean()),
        target_tokens=int(pairs * target.mean()),
        per_step=4,
    )
    batches = [np.array(batch) for batch in sampler]
    weights = np.array([target[batch].sum() for batch in batches]).reshape(-1, 4).sum(axis=1)
    assert weights.std() / weights.mean() < 0.05
    order = np.random.default_rng(0).permutation(len(source))
    by_chance = np.split(order, range(pairs, len(source), pairs))
    real = (source + target).sum()
    wasted, wasted_by_chance = (padded_tokens(cut, source, target) - real for cut in (batches, by_chance))
    assert wasted < 0.15 * wasted_by_chance
    assert abs(len(batches) - len(by_chance)) < 0.05 * len(by_chance)


def test_a_pair_over_the_budget_is_a_batch_of_its_own():
    sampler = TokenBudgetBatchSampler([5, 500, 5], [5, 5, 5], max_tokens=40)
    assert [1] in list(sampler)


def test_another_order_of_examples_is_kept_from_pool_to_pool():
    source, target = lengths(400)
    order = list(range(0, 400, 2)) * 2
    sampler = TokenBudgetBatchSampler(source, target, max_tokens=400, sampler=order, pool=100)
    seen = [index for batch in sampler for index in batch]
    assert sorted(seen) == sorted(order)


# ---- the loss ----


def logged(folder, new_model, rows, accumulation, smoothing=0.0, loss=None):
    """Gradient norm and loss of one step on eight pairs, taken as `accumulation` batches."""
    model = new_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=0.0,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            label_smoothing_factor=smoothing,
            train_sampling_strategy="sequential",
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=TextPairCollator(TOKENIZER, model),
        compute_loss_func=loss,
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return entry["grad_norm"], entry["loss"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("new_model", [tiny_t5, tiny_llama])
def test_accumulated_gradients_equal_those_of_one_batch(new_model, smoothing, tmp_path):
    rows = tiny_pairs(8)
    if new_model is tiny_llama:
        rows = [
            {"input_ids": [*r["input_ids"], *r["labels"]], "labels": [-100] * len(r["input_ids"]) + r["labels"]}
            for r in rows
        ]
    loss = TokenMeanLoss(shift=new_model is tiny_llama, label_smoothing=smoothing)
    whole = logged(tmp_path, new_model, rows, 1, smoothing, loss)
    assert logged(tmp_path, new_model, rows, 4, smoothing, loss) == pytest.approx(whole, rel=1e-5)
    # One batch is what stock weighs rightly, too.
    assert logged(tmp_path, new_model, rows, 1, smoothing) == pytest.approx(whole, rel=1e-5)


def test_control_stock_gradients_of_t5_grow_with_accumulation(tmp_path):
    rows = tiny_pairs(8)
    norm, loss = (
        four / one
        for four, one in zip(logged(tmp_path, tiny_t5, rows, 4), logged(tmp_path, tiny_t5, rows, 1), strict=True)
    )
    assert norm == pytest.approx(4, rel=0.1)
    assert loss == pytest.approx(4, rel=0.02)


def test_the_loss_is_the_hand_weighted_mean():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [3, -100, -100]])
    by_hand = -sum(logits[i, j].log_softmax(-1)[labels[i, j]] for i, j in ((0, 0), (0, 1), (1, 0)))
    assert TokenMeanLoss(shift=False)({"logits": logits}, labels) == pytest.approx((by_hand / 3).item())
    assert TokenMeanLoss(shift=False)({"logits": logits}, labels, 10) == pytest.approx((by_hand / 10).item())


# ---- metrics ----


def test_scores_are_sacrebleus_over_the_whole_set():
    sacrebleu = pytest.importorskip("sacrebleu")
    references = ["the cat sat on the mat today", "hello world again my friend"]
    texts = ["the cat sat on a mat today", "hello world again my friend"]

    def ids(lines, fill):
        rows = [TOKENIZER(line)["input_ids"] for line in lines]
        width = max(map(len, rows))
        return np.array([[*row, *[fill] * (width - len(row))] for row in rows])

    metrics = Seq2SeqGenerationMetrics(TOKENIZER)
    scores = metrics(EvalPrediction(predictions=ids(texts, -100), label_ids=ids(references, -100)))
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert scores["exact_match"] == 0.5
    assert "version" in metrics.signatures["bleu"]


# ---- the technique ----


def text_rows(number=24):
    return datasets.Dataset.from_list(
        [{"english": "a" * (1 + row % 7), "french": "b" * (1 + row % 5)} for row in range(number)]
    )


def translating(folder, technique, dataset, trainer_class=Seq2SeqTrainer, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "predict_with_generate": True,
        "generation_max_length": 8,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    return with_plugins(trainer_class, technique)(
        model=tiny_t5(),
        args=Seq2SeqTrainingArguments(**(settings | changes)),
        train_dataset=dataset,
        eval_dataset=text_rows(4),
        processing_class=TOKENIZER,
    )


COLUMNS = "source=english,target=french"


def test_raw_columns_are_tokenized_and_generation_is_scored(tmp_path):
    pytest.importorskip("sacrebleu")
    trainer = translating(tmp_path, f"text2text:{COLUMNS}", text_rows())
    trainer.train()
    assert trainer.train_dataset.column_names == ["input_ids", "labels"]
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_bleu", "eval_chrf", "eval_exact_match"} <= logged
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_pairs_with_an_empty_target_are_dropped_and_said_or_too_many(tmp_path, caplog):
    rows = datasets.Dataset.from_list([*text_rows().to_list(), {"english": "a", "french": " "}])
    trainer = translating(tmp_path, f"text2text:{COLUMNS},max_empty_share=0.1", rows)
    assert len(trainer.train_dataset) == 24
    assert "dropped 1 of 25 pairs" in caplog.text
    with pytest.raises(PluginError, match=r"1 of 25 targets of the train set are empty \(rows 24"):
        translating(tmp_path, f"text2text:{COLUMNS}", rows)


def test_what_is_cut_is_said(tmp_path, caplog):
    translating(tmp_path, f"text2text:{COLUMNS},max_source_length=5", text_rows())
    assert "sources are longer than 5 and are cut" in caplog.text


@pytest.mark.parametrize("causal", [True, False])
def test_the_padding_of_random_batches_is_what_drawing_them_gives(causal):
    random = np.random.default_rng(0)
    sides = [random.integers(1, 30, 500), random.integers(1, 12, 500)]
    drawn = random.integers(0, 500, (20_000, 8))
    slots = (sides[0] + sides[1])[drawn].max(1) if causal else sides[0][drawn].max(1) + sides[1][drawn].max(1)
    real = (sides[0] + sides[1])[drawn].mean(1)
    found = random_padding(Lengths(*sides, *sides), 8, causal=causal)
    assert found == pytest.approx(1 - real.mean() / slots.mean(), abs=0.005)


@pytest.mark.parametrize(("lengths", "said"), [((5, 5), True), ((1, 9), False)])
def test_pairs_that_are_alike_in_length_are_said_to_save_little(lengths, said, tmp_path, caplog):
    rows = [{"english": "a" * lengths[row % 2], "french": "b" * lengths[row % 2]} for row in range(24)]
    translating(tmp_path, f"text2text:{COLUMNS}", datasets.Dataset.from_list(rows)).get_train_dataloader()
    assert ("% padding, so that its own save little time here" in caplog.text) is said


def test_columns_that_are_not_there_are_named(tmp_path):
    with pytest.raises(PluginError, match="there is no column 'source'; the data has english, french"):
        translating(tmp_path, "text2text", text_rows())
    with pytest.raises(OptionError, match="text2text: option max_tokens=0"):
        Text2Text(max_tokens=0)


def test_the_scripts_own_collator_stays(tmp_path, caplog):
    class Own(DataCollatorForSeq2Seq):
        pass

    trainer = with_plugins(Trainer, "text2text")(
        model=tiny_t5(),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        train_dataset=tiny_pairs(8),
        data_collator=Own(TOKENIZER),
    )
    assert type(trainer.data_collator) is Own
    assert "the script's own collator, Own, stays" in caplog.text


def test_masked_causal_rows_are_measured_by_what_is_not_masked():
    rows = [{"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}, {"input_ids": [5, 1], "labels": [-100, 1]}]
    for data in (rows, datasets.Dataset.from_list(rows)):
        source, target = measured(data, causal=True)[0][:2]
        assert (source.tolist(), target.tolist()) == ([2, 1], [2, 1])
