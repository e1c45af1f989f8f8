"""Rows on their way out: on disk until all are known, then settled, weighed and written.

Equal rows are one, with the votes and events of all; of similar ones the first is kept. What a row is worth depends on
the others: on how often its user speaks, on how often its signal is wrong, on the mean of all weights.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..progress import progress
from . import signal_noise as noise
from .log_files import NAME
from .log_store import APART
from .near_duplicates import near_duplicates, signatures
from .prompt_preferences import Preference
from .signals import RULES
from .votes import Vote

Kind = Literal["pairs", "labels"]
KINDS: tuple[Kind, Kind] = ("pairs", "labels")
# Of the JSON of a turn before its words.
HEAD = len('{"role": "assistant", "content": "')
SIGNED_AT_ONCE = 1_000
BUFFER = 1 << 20


@dataclass(frozen=True)
class Written:
    """Rows as they were written, to be reported.

    Attributes:
        weight, epsilon: float [rows]; `prior` the epsilon that the table alone would have given.
        signal: the most reliable of each row's; label: of labels, whether good.
        words: int [rows, 2], of the chosen and the rejected answer; of labels 0.
        dropped: rows that were not written, by reason.
        users: how many rows each has.
    """

    weight: np.ndarray
    epsilon: np.ndarray
    prior: np.ndarray
    signal: list[str]
    label: np.ndarray
    words: np.ndarray
    evaluation: np.ndarray
    dropped: Counter[str]
    users: np.ndarray


@dataclass
class Waiting:
    """Rows of one kind, on disk, until all are known."""

    file: Path
    kind: Kind
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lines = self.file.open("wb", buffering=BUFFER)
        self._by_text: dict[int, int] = {}
        # Votes for and against by signal; a few thousand different ones stand for millions of rows.
        self._ballots: dict[tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]], int] = {}
        self._singles: dict[tuple[str, int], int] = {}
        self._ballot, self._alive, self._eval = array("i"), array("b"), array("b")
        self._words, self._ts, self._propensity = array("i"), array("d"), array("d")
        # The first voter's user; rows of several have them in `_more`.
        self._user = array("i")
        self._users: dict[str, int] = {}
        self._more: dict[int, set[int]] = {}
        self._events: dict[int, list[str]] = {}
        self._listed: list[Any] = []
        self._unsigned: list[tuple[str, ...]] = []
        self._signatures: list[np.ndarray] = []

    def add(self, row: Preference, context: str, last: str, tools: str | None, of_eval: bool) -> None:
        """One row; of one that was there before the votes and events only."""
        signs = (1, -1) if row.label is None else ((1, -1) if row.label else (-1, 1))
        # Which of the two is preferred is the votes' affair, not the text's.
        first, second = row.texts if len(row.texts) == 2 else (row.texts[0], "")
        if second > first:
            first, second, signs = second, first, (-signs[0], -signs[1])
        key = hash((context, first, second, tools))
        before = self._by_text.get(key)
        if before is not None:
            if self._eval[before] == of_eval:
                self._merge(before, row, signs[0])
                return
            self.dropped["for evaluation, equal to a row for training"] += 1
            if of_eval:
                return
            self._alive[before] = 0
        number = len(self._ballot)
        self._by_text[key] = number
        self._ballot.append(self._ballot_of(row.votes, row.against, signs[0]))
        self._alive.append(1)
        self._eval.append(of_eval)
        self._words.extend(row.words if row.texts[0] == first else row.words[::-1])
        self._judged(row, number)
        self._unsigned.append((last, *[text[HEAD:-2] for text in row.texts]))
        if len(self._unsigned) == SIGNED_AT_ONCE:
            self._sign()
        events = f"[{', '.join(map(quoted, row.events))}]"
        line = APART.join((context, first, second, tools or "", events, _users(row)))
        self._lines.write(f"{line}\n".encode())

    def _judged(self, row: Preference, number: int) -> None:
        if len(row.votes) == 1:
            act = row.votes[0].act
            self._ts.append(act.ts)
            self._propensity.append(act.propensity or 1.0)
            self._user.append(-1 if act.user is None else self._numbered(act.user))
            return
        acts = [vote.act for vote in row.votes]
        self._ts.append(max([act.ts for act in acts]))
        known = [1 / act.propensity for act in acts if act.propensity is not None]
        # The weight will be its inverse.
        self._propensity.append(len(known) / sum(known) if known else 1.0)
        users = {self._numbered(act.user) for act in acts if act.user is not None}
        self._user.append(min(users, default=-1))
        if len(users) > 1:
            self._more[number] = users

    def _numbered(self, user: str) -> int:
        return self._users.setdefault(user, len(self._users))

    def _merge(self, before: int, row: Preference, sign: int) -> None:
        self.dropped["equal to another row, votes and events kept there"] += 1
        self._events.setdefault(before, []).extend(row.events)
        self._ts[before] = max(self._ts[before], *(vote.act.ts for vote in row.votes))
        sides = (row.votes, row.against) if sign > 0 else (row.against, row.votes)
        ayes, noes = (Counter(dict(side)) for side in self._ballot_at(self._ballot[before]))
        voters = (*row.votes, *row.against)
        users = {self._numbered(vote.act.user) for vote in voters if vote.act.user is not None}
        known = self._more.get(before, {self._user[before]} - {-1})
        if users and users <= known and not row.against and bool(sides[0]) == (ayes.total() > noes.total()):
            # Somebody saying the same again is no second opinion.
            return
        new = [Counter(vote.signal for vote in side) for side in sides]
        self._ballot[before] = self._intern(ayes + new[0], noes + new[1])
        if users - known:
            self._more[before] = known | users
            self._user[before] = min(known | users)

    def _ballot_of(self, votes: list[Vote], against: list[Vote], sign: int) -> int:
        """The number of a ballot; `sign` 1: the votes are for the first of the two texts."""
        if len(votes) == 1 and not against:
            # Nearly all are of this kind.
            single = self._singles.get((votes[0].signal, sign))
            if single is not None:
                return single
        sides = [Counter(vote.signal for vote in side) for side in (votes, against)][::sign]
        number = self._intern(*sides)
        if len(votes) == 1 and not against:
            self._singles[votes[0].signal, sign] = number
        return number

    def _intern(self, ayes: Counter[str], noes: Counter[str]) -> int:
        return self._ballots.setdefault((tuple(sorted(ayes.items())), tuple(sorted(noes.items()))), len(self._ballots))

    def _ballot_at(self, number: int) -> Any:
        if len(self._listed) <= number:
            self._listed = list(self._ballots)
        return self._listed[number]

    def _sign(self) -> None:
        if self._unsigned:
            self._signatures.append(signatures(self._unsigned))
            self._unsigned.clear()

    def close(self) -> None:
        self._sign()
        self._lines.close()
        self._by_text.clear()

    def finish(
        self,
        target: Path,
        epsilons: dict[str, float],
        latest: float,
        *,
        user_cap: bool,
        half_life: float | None,
        ips: bool,
    ) -> Written:
        """Settle, weigh and write all rows."""
        ballots = list(self._ballots)
        sums = np.array([[sum(count for _, count in side) for side in one] for one in ballots], int).reshape(-1, 2)
        ballot = np.frombuffer(self._ballot, np.int32)
        evaluation = np.frombuffer(self._eval, np.int8).astype(bool)
        alive = np.frombuffer(self._alive, np.int8).astype(bool)
        for_, against = sums[ballot].T
        even = alive & (for_ == against)
        self.dropped["users disagree evenly"] += int(even.sum())
        alive &= ~even
        flipped = against > for_
        alive &= ~self._near(alive, evaluation, flipped)
        settled = [_settled(one, epsilons) for one in ballots]
        priors = np.array([_settled(one, noise.prior_epsilons())[1] for one in ballots], np.float64)
        signal = [one[0] for one in settled]
        # An empty log has no ballots, and indexing needs a dtype.
        epsilon = np.array([one[1] for one in settled], np.float64)[ballot]
        opt_in = np.array([RULES[one].opt_in for one in signal], bool)[ballot]
        age = np.ones(len(ballot))
        if half_life is not None:
            age = 0.5 ** ((latest - np.frombuffer(self._ts)) / half_life)
        propensity = np.frombuffer(self._propensity) if ips else np.ones(len(ballot))
        user, per_user = self._user_factors(alive, user_cap)
        weight = np.zeros(len(ballot))
        for part in (alive & evaluation, alive & ~evaluation):
            if opt_in[part].all():
                # Nothing that they could be a fifth of.
                self.dropped["signals that are off unless asked for, and nothing beside them"] += int(part.sum())
                alive &= ~part
                continue
            chosen = epsilon[part], user[part], age[part], propensity[part], opt_in[part]
            weight[part] = noise.weights(*chosen)
        self._write(target, alive, flipped, weight, epsilon, [signal[one] for one in ballot], evaluation)
        words = np.frombuffer(self._words, np.int32).reshape(-1, 2)
        words = np.where(flipped[:, None], words[:, ::-1], words)
        return Written(
            weight=weight[alive],
            epsilon=epsilon[alive],
            prior=priors[ballot][alive],
            signal=[signal[ballot[row]] for row in np.flatnonzero(alive)],
            label=~flipped[alive],
            words=words[alive],
            evaluation=evaluation[alive],
            dropped=+self.dropped,
            users=per_user,
        )

    def _near(self, alive: np.ndarray, evaluation: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Rows to leave out for a similar one; that of training is kept."""
        leave = np.zeros(len(alive), bool)
        if not self._signatures:
            return leave
        # Training first, and of each split the log's order.
        kinds = flipped.astype(np.int64) if self.kind == "labels" else np.zeros(len(alive), np.int64)
        rows = np.flatnonzero(alive)
        rows = rows[np.argsort(evaluation[rows], kind="stable")]
        first = near_duplicates(np.concatenate(self._signatures)[rows], kinds[rows])
        leave[rows[first != np.arange(len(rows))]] = True
        self._signatures.clear()
        self.dropped["similar to another row"] += int(leave.sum())
        return leave

    def _user_factors(self, alive: np.ndarray, user_cap: bool) -> tuple[np.ndarray, np.ndarray]:
        users = np.frombuffer(self._user, np.int32)
        known = alive & (users >= 0)
        per_user = np.bincount(users[known], minlength=len(self._users))
        for row, several in self._more.items():
            if alive[row]:
                per_user[list(several - {int(users[row])})] += 1
        factor = np.ones(len(users))
        if user_cap and len(per_user):
            share = 1 / np.sqrt(np.maximum(per_user, 1))
            factor[known] = share[users[known]]
            for row, several in self._more.items():
                factor[row] = share[list(several)].mean()
        return factor, per_user

    def _write(
        self,
        target: Path,
        alive: np.ndarray,
        flipped: np.ndarray,
        weight: np.ndarray,
        epsilon: np.ndarray,
        signal: list[str],
        evaluation: np.ndarray,
    ) -> None:
        names = list(self._users)
        flags = zip(
            alive.tolist(),
            flipped.tolist(),
            weight.tolist(),
            epsilon.tolist(),
            signal,
            evaluation.tolist(),
            strict=True,
        )
        apart = APART.encode()
        # As bytes: millions of lines need neither be decoded nor encoded again.
        with self.file.open("rb", buffering=BUFFER) as lines, target.open("wb", buffering=BUFFER) as out:
            rows = progress(zip(lines, flags, strict=True), f"{NAME}: writing {self.kind}", total=len(alive))
            for row, (line, (kept, other_way, weighs, wrong, its_signal, for_eval)) in enumerate(rows):
                if not kept:
                    continue
                context, first, second, tools, events, user = line[:-1].split(apart)
                if row in self._events:
                    events = json.dumps(list(dict.fromkeys(json.loads(events) + self._events[row]))).encode()
                if row in self._more:
                    voters = {*filter(None, (json.loads(user) if user else "").split("+"))}
                    user = quoted("+".join(sorted(voters.union(names[one] for one in self._more[row])))).encode()
                if self.kind == "pairs":
                    if other_way:
                        first, second = second, first
                    texts = b'"chosen": [%b], "rejected": [%b]' % (first, second)
                else:
                    texts = b'"completion": [%b], "label": %b' % (first, b"false" if other_way else b"true")
                known = (
                    f'"behavior_weight": {weighs:.6g}, "behavior_eps": {wrong:.6g}, "signal": "{its_signal}", '
                    f'"split": "{"eval" if for_eval else "train"}"'
                )
                if tools:
                    events = b'%b, "tools": %b' % (events, tools)
                out.write(
                    b'{"prompt": [%b], %b, %b, "user": %b, "source_event_ids": %b}\n'
                    % (context, texts, known.encode(), user or b"null", events)
                )


def _users(row: Preference) -> str:
    """JSON of all that voted, joined by "+"; nothing where nobody is known."""
    if len(row.votes) == 1 and not row.against:
        user = row.votes[0].act.user
    else:
        voters = {vote.act.user for vote in (*row.votes, *row.against) if vote.act.user is not None}
        user = "+".join(sorted(voters))
    return quoted(user) if user else ""


def _settled(ballot: Any, epsilons: dict[str, float]) -> tuple[str, float]:
    """The most reliable signal of the side that most take, and the probability that the other is right."""
    ayes, noes = (dict(side) for side in ballot)
    if sum(noes.values()) > sum(ayes.values()):
        ayes, noes = noes, ayes
    signal = min(ayes, key=lambda one: (epsilons[one], one))
    return signal, noise.flip_probability(ayes, sum(noes.values()), epsilons)
