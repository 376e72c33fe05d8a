"""What the PostgreSQL store does beside the work of clients, in a thread of its own.

Going over all queues, numbers for new queues, and questions that need no lock. Each step is a
transaction of its own; queues that somebody has locked come last, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from smpd.stores.group_commit import CallFromThread, Worker
from smpd.stores.postgres_database import Connection, KeptConnection, failure_reason
from smpd.stores.postgres_lane import EXPIRE
from smpd.stores.postgres_notices import PRESENCE

T = TypeVar("T")

NUMBERS_AT_A_TIME: Final = 100_000
"""As the sequence gives them (`smpd/stores/postgres_schema`)."""

_OLD: Final = """
    SELECT number FROM queue_state WHERE number = ANY(%b::bigint[]) AND EXISTS (
        SELECT FROM message WHERE queue = queue_state.number AND body IS NOT NULL
        AND timestamp < %b::bigint)"""
_LOCK_PATIENTLY: Final = """
    SELECT number FROM queue_state WHERE number = ANY(%b::bigint[]) FOR UPDATE"""
_LOCK: Final = f"{_LOCK_PATIENTLY} SKIP LOCKED"
_LESS: Final = """
    UPDATE queue_state SET version = version + 1, messages = messages - gone.count
    FROM (SELECT queue, count(*) FROM unnest(%b::bigint[]) AS each (queue) GROUP BY queue)
        AS gone (queue, count)
    WHERE queue_state.number = gone.queue"""
_USED: Final = """
    SELECT queue.number, queue.recipient_id, queue.used_on, queue_state.subscriber
    FROM queue JOIN queue_state ON queue_state.number = queue.number
    WHERE queue.number > %b::bigint ORDER BY queue.number LIMIT %b::bigint"""
_PRESENT: Final = """
    SELECT objid::integer FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND classid = %b::bigint::oid
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


class PostgresRounds:
    """See above. Nothing that fails is raised: it is logged, and tried again with the next round.

    `first_number` is the first of the numbers that this relay has for queues.
    """

    log = Logger()

    def __init__(
        self,
        database: str,
        relay: int,
        worker: Worker,
        call_from_thread: CallFromThread,
        first_number: int,
    ) -> None:
        self._kept = KeptConnection(database)
        self._relay = relay
        self._worker = worker
        self._call_from_thread = call_from_thread
        self._next_number = first_number
        self._end = first_number + NUMBERS_AT_A_TIME
        self._more: int | None = None
        self._asking = False
        self._stopped = False

    # -- numbers

    def next_number(self) -> int | None:
        """The number of a new queue; None when the database did not give any in time."""
        if self._next_number == self._end:
            if self._more is None:
                self._ask_for_numbers()
                return None
            self._next_number, self._more = self._more, None
            self._end = self._next_number + NUMBERS_AT_A_TIME
        number = self._next_number
        self._next_number += 1
        if self._more is None and self._end - number < NUMBERS_AT_A_TIME // 2:
            self._ask_for_numbers()
        return number

    def _ask_for_numbers(self) -> None:
        if not self._asking:
            self._asking = True
            self._do(lambda c: _one(c, "SELECT nextval('queue_number')"), None).addCallback(
                self._take_numbers
            )

    def _take_numbers(self, first: int | None) -> None:
        self._asking = False
        self._more = first

    # -- going over all queues

    def expire_messages(self, before: float, step: int) -> Iterator[Deferred[int]]:
        """Expires the messages of all queues, `step` queues at a time; yields how many went."""
        busy: list[int] = []
        last: list[int | None] = [0]

        def go_on(connection: Connection) -> int:
            assert last[0] is not None
            rows = connection.execute(
                "SELECT number, messages FROM queue_state WHERE number > %b::bigint"
                " ORDER BY number LIMIT %b::bigint",
                (last[0], step),
                binary=True,
            ).fetchall()
            last[0] = rows[-1][0] if rows else None
            numbers = [number for number, count in rows if count]
            old = connection.execute(_OLD, (numbers, int(before)), binary=True).fetchall()
            expired, left = _expire(connection, [row[0] for row in old], before, _LOCK)
            busy.extend(left)
            return expired

        while last[0] is not None:
            position = last[0]
            yield self._do(go_on, 0)
            if last[0] == position:
                # The database has failed.
                break
        # Each by itself: who waits for one must not keep others waiting for another.
        for number in busy:
            yield self._do(partial(_expire_patiently, number=number, before=before), 0)

    def unused_queues(self, before: int, step: int) -> Iterator[Deferred[list[bytes]]]:
        """Recipient ids of unused queues, `step` queues looked at each time.

        Those that have, or had, their subscriber at another relay that is there are its own.
        """
        last: list[int | None] = [0]
        others: list[set[int]] = []

        def go_on(connection: Connection) -> list[bytes]:
            if not others:
                rows = connection.execute(_PRESENT, (PRESENCE,), binary=True).fetchall()
                others.append({row[0] for row in rows} - {self._relay})
            found = connection.execute(_USED, (last[0], step), binary=True).fetchall()
            last[0] = found[-1][0] if found else None
            return [
                recipient_id
                for _, recipient_id, used_on, subscriber in found
                if used_on < before and subscriber not in others[0]
            ]

        while last[0] is not None:
            position = last[0]
            nothing: list[bytes] = []
            yield self._do(go_on, nothing)
            if last[0] == position:
                break

    def expire_notifications(self, before: float) -> Deferred[int]:
        """Removes old notifications; how many."""
        return self._do(
            lambda c: (
                c.execute("DELETE FROM notification WHERE timestamp < %s", (before,)).rowcount
            ),
            0,
        )

    # -- questions

    def notifiers_of(self, service_id: bytes) -> Deferred[list[bytes]]:
        """The notifiers of a service that have notifications."""
        nothing: list[bytes] = []
        return self._do(
            lambda c: [
                row[0]
                for row in c.execute(
                    "SELECT DISTINCT notifier_id FROM queue JOIN notification USING (notifier_id)"
                    " WHERE notifier_service_id = %b",
                    (service_id,),
                    binary=True,
                ).fetchall()
            ],
            nothing,
        )

    def relay_of(self, service_id: bytes) -> Deferred[int | None]:
        """The number of the relay that has the connection of a service."""
        return self._do(
            lambda c: _one(c, "SELECT subscriber FROM service WHERE service_id = %b", service_id),
            None,
        )

    # -- the thread

    def _do(self, action: Callable[[Connection], T], otherwise: T) -> Deferred[T]:
        """Has the thread do something in a transaction; its result, or `otherwise`."""
        done: Deferred[T] = Deferred()
        if self._stopped:
            done.callback(otherwise)
            return done

        def job() -> None:
            try:
                with self._kept.get().transaction():
                    result = action(self._kept.get())
            except Exception as error:  # noqa: BLE001 - it is told, and done again some time
                self._call_from_thread(self._failed, failure_reason(error))
                result = otherwise
            self._call_from_thread(done.callback, result)

        self._worker.submit(job)
        return done

    def _failed(self, reason: str) -> None:
        self.log.warn(  # noqa: G010 (the name Twisted gives it)
            "the store: {reason}; a round is not done this time", reason=reason
        )

    def stop(self, seconds: float) -> None:
        """Ends the thread after what it does now."""
        self._stopped = True
        self._worker.submit(self._kept.close)
        self._worker.stop(seconds)


def _expire(
    connection: Connection, numbers: list[int], before: float, lock: str
) -> tuple[int, set[int]]:
    """How many messages went, and the queues that could not be locked."""
    if not numbers:
        return 0, set()
    locked = [row[0] for row in connection.execute(lock, (numbers,), binary=True).fetchall()]
    gone = connection.execute(EXPIRE, (locked, [int(before)] * len(locked)), binary=True)
    queues = [row[0] for row in gone.fetchall()]
    if queues:
        connection.execute(_LESS, (queues,), binary=True)
    return len(queues), set(numbers) - set(locked)


def _expire_patiently(connection: Connection, *, number: int, before: float) -> int:
    return _expire(connection, [number], before, _LOCK_PATIENTLY)[0]


def _one(connection: Connection, query: str, *values: Any) -> int | None:
    row = connection.execute(query, values, binary=True).fetchone()
    return None if row is None else int(row[0])
