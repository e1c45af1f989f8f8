"""Which columns of a row of preferences hold what, as people's tools write them: tables, and their readers.

Columns combine freely: axolotl's strategies alone cross four names of the question with two of each answer. So there is
one table of what a column may be called, in the order in which names are tried, and `adapters_rows.py` makes rows of
what it finds. Two more tables hold layouts that rank or compare answers in columns of their own.

Read from the documentation or the readers of TRL (dataset_formats), axolotl (prompt_strategies/dpo, kto, orpo,
bradley_terry), LLaMA-Factory (data/README, converter.py), ms-swift (Custom-dataset), OpenRLHF (reward_dataset.py),
NeMo RL and torchtune.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .events import UnfitError

Record = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt"),
    # A text, or the turns up to the answer.
    "question": ("prompt", "question", "query", "instruction", "problem"),
    # What a question is about: a line below it, or the question itself.
    "input": ("input",),
    # Exchanges before the question.
    "history": ("history",),
    # The turns up to the answer, or with it.
    "turns": ("messages", "conversations", "conversation", "context"),
    "chosen": ("chosen", "chosen_response", "chosen_messages", "chosen_conversations", "chosen_answer"),
    "rejected": ("rejected", "rejected_response", "rejected_messages", "rejected_conversations", "rejected_answer"),
    "answer": ("completion", "response", "output", "answer"),
    "label": ("kto_tag", "label"),
    "tools": ("tools", "functions"),
    "media": (
        *("image", "images", "video", "videos", "audio", "audios"),
        *("rejected_image", "rejected_images", "rejected_videos", "rejected_audios"),
    ),
}
GOOD = (True, 1, "true", "1", "good", "desirable", "chosen", "up", "yes", "positive", "like")
BAD = (
    False,
    0,
    -1,
    "false",
    "0",
    "-1",
    "bad",
    "undesirable",
    "rejected",
    "down",
    "no",
    "negative",
    "downvote",
    "dislike",
)


def column(record: Record, role: str) -> str | None:
    """The first column of a role that a record has a value in; else the first that it has; else None."""
    names = [name for name in COLUMNS[role] if name in record]
    return next((name for name in names if record[name] not in (None, "", [])), names[0] if names else None)


def value(record: Record, role: str) -> Any:
    """What a record holds in a role; None where it has no such column."""
    name = column(record, role)
    return None if name is None else record[name]


def label_of(given: Any) -> bool | None:
    """A label as a bool; None where it says neither."""
    said = given.strip().lower() if isinstance(given, str) else given
    if isinstance(said, (list, dict)):
        return None
    return True if said in GOOD else False if said in BAD else None


def is_pair(record: Record) -> bool:
    """Whether a record has a rejected answer, and a better one beside it."""
    better = any(column(record, role) is not None for role in ("chosen", "turns", "answer"))
    return column(record, "rejected") is not None and better


def is_label(record: Record) -> bool:
    """Whether a record has an answer, and whether that is good."""
    if column(record, "label") is None:
        return False
    answered = column(record, "answer") is not None and (
        "completion" in record or any(column(record, role) is not None for role in ("question", "turns", "input"))
    )
    tagged = "kto_tag" in record or label_of(record["label"]) is not None
    return answered or (isinstance(value(record, "turns"), list) and tagged)


@dataclass(frozen=True)
class Ranked:
    """Answers in one list, each with how good it is; or two lists, of answers and of how good each is.

    Attributes:
        answers: the column.
        text: key of an item's answer; None where items are the answers.
        order: key of an item's rank or score; without `text` the column of all of them; None where the best is first.
        best: whether the highest or the lowest of `order` is best.
        beside: a column that a record has, too.
    """

    answers: str
    text: str | None = None
    order: str | None = None
    best: str = "highest"
    beside: str | None = None

    def matches(self, record: Record) -> bool:
        items = record.get(self.answers)
        if not isinstance(items, list) or len(items) < 2 or (self.beside is not None and self.beside not in record):
            return False
        if self.text is not None:
            return all(isinstance(item, dict) and {self.text, self.order} <= item.keys() for item in items)
        if not all(isinstance(item, str) for item in items):
            return False
        return self.order is None or (
            isinstance(record.get(self.order), list) and len(record[self.order]) == len(items)
        )

    def ranked(self, record: Record) -> list[tuple[float, Any]]:
        """Each answer with how good it is, the higher the better; those without a number are left out."""
        items = record[self.answers]
        if self.text is not None:
            found = [(item[self.order], item[self.text]) for item in items]
        elif self.order is not None:
            found = list(zip(record[self.order], items, strict=True))
        else:
            found = [(-place, item) for place, item in enumerate(items)]
        sign = 1 if self.best == "highest" else -1
        known = [(score, answer) for score, answer in found if isinstance(score, (int, float))]
        return [(sign * score, answer) for score, answer in known]


RANKED = (
    Ranked("answers", "answer", "rank", best="lowest"),
    Ranked("completions", "completion", "rank", best="lowest"),
    Ranked("completions", "response", "overall_score"),
    Ranked("completions", "response", "fine-grained_score"),
    Ranked("responses", "response", "score"),
    Ranked("responses", "text", "score"),
    Ranked("generations", order="ratings"),
    Ranked("generations", order="rating"),
    Ranked("responses", order="scores"),
    # LLaMA-Factory's first form.
    Ranked("output", beside="instruction"),
)


@dataclass(frozen=True)
class Compared:
    """Two answers in columns of their own, and which is better.

    Attributes:
        answers: their columns.
        verdict: the columns that tell: none, where the first is better; one of `first` or of `second` (or a tie); or
            two numbers, of which the higher one's answer is better.
        ties: what says that neither is better.
        question: where the question stands, if not where it usually does.
    """

    answers: tuple[str, str]
    verdict: tuple[str, ...] = ()
    first: tuple[Any, ...] = ()
    second: tuple[Any, ...] = ()
    question: str | None = None
    ties: tuple[Any, ...] = (0, 0.5, "tie", "tie (bothbad)")

    def matches(self, record: Record) -> bool:
        return {*self.answers, *self.verdict} <= record.keys()

    def winner(self, record: Record) -> int | None:
        """0 or 1; None where neither is better.

        Raises:
            UnfitError: the verdict is none of those that are known.
        """
        said = [record[name] for name in self.verdict]
        if not said:
            return 0
        if len(said) == 2 and all(isinstance(one, (int, float)) for one in said):
            return None if said[0] == said[1] else int(said[1] > said[0])
        for found, known in ((0, self.first), (1, self.second), (None, self.ties)):
            if len(said) == 1 and said[0] in known:
                return found
        raise UnfitError("rows whose verdict is unknown")


COMPARED = (
    Compared(("response_0", "response_1"), ("better_response_id",), (0,), (1,)),
    Compared(("response_a", "response_b"), ("winner_model_a", "winner_model_b")),
    Compared(("response_a", "response_b"), ("winner",), ("model_a", "a", "A"), ("model_b", "b", "B")),
    Compared(("answer_0", "answer_1"), ("score_0", "score_1")),
    Compared(("human_ref_A", "human_ref_B"), ("labels",), (1,), (0,), question="history"),
    Compared(("response1", "response2"), ("overall_preference",), (-3, -2, -1), (1, 2, 3)),
    Compared(("response1", "response2"), ("preference_strength",), (-3, -2, -1), (1, 2, 3)),
    Compared(("response_j", "response_k")),
)


def ranking(record: Record) -> Ranked | Compared | None:
    """The layout of a record that ranks or compares answers in columns of their own."""
    return next((layout for layout in (*RANKED, *COMPARED) if layout.matches(record)), None)
