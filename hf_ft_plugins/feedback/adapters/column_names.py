"""Which columns of a row of preferences hold what, as people's tools write them: tables, and their readers.

Columns combine freely: axolotl's strategies alone cross four names of the question with two of each answer. So there is
one table of what a column may be called, in the order in which names are tried, and `preference_rows.py` makes rows of
what it finds. Two more tables hold layouts that rank or compare answers in columns of their own.

Read from the documentation or the readers of TRL (dataset_formats), axolotl (prompt_strategies/dpo, kto, orpo,
bradley_terry), LLaMA-Factory (data/README, converter.py), ms-swift (Custom-dataset), OpenRLHF (reward_dataset.py),
NeMo RL and torchtune.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..conversations import listed
from ..events import BOTH_BAD, TIE, UnfitError

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
    "chosen": ("chosen", "chosen_response", "chosen_messages", "chosen_conversations", "chosen_answer", "preferred"),
    "rejected": (
        *("rejected", "rejected_response", "rejected_messages", "rejected_conversations", "rejected_answer"),
        *("rejected_responses", "rejected_answers", "dispreferred", "non_preferred"),
    ),
    "answer": ("completion", "response", "output", "answer"),
    "label": ("kto_tag", "label", "feedback", "thumbs", "reaction", "vote"),
    "tools": ("tools", "functions"),
    "media": (
        *("image", "images", "video", "videos", "audio", "audios"),
        *("rejected_image", "rejected_images", "rejected_videos", "rejected_audios"),
    ),
}
GOOD = (
    *(True, 1, "true", "good", "desirable", "chosen", "accepted", "up", "thumbs_up", "thumbsup", "+1", "upvote"),
    *("yes", "positive", "like", "liked", "correct", "\N{THUMBS UP SIGN}"),
)
BAD = (
    *(False, 0, -1, "false", "bad", "undesirable", "rejected", "down", "thumbs_down", "thumbsdown", "downvote"),
    *("no", "negative", "dislike", "disliked", "incorrect", "\N{THUMBS DOWN SIGN}"),
)
SKIN = re.compile(
    "[\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}-\N{EMOJI MODIFIER FITZPATRICK TYPE-6}]|\N{VARIATION SELECTOR-16}"
)
# What says that neither answer is better.
NEITHER: dict[Any, str] = {
    **dict.fromkeys((0.5, "tie", "both_good", "bothgood", "tie_(bothgood)", "tie_(both_good)"), TIE),
    **dict.fromkeys(("tie_(bothbad)", "tie_(both_bad)", "bothbad", "both_bad"), BOTH_BAD),
}


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
    if isinstance(given, (list, dict)):
        return None
    word = spelled(given)
    number = number_of(word)
    label = word if number is None else number
    return True if label in GOOD else False if label in BAD else None


def spelled(given: Any) -> Any:
    """A word as the tables have it: `Thumbs-Up` as `thumbs_up`, `:-1:` as `-1`, a thumb without its skin's colour."""
    if not isinstance(given, str):
        return given
    return re.sub("(?<=[a-z])[- ]", "_", SKIN.sub("", given).strip().strip(":").lower())


def number_of(given: Any) -> float | None:
    """A number, which tables of text hold as text; None of anything else."""
    try:
        number = float(given) if isinstance(given, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def is_pair(record: Record) -> bool:
    """Whether a record has a rejected answer, and a better one beside it."""
    better = any(column(record, role) is not None for role in ("chosen", "turns", "answer"))
    return column(record, "rejected") is not None and better


def is_label(record: Record) -> bool:
    """Whether a record has an answer, and whether that is good."""
    name = column(record, "label")
    if name is None:
        return False
    tagged = label_of(record[name]) is not None
    if not tagged and name not in ("kto_tag", "label"):
        # A comment, perhaps.
        return False
    answered = column(record, "answer") is not None and (
        "completion" in record or any(column(record, role) is not None for role in ("question", "turns", "input"))
    )
    return answered or (isinstance(listed(value(record, "turns")), list) and (tagged or name == "kto_tag"))


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
        known = [(number_of(score), answer) for score, answer in found]
        return [(sign * score, answer) for score, answer in known if score is not None]


ANSWERS = ("answers", "completions", "responses", "generations", "generation", "candidates", "outputs")
TEXTS = ("answer", "completion", "response", "text", "output", "content")
SCORES = ("overall_score", "fine-grained_score", "score", "rating", "reward", "pm_score")
RANKED: tuple[Ranked, ...] = (
    *(Ranked(*names, "rank", best="lowest") for names in product(ANSWERS, TEXTS)),
    *(Ranked(*names) for names in product(ANSWERS, TEXTS, SCORES)),
    *(Ranked(name, order=order, best="lowest") for name, order in product(ANSWERS, ("ranks", "rank"))),
    *(Ranked(name, order=order) for name, order in product(ANSWERS, ("ratings", "rating", "scores", "rewards"))),
    # LLaMA-Factory's first form.
    Ranked("output", beside="instruction"),
)


@dataclass(frozen=True)
class Compared:
    """Two answers in columns of their own, and which is better.

    Attributes:
        answers: their columns.
        verdict: the columns that tell: none, where the first is better; one of `first`, of `second` or of `NEITHER`, or
            the name of an answer's column; or two numbers, of which the higher one's answer is better.
        ties: what says that neither is better, beside `NEITHER`.
        question: where the question stands, if not where it usually does.
    """

    answers: tuple[str, str]
    verdict: tuple[str, ...] = ()
    first: tuple[Any, ...] = ()
    second: tuple[Any, ...] = ()
    ties: tuple[Any, ...] = ()
    question: str | None = None

    def matches(self, record: Record) -> bool:
        return {*self.answers, *self.verdict} <= record.keys()

    def winner(self, record: Record) -> int | str:
        """0 or 1; "tie" or "both_bad" where neither is better.

        Raises:
            UnfitError: the verdict is none of those that are known.
        """
        verdicts = [record[name] for name in self.verdict]
        if not verdicts:
            return 0
        numbers = [number_of(one) for one in verdicts]
        if len(verdicts) == 2:
            first, second = numbers
            if first is None or second is None:
                raise UnfitError("rows whose verdict is unknown")
            return TIE if first == second else int(second > first)
        verdict = numbers[0] if numbers[0] is not None else spelled(verdicts[0])
        if isinstance(verdict, (list, dict)):
            raise UnfitError("rows whose verdict is unknown")
        for found, known in ((0, self.first), (1, self.second), (TIE, self.ties)):
            if verdict in {spelled(one) for one in known}:
                return found
        names = [name.lower() for name in self.answers]
        if verdict in names:
            return names.index(str(verdict))
        if verdict not in NEITHER:
            raise UnfitError("rows whose verdict is unknown")
        return NEITHER[verdict]


# Of HelpSteer: how much better the one or the other is.
SCALE = ((-3, -2, -1), (1, 2, 3), (0,))
COMPARED = (
    Compared(("response_0", "response_1"), ("better_response_id",), (0,), (1,)),
    Compared(("response_a", "response_b"), ("winner_model_a", "winner_model_b")),
    Compared(("answer_0", "answer_1"), ("score_0", "score_1")),
    Compared(("human_ref_A", "human_ref_B"), ("labels",), (1,), (0,), question="history"),
    *(
        Compared(answers, (verdict,), *SCALE)
        for answers in (("response1", "response2"), ("response_1", "response_2"))
        for verdict in ("overall_preference", "preference_strength")
    ),
    Compared(("answer1", "answer2"), ("selected",), ("left",), ("right",)),
    *(
        Compared((f"{name}{one}", f"{name}{other}"), (verdict,), (one, f"model_{one}"), (other, f"model_{other}"))
        for name in ("response_", "answer_", "completion_", "output_")
        for one, other in (("a", "b"), ("A", "B"))
        for verdict in ("winner", "preference", "preferred", "choice", "better")
    ),
    *(
        Compared((f"{name}{one}", f"{name}{one + 1}"), (verdict,), (one,), (one + 1,))
        for name in ("response_", "answer_", "completion_", "output_", "response", "answer", "completion", "output")
        for one in (0, 1)
        for verdict in ("winner", "preference", "preferred", "choice", "better")
    ),
    Compared(("response_j", "response_k")),
)


def unfolded(record: Record) -> list[Record]:
    """Rows of what a record nests: Label Studio's task, a row for each annotation; OpenAI's comparison of summaries.

    Any other record is its only row.
    """
    data, info = record.get("data"), record.get("info")
    if isinstance(data, dict) and isinstance(record.get("annotations"), list):
        return [row for one in record["annotations"] if not one.get("was_cancelled") for row in _annotated(data, one)]
    summaries = record.get("summaries")
    if isinstance(info, dict) and isinstance(summaries, list) and len(summaries) == 2 and "choice" in record:
        # As TRL's examples write it.
        about = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("", "article")]
        lines = [f"{name}{info[key]}" for name, key in about if info.get(key)]
        answers = {f"response_{number}": one["text"] for number, one in enumerate(summaries)}
        return [{"prompt": "\n\n".join([*lines, "TL;DR:"]), **answers, "better_response_id": record["choice"]}]
    return [record]


def _annotated(data: Record, annotation: Record) -> list[Record]:
    rows = []
    for result in annotation.get("result") or ():
        if result.get("type") == "pairwise":
            # By the names of the texts' tags, where the columns have them.
            names = str(result.get("to_name")).split(",")
            names = names if len(names) == 2 and set(names) <= data.keys() else ["answer1", "answer2"]
            asked = {key: text for key, text in data.items() if key not in names}
            answers = {"answer1": data[names[0]], "answer2": data[names[1]]}
            rows.append({**asked, **answers, "selected": result["value"]["selected"]})
    return rows


def ranking(record: Record) -> Ranked | Compared | None:
    """The layout of a record that ranks or compares answers in columns of their own."""
    layouts: tuple[Ranked | Compared, ...] = (*RANKED, *COMPARED)
    return next((layout for layout in layouts if layout.matches(record)), None)
