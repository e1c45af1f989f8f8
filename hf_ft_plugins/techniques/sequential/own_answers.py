"""On-policy replay: the answers of kept rows are replaced by what the model itself answers to their prompts.

Chen et al. 2026, "On-Policy Replay for Continual Supervised Fine-Tuning" (arXiv:2605.29495): the newest model answers
prompts of earlier stages, and its answers are replayed as ordinary rows. Deviations:

- greedy, unless a temperature is said: the authors' code samples at 0.1, which hardly differs, and so the rows follow
  from the weights alone, whatever the batches;
- no reward of a task chooses among answers: one that does not end within the limit is not taken, and the row keeps the
  answer that it had. The paper finds badly scored answers worse than the data's own, so only a model that has learned
  its stage should answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ... import mends
from ...errors import PluginError
from .answering_model import AnsweringModel, Question
from .settings import NAME
from .text_answers import given_text, text_column, text_of, text_prompt, with_text_answer
from .token_answers import (
    MASKS,
    Padding,
    causal_answer,
    labels_answer,
    refuse_unknown_columns,
    with_causal_answer,
    with_labels_answer,
)


@dataclass(frozen=True)
class AnswerCounts:
    """What became of the rows.

    Attributes:
        rows: all.
        replaced: those with an answer of the model's own.
        same: of those, how many are as they were.
        unfinished: whose answer did not end within the limit, or was empty; left as they were.
        without_prompt: plain or packed texts, labels that are no answers; left as they were.
    """

    rows: int
    replaced: int
    same: int
    unfinished: int
    without_prompt: int


def with_own_answers(
    rows: Any,
    model: Any,
    tokenizer: Any,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    temperature: float = 0.0,
) -> tuple[Any, AnswerCounts]:
    """Kept rows with the model's own answers, and how many.

    Token ids come first (`token_answers.py`); where there are none, texts (`text_answers.py`). Texts that stand beside
    ids are left as they were.

    Args:
        rows: a `datasets.Dataset`, as of `keep_rows`.
        model: one that generates, or PEFT's; on every rank the same. It answers without dropout and is left as it was.
        tokenizer: or processor, whose tokenizer is taken; may be None for rows of ids, if the model says its end token.
        max_new_tokens: of an answer, its end among them; None: as many as the longest that the rows have.
        batch_size: prompts that are answered together, those of about one length.
        seed: of the draws, with a temperature; torch's random state is left as it was.
        temperature: 0: the likeliest token always; else tokens are drawn.

    Raises:
        PluginError: the model does not generate, no token ends an answer, or a column says something of each token
            that is not known.
    """
    if not getattr(model, "can_generate", lambda: False)() and not hasattr(model, "peft_config"):
        raise PluginError(
            f"{NAME}: own_answers=True, and a {type(model).__name__} generates no answers. Set own_answers=False: rows "
            "are replayed as they were.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "own_answers", False)],
        )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ask = AnsweringModel(model, tokenizer, batch_size, seed, temperature)
    names = rows.column_names
    if "input_ids" in names and ("labels" in names or set(MASKS) & set(names)) and "seq_lengths" not in names:
        return _of_tokens(rows, ask, max_new_tokens)
    column = text_column(names) if "input_ids" not in names and tokenizer is not None else None
    if column is None:
        return rows, AnswerCounts(len(rows), 0, 0, 0, len(rows))
    return _of_texts(rows, column, ask, max_new_tokens)


def _of_tokens(rows: Any, ask: AnsweringModel, most: int | None) -> tuple[Any, AnswerCounts]:
    given = list(
        rows.with_format(None).select_columns([name for name in rows.column_names if _holds_lists(rows, name)])
    )
    refuse_unknown_columns(given, causal=ask.causal)
    found, put = (causal_answer, with_causal_answer) if ask.causal else (labels_answer, with_labels_answer)
    answers = [found(row) for row in given]
    asked = [(place, answer) for place, answer in enumerate(answers) if answer is not None]
    padding = Padding.of(answers, ask.pad)
    borders = [answer.ids[-1] for _, answer in asked] + [answer.tail[0] for _, answer in asked if answer.tail]
    ends = ask.ends | (ask.special & set(borders))
    keeps_end = any(answer.ids[-1] in ends for _, answer in asked)
    most = most or max((len(answer.ids) for _, answer in asked), default=1)
    questions = []
    for _, answer in asked:
        places = None if ask.limit is None or not ask.causal else ask.limit - len(answer.prompt) - len(answer.tail)
        rooms = [room for room in (most, padding.room(answer), places) if room is not None]
        questions.append(Question(answer.prompt, min(rooms)))
    replaced = same = 0
    for (place, answer), own in zip(asked, ask.answers(questions, ends), strict=True):
        if own is not None and (not keeps_end or (answer.tail and answer.tail[0] in ends)):
            own = own[:-1]
        if own:
            given[place] |= put(given[place], answer, own, padding)
            replaced, same = replaced + 1, same + (own == answer.ids)
    changed = put(given[asked[0][0]], asked[0][1], asked[0][1].ids, padding) if asked else {}
    columns = {name: [row[name] for row in given] for name in changed}
    counts = AnswerCounts(len(rows), replaced, same, len(asked) - replaced, len(rows) - len(asked))
    return _with_columns(rows, columns), counts


def _of_texts(rows: Any, column: str, ask: AnsweringModel, most: int | None) -> tuple[Any, AnswerCounts]:
    given = list(rows.with_format(None))
    prompts = [text_prompt(row, ask.tokenizer) for row in given]
    asked = [(place, prompt) for place, prompt in enumerate(prompts) if prompt]
    values = [row[column] for row in given]
    most = most or 1 + max(
        (len(ask.tokenizer(given_text(given[place]), add_special_tokens=False)["input_ids"]) for place, _ in asked),
        default=1,
    )
    owns = ask.answers([Question(prompt, most) for _, prompt in asked], ask.ends)
    replaced = same = 0
    for (place, prompt), own in zip(asked, owns, strict=True):
        text = text_of(own[:-1], prompt, ask.tokenizer) if own else ""
        if text:
            before = given_text(given[place])
            end = ask.tokenizer.eos_token
            # Some scripts write the end into the text.
            text += end if end and before.endswith(end) else ""
            values[place] = with_text_answer(given[place], text)
            replaced, same = replaced + 1, same + (text == before)
    counts = AnswerCounts(len(rows), replaced, same, len(asked) - replaced, len(rows) - len(asked))
    return _with_columns(rows, {column: values}), counts


def _holds_lists(rows: Any, name: str) -> bool:
    return hasattr(rows.features[name], "feature") and hasattr(rows.features[name].feature, "dtype")


def _with_columns(rows: Any, columns: dict[str, list[Any]]) -> Any:
    """The rows with other values in some columns."""
    from datasets import Dataset, DatasetInfo, Features, List

    features, table = dict(rows.features), rows.with_format("arrow")[:]
    for name, values in columns.items():
        if getattr(features[name], "length", -1) != -1:
            features[name] = List(features[name].feature)
        made = Dataset.from_dict({name: values}, features=Features({name: features[name]}))
        table = table.set_column(table.column_names.index(name), name, made.data.column(name))
    return Dataset(table, info=DatasetInfo(features=Features(features)))
