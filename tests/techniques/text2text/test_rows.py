"""What rows say beside their ids: masks, -100, further columns. Reference: stock's collator, or the count by hand."""

import pytest
import torch
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    LEDConfig,
    LEDForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
)

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.text2text import (
    PooledBudgetBatches,
    TextPairCollator,
    TokenTable,
    generate_from_prompts,
    pack_aware,
)
from hf_ft_plugins.techniques.text2text.lengths import measured
from hf_ft_plugins.testing.examples.text2text import tiny_t5
from tests.techniques.text2text import small_models
from tests.techniques.text2text.small_models import SIZE, TOKENIZER

datasets = pytest.importorskip("datasets")

PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
TEXTS = [("ab", "xyz"), ("abcdef", "x"), ("a", "xyzuv"), ("abc", "xy")]


def tiny_llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 384, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS}
    return LlamaForCausalLM(LlamaConfig(**shape, **tokens, initializer_range=0.4)).eval()


def ids(text, **options):
    return TOKENIZER(text, **options)["input_ids"]


def pairs(side=None, label_fill=-100, width=12):
    """Rows as scripts make them, padded to `width` on a side by themselves; None: not padded."""
    rows = []
    for source, target in TEXTS:
        left, right = ids(source), ids(target)
        empty = [width - len(each) if side else 0 for each in (left, right)]
        before = [each if side == "left" else 0 for each in empty]
        behind = [each if side == "right" else 0 for each in empty]
        rows.append(
            {
                "input_ids": [PAD] * before[0] + left + [PAD] * behind[0],
                "attention_mask": [0] * before[0] + [1] * len(left) + [0] * behind[0],
                "labels": [label_fill] * before[1] + right + [label_fill] * behind[1],
            }
        )
    return rows


def joined(side=None, width=14, behind=0):
    """Causal rows: prompt and target in one, the prompt's labels -100, and perhaps `behind` more that are masked."""
    rows = []
    for source, target in TEXTS:
        prompt, answer, after = ids(source, add_special_tokens=False), ids(target), [9] * behind
        tokens, labels = prompt + answer + after, [-100] * len(prompt) + answer + [-100] * behind
        empty = width - len(tokens) if side else 0
        before, end = (empty, 0) if side == "left" else (0, empty)
        rows.append(
            {
                "input_ids": [PAD] * before + tokens + [PAD] * end,
                "attention_mask": [0] * before + [1] * len(tokens) + [0] * end,
                "labels": [-100] * before + labels + [-100] * end,
            }
        )
    return rows


def same(ours, stock):
    assert ours.keys() == stock.keys()
    for name in stock:
        assert torch.equal(ours[name], torch.as_tensor(stock[name])), name


def with_hole(rows):
    for row in rows:
        row["attention_mask"] = [int(place != 1) * seen for place, seen in enumerate(row["attention_mask"])]
    return rows


# ---- the collator ----


ROWS = {
    "as they come": pairs(),
    "padded on the right": pairs("right"),
    "padded on the left": pairs("left"),
    "labels padded with the padding token": pairs("right", label_fill=PAD),
    "holes in the mask": with_hole(pairs()),
    "no mask": [{name: row[name] for name in ("input_ids", "labels")} for row in pairs("right")],
    "decoder_attention_mask": [{**row, "decoder_attention_mask": [1] * 8 + [0] * 4} for row in pairs("right")],
    "a mask of two dimensions": [{**row, "attention_mask": torch.ones(12, 12).tril().long()} for row in pairs("right")],
    "decoder_input_ids": [{**row, "decoder_input_ids": [7] * 12} for row in pairs("right")],
}


# Stock's collator pads these to no multiple.
UNPADDED = ("a mask of two dimensions", "decoder_attention_mask", "decoder_input_ids")


@pytest.mark.parametrize(
    ("kind", "multiple"), [*((kind, None) for kind in ROWS), *((kind, 8) for kind in ROWS if kind not in UNPADDED)]
)
def test_padded_rows_give_what_the_stock_collator_gives(kind, multiple, tmp_path):
    model, rows = tiny_t5(), ROWS[kind]
    stock = DataCollatorForSeq2Seq(TOKENIZER, model, pad_to_multiple_of=multiple)
    trainer = trainer_of(tmp_path, model, [dict(row) for row in rows], stock)
    same(trainer.data_collator(rows), dict(stock([dict(row) for row in rows])))


def trainer_of(folder, model, rows, collator=None, spec="text2text", **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "eval_dataset": rows} | changes
    return small_models.trainer_of(folder, model, rows, spec, collator=collator, **settings)


def test_control_without_the_mask_the_loss_of_padded_rows_is_another():
    model, rows = tiny_t5().eval(), pairs("right")
    batch = TextPairCollator(TOKENIZER, model)(rows)
    alone = TextPairCollator(TOKENIZER, model)(pairs())
    with torch.no_grad():
        loss, unpadded = float(model(**batch).loss), float(model(**alone).loss)
        seen = float(model(**{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}).loss)
    assert loss == pytest.approx(unpadded, rel=1e-5)
    assert loss != pytest.approx(seen, rel=1e-4)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("behind", [0, 2])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_causal_rows_give_what_the_stock_collator_gives(side, behind, padding_side):
    tokenizer = ByT5Tokenizer(padding_side=padding_side)
    rows = joined(side, behind=behind)
    stock = DataCollatorForSeq2Seq(tokenizer)([{k: list(v) for k, v in row.items()} for row in rows])
    same(TextPairCollator(tokenizer, tiny_llama())(rows), dict(stock))


def test_padding_is_not_told_by_the_ids_where_it_is_the_end_of_sequence():
    tokenizer = ByT5Tokenizer(pad_token="</s>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [{**row, "input_ids": [token or EOS for token in row["input_ids"]]} for row in joined("left")]
    stock = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in rows])
    same(TextPairCollator(tokenizer, tiny_llama())(rows), dict(stock))
    by_hand = [len(ids(target)) for _, target in TEXTS]
    assert measured(rows, causal=True)[0].targets.tolist() == by_hand


def test_what_the_model_takes_by_name_is_padded_and_what_it_does_not_take_is_not_guessed():
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0))
    rows = [
        {**row, "token_type_ids": [1] * len(row["labels"]), "position_ids": list(range(2, 2 + len(row["labels"])))}
        for row in joined()
    ]
    batch = TextPairCollator(TOKENIZER, gpt2)(rows)
    width = batch["input_ids"].shape[1]
    for row, types, places in zip(rows, batch["token_type_ids"], batch["position_ids"], strict=True):
        behind = [0] * (width - len(row["labels"]))
        assert types.tolist() == row["token_type_ids"] + behind
        assert places.tolist() == row["position_ids"] + behind
    led = LEDForConditionalGeneration(
        LEDConfig(
            **SIZE,
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64,
            attention_window=[4],
            decoder_start_token_id=2,
        )
    )
    rows = [{**row, "global_attention_mask": [1] + [0] * (len(row["input_ids"]) - 1)} for row in pairs()]
    assert TextPairCollator(TOKENIZER, led)(rows)["global_attention_mask"].sum(dim=1).tolist() == [1] * 4
    with pytest.raises(PluginError, match="the columns global_attention_mask, which the collator"):
        TextPairCollator(TOKENIZER, tiny_t5())(rows)


def test_given_decoder_inputs_hold_unless_the_scripts_collator_makes_them_anew(tmp_path):
    rows = ROWS["decoder_input_ids"]
    kept = DataCollatorForSeq2Seq(TOKENIZER)
    assert trainer_of(tmp_path, tiny_t5(), rows, kept).data_collator(rows)["decoder_input_ids"].unique().tolist() == [7]
    model = tiny_t5()
    anew = DataCollatorForSeq2Seq(TOKENIZER, model)
    batch = trainer_of(tmp_path, model, rows, anew).data_collator(rows)
    assert torch.equal(batch["decoder_input_ids"], anew([dict(row) for row in rows])["decoder_input_ids"])


def test_a_mask_of_another_length_is_named():
    rows = [{**pairs()[0], "attention_mask": [1]}]
    with pytest.raises(PluginError, match="example 0 of the batch has an attention_mask of 1 and input_ids of 3"):
        TextPairCollator(TOKENIZER, tiny_t5())(rows)


# ---- lengths, limits ----


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_only_what_counts_is_counted_and_the_slots_are_those_of_the_batch(side):
    real = [[len(ids(text)) for text in texts] for texts in zip(*TEXTS, strict=True)]
    for rows in (pairs(side), datasets.Dataset.from_list(pairs(side))):
        lengths, _ = measured(rows, causal=False)
        assert [lengths.sources.tolist(), lengths.targets.tolist()] == real
        batch = TextPairCollator(TOKENIZER, tiny_t5())(pairs(side))
        assert int(lengths.source_slots.max()) == batch["input_ids"].shape[1]
        assert int(lengths.target_slots.max()) == batch["labels"].shape[1]
    for rows in (joined(side), datasets.Dataset.from_list(joined(side))):
        sources, targets = measured(rows, causal=True)[0][:2]
        assert targets.tolist() == real[1]
        assert sources.tolist() == [each - 1 for each in real[0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_limits_cut_padding_first_and_keep_the_end_of_sequence(side):
    collate = TextPairCollator(TOKENIZER, tiny_t5(), max_source=5, max_target=4)
    batch, plain = collate(pairs(side)), TextPairCollator(TOKENIZER, tiny_t5(), max_source=5, max_target=4)
    expected = plain(pairs())
    assert collate.counts == plain.counts == {"sources cut": 1, "targets cut": 1, "tokens cut": 2 + 2}
    for row in range(len(TEXTS)):
        for name, mask in (("input_ids", "attention_mask"), ("labels", None)):
            kept, wanted = (
                one[name][row][one[mask][row].bool() if mask else one[name][row] != -100].tolist()
                for one in (batch, expected)
            )
            assert kept == wanted
            assert kept[-1] == EOS
    lengths, _ = measured(pairs(side), 5, 4, causal=False)
    assert lengths.sources.tolist() == batch["attention_mask"].sum(dim=1).tolist()


def test_a_tables_rows_keep_their_mask_and_their_masked_prompts():
    for rows, model in ((pairs("left"), tiny_t5()), (joined("left"), tiny_llama())):
        table = TokenTable(datasets.Dataset.from_list(rows).select([2, 0, 1]))
        collate = TextPairCollator(TOKENIZER, model)
        same(collate(table.__getitems__([0, 1, 2])), collate([rows[2], rows[0], rows[1]]))


# ---- packing, prompts, streams ----


@pytest.mark.parametrize("make", [pairs, lambda side: with_hole(pairs(side))])
@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_rows_hide_what_the_mask_hides(make, side):
    model, rows = pack_aware(tiny_t5()).eval(), make(side)
    packed = TextPairCollator(TOKENIZER, model, packing="pairs")(rows)
    assert len(packed["labels"]) < len(rows)
    plain = TextPairCollator(TOKENIZER, model)(rows)
    with torch.no_grad():
        assert float(model(**packed).loss) == pytest.approx(float(model(**plain).loss), rel=1e-5)
        seen = {**plain, "attention_mask": torch.ones_like(plain["attention_mask"])}
        assert float(model(**packed).loss) != pytest.approx(float(model(**seen).loss), rel=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_flattened_rows_hold_no_padding(side):
    flat, plain = (
        TextPairCollator(TOKENIZER, tiny_llama(), packing="flatten")(rows) for rows in (joined(side), joined())
    )
    same(flat, plain)
    with pytest.raises(PluginError, match="hides tokens between others"):
        TextPairCollator(TOKENIZER, tiny_llama(), packing="flatten")(with_hole(joined()))


def test_prompts_of_padded_rows_are_those_of_bare_ones():
    model, wanted = tiny_llama(), []
    for row in joined():
        prompt = torch.tensor([[i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]])
        made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4)
        wanted.append(made[0, prompt.shape[1] :].tolist())
    for side in ("left", "right"):
        batch = TextPairCollator(TOKENIZER, model)(joined(side))
        with generate_from_prompts(model, pad_token_id=PAD):
            assert model.generate(**batch, max_new_tokens=4).tolist() == wanted
            prompts = {name: value[:, :9] for name, value in batch.items() if name != "labels"}
            if side == "right":
                # Of a batch without labels, too, padding goes to the left.
                made = model.generate(**prompts, max_new_tokens=4)[:, -4:]
                alone = [
                    model.generate(input_ids=row[mask.bool()][None], max_new_tokens=4)[0, -4:].tolist()
                    for row, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
                ]
                assert made.tolist() == alone


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("make", "new_model"), [(pairs, tiny_t5), (joined, tiny_llama)])
def test_a_stream_of_padded_rows_is_collated_and_counted_alike(make, new_model, side):
    collate = TextPairCollator(TOKENIZER, new_model())
    batches = PooledBudgetBatches(make(side), collate, max_tokens=1000)
    (batch,) = [collate(batch) for batch in batches]
    stock = collate(make(side))
    assert sorted(batch["input_ids"].tolist()) == sorted(stock["input_ids"].tolist())
    assert int(batch["attention_mask"].sum()) == int(stock["attention_mask"].sum())
    bare = PooledBudgetBatches(make(), collate, max_tokens=1000)
    list(bare)
    assert batches.tally.real == bare.tally.real


def test_mbart_rows_without_a_label_have_a_decoder_input():
    torch.manual_seed(0)
    model = MBartForConditionalGeneration(MBartConfig(**SIZE, max_position_embeddings=64))
    rows = [pairs()[0], {**pairs()[1], "labels": None}]
    batch = TextPairCollator(TOKENIZER, model, for_evaluation=True)(rows)
    assert set(batch["labels"][1].tolist()) == {-100}
    assert batch["decoder_input_ids"].shape == batch["labels"].shape
