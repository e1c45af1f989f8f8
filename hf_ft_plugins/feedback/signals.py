"""What people did, as preferences between answers to one prompt: the rules, as a table, and their application.

Each signal says that an answer is better than another one, or that it is good or bad, and is wrong with a probability
epsilon. The table's are first guesses; `signal_noise.py` estimates them. Sources: the research on which this technique
rests finds explicit labels in about 30 % of chats (arXiv 2407.10944) and implicit ones weak (2507.23158), time looked
at and leaving weakest, which is why they are off unless asked for.

Votes on one thing are settled by voter first, then among voters. Somebody who says both is not counted; a label that
somebody gave outdoes what the same person did. Where voters disagree, the majority is kept, and the share of the others
becomes part of epsilon.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from json.encoder import encode_basestring as quoted
from typing import NamedTuple

from .events import BOTH_BAD, TIE
from .log_store import Act, Group


@dataclass(frozen=True)
class Rule:
    """One signal.

    Attributes:
        events: the type of event that it comes from.
        emits: "pair", "positive", "negative" or "label" (either).
        epsilon: how often it is wrong, before anything is known of this log.
        explicit: whether people said it, rather than did something that suggests it.
    """

    events: str
    emits: str
    epsilon: float
    explicit: bool = False
    opt_in: bool = False


RULES = {
    "edit": Rule("edit", "pair", 0.05),
    "choice": Rule("choice", "pair", 0.10, explicit=True),
    "both-bad": Rule("choice", "negative", 0.10, explicit=True),
    "thumbs": Rule("thumbs", "label", 0.10, explicit=True),
    "rating": Rule("rating", "label", 0.15, explicit=True),
    "regenerate-kept": Rule("regenerate", "pair", 0.25),
    "regenerate": Rule("regenerate", "negative", 0.35),
    "copy": Rule("copy", "positive", 0.25),
    "accept": Rule("accept", "positive", 0.25),
    "correction": Rule("correction", "negative", 0.35),
    "continue": Rule("continue", "positive", 0.42, opt_in=True),
    "dwell": Rule("dwell", "positive", 0.42, opt_in=True),
    "abandon": Rule("abandon", "negative", 0.42, opt_in=True),
}
EXPLICIT = frozenset(signal for signal, rule in RULES.items() if rule.explicit)
DEFAULT_SIGNALS = tuple(dict.fromkeys(rule.events for rule in RULES.values() if not rule.opt_in))
OPT_IN_SIGNALS = tuple(dict.fromkeys(rule.events for rule in RULES.values() if rule.opt_in))

GOOD, BAD, APART = 4.0, 2.0, 2.0
# Ratings of a user count as much as this many of the scale's middle, when the user's mean is taken.
MIDDLE, MIDDLE_RATINGS = 3.0, 5
# Share of its words that an edit keeps (Dice's coefficient); below, it is another answer, and says little of this one.
REWRITTEN = 0.25
# Faster than anybody reads: 300 words a minute.
READ_MS_PER_WORD = 200.0
# Of many answers to one prompt; more pairs say little more.
MOST_PAIRS = 32
MOST_COMPARED = 32
NO_PREFERENCE = "it prefers nothing"


class Vote(NamedTuple):
    """One voter's judgement; `sign` 1: the answer is good, or the first of the pair is better."""

    sign: int
    signal: str
    act: Act


class Preference(NamedTuple):
    """One row of a data set.

    Attributes:
        texts: JSON of the answers: of a pair the better and the worse one, of a label the one answer.
        label: of a label whether it is good; None of a pair.
        votes: those that say so; `against`: those that say the contrary; one of each voter.
        events: all events that it comes from, of either side.
        words: of a pair, how many each answer has.
    """

    texts: tuple[str, ...]
    label: bool | None
    votes: list[Vote]
    against: list[Vote]
    events: list[str]
    words: tuple[int, int] = (0, 0)


@dataclass
class Findings:
    """What became of events, over all prompts.

    Attributes:
        used: of each type of event, how many became part of a pair, a positive or a negative.
        dropped: of each type the others, by reason.
        conflicts: same user, label against behavior, among users, even.
        overlaps: of two signals (the second explicit) on one thing, how much they agreed and disagreed; in votes.
    """

    used: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    conflicts: Counter[str] = field(default_factory=Counter)
    overlaps: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def drop(self, kind: str, reason: str) -> None:
        self.dropped.setdefault(kind, Counter())[reason] += 1

    def use(self, kind: str, how: str) -> None:
        counts = self.used.get(kind)
        if counts is None:
            counts = self.used[kind] = Counter()
        counts[how] += 1


def preferences(group: Group, raters: Mapping[str, list[float]], findings: Findings) -> list[Preference]:
    """The pairs and labels that the acts on one prompt's answers amount to.

    Args:
        raters: number and sum of each user's ratings.
        findings: gets what is counted.
    """
    labels, pairs, why = votes_of(group, raters)
    # Of each event, by its place: what it became part of.
    became: dict[str, list[str]] = {}
    found: list[Preference] = []
    if len(group.acts) == 1 and len(labels) == 1 and not pairs:
        # Most prompts are of this kind, and nothing below is needed for them.
        ((answer, votes),) = labels.items()
        act, turn = group.acts[0], group.turns[answer]
        if not _says_something(turn):
            findings.drop(act.type, "about an empty answer")
            return []
        good_one = votes[0].sign > 0
        findings.use(act.type, "positive" if good_one else "negative")
        return [Preference((turn,), good_one, votes, [], [act.event])]
    good: list[tuple[int, list[Vote], list[Vote]]] = []
    bad: list[tuple[int, list[Vote], list[Vote]]] = []
    for answer, votes in labels.items():
        settled = _settled(votes, findings, why)
        if settled is None:
            continue
        sign, ayes, noes = settled
        if not _says_something(group.turns[answer]):
            why.update((vote.act.event, "about an empty answer") for vote in votes)
            continue
        explicit = any(vote.signal in EXPLICIT for vote in ayes)
        if explicit:
            (good if sign > 0 else bad).append((answer, ayes, noes))
        events = _events(ayes, noes, votes)
        for event in events:
            became.setdefault(event, []).append("positive" if sign > 0 else "negative")
        found.append(Preference((group.turns[answer],), sign > 0, ayes, noes, events))
    if good and bad:
        for pair, votes in _paired(good, bad).items():
            if pair in pairs:
                # Compared anyway: then the labels are another opinion on it.
                count_overlaps(pairs[pair], findings.overlaps, votes)
            else:
                pairs[pair] = votes
    room = MOST_PAIRS
    for (left, right), votes in pairs.items():
        settled = _settled(votes, findings, why)
        if settled is None:
            continue
        sign, ayes, noes = settled
        better, worse = (left, right) if sign > 0 else (right, left)
        texts = group.turns[better], group.turns[worse]
        events = _events(ayes, noes, votes)
        reason = None
        if texts[0] == texts[1]:
            reason = "between equal answers"
        elif not (_says_something(texts[0]) and _says_something(texts[1])):
            reason = "about an empty answer"
        elif not room:
            reason = f"more than {MOST_PAIRS} pairs of one prompt"
        if reason is not None:
            why.update(dict.fromkeys(events, reason))
            continue
        room -= 1
        for event in events:
            became.setdefault(event, []).append("pair")
        found.append(Preference(texts, None, ayes, noes, events, (_words(texts[0]), _words(texts[1]))))
    for act in group.acts:
        if act.event in became:
            for how in dict.fromkeys(became[act.event]):
                findings.use(act.type, how)
        else:
            findings.drop(act.type, why.get(act.event, NO_PREFERENCE))
    return found


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
            if (act.dwell_ms or 0) >= READ_MS_PER_WORD * _words(group.turns[answer]):
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


def _settled(votes: list[Vote], findings: Findings, why: dict[str, str]) -> tuple[int, list[Vote], list[Vote]] | None:
    """The side that most voters take, their votes, and those of the others; None where there is none."""
    if len(votes) == 1:
        return votes[0].sign, votes, []
    count_overlaps(votes, findings.overlaps)
    sign, voter = votes[0].sign, votes[0].act.voter
    if all(vote.sign == sign and vote.act.voter == voter for vote in votes):
        return sign, [min(votes, key=_epsilon)], []
    by_voter: dict[str, list[Vote]] = {}
    for vote in votes:
        by_voter.setdefault(vote.act.voter, []).append(vote)
    sides: dict[int, list[Vote]] = {1: [], -1: []}
    for own in by_voter.values():
        if len({vote.sign for vote in own}) == 2:
            said = [vote for vote in own if vote.signal in EXPLICIT]
            if len({vote.sign for vote in said}) != 1:
                findings.conflicts["users who contradict themselves"] += 1
                why.update((vote.act.event, "contradicted by the same user") for vote in own)
                continue
            findings.conflicts["labels against what the same user did"] += 1
            why.update(
                (vote.act.event, "contradicted by the same user's label") for vote in own if vote.sign != said[0].sign
            )
            own = said
        sides[own[0].sign].append(min(own, key=_epsilon))
    ayes, noes = (sides[1], sides[-1]) if len(sides[1]) >= len(sides[-1]) else (sides[-1], sides[1])
    if not ayes:
        return None
    if noes:
        findings.conflicts["users who disagree"] += 1
    if len(ayes) == len(noes):
        findings.conflicts["users who disagree evenly"] += 1
        why.update((vote.act.event, "users disagree evenly") for vote in votes)
        return None
    return ayes[0].sign, ayes, noes


def _epsilon(vote: Vote) -> float:
    return RULES[vote.signal].epsilon


def count_overlaps(
    votes: list[Vote], overlaps: dict[tuple[str, str], list[float]], others: list[Vote] | None = None
) -> None:
    """Add how often each signal agreed with each explicit one, among votes on one thing, or of `votes` with `others`.

    What one voter says twice is said once, and two labels of one voter are no overlap. Something judged by hundreds
    gives as many overlaps as it has votes, not the tens of thousands that their pairs are.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    compared = _once(votes)
    for one, other in combinations(compared, 2) if others is None else product(compared, _once(others, compared)):
        said = one.signal in EXPLICIT, other.signal in EXPLICIT
        if not any(said) or (all(said) and one.act.voter == other.act.voter):
            continue
        judged, judge = (one, other) if said[1] and not (said[0] and one.signal > other.signal) else (other, one)
        counts.setdefault((judged.signal, judge.signal), [0, 0])[one.sign != other.sign] += 1
    for signals, (agreed, differed) in counts.items():
        scale = min(1.0, len(votes) / (agreed + differed))
        entry = overlaps.setdefault(signals, [0.0, 0.0])
        entry[0] += agreed * scale
        entry[1] += differed * scale


def _once(votes: list[Vote], known: list[Vote] | None = None) -> list[Vote]:
    """The first vote of each voter by each signal to each side, without those of `known`."""
    keyed = {(vote.act.voter, vote.signal, vote.sign): vote for vote in reversed(votes)}
    for vote in known or ():
        keyed.pop((vote.act.voter, vote.signal, vote.sign), None)
    return list(keyed.values())[::-1][:MOST_COMPARED]


def _paired(
    good: list[tuple[int, list[Vote], list[Vote]]], bad: list[tuple[int, list[Vote], list[Vote]]]
) -> dict[tuple[int, int], list[Vote]]:
    """Answers that people called good, each with those that they called bad."""
    made = {}
    for better, *votes_of_better in good[:MOST_PAIRS]:
        for worse, *votes_of_worse in bad[:MOST_PAIRS]:
            pair, sign = ((better, worse), 1) if better < worse else ((worse, better), -1)
            votes: dict[str, Vote] = {}
            for sides in (votes_of_better, votes_of_worse):
                for direction, side in zip((sign, -sign), sides, strict=True):
                    for vote in side:
                        if vote.signal in EXPLICIT:
                            votes.setdefault(vote.act.voter + str(direction), Vote(direction, vote.signal, vote.act))
            made[pair] = list(votes.values())
    return made


def _events(ayes: list[Vote], noes: list[Vote], votes: list[Vote]) -> list[str]:
    if len(votes) == 1:
        return [votes[0].act.event]
    voters = {vote.act.voter: vote.sign for side in (ayes, noes) for vote in side}
    return list(dict.fromkeys(vote.act.event for vote in votes if voters.get(vote.act.voter) == vote.sign))


def _says_something(turn: str) -> bool:
    return not turn.endswith('"content": ""}')


def _words(turn: str) -> int:
    """About: blanks and line ends, without the three blanks of the JSON around."""
    return turn.count(" ") + turn.count("\\n") - 2
