"""What the writer's thread of the SQLite store does: one transaction for a batch of changes.

Bodies come first, then the rows that name them. The place of a body is noted to be
wiped by the transaction that removes its row, wiped afterwards, and the note goes with
a later transaction: a crash in between leaves a note, which is seen to at the next start.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from smpd.stores.bodies import MessageBodies, Place
from smpd.stores.rows import LINK_COLUMNS, QUEUE_COLUMNS, SERVICE_COLUMNS, Row
from smpd.stores.sqlite_rows import (
    MESSAGE_COLUMNS,
    NOTIFICATION_COLUMNS,
    StoredMessage,
    encode_places,
)

_MOST_ROWS: Final = 128
"""Rows that one statement takes."""
_RESERVE: Final = 100_000
_MOST_WIPED: Final = 256
"""Bodies that are wiped in one go, while commits wait: about 5 ms."""


@dataclass(slots=True)
class Batch:
    """Changes that are committed together; `noted` is the number of the last.

    `unlinked` are the queues whose links have changed or are gone, and `freed` those whose
    notifiers have: another queue may have them now. `places` are where the bodies of
    `messages` are, once they are safe; None for markers.
    """

    noted: int
    queue_count: int
    deleted: list[int]
    freed: list[int]
    queues: list[Row]
    links: list[Row]
    unlinked: list[int]
    messages: list[StoredMessage]
    removed: list[tuple[int, int]]
    to_wipe: list[Place]
    notifications: list[Row]
    taken: list[int]
    services: list[Row]
    notifier_counts: list[tuple[bytes, int]]
    places: list[Place | None] = field(default_factory=list)


def _insert(table: str, columns: Sequence[str], key: str) -> tuple[str, str, str]:
    """A statement for rows that may be there: its beginning, one row of it, its end."""
    keys = key.split(", ")
    others = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in keys)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ",  # noqa: S608
        f"({', '.join('?' * len(columns))})",
        f" ON CONFLICT ({key}) DO UPDATE SET {others}",
    )


_QUEUE: Final = _insert("queue", QUEUE_COLUMNS, "number")
_LINK: Final = _insert("link", LINK_COLUMNS, "queue")
_MESSAGE: Final = _insert("message", MESSAGE_COLUMNS, "queue, number")
_NOTIFICATION: Final = _insert("notification", NOTIFICATION_COLUMNS, "number")
_SERVICE: Final = _insert("service", SERVICE_COLUMNS, "service_id")
# Without the inner SELECT it would be a scan of the table.
_REMOVED: Final = (
    "DELETE FROM message WHERE (queue, number) IN (SELECT column1, column2 FROM (VALUES ",
    "(?, ?)",
    "))",
)
_DELETED: Final = ("DELETE FROM queue WHERE number IN (", "?", ")")
_UNLINKED: Final = ("DELETE FROM link WHERE queue IN (", "?", ")")
_ITS_MESSAGES: Final = ("DELETE FROM message WHERE queue IN (", "?", ")")
_ITS_PLACES: Final = (
    "SELECT file, offset, size FROM message WHERE file IS NOT NULL AND queue IN (",
    "?",
    ")",
)
_TAKEN: Final = ("DELETE FROM notification WHERE number IN (", "?", ")")
_FREED: Final = ("UPDATE queue SET notifier_id = NULL WHERE number IN (", "?", ")")
_SIZE: Final = _insert("body_file", ("number", "size", "live"), "number")


class SqliteWriter:
    """Writes batches through `connection`, which is in autocommit mode, and to `bodies`.

    `live` counts the bodies of each file that are not wiped yet; `noted` is the number up to
    which earlier runs may have used the sequence, and `queue_count` how many queues there
    are. `to_wipe` was noted by earlier runs, `wipe_note` is the number of the last note.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        bodies: MessageBodies,
        live: Counter[int],
        *,
        noted: int,
        queue_count: int,
        to_wipe: Sequence[Place] = (),
        wipe_note: int = 0,
    ) -> None:
        self._connection = connection
        self._bodies = bodies
        self._live = live
        self._reserved = noted
        self._queue_count = queue_count
        self._to_wipe = list(to_wipe)
        self._wipe_note = wipe_note
        self._wiping: list[Place] = []
        self._wiping_note = 0
        self._partly: Counter[int] = Counter()
        self._wiped: Counter[int] = Counter()
        self._wiped_note = 0
        self._gone: list[int] = []

    # -- committing

    def write(self, batch: Batch) -> None:
        """Makes a batch safe. Raises `sqlite3.Error` or `OSError`, and has changed nothing then."""
        contents = [each.content for each in batch.messages if each.content is not None]
        try:
            found = iter(self._append(contents))
            places = [None if each.content is None else next(found) for each in batch.messages]
            added = Counter(place.file for place in places if place is not None)
            with _transaction(self._connection):
                to_wipe = [*batch.to_wipe, *self._change(batch, places)]
                reserved = self._count(batch)
                note = self._note(to_wipe)
                self._record_files(added)
        except BaseException:
            with suppress(OSError):
                # What cannot be cut off now lies beyond the committed size.
                self._bodies.undo()
            raise
        self._bodies.keep()
        batch.places = places
        self._live += added
        self._recorded()
        self._to_wipe += to_wipe
        self._wipe_note = note
        self._reserved = reserved
        self._queue_count = batch.queue_count

    def _append(self, contents: list[bytes]) -> list[Place]:
        if not contents:
            return []
        places = self._bodies.append(contents)
        self._bodies.sync()
        return places

    def _change(self, batch: Batch, places: Sequence[Place | None]) -> list[Place]:
        """The rows of a batch; returns the places of messages that went with their queues."""
        gone: list[Place] = []
        if batch.deleted:
            numbers = [(number,) for number in batch.deleted]
            gone = [Place(*row) for row in self._rows(_ITS_PLACES, numbers)]
            for statement in (_ITS_MESSAGES, _UNLINKED, _DELETED):
                self._rows(statement, numbers)
        self._rows(_UNLINKED, [(number,) for number in batch.unlinked])
        self._rows(_FREED, [(number,) for number in batch.freed])
        self._rows(_QUEUE, batch.queues)
        self._rows(_LINK, batch.links)
        rows = [each.row(place) for each, place in zip(batch.messages, places, strict=True)]
        self._rows(_MESSAGE, rows)
        self._rows(_REMOVED, batch.removed)
        self._rows(_NOTIFICATION, batch.notifications)
        self._rows(_TAKEN, [(number,) for number in batch.taken])
        self._rows(_SERVICE, batch.services)
        for service_id, count in batch.notifier_counts:
            self._connection.execute(
                "UPDATE service SET notifiers = ? WHERE service_id = ?", (count, service_id)
            )
        return gone

    def _count(self, batch: Batch) -> int:
        """Keeps the counts; returns up to which number the sequence is reserved.

        Many numbers are reserved together, since a commit that writes one page less is shorter.
        """
        reserved = self._reserved
        if batch.noted > reserved:
            reserved = batch.noted + _RESERVE
        if (reserved, batch.queue_count) != (self._reserved, self._queue_count):
            self._connection.execute(
                "UPDATE state SET noted = ?, queues = ?", (reserved, batch.queue_count)
            )
        return reserved

    def _rows(self, statement: tuple[str, str, str], rows: Sequence[Row]) -> list[Row]:
        """Executes a statement for many rows at once, and returns what it selects.

        With each step of SQLite the thread gives up the interpreter, which a busy reactor
        keeps for milliseconds. The statement for one row too few is filled up with the
        last one, so that there are few statements, which are compiled once.
        """
        beginning, one, end = statement
        selected: list[Row] = []
        for start in range(0, len(rows), _MOST_ROWS):
            some = list(rows[start : start + _MOST_ROWS])
            size = 1 << (len(some) - 1).bit_length()
            some += [some[-1]] * (size - len(some))
            text = f"{beginning}{', '.join([one] * size)}{end}"
            values = [value for row in some for value in row]
            selected += self._connection.execute(text, values).fetchall()
        return selected

    # -- wiping

    def _note(self, places: Sequence[Place]) -> int:
        """Notes places to be wiped; the number of the last note."""
        if not places:
            return self._wipe_note
        number = self._wipe_note + 1
        # It is there already when a commit had succeeded and said that it had not.
        self._connection.execute(
            "INSERT OR REPLACE INTO wipe VALUES (?, ?)", (number, encode_places(places))
        )
        return number

    def _record_files(self, added: Counter[int]) -> None:
        """The sizes of files and the bodies in them; what was wiped needs its note no more."""
        sizes = self._bodies.sizes()
        for number, size in sizes.items():
            live = self._live[number] + added[number] - self._wiped[number]
            beginning, one, end = _SIZE
            self._connection.execute(beginning + one + end, (number, size, live))
        if not self._wiped:
            return
        self._connection.execute("DELETE FROM wipe WHERE number <= ?", (self._wiped_note,))
        for number, count in self._wiped.items():
            if number not in sizes:
                self._connection.execute(
                    "UPDATE body_file SET live = ? WHERE number = ?",
                    (self._live[number] - count, number),
                )
        for number in self._gone:
            self._connection.execute("DELETE FROM body_file WHERE number = ?", (number,))

    def _recorded(self) -> None:
        self._live -= self._wiped
        self._wiped.clear()
        self._gone.clear()

    def wipe(self) -> bool:
        """Wipes some of what is to be wiped; whether there is more.

        Raises `OSError`; the same is tried again with the next call.
        """
        if not self._wiping:
            # Neighbours are wiped together.
            self._wiping, self._to_wipe = sorted(self._to_wipe, reverse=True), []
            self._wiping_note = self._wipe_note
        some = self._wiping[-_MOST_WIPED:]
        if some:
            self._gone += self._bodies.wipe(some)
            del self._wiping[-_MOST_WIPED:]
            self._partly.update(place.file for place in some)
        if not self._wiping:
            # Only when all of a note are wiped it may go.
            self._wiped += self._partly
            self._partly.clear()
            self._wiped_note = self._wiping_note
        return bool(self._wiping or self._to_wipe)

    def empty_log(self) -> None:
        """Forgets notes about what is wiped, and empties the log of the database.

        What was removed from the database is in the log until then. Raises
        `sqlite3.Error`; nothing is lost by that.
        """
        if self._wiped:
            with _transaction(self._connection):
                self._record_files(Counter())
            self._recorded()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction of a connection in autocommit mode."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
