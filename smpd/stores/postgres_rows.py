"""What is asked of the PostgreSQL store's database in one transaction, and what is written.

Made by the reactor's thread, and used by the threads that wait for the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from smpd.stores.interface import What
from smpd.stores.rows import Row

Key = tuple[What, bytes]
"""How a queue is looked for."""

_MOST: Final = 7900
"""Bytes of a notice; PostgreSQL takes 8,000."""


class State(NamedTuple):
    """A row of queue_state: what relays share of a queue, and what changes with each message."""

    number: int
    version: int
    messages: int
    can_write: bool
    subscriber: int
    notifier_subscriber: int


class Known(NamedTuple):
    """What is in memory of a queue: its version, and how many of its first messages."""

    version: int
    messages: int


@dataclass(slots=True)
class Query:
    """What a transaction begins with.

    `bodies` has how many messages are wanted of the queues of which any are, `expire` the times of
    before which messages go. Nobody else may give the ids of `exclusive` at the same time.
    In the place of what is not there, and was not `seen` before as something that is not,
    another queue is read, with a number up to `highest`, and its messages: time shall not tell.
    `patient` says that locks are waited for.
    """

    keys: set[Key] = field(default_factory=set)
    bodies: dict[Key, int] = field(default_factory=dict)
    expire: dict[Key, int] = field(default_factory=dict)
    exclusive: set[bytes] = field(default_factory=set)
    services: set[bytes] = field(default_factory=set)
    certificates: set[bytes] = field(default_factory=set)
    known: dict[int, Known] = field(default_factory=dict)
    seen: set[Key] = field(default_factory=set)
    highest: int = 1
    patient: bool = False

    def ids(self, what: What) -> list[bytes]:
        """The ids that are looked for as `what`."""
        return [entity_id for kind, entity_id in self.keys if kind is what]


@dataclass(slots=True)
class Found:
    """What was found, and is locked until the end of the transaction.

    `busy` and `taken` are keys and exclusive ids that another transaction has now. `rows` are
    those of queues of which another version, or none, is in memory; `messages` the first
    ones, for queues of which more are wanted than are in memory; `expired` what was removed.
    `at` is when that was, by the clock of the admission.
    """

    at: float = 0.0
    numbers: dict[Key, int] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    busy: set[Key] = field(default_factory=set)
    taken: set[bytes] = field(default_factory=set)
    rows: dict[int, Row] = field(default_factory=dict)
    messages: dict[int, list[Row]] = field(default_factory=dict)
    expired: dict[int, list[int]] = field(default_factory=dict)
    notifications: dict[bytes, list[Row]] = field(default_factory=dict)
    services: list[Row] = field(default_factory=list)
    counts: dict[bytes, int] = field(default_factory=dict)


class Notice(NamedTuple):
    """What a relay is told: `kind` is one of those of `smpd.stores.postgres_notices`."""

    kind: str
    entity_id: bytes
    other_id: bytes = b""

    def word(self) -> str:
        """As it stands among others."""
        word = self.kind + self.entity_id.hex()
        return f"{word}.{self.other_id.hex()}" if self.other_id else word

    @classmethod
    def read(cls, word: str) -> Notice:
        """What `word` gives. Raises `ValueError`."""
        entity_id, _, other_id = word[1:].partition(".")
        return cls(word[:1], bytes.fromhex(entity_id), bytes.fromhex(other_id))


def notices(payload: str) -> list[Notice]:
    """The notices in a payload; what is none is left out."""
    found = []
    for word in payload.split():
        try:
            found.append(Notice.read(word))
        except ValueError:
            continue
    return found


def payloads(some: Iterable[Notice]) -> Iterator[str]:
    """Payloads with all these notices, as few as possible."""
    words: list[str] = []
    size = 0
    for notice in some:
        word = notice.word()
        if size + len(word) + 1 > _MOST and words:
            yield " ".join(words)
            words, size = [], 0
        words.append(word)
        size += len(word) + 1
    if words:
        yield " ".join(words)


def columns(rows: Sequence[Row], count: int) -> tuple[list[Any], ...]:
    """Rows as columns, of which there are `count`."""
    return tuple(list(column) for column in zip(*rows, strict=True)) or tuple(
        [] for _ in range(count)
    )


@dataclass(slots=True)
class Rows:
    """What a transaction writes, of each table, and whom it tells.

    `base` has the versions that the changed queues had when they were locked, 0 for new ones:
    if the transaction has to be made again, they must still be the same. `lost_from` has the
    recipient ids of the queues that messages were removed from.
    """

    batch: int
    base: dict[int, int]
    deleted: list[int]
    freed: list[int]
    queues: list[Row]
    unlinked: list[int]
    links: list[Row]
    new_states: list[State]
    states: list[State]
    messages: list[Row]
    removed: list[tuple[int, int]]
    lost_from: list[bytes]
    dropped: list[bytes]
    notifications: list[Row]
    taken: list[int]
    services: list[Row]
    claims: list[bytes]
    notices: dict[int, list[Notice]]
    service_notices: list[tuple[bytes, Notice, bool]]
    """The service whose relay is told, and whether it is this one, too."""
