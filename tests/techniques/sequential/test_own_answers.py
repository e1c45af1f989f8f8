"""A model's own answers in the place of the data's: exact where it knows them, in every shape of rows."""

import random

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.kept_rows import keep_rows, load_rows, save_rows
from hf_ft_plugins.techniques.sequential.own_answers import AnswerCounts, with_own_answers
from hf_ft_plugins.testing import tiny_model

datasets = pytest.importorskip("datasets")

TOKENIZER = ByT5Tokenizer(extra_ids=8)  # pad 0, eos 1, then bytes
TOKENIZER.chat_template = (
    "{% for message in messages %}{{ '<extra_id_0>' if message.role == 'user' else '<extra_id_1>' }}"
    "{{ message.content }}</s>{% endfor %}{% if add_generation_prompt %}<extra_id_1>{% endif %}"
)
PAIRS = [("ab", " one"), ("cdefg", " t"), ("hi?", " three two"), ("jklmnopq", " four")]
OTHERS = [(prompt, " zzz") for prompt, _ in PAIRS]


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def asked(messages):
    return TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def conversation(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def token_rows(pairs=PAIRS, end=True, tail=()):
    rows = []
    for prompt, answer in pairs:
        before, said = ids_of(prompt), ids_of(answer) + ([1] if end else [])
        labels = [-100] * len(before) + said + [-100] * len(tail)
        rows.append({"input_ids": before + said + list(tail), "labels": labels})
    return rows


def padded(rows, width=32, left=False):
    sides = []
    for row in rows:
        rest, ones = width - len(row["input_ids"]), [1] * len(row["input_ids"])
        columns = {"input_ids": (row["input_ids"], 0), "labels": (row["labels"], -100), "attention_mask": (ones, 0)}
        sides.append(
            {name: [pad] * rest + list(of) if left else list(of) + [pad] * rest for name, (of, pad) in columns.items()}
        )
    return sides


def memorized(model, rows, steps=250):
    """The model, trained without dropout until it gives the rows' labels, and then in training mode."""
    model.eval()
    longest = {name: max(len(row[name]) for row in rows) for name in ("input_ids", "labels")}
    ids = torch.tensor([row["input_ids"] + [0] * (longest["input_ids"] - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (longest["labels"] - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (ids.shape[1] - len(row["input_ids"])) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02
    return model.train()


def chat_rows():
    rows = []
    for prompt, answer in PAIRS:
        before, said = asked(conversation(prompt, answer)[:1]), [*ids_of(answer), 1]
        rows.append({"input_ids": before + said, "labels": [-100] * len(before) + said})
    return rows


@pytest.fixture(scope="module")
def causal():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=384, n_positions=64, n_embd=48, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1, pad_token_id=0
    )
    return memorized(GPT2LMHeadModel(config), token_rows() + chat_rows())


@pytest.fixture(scope="module")
def encoder_decoder():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 384}
    config = BartConfig(
        **sizes,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=2,
        forced_bos_token_id=None,
        forced_eos_token_id=1,
    )
    return memorized(BartForConditionalGeneration(config), source_rows())


def source_rows(pairs=PAIRS):
    return [{"input_ids": [*ids_of(prompt), 1], "labels": [*ids_of(answer), 1]} for prompt, answer in pairs]


def own(rows, model, **settings):
    data, counts = with_own_answers(datasets.Dataset.from_list(rows), model, TOKENIZER, batch_size=3, **settings)
    return [dict(row) for row in data], counts


ALL_SAME, ALL_NEW = AnswerCounts(4, 4, 4, 0, 0), AnswerCounts(4, 4, 0, 0, 0)


@pytest.mark.parametrize("left", [None, False, True])
def test_a_model_that_knows_the_answers_gives_the_rows_back(causal, left):
    rows, others = token_rows(), token_rows(OTHERS)
    if left is not None:
        rows, others = padded(rows, left=left), padded(others, left=left)
    assert own(rows, causal, max_new_tokens=20) == (rows, ALL_SAME)
    assert own(others, causal, max_new_tokens=20) == (rows, ALL_NEW)
    assert own(rows, causal)[0] != others, "the control differs"


@pytest.mark.parametrize("mask", ["completion_mask", "assistant_masks"])
def test_masks_of_trl_say_the_answer(causal, mask):
    def masked(rows):
        return [{"input_ids": row["input_ids"], mask: [int(label != -100) for label in row["labels"]]} for row in rows]

    assert own(masked(token_rows(OTHERS)), causal, max_new_tokens=20) == (masked(token_rows()), ALL_NEW)


def test_other_columns_follow_the_tokens(causal):
    def full(rows):
        return [
            row
            | {
                "attention_mask": [1] * len(row["input_ids"]),
                "token_type_ids": [int(label != -100) for label in row["labels"]],
                "position_ids": list(range(len(row["input_ids"]))),
                "source": f"row {number}",
            }
            for number, row in enumerate(rows)
        ]

    line = ids_of("\n")
    found = own(full(token_rows(OTHERS, tail=line)), causal, max_new_tokens=20)
    assert found == (full(token_rows(tail=line)), ALL_NEW)


def test_an_unknown_column_of_tokens_is_refused(causal):
    rows = [row | {"weights": [1.0] * len(row["input_ids"])} for row in token_rows()]
    with pytest.raises(PluginError, match=r"^sequential: own_answers=True .*'weights'.*own_answers=False"):
        own(rows, causal)


def test_the_end_is_where_the_data_have_it(causal):
    """Scored, behind the scored tokens, or not at all."""
    assert own(token_rows(OTHERS, end=False), causal, max_new_tokens=20) == (token_rows(end=False), ALL_NEW)
    found = own(token_rows(OTHERS, end=False, tail=[1]), causal, max_new_tokens=20)
    assert found == (token_rows(end=False, tail=[1]), ALL_NEW)


def test_of_several_turns_the_last_is_answered(causal):
    def turns(last):
        first, again = [*ids_of("ab"), *ids_of(" x"), 1], asked([{"role": "user", "content": last[0]}])
        said = [*ids_of(last[1]), 1]
        begun = [-100] * 2 + first[2:] + [-100] * len(again)
        return {"input_ids": first + again + said, "labels": begun + said}

    (row,), counts = own([turns(("cdefg", " zzz"))], causal, max_new_tokens=30)
    before = turns(("cdefg", " zzz"))
    begin = len(before["input_ids"]) - 5
    assert row["input_ids"][:begin] == before["input_ids"][:begin]
    assert row["labels"][:begin] == before["labels"][:begin]
    assert row["labels"][begin:] == row["input_ids"][begin:]
    assert counts.replaced + counts.unfinished == 1


def test_answers_that_do_not_end_or_do_not_fit_leave_the_row(causal):
    rows = token_rows(OTHERS)
    found, counts = own(rows, causal, max_new_tokens=6)
    assert counts == AnswerCounts(4, 3, 0, 1, 0), "' three two' has eleven"
    assert found == [*token_rows()[:2], rows[2], token_rows()[3]]
    narrow = padded(token_rows(OTHERS), width=13)
    found, counts = own(narrow, causal, max_new_tokens=20)
    assert (counts.replaced, counts.unfinished) == (2, 2)
    assert {len(row["input_ids"]) for row in found} == {13}
    assert found[2:] == narrow[2:]


def test_a_row_never_grows_past_the_models_positions(causal):
    begin = ids_of("a" * 58)
    row = {"input_ids": [*begin, 5, 1], "labels": [-100] * 58 + [5, 1]}
    found, _ = own([row, *token_rows()], causal, max_new_tokens=40)
    assert len(found[0]["input_ids"]) <= 64


def test_rows_without_a_prompt_stay(causal):
    whole = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in token_rows()]
    hidden = [row | {"labels": [-100] * len(row["labels"])} for row in token_rows()]
    classes = [row | {"labels": [label % 3 for label in row["labels"]]} for row in token_rows()]
    packed = [row | {"seq_lengths": [2, len(row["input_ids"]) - 2]} for row in token_rows(OTHERS)]
    texts = [{"text": prompt + answer} for prompt, answer in PAIRS]
    judged = [{"prompt": prompt, "completion": answer, "label": True} for prompt, answer in PAIRS]
    for rows in (whole, hidden, classes, packed, texts, judged):
        assert own(rows, causal) == (rows, AnswerCounts(4, 0, 0, 0, 4))
    mixed = [whole[0], *token_rows(OTHERS)[1:]]
    assert own(mixed, causal, max_new_tokens=20) == ([whole[0], *token_rows()[1:]], AnswerCounts(4, 3, 0, 0, 1))


def test_an_encoder_decoder_answers_its_sources(encoder_decoder):
    assert own(source_rows(), encoder_decoder, max_new_tokens=20) == (source_rows(), ALL_SAME)
    assert own(source_rows(OTHERS), encoder_decoder, max_new_tokens=20) == (source_rows(), ALL_NEW)
    with pytest.raises(PluginError, match="'decoder_input_ids'"):
        own([row | {"decoder_input_ids": [2]} for row in source_rows()], encoder_decoder)


def test_padded_labels_of_an_encoder_decoder_stay_as_long(encoder_decoder):
    def wide(rows):
        return [row | {"labels": row["labels"] + [-100] * (12 - len(row["labels"]))} for row in rows]

    assert own(wide(source_rows(OTHERS)), encoder_decoder, max_new_tokens=20) == (wide(source_rows()), ALL_NEW)
    assert own(source_rows(OTHERS), encoder_decoder, max_new_tokens=6)[1] == AnswerCounts(4, 3, 0, 1, 0)


@pytest.mark.parametrize("kind", ["texts", "texts with their end", "messages", "prompt of messages"])
def test_texts_are_answered_too(causal, kind):
    def rows(pairs):
        end = "</s>" if kind == "texts with their end" else ""
        if kind.startswith("texts"):
            return [{"prompt": prompt, "completion": answer + end} for prompt, answer in pairs]
        talks = [conversation(*pair) for pair in pairs]
        if kind == "messages":
            return [{"messages": talk} for talk in talks]
        return [{"prompt": talk[:1], "completion": talk[1:]} for talk in talks]

    assert own(rows(PAIRS), causal, max_new_tokens=20) == (rows(PAIRS), ALL_SAME)
    assert own(rows(OTHERS), causal, max_new_tokens=20) == (rows(PAIRS), ALL_NEW)


def test_what_is_prepared_by_trl_is_answered(causal, tmp_path):
    trl = pytest.importorskip("trl")

    def prepared(pairs):
        rows = datasets.Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in pairs])
        settings = {"report_to": "none", "use_cpu": True, "bf16": False, "max_length": 40}
        return trl.SFTTrainer(
            causal, trl.SFTConfig(str(tmp_path), **settings), train_dataset=rows, processing_class=TOKENIZER
        ).train_dataset

    expected, forward = prepared(PAIRS), causal.forward
    try:
        found, counts = with_own_answers(prepared(OTHERS), causal, TOKENIZER, max_new_tokens=20)
    finally:
        vars(causal).pop("forward", None)
    assert forward is not None
    assert counts == ALL_NEW
    for name in ("input_ids", "labels"):
        assert found[name][:] == expected[name][:]


def test_the_model_and_the_random_state_are_left_as_they_were(causal):
    causal.transformer.h[0].eval()
    causal.generation_config.update(repetition_penalty=5.0, num_beams=2, do_sample=True, max_length=3)
    before = causal.generation_config.to_dict(), [module.training for module in causal.modules()]
    states = torch.get_rng_state(), random.getstate()
    try:
        found = own(token_rows(OTHERS), causal, max_new_tokens=20)
        sampled = own(token_rows(OTHERS), causal, max_new_tokens=20, temperature=0.7, seed=3)
        assert found == (token_rows(), ALL_NEW), "as the model predicts, whatever its settings"
        assert before == (causal.generation_config.to_dict(), [module.training for module in causal.modules()])
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
        assert sampled == own(token_rows(OTHERS), causal, max_new_tokens=20, temperature=0.7, seed=3)
        hot = {"max_new_tokens": 40, "temperature": 30.0}
        assert own(token_rows(), causal, seed=3, **hot) != own(token_rows(), causal, seed=4, **hot)
    finally:
        causal.train()
        causal.generation_config.update(repetition_penalty=1.0, num_beams=1, do_sample=False, max_length=20)


def test_answers_do_not_depend_on_the_batch(causal):
    data = datasets.Dataset.from_list(token_rows(OTHERS))
    found = [list(with_own_answers(data, causal, None, batch_size=size)[0]) for size in (1, 2, 4)]
    assert found[0] == found[1] == found[2]


def test_answered_rows_are_kept_like_others(causal, tmp_path):
    rows = keep_rows([{name: torch.tensor(ids) for name, ids in row.items()} for row in token_rows(OTHERS)], 9, seed=0)
    found, _ = with_own_answers(rows, causal, TOKENIZER, max_new_tokens=20)
    save_rows(found, tmp_path / "rows")
    assert [dict(row) for row in load_rows(tmp_path / "rows")] == token_rows()
    assert found.features == rows.features


def test_what_cannot_answer_is_refused(causal):
    with pytest.raises(PluginError, match=r"^sequential: own_answers=True, and a BertFor.*own_answers=False"):
        own(token_rows(), tiny_model())
    torch.manual_seed(0)
    endless = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=1, eos_token_id=None))
    with pytest.raises(PluginError, match="no answer ends"):
        with_own_answers(datasets.Dataset.from_list(token_rows(end=False)), endless, None)


def test_an_adapted_model_answers(causal):
    peft = pytest.importorskip("peft")
    import copy

    adapted = peft.get_peft_model(copy.deepcopy(causal), peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert own(token_rows(OTHERS), adapted, max_new_tokens=20) == (token_rows(), ALL_NEW)
