"""The answers in rows of token ids: where one begins and ends, and the row with another in its place.

Of a causal model's rows an answer is the last run of scored tokens: labels that are not -100, or, as TRL marks them,
`completion_mask` and `assistant_masks`. What comes before is the prompt, earlier turns and their answers among it; what
comes behind (a line's end of the chat template) stays. Of an encoder-decoder's rows it is the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import mends
from ...errors import PluginError
from .settings import NAME

IGNORED = -100
MASKS = ("completion_mask", "assistant_masks")
# Columns with a value for each token, and the value of padding; that of `input_ids` is the tokenizer's.
PER_TOKEN = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
PER_TOKEN |= {"position_ids": 0, **dict.fromkeys(MASKS, 0)}
DECODER = ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds")


@dataclass(frozen=True)
class Answer:
    """An answer in a row of token ids.

    Attributes:
        prompt: ids that it is given to.
        ids: of the answer.
        tail: ids behind it that are not scored and no padding.
        begin: place of the first id of the prompt in the row, behind padding on the left.
        padding: places of the row that hold no token.
    """

    prompt: list[int]
    ids: list[int]
    tail: list[int]
    begin: int = 0
    padding: int = 0


def causal_answer(row: dict[str, Any]) -> Answer | None:
    """The last answer of a row of `input_ids`; None where it has no prompt, or its labels are no tokens of the row."""
    ids = row["input_ids"]
    scored = _scored(row)
    if scored is None or len(scored) != len(ids) or not any(scored):
        return None
    mask = row.get("attention_mask") or [1] * len(ids)
    real = [place for place, kept in enumerate(mask) if kept]
    begin, stop = real[0], real[-1] + 1
    end = max(place for place, counts in enumerate(scored) if counts) + 1
    start = end
    while start > begin and scored[start - 1]:
        start -= 1
    if start == begin or end > stop or len(real) != stop - begin:
        return None
    return Answer(ids[begin:start], ids[start:end], ids[end:stop], begin, len(ids) - (stop - begin))


def _scored(row: dict[str, Any]) -> list[bool] | None:
    ids, labels = row["input_ids"], row.get("labels")
    if labels is not None:
        if not isinstance(labels, list):
            return None
        # Others are classes of tokens, or tokens that were masked.
        shown = all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=False))
        return [label != IGNORED for label in labels] if shown else None
    masks = [row[name] for name in MASKS if row.get(name) is not None]
    return [all(bits) for bits in zip(*masks, strict=True)] if masks else None


def labels_answer(row: dict[str, Any]) -> Answer | None:
    """The answer of an encoder-decoder's row: `labels` without what pads them; the prompt is `input_ids`."""
    ids, labels = row["input_ids"], row.get("labels")
    if not isinstance(labels, list) or not ids:
        return None
    mask = row.get("attention_mask") or [1] * len(ids)
    answer = [label for label in labels if label != IGNORED]
    if not answer or labels[: len(answer)] != answer:
        return None
    return Answer(
        [token for token, kept in zip(ids, mask, strict=True) if kept], answer, [], 0, len(labels) - len(answer)
    )


@dataclass(frozen=True)
class Padding:
    """How the rows of a data set are padded.

    Attributes:
        fixed: all to one length, which a row with another answer must have, too.
        left: on which side.
        token: id of the token.
    """

    fixed: bool
    left: bool
    token: int

    @classmethod
    def of(cls, answers: Sequence[Answer | None], token: int) -> Padding:
        """As the answers of the data set's rows tell."""
        found = [answer for answer in answers if answer is not None]
        return cls(any(one.padding for one in found), any(one.begin for one in found), token)

    def room(self, answer: Answer) -> int | None:
        """Tokens that the answer may have; None: any number."""
        return len(answer.ids) + answer.padding if self.fixed else None


def refuse_unknown_columns(rows: Sequence[dict[str, Any]], *, causal: bool) -> None:
    """Raise `PluginError` for a column that another answer would belie.

    Args:
        rows: all of a data set.
        causal: whether prompt and answer are one row.
    """
    for name in rows[0] if rows else ():
        lists = all(isinstance(row[name], list) and len(row[name]) == len(row["input_ids"]) for row in rows)
        if (causal and lists and name not in PER_TOKEN) or (not causal and name in DECODER):
            raise PluginError(
                f"{NAME}: own_answers=True replaces tokens, and the column {name!r} says something of those that were "
                "there. Leave it out of the data, or set own_answers=False.",
                code="data-columns",
                mend=[mends.remove_column(name), mends.set_option(NAME, "own_answers", False)],
            )


def with_causal_answer(row: dict[str, Any], answer: Answer, own: list[int], padding: Padding) -> dict[str, list[Any]]:
    """The columns of a row of `input_ids` that change with `own` in the place of its answer."""
    start = answer.begin + len(answer.prompt)
    end = start + len(answer.ids)
    stop = end + len(answer.tail)
    given = {"input_ids": own, "labels": own, "attention_mask": [1] * len(own)}
    given |= {name: [1] * len(own) for name in MASKS}
    changed = {}
    for name in PER_TOKEN:
        values = row.get(name)
        if values is None:
            continue
        tail = values[end:stop]
        if name == "position_ids":
            tail = [position + len(own) - len(answer.ids) for position in tail]
            inside = list(range(values[start], values[start] + len(own)))
        else:
            inside = given.get(name, [values[start]] * len(own))
        changed[name] = _padded(name, [*values[answer.begin : start], *inside, *tail], len(values), padding)
    return changed


def with_labels_answer(row: dict[str, Any], answer: Answer, own: list[int], padding: Padding) -> dict[str, list[Any]]:
    """As `with_causal_answer`, of an encoder-decoder's row."""
    return {"labels": _padded("labels", own, len(row["labels"]), padding)}


def _padded(name: str, values: list[int], width: int, padding: Padding) -> list[int]:
    if not padding.fixed:
        return values
    rest = [padding.token if name == "input_ids" else PER_TOKEN[name]] * (width - len(values))
    return [*rest, *values] if padding.left else [*values, *rest]
