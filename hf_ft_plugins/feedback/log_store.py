"""A log on disk while it is made into preferences: what people did about the answers to one prompt, prompt by prompt.

Texts and events lie in two temporary files (`spool.py`). In memory are 33 bytes a message and 25 an event: who answers
whom, as arrays (`message_links.py`).
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .events import BOTH_BAD, ROLES, TIE, TYPES, Event, Message
from .message_links import NONE, MessageLinks, linked
from .personal_data import Scrubber, hashed
from .prompt_group import Act, Group
from .spool import Spool

USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")
ROLE_CODES = {role: code for code, role in enumerate(ROLES)}
TYPE_CODES = {kind: code for code, kind in enumerate(TYPES)}
STARTS = {role: f'{{"role": "{role}", "content": ' for role in ROLES}
# Prompts are read together until they have about so many events.
EVENTS_AT_ONCE = 2_000
# A character that JSON escapes in every text, so that none holds it.
APART = "\x1f"
MOST_CIRCLES_NAMED = 5
MISSING = "about a message that does not exist"


class StoredEvent(NamedTuple):
    """An event as its line of JSON has it, of which the defaults at the end are left out.

    Attributes:
        user: hashed, if users are.
        messages: hashed ids: of a choice of all candidates, of a regeneration of the new answer, if it is named.
    """

    id: str
    ts: float
    user: str | None
    value: Any = None
    messages: Sequence[int] = ()
    shown_position: int | None = None
    propensity: float | None = None
    text_after: str | None = None
    dwell_ms: float | None = None


NOTHING_MORE = StoredEvent("", 0.0, None)[4:]


@dataclass
class Store:
    """Takes messages and events in any order, then gives groups.

    Attributes:
        scrub: None to leave personal data in.
        salt: key of the hash of users; None leaves them as they are.
        signals: types of events that count.
        dropped: events that are in no group, by type and reason.
        seen: all events, by type.
        notes: what was found about messages, counted.
        cycles: ids of one message of each of the first circles of parents.
        raters: number and sum of each user's ratings.
        shown: of choices, how often the chosen answer was shown at which place.
        latest: the time of the latest event, seconds since 1970.
        prompts: how many groups there are; None until they are given.
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
    latest: float = 0.0
    prompts: int | None = None

    def __post_init__(self) -> None:
        self._texts, self._events = Spool(self.folder / "messages"), Spool(self.folder / "events")
        # Of messages: hashes of the id, of the parent's id, of all that it says; role.
        self._ids, self._parent_ids, self._contents = array("q"), array("q"), array("q")
        self._roles = array("b")
        # Of events: hashes of the own id and of the id of the message.
        self._event_ids, self._about, self._types = array("q"), array("q"), array("b")
        if self.salt is not None:
            self._hashed = lru_cache(1 << 16)(lambda user: hashed(user, self.salt or b""))

    def close(self) -> None:
        self._texts.close()
        self._events.close()

    def take(self, items: Iterable[Message | Event]) -> None:
        """Read all of a log."""
        add_message, add_event = self._add_message, self._add_event
        for item in items:
            if item.__class__ is Message:
                try:
                    add_message(item)
                except RecursionError:
                    self.notes["messages with calls or tools that are nested too deeply, dropped"] += 1
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
        turn += "}" if message.template_fields is message.continuation is None else self._rest(message)
        tools = json.dumps(message.tools) if message.tools else ""
        parent_id = hash(parent) if parent is not None else 0
        self._ids.append(hash(message.id))
        self._parent_ids.append(parent_id)
        self._contents.append(hash(turn) ^ parent_id)
        self._roles.append(ROLE_CODES[role])
        # Half of a surrogate pair, which JSON can say and UTF-8 cannot, becomes a question mark.
        self._texts.append(f"{turn}{APART}{tools}{APART}{message.id}".encode("utf-8", "replace"))

    def _rest(self, message: Message) -> str:
        """JSON of what most messages do not have: the end of the turn, and the turns that belong to it."""
        fields, continuation = message.template_fields or {}, message.continuation or []
        if self.scrub is not None:
            fields, continuation = self.scrub.everywhere(fields), self.scrub.everywhere(continuation)
        end = "".join(f", {quoted(key)}: {quoted(value)}" for key, value in fields.items())
        return ", ".join([f"{end}}}", *(json.dumps(turn, ensure_ascii=False) for turn in continuation)])

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
        messages: tuple[int, ...] = ()
        if kind == "choice":
            about = event.candidates[0] if value in (TIE, BOTH_BAD) else value
            messages = tuple([hash(candidate) for candidate in event.candidates])
        elif kind == "regenerate":
            messages = () if value is None else (hash(str(value)),)
        elif kind == "rating" and user is not None:
            count_sum = self.raters.setdefault(user, [0, 0.0])
            count_sum[0] += 1
            count_sum[1] += value
        elif kind != "thumbs" and kind != "rating":
            value = None
        self._event_ids.append(hash(event.id))
        self._about.append(hash(about))
        self._types.append(TYPE_CODES[kind])
        fields: tuple[Any, ...] = (identity, event.ts, user, value)
        more = (messages, event.shown_position, event.propensity, text, event.dwell_ms)
        self._events.append(json.dumps(fields if more == NOTHING_MORE else fields + more).encode())

    def _drop(self, kind: str, reason: str, count: int = 1) -> None:
        reasons = self.dropped.get(kind)
        if reasons is None:
            reasons = self.dropped[kind] = Counter()
        reasons[reason] += count

    def groups(self) -> Iterator[Group]:
        """Prompt by prompt, in the log's order."""
        self._texts.flush()
        self._events.flush()
        roles = np.frombuffer(self._roles, np.int8)
        links = linked(
            np.frombuffer(self._ids, np.int64),
            np.frombuffer(self._parent_ids, np.int64),
            np.frombuffer(self._contents, np.int64),
            by_assistant=roles == ASSISTANT,
            by_user=roles == USER,
        )
        self._note(links)
        if not len(self._ids):
            for code, count in Counter(self._types).items():
                self._drop(TYPES[code], MISSING, count)
            return
        answers, order = self._placed(links, roles)
        prompts = links.parent[answers[order]]
        starts = np.flatnonzero(np.diff(prompts, prepend=NONE - 1))
        ends = np.append(starts[1:], len(order))
        self.prompts = len(starts)
        first = 0
        while first < len(starts):
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + EVENTS_AT_ONCE, "right")))
            events = order[starts[first] : ends[last - 1]]
            yield from self._read(events, answers[events], links)
            first = last

    def _note(self, links: MessageLinks) -> None:
        notes, repeated = self.notes, links.repeated
        notes["messages"] = int((~repeated).sum())
        notes["messages told again"] = int((repeated & ~links.contradicts).sum())
        notes["messages with the id of another, dropped"] = int(links.contradicts.sum())
        notes["messages whose parent is missing"] = int((links.orphan & ~repeated).sum())
        notes["messages in or behind a circle of parents, dropped"] = int((links.in_circle & ~repeated).sum())
        for row in links.circles():
            notes["circles of parents"] += 1
            if len(self.cycles) < MOST_CIRCLES_NAMED:
                name = self._texts.read([row])[0].decode().split(APART, 2)[2]
                self.cycles.append(self.scrub(name) if self.scrub is not None and "@" in name else name)

    def _placed(self, links: MessageLinks, roles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each event the number of its answer, and the order in which events are read."""
        kinds = np.frombuffer(self._types, np.int8)
        rows = links.numbers(np.frombuffer(self._about, np.int64))
        corrects = (kinds == TYPE_CODES["correction"]) & (rows != NONE) & (roles[rows] == USER)
        answers = np.where(corrects, links.parent[rows], rows)
        kept = np.ones(len(kinds), bool)
        ids = np.frombuffer(self._event_ids, np.int64)
        order = np.argsort(ids, kind="stable")
        repeated = np.zeros(len(ids), bool)
        repeated[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        reasons = (
            ("an event of this id was there before", repeated),
            (MISSING, answers == NONE),
            ("in a conversation whose parents go round in a circle", links.in_circle[answers]),
            ("in a conversation of which an earlier message is missing", ~links.complete[answers]),
            ("about a message that is not the assistant's", roles[answers] != ASSISTANT),
            ("about an answer to no prompt", ~links.is_answer[answers]),
        )
        for reason, holds in reasons:
            for code, count in enumerate(np.bincount(kinds[kept & holds], minlength=len(TYPES))):
                if count:
                    self._drop(TYPES[code], reason, int(count))
            kept &= ~holds
        events = np.flatnonzero(kept)
        return answers, events[np.argsort(links.parent[answers[events]], kind="stable")]

    def _read(self, events: np.ndarray, answers: np.ndarray, links: MessageLinks) -> Iterator[Group]:
        """The groups of some events, which are in the order of their prompts."""
        numbers = events.tolist()
        lines = b",".join(self._events.read(numbers))
        found = [StoredEvent(*fields) for fields in json.loads(b"[%b]" % lines)]
        ids = [identity for event in found for identity in event.messages]
        rows = iter(links.numbers(np.array(ids, np.int64)).tolist() if ids else [])
        # A view of an array gives plain numbers, faster than the array itself.
        parents: Any = memoryview(links.parent)  # type: ignore[arg-type]
        firsts: Any = memoryview(links.first)  # type: ignore[arg-type]
        groups: list[Group] = []
        needed: set[int] = set()
        group = None
        for number, event, answer in zip(numbers, found, answers.tolist(), strict=True):
            messages = tuple(islice(rows, len(event.messages))) if event.messages else ()
            prompt = parents[answer]
            if group is None or group.prompt != prompt:
                before, row = [prompt], prompt
                while parents[row] != NONE:
                    row = parents[row]
                    before.append(row)
                needed.update(before)
                group = Group(prompt, firsts[answer], [], {}, before[::-1], None, links.continued)
                groups.append(group)
            act = self._act(TYPES[self._types[number]], event, answer, messages, links)
            if act is None:
                continue
            group.acts.append(act)
            needed.add(answer)
            needed.update(act.candidates)
            if act.other is not None:
                needed.add(act.other)
        turns, tools = self._turns(sorted(needed))
        for group in groups:
            group.turns = turns
            if tools:
                group.tools = next((tools[act.answer] for act in group.acts if act.answer in tools), None)
            if group.acts:
                yield group

    def _turns(self, numbers: list[int]) -> tuple[dict[int, str], dict[int, str]]:
        """JSON of these messages, and of the tools of those that have some, by number."""
        turns: dict[int, str] = {}
        tools: dict[int, str] = {}
        for row, blob in zip(numbers, self._texts.read(numbers), strict=True):
            turns[row], tools_of_it, _ = blob.decode().split(APART, 2)
            if tools_of_it:
                tools[row] = tools_of_it
        return turns, tools

    def _act(
        self, kind: str, event: StoredEvent, about: int, messages: tuple[int, ...], links: MessageLinks
    ) -> Act | None:
        """The event with numbers in the place of ids; None, counted, of a choice between what are no candidates."""
        answer: int | None = about
        other = None
        candidates: tuple[int, ...] = ()
        prompt = links.parent[about]
        if kind == "choice":
            if NONE in messages:
                self._drop(kind, MISSING)
                return None
            if any(links.parent[one] != prompt or not links.is_answer[one] for one in messages):
                self._drop(kind, "candidates that answer different prompts")
                return None
            candidates = messages
            if event.value in (TIE, BOTH_BAD):
                answer = None
        elif kind == "regenerate":
            other = messages[0] if messages else int(links.next_answer[about])
            if other in (NONE, about) or links.parent[other] != prompt or not links.is_answer[other]:
                other = None
        if event.shown_position is not None:
            self.shown[event.shown_position] += 1
        return Act(
            event=event.id,
            type=kind,
            answer=answer,
            value=event.value,
            candidates=candidates,
            other=other,
            user=event.user,
            voter=event.user or event.id,
            ts=event.ts,
            shown=event.shown_position,
            propensity=event.propensity,
            text_after=event.text_after,
            dwell_ms=event.dwell_ms,
        )
