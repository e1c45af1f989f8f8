"""Preferences made to fit a trainer's `max_length` before TRL cuts or drops them.

TRL drops a pair whose prompt is as long as the limit, and cuts completions at their end. Here the oldest turns of the
prompt go first, both completions alike; what still does not fit is cut if the completions then still differ, and
otherwise dropped; the reasons are counted.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ... import mends
from ...errors import PluginError
from ...feedback import label_of
from ...near import nearest_column
from .collator import MASK, NAME

logger = logging.getLogger(__name__)

FITTED = "behavior_fitted"
WHOLE, TRIMMED, CUT, DROPPED = "whole", "prompt trimmed", "completion cut", "dropped: "
# Characters of a template's error message that the reason for dropping a row keeps.
REASON = 120
# Columns of rows that a reward trainer takes as they are.
TOKENIZED = {"chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Fitter:
    """Fits rows to `max_length`; a function for `Dataset.map`.

    Args:
        contract: "dpo", "reward" (rows of `prompt`, `chosen`, `rejected`) or "kto" (`prompt`, `completion`).
        max_length: tokens of prompt and completion together; None fits everything.
        settings: what else the trainer makes of the rows; `datasets` takes cached results for others, so that
            reference log-probabilities that TRL 1.16 caches by the data's fingerprint are never those of other options.
    """

    processing_class: Any
    contract: str
    max_length: int | None
    settings: str = ""

    @property
    def sides(self) -> tuple[str, ...]:
        return ("completion",) if self.contract == "kto" else ("chosen", "rejected")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with a fitting prompt, `..._assistant_mask` where a completion has turns of others, and FITTED."""
        if any(row[side] is None or len(row[side]) == 0 for side in self.sides):
            return row | self._none_of("an empty completion")
        if row["prompt"] is None or row["prompt"] == []:
            return row | self._none_of("no prompt")
        if len(self.sides) == 2 and row["chosen"] == row["rejected"]:
            return row | self._none_of("both completions are equal")
        if isinstance(row["prompt"], str):
            return row | self._masks({}) | {FITTED: WHOLE}
        from jinja2 import TemplateError

        try:
            return self._within(row)
        except TemplateError as error:
            # Some templates take no system turn, no tools, or no two turns in a row by one speaker.
            return row | self._none_of(f"the chat template refuses it ({error})"[:REASON])

    def _within(self, row: dict[str, Any]) -> dict[str, Any]:
        limit = math.inf if self.max_length is None else self.max_length
        for turns_left_out, prompt in enumerate(shorter_prompts(row["prompt"])):
            texts = [self._tokens(prompt + row[side], row) for side in self.sides]
            if max(map(len, texts)) <= limit:
                return self._fitted(row, prompt, texts, TRIMMED if turns_left_out else WHOLE)
        reason = self._useless(self._tokens(prompt, row, add_generation_prompt=True), texts, int(limit))
        return row | self._none_of(reason) if reason else self._fitted(row, prompt, texts, CUT)

    def _useless(self, prompt: list[int], texts: list[list[int]], limit: int) -> str | None:
        if self.contract == "reward":
            return "longer than max_length"
        common = min(common_length(prompt, text) for text in texts)
        if common >= limit:
            return "the last turn of the prompt fills max_length"
        if len(texts) == 2 and texts[0][:limit] == texts[1][:limit]:
            return "the completions differ only past max_length"
        return None

    def _fitted(self, row: dict[str, Any], prompt: Messages, texts: list[list[int]], how: str) -> dict[str, Any]:
        masks = {}
        for side, text in zip(self.sides, texts, strict=True):
            if any(message["role"] != "assistant" for message in row[side]):
                mask = self._assistant_mask(prompt, row[side], text, row)
                if mask is None:
                    return row | self._none_of("the chat template renders a turn differently once others follow")
                masks[side] = mask
        return row | self._masks(masks) | {"prompt": prompt, FITTED: how}

    def _assistant_mask(
        self, prompt: Messages, completion: Messages, text: list[int], row: dict[str, Any]
    ) -> list[int] | None:
        mask = [1] * len(text)
        for number, message in enumerate(completion):
            if message["role"] == "assistant":
                continue
            before = self._tokens(prompt + completion[:number], row)
            answered = number + 1 < len(completion) and completion[number + 1]["role"] == "assistant"
            after = self._tokens(prompt + completion[: number + 1], row, add_generation_prompt=answered)
            if common_length(before, text) < len(before) or common_length(after, text) < len(after):
                return None
            mask[len(before) : len(after)] = [0] * (len(after) - len(before))
        return mask

    def _tokens(self, messages: Messages, row: dict[str, Any], **kwargs: Any) -> list[int]:
        # As TRL's own trainers do, or the lengths would differ from theirs.
        from trl.data_utils import _tokenize

        tools = row.get("tools")
        kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        kwargs |= row.get("chat_template_kwargs") or {}
        tokens: list[int] = _tokenize(self.processing_class, messages, **kwargs)["input_ids"]
        return tokens

    def _none_of(self, reason: str) -> dict[str, Any]:
        return self._masks({}) | {FITTED: DROPPED + reason}

    def _masks(self, masks: dict[str, list[int]]) -> dict[str, list[int] | None]:
        return {MASK.format(side): masks.get(side) for side in self.sides}


def fitted_dataset(dataset: Any, fitter: Fitter) -> tuple[Any, Counter[str]]:
    """The rows that fit, and how many of them were whole, trimmed, cut or dropped (by reason).

    A streaming data set is fitted while it is read, and nothing is counted. Rows for reward models that are tokenized
    already are left to the trainer, as they are.

    Raises:
        PluginError: conversations for a tokenizer without a chat template; columns that the trainer does not take; no
            row is left.
    """
    from datasets import Features, IterableDataset, List, Value
    from trl.data_utils import extract_prompt, unpair_preference_dataset

    dataset = plain_rows(dataset)
    first = next(iter(dataset), None)
    if first is None:
        raise PluginError(
            f"{NAME}: the data set has no rows. Give the trainer at least one preference.", code="data-missing"
        )
    if "prompt_ids" in first or TOKENIZED & first.keys():
        if fitter.contract == "reward" and "prompt_ids" not in first:
            return dataset, Counter()
        raise PluginError(
            f"{NAME}: the data set is tokenized already ({', '.join(first)}), and TRL's trainer tokenizes what it "
            f"gets. Give it texts or conversations, as columns prompt, {', '.join(fitter.sides)}.",
            code="data-unsuited",
        )
    if "chosen" in first and ("prompt" not in first or _repeats_prompt(first)):
        dataset = dataset.map(extract_prompt)
        first = next(iter(dataset))
    if fitter.contract == "kto" and "chosen" in first:
        dataset = unpair_preference_dataset(dataset)
        first = next(iter(dataset))
    missing = [column for column in ("prompt", *fitter.sides) if column not in first]
    if missing:
        raise PluginError(
            f"{NAME}: the data set has no column {' and none '.join(missing)}; it has {', '.join(first)}. "
            f"This trainer learns from rows of prompt, {', '.join(fitter.sides)}. Rows of other layouts, in JSON "
            f"lines, are read by load_feedback(file), and by the option {NAME}:log=FILE.",
            code="data-columns",
            mend=nearest_column(missing[0], [column for column in first if column not in ("prompt", *fitter.sides)]),
        )
    if not isinstance(first["prompt"], str) and not getattr(fitter.processing_class, "chat_template", None):
        raise PluginError(
            f"{NAME}: the data are conversations, and {type(fitter.processing_class).__name__} has no chat_template. "
            "Set tokenizer.chat_template, take the tokenizer of a chat model, or pass the data as plain text.",
            code="tokenizer-unsuited",
        )
    if fitter.contract == "kto":
        dataset = _with_labels(dataset)
    if isinstance(dataset, IterableDataset):
        kept = dataset.map(fitter).filter(lambda row: not row[FITTED].startswith(DROPPED))
        return kept.remove_columns([FITTED]), Counter()
    masks = {MASK.format(side): List(Value("int8")) for side in fitter.sides}
    features = Features({**dataset.features, **masks, FITTED: Value("string")})
    dataset = dataset.map(fitter, features=features, desc=f"{NAME}: fitting to max_length={fitter.max_length}")
    counts = Counter(dataset[FITTED])
    if any(how.startswith(DROPPED) for how in counts):
        dataset = dataset.filter(lambda how: not how.startswith(DROPPED), input_columns=[FITTED])
    if len(dataset) == 0:
        raise PluginError(
            f"{NAME}: no preference is left: {in_words(counts)}. Raise max_length, or look at the data.",
            code="data-missing",
            mend=[mends.set_argument("max_length", 2 * fitter.max_length)] if fitter.max_length else [],
        )
    return dataset.remove_columns([FITTED]), counts


def plain_rows(dataset: Any) -> Any:
    """The data set with rows of plain Python, as TRL prepares them: what `set_transform` makes of a row is made once.

    Raises:
        PluginError: it is none of `datasets`.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, IterableDataset):
        return dataset
    if not isinstance(dataset, Dataset):
        raise PluginError(
            f"{NAME}: TRL prepares a datasets.Dataset or IterableDataset, and the data are a {type(dataset).__name__}. "
            "Make one of them, for example by Dataset.from_list(rows).",
            code="data-unsuited",
        )
    if dataset.format["type"] != "custom":
        return dataset if dataset.format["type"] is None else dataset.with_format(None)
    made: dict[str, Any] = next(iter(dataset), {})
    logger.warning("%s: the data's set_transform is applied once, before tokens are made, not at each epoch.", NAME)
    gone = [column for column in dataset.column_names if column not in made]
    return dataset.map(_copy_of_row, remove_columns=gone).with_format(None)


def _copy_of_row(row: dict[str, Any]) -> dict[str, Any]:
    return dict(row)


def _with_labels(dataset: Any) -> Any:
    """The data set with labels that are true or false, as TRL sums them up; it takes a -1 for a good answer.

    Raises:
        PluginError: there is no label, or one that says neither.
    """
    from datasets import Features, IterableDataset, Value

    if isinstance(dataset, IterableDataset):
        return dataset
    if "label" not in dataset.column_names:
        raise PluginError(
            f"{NAME}: KTO learns from answers that are good or bad, and the data set has no column label; it has "
            f"{', '.join(dataset.column_names)}. Add it, of True and False.",
            code="data-columns",
        )
    given = {value: _label(value) for value in dataset.unique("label")}
    unknown = [repr(value) for value, label in given.items() if label is None]
    if unknown:
        raise PluginError(
            f"{NAME}: the column label holds {', '.join(unknown[:5])}, which says neither good nor bad. Give each row "
            "True or False, or leave it out.",
            code="labels-unsuited",
        )
    if all(value in (0, 1) for value in given):
        return dataset
    read = ", ".join(f"{value!r} as {label}" for value, label in given.items())
    logger.warning("%s: the column label holds no truth values; it is read: %s.", NAME, read)
    features = Features({**dataset.features, "label": Value("bool")})
    return dataset.map(_with_label, features=features)


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "label": _label(row["label"])}


def _label(value: Any) -> bool | None:
    """A label's meaning; of another number the one that TRL gives it."""
    label = label_of(value)
    return bool(value) if label is None and isinstance(value, (int, float)) else label


def _repeats_prompt(row: dict[str, Any]) -> bool:
    """Whether the prompt is a text beside whole conversations, which begin with it (`ultrafeedback_binarized`)."""
    return isinstance(row["prompt"], str) and isinstance(row["chosen"], list)


def in_words(counts: Counter[str]) -> str:
    """The counts in words, the largest first."""
    return ", ".join(f"{count} {how}" for how, count in counts.most_common())


def shorter_prompts(prompt: Messages) -> Iterator[Messages]:
    """The prompt, then without its oldest turns, from one user turn to the next; the system's and the last stay."""
    yield prompt
    head = 0
    while head < len(prompt) and prompt[head]["role"] in ("system", "developer"):
        head += 1
    for start in range(head + 1, len(prompt)):
        if prompt[start]["role"] == "user":
            yield prompt[:head] + prompt[start:]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading elements two sequences have in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
