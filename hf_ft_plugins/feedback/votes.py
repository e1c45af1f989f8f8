"""From acts to votes: what each person says about an answer, or about two of them, by the rules of `signals.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from typing import NamedTuple

from .events import BOTH_BAD, TIE
from .prompt_group import Act, Group
from .signals import RULES

# Ratings from and to which an answer is good or bad, and how far apart two are that prefer one answer.
GOOD, BAD, APART = 4.0, 2.0, 2.0
# Ratings of a user count as much as this many of the scale's middle, when the user's mean is taken.
MIDDLE, MIDDLE_RATINGS = 3.0, 5
# Share of its words that an edit keeps (Dice's coefficient); below, it is another answer, and says little of this one.
REWRITTEN = 0.25
# Faster than anybody reads: 300 words a minute.
READ_MS_PER_WORD = 200.0


class Vote(NamedTuple):
    """One voter's judgement; `sign` 1: the answer is good, or the first of the pair is better."""

    sign: int
    signal: str
    act: Act


def votes_of(
    group: Group, raters: Mapping[str, list[float]]
) -> tuple[dict[int, list[Vote]], dict[tuple[int, int], list[Vote]], dict[str, str]]:
    """The table's rules, act by act: votes on answers, votes on pairs of answers, and why others are no votes.

    An edit's text becomes an answer of the group, with a number below 0. A pair's numbers ascend.
    """
    labels: dict[int, list[Vote]] = {}
    pairs: dict[tuple[int, int], list[Vote]] = {}
    why: dict[str, str] = {}
    ratings: dict[str, list[tuple[Act, int]]] = {}
    edits: dict[str, int] = {}

    def prefer(better: int, worse: int, signal: str, act: Act) -> None:
        pair, sign = ((better, worse), 1) if better < worse else ((worse, better), -1)
        pairs.setdefault(pair, []).append(Vote(sign, signal, act))

    for act in group.acts:
        kind, answer = act.type, act.answer
        if answer is None:
            if act.value == TIE:
                why[act.event] = "a tie"
            elif act.value == BOTH_BAD:
                for one in act.candidates:
                    labels.setdefault(one, []).append(Vote(-1, "both-bad", act))
        elif kind == "thumbs":
            labels.setdefault(answer, []).append(Vote(int(act.value), kind, act))
        elif kind == "choice":
            for other in act.candidates:
                if other != answer:
                    prefer(answer, other, kind, act)
                elif len(set(act.candidates)) == 1:
                    why[act.event] = "between equal answers"
        elif kind == "rating":
            value = normalised(act.value, raters.get(act.user)) if act.user is not None else act.value
            if BAD < value < GOOD:
                why[act.event] = "a rating in the middle"
            else:
                labels.setdefault(answer, []).append(Vote(1 if value >= GOOD else -1, kind, act))
            for earlier, rated in ratings.setdefault(act.voter, []):
                if rated != answer and abs(earlier.value - act.value) >= APART:
                    better, worse = (answer, rated) if act.value > earlier.value else (rated, answer)
                    prefer(better, worse, kind, act)
                    prefer(better, worse, kind, earlier)
            ratings[act.voter].append((act, answer))
        elif kind == "edit":
            reason = unfit_edit(json.loads(group.turns[answer])["content"], act.text_after or "")
            if reason is not None:
                why[act.event] = reason
                continue
            turn = f'{{"role": "assistant", "content": {quoted(act.text_after or "")}}}'
            # Equal edits are one answer.
            edited = edits.setdefault(turn, -1 - len(edits))
            group.turns[edited] = turn
            prefer(edited, answer, kind, act)
        elif kind == "regenerate":
            if act.other is None or not _kept(group, act.other, act.user):
                labels.setdefault(answer, []).append(Vote(-1, kind, act))
            elif _kept(group, answer, act.user):
                why[act.event] = "the user went on with both answers"
            else:
                prefer(act.other, answer, "regenerate-kept", act)
        elif kind == "dwell":
            if (act.dwell_ms or 0) >= READ_MS_PER_WORD * word_count(group.turns[answer]):
                labels.setdefault(answer, []).append(Vote(1, kind, act))
            else:
                why[act.event] = "looked at for less time than reading takes"
        else:
            labels.setdefault(answer, []).append(Vote(1 if RULES[kind].emits == "positive" else -1, kind, act))
    return labels, pairs, why


def normalised(rating: float, rater: list[float] | None) -> float:
    """A rating as it would be from somebody whose ratings are on average in the middle of 1 to 5."""
    if rater is None:
        return rating
    count, total = rater
    return rating - (total - count * MIDDLE) / (count + MIDDLE_RATINGS)


def unfit_edit(before: str, after: str) -> str | None:
    """Why an edit says nothing: nothing changed but blanks and capitals, or nearly everything did; else None."""
    old, new = before.casefold().split(), after.casefold().split()
    if old == new:
        return "an edit that changes nothing"
    if not new:
        return "an edit that leaves nothing"
    words, others = set(old), set(new)
    if 2 * len(words & others) < REWRITTEN * (len(words) + len(others)):
        return "an edit that rewrites everything"
    return None


def _kept(group: Group, answer: int, user: str | None) -> bool:
    """Whether somebody went on from an answer, or took it."""
    if group.continued[answer]:
        return True
    return any(
        act.answer == answer and act.user == user and act.type in ("copy", "accept", "continue") for act in group.acts
    )


def word_count(turn: str) -> int:
    """About: blanks and line ends, without the three blanks of the JSON around."""
    return turn.count(" ") + turn.count("\\n") - 2
