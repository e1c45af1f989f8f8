"""Where votes meet: which side holds, and how often signals agree with each other.

Votes on one thing are settled by voter first, then among voters. Somebody who says both is not counted; a label that
somebody gave outdoes what the same person did. Where voters disagree, the majority is kept, and the share of the others
becomes part of epsilon.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations, product

from .signals import EXPLICIT, RULES
from .votes import Vote

# Of the votes on one thing so many are compared with each other.
MOST_COMPARED = 32


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


def settled(votes: list[Vote], findings: Findings, why: dict[str, str]) -> tuple[int, list[Vote], list[Vote]] | None:
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
            labels = [vote for vote in own if vote.signal in EXPLICIT]
            if len({vote.sign for vote in labels}) != 1:
                findings.conflicts["users who contradict themselves"] += 1
                why.update((vote.act.event, "contradicted by the same user") for vote in own)
                continue
            findings.conflicts["labels against what the same user did"] += 1
            why.update(
                (vote.act.event, "contradicted by the same user's label") for vote in own if vote.sign != labels[0].sign
            )
            own = labels
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


def count_overlaps(
    votes: list[Vote], overlaps: dict[tuple[str, str], list[float]], others: list[Vote] | None = None
) -> None:
    """Add how often each signal agreed with each explicit one, among votes on one thing, or of `votes` with `others`.

    What one voter says twice is said once, and two labels of one voter are no overlap. Something judged by hundreds
    gives as many overlaps as it has votes, not the tens of thousands that their pairs are.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    compared = _once_each(votes)
    for one, other in combinations(compared, 2) if others is None else product(compared, _once_each(others, compared)):
        explicit = one.signal in EXPLICIT, other.signal in EXPLICIT
        if not any(explicit) or (all(explicit) and one.act.voter == other.act.voter):
            continue
        in_order = explicit[1] and not (explicit[0] and one.signal > other.signal)
        judged, judge = (one, other) if in_order else (other, one)
        counts.setdefault((judged.signal, judge.signal), [0, 0])[one.sign != other.sign] += 1
    for signals, (agreed, differed) in counts.items():
        scale = min(1.0, len(votes) / (agreed + differed))
        entry = overlaps.setdefault(signals, [0.0, 0.0])
        entry[0] += agreed * scale
        entry[1] += differed * scale


def _once_each(votes: list[Vote], known: list[Vote] | None = None) -> list[Vote]:
    """The first vote of each voter by each signal to each side, without those of `known`."""
    keyed = {(vote.act.voter, vote.signal, vote.sign): vote for vote in reversed(votes)}
    for vote in known or ():
        keyed.pop((vote.act.voter, vote.signal, vote.sign), None)
    return list(keyed.values())[::-1][:MOST_COMPARED]


def _epsilon(vote: Vote) -> float:
    return RULES[vote.signal].epsilon
