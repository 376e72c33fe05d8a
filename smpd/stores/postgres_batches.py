"""Requests to the PostgreSQL store, and batches of them, each of which is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Final, Protocol

from smpd.stores.group_commit import Worker
from smpd.stores.interface import Wanted, What
from smpd.stores.postgres_lane import Lane
from smpd.stores.postgres_rows import Found, Key, Query, Rows

_PLAIN: Final = {What.NEW_SENDER: What.SENDER, What.NEW_LINK: What.LINK}
EXCLUSIVE: Final = frozenset((What.NEW_SENDER, What.NEW_LINK, What.CERTIFICATE))
"""What nobody else may give or make at the same time."""


def key_of(wanted: Wanted) -> Key:
    """How something is looked for."""
    return _PLAIN.get(wanted.what, wanted.what), wanted.entity_id


class Request:
    """Work that waits. `keys` is what no two batches may have at the same time.

    `attempts` counts how often something of it was locked by another relay.
    """

    __slots__ = ("attempts", "keys", "line", "since", "wanted", "work")

    def __init__(
        self, wanted: Sequence[Wanted], work: Callable[[], None], line: object, since: float
    ) -> None:
        self.wanted = wanted
        self.work = work
        self.line = line
        self.since = since
        self.attempts = 0
        self.keys = [key_of(each) for each in wanted if each.what is not What.SERVICE]


class Batch:
    """Requests in one transaction. `first` to `last` are the numbers of what they have changed.

    A `patient` one waits for what other relays have locked.
    """

    __slots__ = (
        "executed",
        "first",
        "keys",
        "lane",
        "last",
        "numbers",
        "patient",
        "requests",
        "rows",
        "since",
        "spoiled",
    )

    def __init__(
        self, lane: LaneThread, requests: list[Request], since: float, patient: bool
    ) -> None:
        self.lane = lane
        self.requests = requests
        self.since = since
        self.patient = patient
        self.keys = {key for request in requests for key in request.keys}
        self.numbers: set[int] = set()
        self.rows: Rows | None = None
        self.first = self.last = 0
        self.executed = False
        self.spoiled: str | None = None


class LaneThread:
    """A lane and its thread."""

    __slots__ = ("lane", "worker")

    def __init__(self, lane: Lane, worker: Worker) -> None:
        self.lane = lane
        self.worker = worker


class Steps(Protocol):
    """The store's part. Called by the reactor's thread."""

    noted: int

    def number_of(self, key: Key) -> int | None:
        """The number of a queue that is in memory."""

    def query(self, requests: Sequence[Request]) -> Query:
        """What these requests look at."""

    def begin(self, query: Query, found: Found) -> set[int] | None:
        """Takes up what was found; the numbers of the queues that are locked.

        None when more has to be read, since what was in memory is not there any more.
        """

    def end(self) -> Rows | None:
        """What has changed since `begin`; None for nothing."""

    def without_store(self, reason: str, work: Callable[[], None]) -> None:
        """Does work to which the store refuses everything."""

    def end_badly(self) -> None:
        """Forgets all that has changed since `begin`."""

    def given_up(self, numbers: set[int], rows: Rows) -> None:
        """What was written may not be there: what is in memory of it may not be true."""

    def answers_lost(self, rows: Rows) -> None:
        """The answers to what was written, or was not, became errors."""

    def lost(self, busy: Set[int]) -> None:
        """A connection was lost, with which there may be another database the next time.

        `busy` are the numbers of queues that transactions under way have.
        """

    def moved(self, committed: int) -> None:
        """All changes up to this number are safe, or `spoiled`."""


def is_locked(request: Request, found: Found) -> bool:
    """Whether something that a request wants is locked by another relay."""
    for wanted in request.wanted:
        if wanted.what in EXCLUSIVE and wanted.entity_id in found.taken:
            return True
    return any(key in found.busy for key in request.keys)
