"""What the SQLite store reads, on the reactor's thread; the writer never makes it wait.

Every method raises `StoreError` when the database cannot be read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final, TypeVar

from smpd.queues import Queue
from smpd.stores.bodies import MessageBodies, Place
from smpd.stores.interface import Notification, Service, StoreError
from smpd.stores.rows import (
    LINK_COLUMNS,
    QUEUE_COLUMNS,
    SERVICE_COLUMNS,
    DamagedRow,
    Row,
    queue_from_row,
    service_from_row,
)
from smpd.stores.sqlite_file import failure_reason
from smpd.stores.sqlite_rows import MESSAGE_COLUMNS, NOTIFICATION_COLUMNS, StoredMessage

T = TypeVar("T")

_COLUMNS: Final = ", ".join(
    [*(f"queue.{name}" for name in QUEUE_COLUMNS), *(f"link.{name}" for name in LINK_COLUMNS[1:])]
)
_FROM: Final = f"SELECT {_COLUMNS} FROM queue LEFT JOIN link ON link.queue = queue.number"  # noqa: S608
ALL_QUEUES: Final = _FROM + " ORDER BY queue.number"
_QUEUE: Final = _FROM + " WHERE "
BY_NUMBER: Final = _QUEUE + "queue.number = ?"
UP_TO_NUMBER: Final = _QUEUE + "queue.number <= ? ORDER BY queue.number DESC LIMIT 1"
"""The queue with this number, or the one before."""
BY_RECIPIENT: Final = _QUEUE + "queue.recipient_id = ?"
BY_SENDER: Final = _QUEUE + "queue.sender_id = ?"
BY_NOTIFIER: Final = _QUEUE + "queue.notifier_id = ?"
BY_LINK: Final = (
    f"SELECT {_COLUMNS} FROM link JOIN queue ON queue.number = link.queue"  # noqa: S608
    " WHERE link.link_id = ?"
)
_SEARCH_SENDER: Final = "SELECT number FROM queue WHERE sender_id = ?"
_MESSAGES: Final = (
    f"SELECT {', '.join(MESSAGE_COLUMNS[1:])} FROM message"  # noqa: S608
    " WHERE queue = ? ORDER BY number"
)
_ALL_MESSAGES: Final = (
    "SELECT queue, number, timestamp, file IS NULL FROM message WHERE (queue, number) > (?, ?)"
    " ORDER BY queue, number LIMIT ?"
)
_USED: Final = "SELECT number, used_on FROM queue WHERE number > ? ORDER BY number LIMIT ?"
_NOTIFICATIONS: Final = (
    f"SELECT {', '.join(NOTIFICATION_COLUMNS)} FROM notification ORDER BY number"  # noqa: S608
)
_SERVICE: Final = f"SELECT {', '.join(SERVICE_COLUMNS)} FROM service WHERE fingerprint = ?"  # noqa: S608
_NOTIFIER_COUNT: Final = "SELECT notifiers FROM service WHERE service_id = ?"


class SqliteReader:
    """Reads through a connection of its own, and from the files of bodies."""

    def __init__(self, connection: sqlite3.Connection, bodies: MessageBodies) -> None:
        self._connection = connection
        self._bodies = bodies

    def _rows(self, query: str, *values: Any) -> list[Row]:
        # All rows at once: a statement that is left open keeps the log from being emptied.
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(failure_reason(error)) from error

    def queue_row(self, query: str, value: object) -> Row | None:
        """The row of the queue that `query`, one of those above, finds for an id."""
        rows = self._rows(query, value)
        return rows[0] if rows else None

    def search_sender(self, sender_id: bytes) -> None:
        """Takes as long as to find out whether there is a queue with this id."""
        self._rows(_SEARCH_SENDER, sender_id)

    def queue(self, row: Row) -> Queue:
        """The queue of a row."""
        return _undamaged(queue_from_row, row)

    def messages(self, number: int) -> list[StoredMessage]:
        """The messages of the queue with this number, the first one first."""
        rows = self._rows(_MESSAGES, number)
        return [StoredMessage.from_row(row, number, self.body) for row in rows]

    def body(self, place: Place) -> bytes:
        """The body at a place."""
        try:
            return self._bodies.read(place)
        except OSError as error:
            raise StoreError(failure_reason(error)) from error

    def some_messages(self, queue: int, number: int, most: int) -> list[Row]:
        """`most` messages of all queues behind the given one, in the order of queues.

        Of each: number of its queue, its number, its time, whether it is a quota marker.
        """
        return self._rows(_ALL_MESSAGES, queue, number, most)

    def some_queues(self, number: int, most: int) -> list[Row]:
        """`most` queues behind the one with the given number: number and day of use of each."""
        return self._rows(_USED, number, most)

    def notifications(self) -> list[tuple[int, bytes, Notification]]:
        """All notifications with their numbers and notifiers, oldest first."""
        return [
            (number, notifier_id, Notification(timestamp, nonce, meta))
            for number, notifier_id, timestamp, nonce, meta in self._rows(_NOTIFICATIONS)
        ]

    def service(self, fingerprint: bytes) -> Service | None:
        """The service with this fingerprint."""
        rows = self._rows(_SERVICE, fingerprint)
        return _undamaged(service_from_row, rows[0]) if rows else None

    def notifier_count(self, service_id: bytes) -> int:
        """How many notifiers are associated with the service."""
        rows = self._rows(_NOTIFIER_COUNT, service_id)
        return int(rows[0][0]) if rows else 0


def _undamaged(decode: Callable[[Row], T], row: Row) -> T:
    try:
        return decode(row)
    except DamagedRow as error:
        raise StoreError(failure_reason(error)) from error
