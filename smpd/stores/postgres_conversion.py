"""The PostgreSQL store as a source and a target of a conversion.

A source is read in one transaction, through cursors of the server. A target is written in one
transaction, so it is empty until that is committed. Its queues get numbers as those of
relays do, from the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql

from smpd.queues import Message, Queue
from smpd.stores.conversion import (
    Counts,
    Record,
    Source,
    Target,
    Waiting,
    behind_their_queues,
)
from smpd.stores.interface import Notification, Service, StoreUnusable
from smpd.stores.postgres_database import (
    Connection,
    check_schema,
    connect,
    first_line,
    known_version,
    upgrade,
)
from smpd.stores.postgres_presence import check_no_relays, take_alone
from smpd.stores.postgres_rounds import NUMBERS_AT_A_TIME
from smpd.stores.rows import (
    LINK_COLUMNS,
    QUEUE_COLUMNS,
    SERVICE_COLUMNS,
    DamagedRow,
    Row,
    link_row,
    queue_from_row,
    queue_row,
    service_from_row,
    service_row,
)

_ROWS: Final = 5000
"""Rows that are copied together, at most."""
_BYTES: Final = 16 << 20
"""Bytes of bodies that are copied together, at most, and those of the last one more."""
_FETCHED: Final = 2000
_BODIES_FETCHED: Final = 200
_LOCK_TIME: Final = "5s"
_SETTINGS: Final = (
    "SET LOCAL search_path = smpd",
    # Whatever is usual on this server: it takes as long as it takes.
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)

_QUEUES: Final = f"""
    SELECT {", ".join(f"queue.{name}" for name in QUEUE_COLUMNS)},
        link.link_id, link.fixed, link."user"
    FROM queue LEFT JOIN link ON link.queue = queue.number ORDER BY queue.number"""  # noqa: S608
_MESSAGES: Final = """
    SELECT queue, msg_id, timestamp, notify, body FROM message ORDER BY queue, number"""
_NOTIFICATIONS: Final = """
    SELECT notifier_id, timestamp, nonce, meta FROM notification ORDER BY number"""
_SERVICES: Final = """
    SELECT service_id, fingerprint, role, chain, created_on, 0 FROM service ORDER BY service_id"""
_COUNTS: Final = """
    SELECT queues, links, messages, notifiers, associations, notifications, services FROM
    (SELECT count(*), count(notifier_id), count(notifier_service_id) FROM queue)
        AS a (queues, notifiers, associations),
    (SELECT count(*) FROM link) AS b (links),
    (SELECT count(*) FROM message) AS c (messages),
    (SELECT count(*) FROM notification) AS d (notifications),
    (SELECT count(*) FROM service) AS e (services)"""

# Tables with the columns that are copied, and their types.
_TABLES: Final[dict[str, tuple[Sequence[str], Sequence[str]]]] = {
    "queue": (
        QUEUE_COLUMNS,
        ("int8", *("bytea",) * 5, "text", "text", "bytea", "int8", *("bytea",) * 5),
    ),
    "link": (LINK_COLUMNS, ("int8", "bytea", "bytea", "bytea")),
    "queue_state": (
        ("number", "version", "messages", "can_write", "subscriber", "notifier_subscriber"),
        ("int8", "int8", "int4", "bool", "int4", "int4"),
    ),
    "message": (
        ("queue", "number", "msg_id", "timestamp", "notify", "body"),
        ("int8", "int8", "bytea", "int8", "bool", "bytea"),
    ),
    "notification": (
        ("notifier_id", "timestamp", "nonce", "meta"),
        ("bytea", "int8", "bytea", "bytea"),
    ),
    "service": (
        (*SERVICE_COLUMNS[:-1], "subscriber"),
        ("bytea", "bytea", "text", "bytea", "int8", "int4"),
    ),
}


@contextmanager
def _told(action: str) -> Iterator[None]:
    """Failures of the database become sentences."""
    try:
        yield
    except psycopg.Error as error:
        raise StoreUnusable(f"cannot {action} the database: {first_line(error)}") from None
    except DamagedRow as error:
        raise StoreUnusable(f"cannot {action} the database: it is damaged") from error


def _set_up(connection: Connection) -> None:
    for setting in _SETTINGS:
        connection.execute(sql.SQL(setting))


def _count(connection: Connection) -> Counts:
    (row,) = connection.execute(_COUNTS).fetchall()
    return Counts(*row)


class PostgresSource(Source):
    """The store of a database. Raises `StoreUnusable` when there is none or it is in use."""

    def __init__(self, database: str) -> None:
        self._connection = connect(database)
        try:
            check_schema(self._connection)
            take_alone(self._connection)
            with _told("read"):
                self._begin()
        except BaseException:
            self._connection.close()
            raise

    def _begin(self) -> None:
        connection = self._connection
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        _set_up(connection)

    def records(self) -> Iterator[Record]:
        with _told("read"):
            for row in self._rows("services", _SERVICES, _FETCHED):
                yield service_from_row(row)
            queues = map(queue_from_row, self._rows("queues", _QUEUES, _FETCHED))
            messages = map(_message, self._rows("messages", _MESSAGES, _BODIES_FETCHED))
            yield from behind_their_queues(queues, messages)
            for notifier_id, *rest in self._rows("notifications", _NOTIFICATIONS, _FETCHED):
                yield Waiting(notifier_id, Notification(*rest))

    def _rows(self, name: str, query: str, together: int) -> Iterator[Row]:
        with self._connection.cursor(name) as cursor:
            cursor.itersize = together
            cursor.execute(query, binary=True)
            yield from cursor

    def counts(self) -> Counts:
        with _told("read"):
            return _count(self._connection)

    def confirm(self) -> None:
        check_no_relays(self._connection)

    def close(self) -> None:
        self._connection.close()


def _message(row: Row) -> tuple[int, Message]:
    queue, msg_id, timestamp, notify, body = row
    return queue, Message(msg_id, timestamp, notify, body)


class PostgresTarget(Target):
    """A new store in a database, whose tables are made if there are none.

    Raises `StoreUnusable` when there is anything in them.
    """

    def __init__(self, database: str) -> None:
        self._connection = connect(database)
        self._pending: dict[str, list[Row]] = {table: [] for table in _TABLES}
        self._size = self._bytes = 0
        self._queue: Queue | None = None
        self._messages = 0
        self._can_write = True
        self._next_number = self._end = 0
        try:
            if known_version(self._connection) is None:
                upgrade(self._connection)
            check_schema(self._connection)
            take_alone(self._connection)
            with _told("write"):
                self._begin()
        except BaseException:
            self._connection.close()
            raise

    def _begin(self) -> None:
        connection = self._connection
        connection.autocommit = False
        _set_up(connection)
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIME))
        tables = sql.SQL(", ").join(map(sql.Identifier, _TABLES))
        # Nobody sees or changes anything until the end.
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))
        if _count(connection) != Counts():
            raise StoreUnusable("the database is not empty")
        # The tables get new files, of which nothing stays if the transaction is not committed.
        connection.execute(sql.SQL("TRUNCATE {}").format(tables))

    # -- writing

    def write(self, record: Record) -> None:
        if isinstance(record, Message):
            self._write_message(record)
        elif isinstance(record, Queue):
            self._write_queue(record)
        elif isinstance(record, Waiting):
            one = record.notification
            row = (record.notifier_id, one.timestamp, one.nonce, one.meta)
            self._add("notification", row)
        else:
            self._write_service(record)

    def _write_message(self, message: Message) -> None:
        assert self._queue is not None, "a message without a queue"
        self._messages += 1
        self._can_write = not message.is_quota
        self._bytes += len(message.body or b"")
        number, is_notified = self._messages, message.notify
        self._add(
            "message",
            (
                self._queue.number,
                number,
                message.msg_id,
                message.timestamp,
                is_notified,
                message.body,
            ),
        )

    def _write_queue(self, queue: Queue) -> None:
        self._end_queue()
        queue.number = self._number()
        self._queue = queue
        if queue.link is not None:
            self._add("link", link_row(queue, queue.link))
        self._add("queue", queue_row(queue))

    def _end_queue(self) -> None:
        """Writes the state of the last queue, of which all messages are there now."""
        queue, self._queue = self._queue, None
        if queue is not None:
            # Versions begin with 1, and each message has one of its own.
            version = self._messages + 1
            state = (queue.number, version, self._messages, self._can_write, 0, 0)
            self._add("queue_state", state)
        self._messages = 0
        self._can_write = True

    def _number(self) -> int:
        if self._next_number == self._end:
            with _told("write"):
                query = "SELECT nextval('queue_number')"
                ((first,),) = self._connection.execute(query).fetchall()
            self._next_number, self._end = first, first + NUMBERS_AT_A_TIME
        number = self._next_number
        self._next_number += 1
        return number

    def _write_service(self, service: Service) -> None:
        self._add("service", service_row(service, 0))

    def _add(self, table: str, row: Row) -> None:
        self._pending[table].append(row)
        self._size += 1
        if self._size >= _ROWS or self._bytes >= _BYTES:
            self._copy()

    def _copy(self) -> None:
        self._size = self._bytes = 0
        with _told("write"), self._connection.cursor() as cursor:
            for table, rows in self._pending.items():
                if rows:
                    _copy_rows(cursor, table, rows)
                    rows.clear()

    # -- ending

    def counts(self) -> Counts:
        self._end_queue()
        self._copy()
        with _told("read"):
            return _count(self._connection)

    def finish(self) -> None:
        with _told("write"):
            self._connection.commit()
        # It would be done some time, and a relay may be there sooner.
        with suppress(psycopg.Error):
            self._connection.autocommit = True
            for table in _TABLES:
                self._connection.execute(sql.SQL("ANALYZE smpd.{}").format(sql.Identifier(table)))

    def close(self) -> None:
        # What is not committed is undone with that.
        self._connection.close()


def _copy_rows(cursor: psycopg.Cursor[Any], table: str, rows: Sequence[Row]) -> None:
    columns, types = _TABLES[table]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
