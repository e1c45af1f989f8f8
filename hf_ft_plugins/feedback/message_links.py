"""Who answers whom: a log's messages as arrays, in which parents, repetitions and circles are found all at once.

Ids are their 64-bit hashes here (Python's SipHash): two of a million ids are confused with a probability of 3e-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# The number of the message where there is none.
NONE = -1


@dataclass(frozen=True)
class MessageLinks:
    """What is known of each message; messages are numbered in the order in which they came.

    Attributes:
        parent: int32 [messages], the message that it answers; `NONE` of a conversation's first.
        first: int32 [messages], the first message of its conversation.
        complete: bool [messages], whether no message before it in the conversation is missing.
        in_circle: bool [messages], whether following parents never ends.
        repeated: bool [messages], whether an earlier message has its id; `contradicts` whether that one says something
            else.
        orphan: bool [messages], whether its parent is missing.
        is_answer: bool [messages], whether the assistant wrote it in answer to a message.
        continued: bool [messages], whether the user wrote on after it.
        next_answer: int32 [messages], the next answer to the same message; `NONE` after the last.
    """

    parent: np.ndarray
    first: np.ndarray
    complete: np.ndarray
    in_circle: np.ndarray
    repeated: np.ndarray
    contradicts: np.ndarray
    orphan: np.ndarray
    is_answer: np.ndarray
    continued: np.ndarray
    next_answer: np.ndarray
    _sorted_ids: np.ndarray
    _by_id: np.ndarray

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """The number of the message of each hashed id, of several the first; `NONE` where there is none."""
        return _numbers(ids, self._sorted_ids, self._by_id)

    def circles(self) -> Iterator[int]:
        """One message of each circle of parents."""
        unseen = set(np.flatnonzero(self.in_circle & ~self.repeated).tolist())
        while unseen:
            path: dict[int, int] = {}
            row = next(iter(unseen))
            while row in unseen and row not in path:
                path[row] = len(path)
                row = int(self.parent[row])
            if row in path:
                yield row
            unseen -= path.keys()


def linked(
    ids: np.ndarray, parent_ids: np.ndarray, contents: np.ndarray, by_assistant: np.ndarray, by_user: np.ndarray
) -> MessageLinks:
    """Connect messages by their ids.

    Args:
        ids, parent_ids, contents: int64 [messages], hashes of the own id, of the parent's id (0 of a conversation's
            first message) and of all that the message says.
        by_assistant, by_user: bool [messages], who wrote it.
    """
    count = len(ids)
    # Stable: of several messages of one id the first is found.
    by_id = np.argsort(ids, kind="stable").astype(np.int32)
    sorted_ids = ids[by_id]
    earliest = _numbers(ids, sorted_ids, by_id)
    repeated = earliest != np.arange(count)
    parent = np.where(parent_ids == 0, NONE, _numbers(parent_ids, sorted_ids, by_id)).astype(np.int32)
    orphan = (parent_ids != 0) & (parent == NONE)
    first, in_circle = _conversations(parent)
    is_answer = by_assistant & ~repeated & (parent != NONE)
    continued = np.zeros(count, bool)
    continued[parent[by_user & ~repeated & (parent != NONE)]] = True
    return MessageLinks(
        parent=parent,
        first=first,
        complete=~in_circle & ~orphan[np.where(in_circle, 0, first)] if count else in_circle,
        in_circle=in_circle,
        repeated=repeated,
        contradicts=repeated & (contents != contents[earliest]),
        orphan=orphan,
        is_answer=is_answer,
        continued=continued,
        next_answer=_next_answers(parent, is_answer),
        _sorted_ids=sorted_ids,
        _by_id=by_id,
    )


def _numbers(ids: np.ndarray, sorted_ids: np.ndarray, by_id: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.where(sorted_ids[places] == ids, by_id[places], NONE)


def _conversations(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each message's first ancestor, and which messages have none because their parents go round in a circle.

    Each round doubles the distance that is looked ahead, so that a few rounds reach the top of any conversation; a
    message that has not arrived after all of them is in a circle, or hangs on one.
    """
    count = len(parent)
    first = np.where(parent == NONE, np.arange(count), parent).astype(np.int32)
    ahead = parent
    for _ in range(max(1, count.bit_length() + 1)):
        if (ahead == NONE).all():
            break
        first = first[first]
        ahead = np.where(ahead == NONE, NONE, ahead[ahead])
    return first, ahead != NONE


def _next_answers(parent: np.ndarray, is_answer: np.ndarray) -> np.ndarray:
    following = np.full(len(parent), NONE, np.int32)
    rows = np.flatnonzero(is_answer)
    rows = rows[np.argsort(parent[rows], kind="stable")]
    siblings = parent[rows[:-1]] == parent[rows[1:]]
    following[rows[:-1][siblings]] = rows[1:][siblings]
    return following
