"""From rows of words, of texts or of token ids to an encoder's inputs, and the word that each token belongs to.

Words are tokenized as the text that they make, joined by blanks, since that is what an encoder was trained on: GPT-2's
and RoBERTa's kind of tokenizer knows `Ġriver` in running text and has other pieces for `river` alone, and it may not be
given words at all. Which word a token belongs to is read from its place in the text; a tokenizer without places is
asked for each word by itself, and for the beginnings of the text.

The blanks stand between words of every language. A text written without them (Chinese, Thai) has pieces that span
words, of which none could be the token of each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from ...errors import PluginError
from .tasks import NAME

logger = logging.getLogger(__name__)

Words = Sequence[str]
# One row, not padded: the tokenizer's lists by name, the word of each token (-1 for none), and whether it was cut.
Row = tuple[dict[str, list[int]], list[int], bool]


@dataclass(frozen=True)
class Encoded:
    """Rows as tokens.

    Attributes:
        batch: the encoder's inputs, int64 [rows, tokens] each.
        words: the number of each token's word, -1 for none; int64 [rows, tokens].
        over: which rows were cut.
    """

    batch: dict[str, Any]
    words: np.ndarray
    over: list[bool]


class Encoding:
    """Rows to tokens, cut and padded.

    Args:
        tokenizer: of any kind that pads.
        limit: tokens in a row; None for no limit.
        pad_to_multiple_of: round the number of tokens up.

    Raises:
        PluginError: the tokenizer cannot pad.
    """

    def __init__(self, tokenizer: Any, limit: int | None = None, pad_to_multiple_of: int | None = None) -> None:
        if getattr(tokenizer, "pad_token_id", None) is None:
            raise PluginError(
                f"{NAME}: the rows of a batch are padded, and the tokenizer, a {type(tokenizer).__name__}, has no "
                "pad_token. Say one: tokenizer.pad_token = tokenizer.eos_token.",
                code="tokenizer-unsuited",
            )
        self.tokenizer = tokenizer
        self.limit = limit
        self._pad = {"padding": True, "pad_to_multiple_of": pad_to_multiple_of, "return_tensors": "pt"}
        self._cut = {"truncation": True, "max_length": limit} if limit else {"truncation": False}
        self._warned = False

    # ---- words ----

    def of_words(self, rows: Sequence[Words]) -> Encoded:
        """Rows of words; a word of which the tokenizer drops each character is the unknown token, and a row without
        words is one that belongs to no word.
        """
        unknown = self._unknown()
        empty = [len(row) == 0 for row in rows]
        rows = [[word if word.strip() else unknown for word in row] or [unknown] for row in rows]
        encoded = self._of_words(rows)
        lost = [_lost(encoded.words[place], len(row), encoded.over[place]) for place, row in enumerate(rows)]
        if any(lost):
            rows = [
                [unknown if place in none else word for place, word in enumerate(row)]
                for row, none in zip(rows, lost, strict=True)
            ]
            encoded = self._of_words(rows)
        encoded.words[empty] = -1
        return encoded

    def _of_words(self, rows: Sequence[Words]) -> Encoded:
        if self.tokenizer.is_fast:
            encoded = self.tokenizer([" ".join(row) for row in rows], **self._pad, **self._cut)
            found = [words_by_place(own, row) for own, row in zip(encoded.encodings, rows, strict=True)]
            if all(words is not None for words in found):
                over = [bool(own.overflowing) for own in encoded.encodings]
                return Encoded(dict(encoded), np.asarray(found, dtype=np.int64), over)
        return self._padded([self._in_parts(row) for row in rows])

    def _in_parts(self, words: Words) -> Row:
        """A row by a tokenizer that does not say where in the text a token stands, or has tokens that span words."""
        text = " ".join(words)
        whole = self.tokenizer(text)
        inner = self._ids(text)
        parts = [self._ids(f" {word}" if place else word) for place, word in enumerate(words)]
        if list(chain(*parts)) != inner:
            parts = self._beginnings(words, inner) or parts
        if list(chain(*parts)) != inner and not self._warned:
            self._warned = True
            logger.warning(
                "%s: the %s has tokens that are of several words (%r). Such rows are tokenized word by word.",
                NAME,
                type(self.tokenizer).__name__,
                text[:60],
            )
        begins = _find(inner, whole["input_ids"])
        if begins is None:
            raise PluginError(
                f"{NAME}: the {type(self.tokenizer).__name__} gives other tokens for a text with special tokens than "
                f"without ({text[:60]!r}), so that words cannot be matched. Tokenize the rows yourself, into columns "
                "'input_ids' and 'word_ids'.",
                code="tokenizer-unsuited",
            )
        ends = begins + len(inner)
        numbers = [number for number, own in enumerate(parts) for _ in own]
        kept = self._room(len(numbers), begins + len(whole["input_ids"]) - ends)
        row = {}
        for name, values in whole.items():
            middle = (
                list(chain(*parts)) if name == "input_ids" else [values[min(begins, len(values) - 1)]] * len(numbers)
            )
            row[name] = [*values[:begins], *middle[kept], *values[ends:]]
        numbers_of_row = [-1] * begins + numbers[kept] + [-1] * (len(whole["input_ids"]) - ends)
        return row, numbers_of_row, kept.stop - kept.start < len(numbers)

    def _beginnings(self, words: Words, inner: list[int]) -> list[list[int]] | None:
        """The tokens that each word adds to the text before it; None where that changes the tokens before it."""
        ends = [0]
        for count in range(1, len(words) + 1):
            ids = self._ids(" ".join(words[:count]))
            if ids != inner[: len(ids)]:
                return None
            ends.append(len(ids))
        return [inner[begin:end] for begin, end in pairwise(ends)]

    def _room(self, tokens: int, others: int) -> slice:
        room = tokens if self.limit is None else min(tokens, max(0, self.limit - others))
        left = getattr(self.tokenizer, "truncation_side", "right") == "left"
        return slice(tokens - room, tokens) if left else slice(0, room)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _unknown(self) -> str:
        # GPT-2's unknown token is the end of a text.
        tokenizer, token = self.tokenizer, self.tokenizer.unk_token
        taken = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.sep_token)
        return token if token and token not in taken else "?"

    # ---- texts ----

    def of_texts(self, texts: Sequence[str], pairs: Sequence[str | None]) -> Encoded:
        """Rows of one text or two; a row without a second is as it would be among such rows alone."""
        rows: list[Row] = [({}, [], False)] * len(texts)
        for paired in (False, True):
            places = [place for place, pair in enumerate(pairs) if (pair is not None) == paired]
            if not places:
                continue
            given = [[texts[place] for place in places], *([[pairs[place] for place in places]] if paired else [])]
            encoded = self.tokenizer(*given, **self._cut)
            over = self._cut_texts(encoded, given)
            for number, place in enumerate(places):
                row = {name: values[number] for name, values in encoded.items()}
                rows[place] = (row, [-1] * len(row["input_ids"]), over[number])
        return self._padded(rows)

    def _cut_texts(self, encoded: Any, given: list[Any]) -> list[bool]:
        if self.tokenizer.is_fast:
            return [bool(own.overflowing) for own in encoded.encodings]
        kept = [len(ids) for ids in encoded["input_ids"]]
        if self.limit is None or max(kept) < self.limit:
            return [False] * len(kept)
        return [len(ids) > fit for ids, fit in zip(self.tokenizer(*given)["input_ids"], kept, strict=True)]

    # ---- token ids ----

    def of_ids(self, rows: Sequence[Mapping[str, Any]]) -> Encoded:
        """Rows of `input_ids` that the script has made, with its `attention_mask`, `token_type_ids` and `word_ids`
        where it has; the padding at either end that its mask hides is taken off.
        """
        further = [name for name in ("token_type_ids",) if any(row.get(name) is not None for row in rows)]
        fit = slice(0, self.limit)
        found: list[Row] = []
        for row in rows:
            ids = listed(row["input_ids"])
            mask = [1] * len(ids) if row.get("attention_mask") is None else listed(row["attention_mask"])
            words = [-1 if word is None else int(word) for word in listed(row.get("word_ids"))]
            lists = {"input_ids": ids, "attention_mask": mask, "words": (words + [-1] * len(ids))[: len(ids)]}
            lists |= {name: [0] * len(ids) if row.get(name) is None else listed(row[name]) for name in further}
            text = np.flatnonzero(mask)
            inside = slice(int(text[0]), int(text[-1]) + 1) if len(text) else slice(0, 0)
            lists = {name: values[inside] for name, values in lists.items()}
            over = self.limit is not None and len(lists["input_ids"]) > self.limit
            words = lists.pop("words")
            found.append(({name: values[fit] for name, values in lists.items()}, words[fit], over))
        return self._padded(found)

    def _padded(self, rows: Sequence[Row]) -> Encoded:
        batch = self.tokenizer.pad({name: [row[name] for row, _, _ in rows] for name in rows[0][0]}, **self._pad)
        width, left = batch["input_ids"].shape[1], self.tokenizer.padding_side == "left"
        words = np.full((len(rows), width), -1)
        for place, (_, own, _) in enumerate(rows):
            begins = width - len(own) if left else 0
            words[place, begins : begins + len(own)] = own
        return Encoded(dict(batch), words, [over for _, _, over in rows])


def listed(values: Any) -> list[Any]:
    """A list, of any sequence, array or tensor; [] of None."""
    if values is None:
        return []
    return values.tolist() if hasattr(values, "tolist") else list(values)


def words_by_place(encoding: Any, words: Words) -> np.ndarray | None:
    """The word of each token of the words' text, from the places that a fast tokenizer tells.

    A blank before a word is the word's, as it is where the tokenizer leaves it out of the place.

    Args:
        encoding: of `" ".join(words)`, by the library tokenizers.

    Returns:
        int64 [tokens], -1 for special tokens and padding; None where a token is of several words.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1  # of each word, where its blank stands
    places = np.asarray(encoding.offsets)
    begins, lasts = places[:, 0], np.maximum(places[:, 1] - 1, places[:, 0])
    first = np.minimum(np.searchsorted(ends, begins, side="right"), len(words) - 1)
    # A blank at the end of a longer token is of the word before it.
    last = np.where(lasts > begins, np.searchsorted(ends, lasts, side="left"), first)
    numbers = np.where(np.asarray(encoding.special_tokens_mask) == 1, -1, first)
    seen = numbers >= 0
    if (first != last)[seen].any() or (np.diff(numbers[seen]) < 0).any():
        return None
    return numbers


def _lost(numbers: np.ndarray, words: int, over: bool) -> set[int]:
    """The words that have no token, among those before the end of a row that was cut."""
    seen = set(numbers[numbers >= 0].tolist())
    if not over:
        return set(range(words)) - seen
    return set(range(min(seen, default=0), max(seen, default=-1) + 1)) - seen


def _find(inner: list[int], whole: list[int]) -> int | None:
    places = range(len(whole) - len(inner) + 1)
    return next((place for place in places if whole[place : place + len(inner)] == inner), None)
