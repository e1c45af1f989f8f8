"""The preferences that the acts on one prompt's answers amount to: pairs of answers, and good and bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .agreement import Findings, count_overlaps, settled
from .prompt_group import Group
from .signals import EXPLICIT
from .votes import Vote, votes_of, word_count

# Of many answers to one prompt; more pairs say little more.
MOST_PAIRS = 32
NO_PREFERENCE = "it prefers nothing"
# An answer, the votes for what most say of it, and those against.
Judged = tuple[int, list[Vote], list[Vote]]


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


def preferences_of(group: Group, raters: Mapping[str, list[float]], findings: Findings) -> list[Preference]:
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
    good: list[Judged] = []
    bad: list[Judged] = []
    for answer, votes in labels.items():
        outcome = settled(votes, findings, why)
        if outcome is None:
            continue
        sign, ayes, noes = outcome
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
        outcome = settled(votes, findings, why)
        if outcome is None:
            continue
        sign, ayes, noes = outcome
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
        found.append(Preference(texts, None, ayes, noes, events, (word_count(texts[0]), word_count(texts[1]))))
    for act in group.acts:
        if act.event in became:
            for how in dict.fromkeys(became[act.event]):
                findings.use(act.type, how)
        else:
            findings.drop(act.type, why.get(act.event, NO_PREFERENCE))
    return found


def _paired(good: list[Judged], bad: list[Judged]) -> dict[tuple[int, int], list[Vote]]:
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
