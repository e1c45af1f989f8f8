"""Words for an encoder: tokens as of the running text that it was trained on, whatever the tokenizer's kind."""

import logging
import unicodedata

import numpy as np
import pytest
import torch

from benchmarks.tiny_tokenizers import KINDS, SENTENCES, byte_level, spanning, wordpiece
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask import MultiTaskCollator, TaskSpec
from hf_ft_plugins.techniques.multitask.encoding import Encoding

ROWS = [sentence.split() for sentence in SENTENCES]
TAG = {"tag": TaskSpec(kind="token", labels=("A", "B"))}


def folded(text: str) -> str:
    """Without case, accents, widths and blanks, which normalizers change."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).replace(" ", "")


def real_ids(encoded, row: int) -> list[int]:
    batch = encoded.batch
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


def expect_words(tokenizer, encoded, rows) -> None:
    """By decoding, which knows nothing of places: each word's tokens say that word."""
    for place, row in enumerate(rows):
        for number, word in enumerate(row):
            ids = encoded.batch["input_ids"][place][encoded.words[place] == number].tolist()
            said = folded(tokenizer.decode(ids))
            assert ids
            assert said == folded(word) or tokenizer.unk_token in said, (row, word)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_tokens_of_their_running_text(kind, side):
    tokenizer = KINDS[kind]()
    tokenizer.padding_side = side
    encoded = Encoding(tokenizer).of_words(ROWS)
    for place, row in enumerate(ROWS):
        assert real_ids(encoded, place) == tokenizer(" ".join(row))["input_ids"]
    expect_words(tokenizer, encoded, ROWS)
    padding = encoded.batch["attention_mask"].numpy() == 0
    assert (encoded.words[padding] == -1).all()


def test_words_by_themselves_would_be_other_tokens():
    """The control of this file: what a tokenizer without a prefix blank makes of words that it is given as words."""
    tokenizer = byte_level()
    alone = [piece for word in ROWS[0] for piece in tokenizer.tokenize(word)]
    assert alone != tokenizer.tokenize(" ".join(ROWS[0]))
    assert "Ġriver" not in alone
    assert "Ġriver" in tokenizer.convert_ids_to_tokens(real_ids(Encoding(tokenizer).of_words(ROWS), 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_cut_keeps_the_first_tokens_of_its_text(kind):
    tokenizer = KINDS[kind]()
    encoded = Encoding(tokenizer, limit=7).of_words([ROWS[0], ["to"]])
    assert encoded.over[0]
    assert real_ids(encoded, 0) == tokenizer(" ".join(ROWS[0]), truncation=True, max_length=7)["input_ids"]
    assert encoded.words[0].max() < len(ROWS[0]) - 1


@pytest.mark.parametrize("make", [byte_level, KINDS["slow characters"]])
def test_a_row_that_is_cut_on_its_left_has_labels_for_the_words_that_are_left(make):
    tokenizer = make()
    tokenizer.truncation_side = "left"
    batch = MultiTaskCollator(tokenizer, TAG, max_length=7)([{"tokens": ROWS[0], "tag": ["A"] * len(ROWS[0])}])
    seen = {int(number) for number in batch["word_ids"][0] if number >= 0}
    assert max(seen) == len(ROWS[0]) - 1
    assert 0 not in seen
    assert {place for place, label in enumerate(batch["labels"]["tag"][0].tolist()) if label >= 0} == seen


def test_a_token_of_several_words_is_taken_apart_with_a_warning(caplog):
    tokenizer = spanning()
    assert len(tokenizer.tokenize(SENTENCES[0])) < len(ROWS[0])
    with caplog.at_level(logging.WARNING):
        encoded = Encoding(tokenizer).of_words(ROWS)
    expect_words(tokenizer, encoded, ROWS)
    assert caplog.text.count("tokens that are of several words") == 1


@pytest.mark.parametrize("make", [byte_level, wordpiece, KINDS["slow characters"]])
def test_a_word_without_a_token_of_its_own_has_the_unknown_one(make):
    tokenizer = make()
    encoded = Encoding(tokenizer).of_words([["to", "", "sea"], ["to", " ", "the"]])
    unknown = tokenizer.unk_token_id
    for row in (0, 1):
        assert encoded.batch["input_ids"][row][encoded.words[row] == 1].tolist()[-1] == unknown


def test_a_word_may_hold_blanks():
    tokenizer = byte_level()
    words = ["to the", "sea ", "."]
    encoded = Encoding(tokenizer).of_words([words])
    assert real_ids(encoded, 0) == tokenizer(" ".join(words))["input_ids"]
    expect_words(tokenizer, encoded, [words])


def test_a_text_without_a_second_one_does_not_depend_on_its_batch():
    tokenizer = wordpiece()
    encoded = Encoding(tokenizer).of_texts(["to the sea", "the river", "run"], [None, "to", ""])
    assert real_ids(encoded, 0) == tokenizer("to the sea")["input_ids"]
    assert real_ids(encoded, 1) == tokenizer("the river", "to")["input_ids"]
    assert real_ids(encoded, 2) == tokenizer(["run"], [""])["input_ids"][0]


@pytest.mark.parametrize("make", [wordpiece, KINDS["Llama 2"], KINDS["ByT5"]])
def test_texts_that_are_cut_are_told(make):
    tokenizer = make()
    long, exact = SENTENCES[1], "to"
    length = len(tokenizer(exact)["input_ids"])
    encoded = Encoding(tokenizer, limit=length).of_texts([long, exact], [None, None])
    assert encoded.over == [True, False]


def test_the_scripts_own_padding_is_no_text():
    """Rows that the script has padded itself: as without the padding, for a sequence and for words."""
    tokenizer = byte_level()
    plain = tokenizer(SENTENCES[0])
    length = len(plain["input_ids"])
    padded = tokenizer(SENTENCES[0], padding="max_length", max_length=length + 5)
    words = [None, *range(length - 2), None]
    rows = [dict(padded) | {"word_ids": words + [None] * 5}, {"input_ids": plain["input_ids"][:3]}]
    encoded = Encoding(tokenizer, limit=length).of_ids(rows)
    assert encoded.batch["input_ids"].shape == (2, length)
    assert real_ids(encoded, 0) == plain["input_ids"]
    assert encoded.words[0].tolist() == [-1, *range(length - 2), -1]
    assert encoded.batch["attention_mask"].sum(1).tolist() == [length, 3]
    assert encoded.over == [False, False]


def test_a_tokenizer_that_cannot_pad_is_refused_with_the_mend():
    tokenizer = byte_level()
    tokenizer.pad_token = None
    with pytest.raises(PluginError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        MultiTaskCollator(tokenizer, TAG)
    tokenizer.pad_token = tokenizer.eos_token
    batch = MultiTaskCollator(tokenizer, TAG)([{"tokens": row, "tag": ["A"] * len(row)} for row in ROWS])
    assert np.array_equal((batch["word_ids"] >= 0).any(1).numpy(), [True] * len(ROWS))
    assert torch.equal((batch["labels"]["tag"] >= 0).sum(1), torch.tensor([len(row) for row in ROWS]))
