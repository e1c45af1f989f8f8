"""A log on disk while it is made into preferences: what was said about which answers to one prompt, prompt by prompt.

Texts lie in two temporary files, one blob after the other (as rows of SQLite they took a third of the whole time). In
memory are 33 bytes a message and 25 an event: who answers whom, as arrays, in which parents, circles and duplicates are
found all at once. Ids are their 64-bit hashes there (Python's SipHash): two of a million ids are confused with a
probability of 3e-8.
"""

from __future__ import annotations

import json
import marshal
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .events import BOTH_BAD, ROLES, TIE, TYPES, Event, Message
from .personal_data import Scrubber, hashed

USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")
ROLE_CODES = {role: code for code, role in enumerate(ROLES)}
TYPE_CODES = {kind: code for code, kind in enumerate(TYPES)}
STARTS = {role: f'{{"role": "{role}", "content": ' for role in ROLES}
# Blobs written at once, and events read at once.
BATCH = 2_000
GROUPED = 2_000
NONE = -1
# No JSON holds it unescaped.
APART = "\x1f"
# Read as one block unless most of the block is for others.
WASTE = 4


class Spool:
    """Blobs in a file, in the order in which they came, read by number."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w+b", buffering=0)
        self._waiting: list[bytes] = []
        self._ends = array("q", [0])

    def append(self, blob: bytes) -> None:
        self._waiting.append(blob)
        if len(self._waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._file.write(b"".join(self._waiting))
            lengths = np.fromiter(map(len, self._waiting), np.int64, len(self._waiting))
            self._ends.frombytes((lengths.cumsum() + self._ends[-1]).tobytes())
            self._waiting.clear()

    def read(self, numbers: Iterable[int]) -> list[bytes]:
        ends, file = self._ends, self._file.fileno()
        spans = [(ends[number], ends[number + 1]) for number in numbers]
        if not spans:
            return []
        first, last = min(spans)[0], max(spans)[1]
        if last - first > WASTE * sum([end - start for start, end in spans]):
            return [os.pread(file, end - start, start) for start, end in spans]
        block = os.pread(file, last - first, first)
        return [block[start - first : end - first] for start, end in spans]

    def close(self) -> None:
        self._file.close()


class Act(NamedTuple):
    """An event about answers that are known by their number in the log.

    Attributes:
        answer: the answer that it is about; of a choice the chosen one, None of a tie or where all are bad.
        other: of a regeneration the new answer, None where there is none.
        user: hashed; None where unknown.
        voter: the user, or the event where the user is unknown.
    """

    event: str
    type: str
    answer: int | None
    value: Any
    candidates: tuple[int, ...]
    other: int | None
    user: str | None
    voter: str
    ts: float
    shown: int | None
    propensity: float | None
    text_after: str | None
    dwell_ms: float | None


@dataclass(slots=True)
class Group:
    """All that was done about the answers to one prompt.

    Attributes:
        prompt: the number of the message that is answered; `conversation` that of the first message before it.
        turns: the JSON of each answer that an act is about, and of all before it, by number.
        before: numbers of the conversation's messages down to the prompt.
        tools: JSON of the tools that the answers could call; None without.
        continued: those of the answers after which the user wrote on.
    """

    prompt: int
    conversation: int
    acts: list[Act]
    turns: dict[int, str]
    before: list[int]
    tools: str | None
    continued: Any

    def context(self) -> str:
        """JSON of the turns up to the prompt, without brackets."""
        return ", ".join([self.turns[row] for row in self.before])


@dataclass
class Store:
    """Takes messages and events in any order, then gives groups.

    Attributes:
        scrub: None to leave personal data in.
        salt: key of the hash of users; None leaves them as they are.
        dropped: events that are in no group, by type and reason.
        notes: what was found about messages, counted.
        cycles: ids of one message of each of the first cycles.
        raters: number and sum of each user's ratings.
    """

    folder: Path
    scrub: Scrubber | None
    salt: bytes | None
    signals: frozenset[str]
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    cycles: list[str] = field(default_factory=list)
    raters: dict[str, list[float]] = field(default_factory=dict)
    shown: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._texts, self._acts = Spool(self.folder / "messages"), Spool(self.folder / "events")
        # Of messages: hashes of the id, of the parent's id, of all it says; role.
        self._id, self._above, self._said, self._role = array("q"), array("q"), array("q"), array("b")
        # Of events: hashes of the own id and of the id of the message.
        self._event_id, self._about, self._type = array("q"), array("q"), array("b")
        self.latest = 0.0
        if self.salt is not None:
            self._hashed = lru_cache(1 << 16)(lambda user: hashed(user, self.salt or b""))

    def close(self) -> None:
        self._texts.close()
        self._acts.close()

    def take(self, items: Iterable[Message | Event]) -> None:
        """Read all of a log."""
        add_message, add_event = self._add_message, self._add_event
        for item in items:
            if item.__class__ is Message:
                add_message(item)
            else:
                add_event(item)  # type: ignore[arg-type]

    def _add_message(self, message: Message) -> None:
        content, calls, role, parent = message.content, message.tool_calls, message.role, message.parent_id
        if self.scrub is not None:
            content = self.scrub(content)
            if calls:
                calls = self.scrub.everywhere(calls)
        # Of a text without line ends the check takes a third of the quoting's time.
        plain = content.isprintable() and '"' not in content and "\\" not in content
        turn = f'{STARTS[role]}"{content}"' if plain else STARTS[role] + quoted(content)
        turn += f', "tool_calls": {json.dumps(calls, ensure_ascii=False)}' if calls else ""
        turn += "}" if message.told is message.then is None else self._rest(message)
        above = hash(parent) if parent is not None else 0
        self._id.append(hash(message.id))
        self._above.append(above)
        self._said.append(hash(turn) ^ above)
        self._role.append(ROLE_CODES[role])
        tools = json.dumps(message.tools) if message.tools else ""
        # Half of a surrogate pair, which JSON can say and UTF-8 cannot, becomes a question mark.
        self._texts.append(f"{turn}{APART}{tools}{APART}{message.id}".encode("utf-8", "replace"))

    def _rest(self, message: Message) -> str:
        """JSON of what most messages do not have: the end of the turn, and the turns that belong to it."""
        told, then = message.told or {}, message.then or []
        if self.scrub is not None:
            told, then = self.scrub.everywhere(told), self.scrub.everywhere(then)
        end = "".join(f", {quoted(key)}: {quoted(value)}" for key, value in told.items())
        return ", ".join([f"{end}}}", *(json.dumps(one, ensure_ascii=False) for one in then)])

    def _add_event(self, event: Event) -> None:
        kind = event.type
        self.seen[kind] += 1
        if event.consent is False:
            self._drop(kind, "without consent")
            return
        if kind not in self.signals:
            self._drop(kind, "this signal is off")
            return
        identity, user, text, value = event.id, event.user, event.text_after, event.value
        if user is not None and self.salt is not None:
            user = self._hashed(user)
        if text is not None:
            text = text.encode("utf-8", "replace").decode()
        if self.scrub is not None:
            if text is not None:
                text = self.scrub(text)
            # Digits of an id are no numbers of anybody.
            if "@" in identity:
                identity = self.scrub(identity)
        if event.ts > self.latest:
            self.latest = event.ts
        about: str | None = event.message_id
        others: tuple[int, ...] = ()
        if kind == "choice":
            about = event.candidates[0] if value in (TIE, BOTH_BAD) else value
            others = tuple([hash(one) for one in event.candidates])
        elif kind == "regenerate":
            others = () if value is None else (hash(str(value)),)
        elif kind == "rating" and user is not None:
            count_sum = self.raters.setdefault(user, [0, 0.0])
            count_sum[0] += 1
            count_sum[1] += value
        elif kind != "thumbs" and kind != "rating":
            value = None
        self._event_id.append(hash(event.id))
        self._about.append(hash(about))
        self._type.append(TYPE_CODES[kind])
        told = (identity, event.ts, user, kind, value, others, event.shown_position, event.propensity, text)
        self._acts.append(marshal.dumps((*told, event.dwell_ms)))

    def _drop(self, kind: str, reason: str, count: int = 1) -> None:
        reasons = self.dropped.get(kind)
        if reasons is None:
            reasons = self.dropped[kind] = Counter()
        reasons[reason] += count

    def groups(self) -> Iterator[Group]:
        """Prompt by prompt, in the log's order."""
        self._texts.flush()
        self._acts.flush()
        self._connect()
        if not len(self._id):
            for kind, count in Counter(self._type).items():
                self._drop(TYPES[kind], "about a message that does not exist", count)
            return
        targets, order = self._placed()
        prompts = self._parent[targets[order]]
        starts = np.flatnonzero(np.diff(prompts, prepend=NONE - 1))
        ends = np.append(starts[1:], len(order))
        first = 0
        while first < len(starts):
            # As many prompts as have about GROUPED events.
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + GROUPED, "right")))
            events = order[starts[first] : ends[last - 1]]
            yield from self._read(events, targets[events])
            first = last

    def _connect(self) -> None:
        """Who answers whom, by numbers; what is told twice, hangs in the air or goes round in circles."""
        ids, above = np.frombuffer(self._id, np.int64), np.frombuffer(self._above, np.int64)
        said, roles = np.frombuffer(self._said, np.int64), np.frombuffer(self._role, np.int8)
        count = len(ids)
        # Stable: of several messages of one id the first is found.
        self._order = np.argsort(ids, kind="stable").astype(np.int32)
        self._sorted = ids[self._order]
        first = self._rows(ids)
        again = first != np.arange(count)
        other = again & (said != said[first])
        self.notes["messages"] = int(count - again.sum())
        self.notes["messages told again"] = int((again & ~other).sum())
        self.notes["messages with the id of another, dropped"] = int(other.sum())
        parent = np.where(above == 0, NONE, self._rows(above)).astype(np.int32)
        orphan = (above != 0) & (parent == NONE)
        self.notes["messages whose parent is missing"] = int((orphan & ~again).sum())
        # Pointers doubled until all have arrived; who has not after all doublings is in a circle, or hangs on one.
        top, ahead = np.where(parent == NONE, np.arange(count), parent).astype(np.int32), parent
        for _ in range(max(1, count.bit_length() + 1)):
            if (ahead == NONE).all():
                break
            top = top[top]
            ahead = np.where(ahead == NONE, NONE, ahead[ahead])
        circling = ahead != NONE
        self._top, self._parent = top, parent
        self._whole = ~circling & ~orphan[np.where(circling, 0, top)] if count else circling
        self._in_circle = circling
        self._name_circles(circling & ~again)
        answers = (roles == ASSISTANT) & ~again & (parent != NONE)
        self._is_answer = answers
        self._continued = np.zeros(count, bool)
        self._continued[parent[(roles == USER) & ~again & (parent != NONE)]] = True
        self._next = np.full(count, NONE, np.int32)
        rows = np.flatnonzero(answers)
        rows = rows[np.argsort(parent[rows], kind="stable")]
        siblings = parent[rows[:-1]] == parent[rows[1:]]
        self._next[rows[:-1][siblings]] = rows[1:][siblings]

    def _rows(self, keys: np.ndarray) -> np.ndarray:
        """The number of the message of each hashed id; `NONE` where there is none."""
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], NONE)

    def _name_circles(self, circling: np.ndarray) -> None:
        left = set(np.flatnonzero(circling).tolist())
        self.notes["messages in or behind a circle of parents, dropped"] = len(left)
        circles = 0
        while left:
            path: dict[int, int] = {}
            row = next(iter(left))
            while row in left and row not in path:
                path[row] = len(path)
                row = int(self._parent[row])
            if row in path:
                circles += 1
                if len(self.cycles) < 5:
                    name = self._texts.read([row])[0].decode().split(APART, 2)[2]
                    self.cycles.append(self.scrub(name) if self.scrub is not None and "@" in name else name)
            left -= path.keys()
        self.notes["circles of parents"] = circles

    def _placed(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each event the number of its answer, and the order in which events are read."""
        kinds = np.frombuffer(self._type, np.int8)
        rows = self._rows(np.frombuffer(self._about, np.int64))
        roles = np.frombuffer(self._role, np.int8)
        corrects = (kinds == TYPE_CODES["correction"]) & (rows != NONE) & (roles[rows] == USER)
        targets = np.where(corrects, self._parent[rows], rows)
        kept = np.ones(len(kinds), bool)
        ids = np.frombuffer(self._event_id, np.int64)
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), bool)
        again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        reasons = (
            ("an event of this id was there before", again),
            ("about a message that does not exist", targets == NONE),
            ("in a conversation whose parents go round in a circle", self._in_circle[targets]),
            ("in a conversation of which an earlier message is missing", ~self._whole[targets]),
            ("about a message that is not the assistant's", roles[targets] != ASSISTANT),
            ("about an answer to no prompt", ~self._is_answer[targets]),
        )
        for reason, holds in reasons:
            for code, count in enumerate(np.bincount(kinds[kept & holds], minlength=len(TYPES))):
                if count:
                    self._drop(TYPES[code], reason, int(count))
            kept &= ~holds
        events = np.flatnonzero(kept)
        return targets, events[np.argsort(self._parent[targets[events]], kind="stable")]

    def _read(self, events: np.ndarray, targets: np.ndarray) -> Iterator[Group]:
        found = [marshal.loads(blob) for blob in self._acts.read(events.tolist())]
        keys = [key for event in found for key in event[5]]
        rows = self._rows(np.array(keys, np.int64)).tolist() if keys else []
        parents: Any = memoryview(self._parent)  # type: ignore[arg-type]
        tops: Any = memoryview(self._top)  # type: ignore[arg-type]
        groups: list[Group] = []
        needed: set[int] = set()
        group, place = None, 0
        for event, target in zip(found, targets.tolist(), strict=True):
            others: tuple[int, ...] = ()
            if event[5]:
                others = tuple(rows[place : place + len(event[5])])
                place += len(event[5])
            prompt = parents[target]
            if group is None or group.prompt != prompt:
                before, row = [prompt], prompt
                while parents[row] != NONE:
                    row = parents[row]
                    before.append(row)
                needed.update(before)
                group = Group(prompt, tops[target], [], {}, before[::-1], None, self._continued)
                groups.append(group)
            act = self._act(event, target, others, prompt, parents)
            if act is None:
                continue
            group.acts.append(act)
            needed.add(target)
            needed.update(act.candidates)
            if act.other is not None:
                needed.add(act.other)
        turns: dict[int, str] = {}
        tools: dict[int, str] = {}
        numbers = sorted(needed)
        for row, blob in zip(numbers, self._texts.read(numbers), strict=True):
            turns[row], told, _ = blob.decode().split(APART, 2)
            if told:
                tools[row] = told
        for group in groups:
            group.turns = turns
            if tools:
                group.tools = next((tools[act.answer] for act in group.acts if act.answer in tools), None)
            if group.acts:
                yield group

    def _act(
        self, event: tuple[Any, ...], target: int, others: tuple[int, ...], prompt: int, parents: Any
    ) -> Act | None:
        identity, ts, user, kind, value, _, shown, propensity, text, dwell = event
        answer: int | None = target
        other = None
        candidates: tuple[int, ...] = ()
        if kind == "choice":
            if NONE in others:
                self._drop(kind, "about a message that does not exist")
                return None
            if any(parents[one] != prompt or not self._is_answer[one] for one in others):
                self._drop(kind, "candidates that answer different prompts")
                return None
            candidates = others
            if value in (TIE, BOTH_BAD):
                answer = None
        elif kind == "regenerate":
            other = others[0] if others else int(self._next[target])
            if other in (NONE, target) or parents[other] != prompt or not self._is_answer[other]:
                other = None
        if shown is not None:
            self.shown[shown] += 1
        return Act(
            identity, kind, answer, value, candidates, other, user, user or identity, ts, shown, propensity, text, dwell
        )
