"""One transaction of the PostgreSQL store after the other, for a thread that waits for them.

A transaction locks and reads (`Lane.load`), is given what changes (`Lane.write`), or nothing
(`Lane.leave`). Statements of one step go out together, so each step takes one or two journeys.
Queues that somebody else has locked are not waited for. `psycopg.Error` is raised
when the database does not do it; then all is undone, unless the connection was lost
while it was committed: that can be found out (`Lane.again`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from psycopg import Error

from smpd.stores.interface import What
from smpd.stores.postgres_database import Connection, KeptConnection
from smpd.stores.postgres_journeys import Answer, Journeys
from smpd.stores.postgres_rows import Found, Key, Query, Rows, State, columns, payloads
from smpd.stores.rows import LINK_COLUMNS, QUEUE_COLUMNS

_COLUMNS: Final = ", ".join(
    [
        *(f"queue.{name}" for name in QUEUE_COLUMNS),
        "link.link_id",
        "link.fixed",
        'link."user"',
    ]
)
_FIND: Final = """
    SELECT 'recipient', recipient_id, number FROM queue WHERE recipient_id = ANY(%b::bytea[])
    UNION ALL
    SELECT 'sender', sender_id, number FROM queue WHERE sender_id = ANY(%b::bytea[])
    UNION ALL
    SELECT 'notifier', notifier_id, number FROM queue WHERE notifier_id = ANY(%b::bytea[])
    UNION ALL
    SELECT 'link', link_id, queue FROM link WHERE link_id = ANY(%b::bytea[])"""
_LOCK: Final = f"""
    SELECT number, version, messages, can_write, subscriber, notifier_subscriber
    FROM queue_state WHERE number IN (SELECT number FROM ({_FIND}) AS found (a, b, number))
    FOR UPDATE SKIP LOCKED"""  # noqa: S608
# In the order of numbers, so that no two who wait do it for each other; others do not wait.
_LOCK_PATIENTLY: Final = _LOCK.replace("SKIP LOCKED", "").replace(
    "FOR UPDATE", "ORDER BY number FOR UPDATE"
)
_EXCLUDE: Final = """
    SELECT id FROM unnest(%b::bytea[]) AS id
    WHERE NOT pg_try_advisory_xact_lock(hashtextextended(encode(id, 'hex'), 0))"""
_QUEUES: Final = f"""
    SELECT {_COLUMNS} FROM queue LEFT JOIN link ON link.queue = queue.number
    WHERE queue.number = ANY(%b::bigint[])"""  # noqa: S608
_DECOY: Final = f"""
    SELECT {_COLUMNS} FROM queue LEFT JOIN link ON link.queue = queue.number
    WHERE queue.number >= %b::bigint ORDER BY queue.number LIMIT 1"""  # noqa: S608
EXPIRE: Final = """
    DELETE FROM message USING unnest(%b::bigint[], %b::bigint[]) AS wanted (queue, before)
    WHERE message.queue = wanted.queue AND message.number < COALESCE(
        (SELECT min(kept.number) FROM message AS kept WHERE kept.queue = wanted.queue
         AND (kept.body IS NULL OR kept.timestamp >= wanted.before)), 9223372036854775807)
    RETURNING message.queue, message.number"""
_MESSAGES: Final = """
    SELECT first.queue, first.number, first.msg_id, first.timestamp, first.notify, first.body
    FROM unnest(%b::bigint[], %b::bigint[]) AS wanted (queue, messages) CROSS JOIN LATERAL
    (SELECT * FROM message WHERE queue = wanted.queue ORDER BY number
     LIMIT wanted.messages) AS first"""
_DECOY_MESSAGES: Final = """
    SELECT first.number, first.msg_id, first.timestamp, first.notify, first.body
    FROM unnest(%b::bigint[], %b::bigint[]) AS wanted (place, messages) CROSS JOIN LATERAL
    (SELECT * FROM message WHERE queue =
        (SELECT number FROM queue WHERE number >= wanted.place ORDER BY number LIMIT 1)
     ORDER BY number LIMIT wanted.messages) AS first"""
_NOTIFICATIONS: Final = """
    SELECT notifier_id, number, timestamp, nonce, meta FROM notification
    WHERE notifier_id = ANY(%b::bytea[]) ORDER BY number"""
_CERTIFICATES: Final = """
    SELECT service_id, fingerprint, role, chain, created_on, 0 FROM service
    WHERE fingerprint = ANY(%b::bytea[])"""
_COUNTS: Final = """
    SELECT notifier_service_id, count(*) FROM queue
    WHERE notifier_service_id = ANY(%b::bytea[]) GROUP BY notifier_service_id"""

_QUEUE_TYPES: Final = (
    "bigint",
    *("bytea",) * 5,
    "text",
    "text",
    "bytea",
    "bigint",
    *("bytea",) * 5,
)


def _unnest(*types: str) -> str:
    return "unnest(" + ", ".join(f"%b::{each}[]" for each in types) + ")"


_WRITE_QUEUES: Final = (
    f"INSERT INTO queue ({', '.join(QUEUE_COLUMNS)}) SELECT * FROM {_unnest(*_QUEUE_TYPES)}"  # noqa: S608
    " ON CONFLICT (number) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in QUEUE_COLUMNS[1:])
)
_WRITE_LINKS: Final = (
    f'INSERT INTO link ({", ".join(LINK_COLUMNS[:-1])}, "user")'  # noqa: S608
    f" SELECT * FROM {_unnest('bigint', 'bytea', 'bytea', 'bytea')}"
)
_STATE: Final = _unnest("bigint", "bigint", "integer", "boolean", "integer", "integer")
_WRITE_NEW_STATES: Final = f"INSERT INTO queue_state SELECT * FROM {_STATE}"  # noqa: S608
_WRITE_STATES: Final = f"""
    UPDATE queue_state SET version = new.version, messages = new.messages,
        can_write = new.can_write, subscriber = new.subscriber,
        notifier_subscriber = new.notifier_subscriber
    FROM {_STATE} AS new
        (number, version, messages, can_write, subscriber, notifier_subscriber)
    WHERE queue_state.number = new.number"""  # noqa: S608
_WRITE_MESSAGES: Final = (
    "INSERT INTO message SELECT * FROM "  # noqa: S608
    f"{_unnest('bigint', 'bigint', 'bytea', 'bigint', 'boolean', 'bytea')}"
)
_REMOVE_MESSAGES: Final = """
    DELETE FROM message USING unnest(%b::bigint[], %b::bigint[]) AS gone (queue, number)
    WHERE message.queue = gone.queue AND message.number = gone.number"""
_WRITE_NOTIFICATIONS: Final = (
    "INSERT INTO notification (notifier_id, timestamp, nonce, meta) SELECT * FROM "  # noqa: S608
    f"{_unnest('bytea', 'bigint', 'bytea', 'bytea')}"
)
_WRITE_SERVICES: Final = (
    "INSERT INTO service SELECT *, 0 FROM "  # noqa: S608
    f"{_unnest('bytea', 'bytea', 'text', 'bytea', 'bigint')}"
)
_TELL_FORMER: Final = """
    SELECT pg_notify('smpd_' || subscriber, 's' || encode(service_id, 'hex')) FROM (
        SELECT service_id, subscriber FROM service
        WHERE service_id = ANY(%b::bytea[]) AND subscriber <> %b::integer
        ORDER BY service_id FOR UPDATE) AS former
    WHERE subscriber <> 0"""
_CLAIM: Final = "UPDATE service SET subscriber = %b::integer WHERE service_id = ANY(%b::bytea[])"
_TELL_SERVICES: Final = """
    SELECT pg_notify('smpd_' || service.subscriber, notice.word)
    FROM unnest(%b::bytea[], %b::text[], %b::boolean[]) AS notice (service_id, word, self)
    JOIN service ON service.service_id = notice.service_id
    WHERE service.subscriber <> 0 AND (notice.self OR service.subscriber <> %b::integer)"""
_TELL: Final = "SELECT pg_notify(%b::text, %b::text)"
_HOLD: Final = "SELECT batch FROM lane WHERE relay = %b::integer AND lane = %b::integer FOR UPDATE"
_MARK: Final = "UPDATE lane SET batch = %b::bigint WHERE relay = %b::integer AND lane = %b::integer"


class ConflictError(Exception):
    """Somebody else has changed a queue since, so a transaction cannot be made again."""


def channel(relay: int) -> str:
    """Where a relay is told what others do."""
    return f"smpd_{relay}"


class Lane:
    """The transactions of one thread of a relay, with a connection that is kept for it.

    `relay` is the relay's number.
    """

    def __init__(self, database: str, relay: int, number: int) -> None:
        self._kept = KeptConnection(database)
        self._relay = relay
        self._number = number
        self._connection: Connection | None = None
        self._journeys: Journeys | None = None
        self._entered = False

    # -- the beginning of a transaction

    def load(self, query: Query) -> Found:
        """Locks what is wanted and free, and reads what is not in memory."""
        try:
            return self._load(query)
        except BaseException:
            self._give_back()
            raise

    def _load(self, query: Query) -> Found:
        connection = self._take()
        found = Found()
        self._lock(connection, query, found)
        stale = []
        for number, state in found.states.items():
            known = query.known.get(number)
            if known is None or known.version != state.version:
                stale.append(number)
        missed = [key for key in query.keys if key not in found.numbers and key not in query.seen]
        self._read(connection, query, found, stale, missed)
        return found

    def _lock(self, connection: Connection, query: Query, found: Found) -> None:
        ids = [query.ids(what) for what in (What.RECIPIENT, What.SENDER, What.NOTIFIER, What.LINK)]
        excluded: Answer | None = None
        with self._together(connection) as journey:
            # Held to the end: who makes this transaction again waits for that.
            journey.execute(_HOLD, (self._relay, self._number))
            if query.exclusive:
                excluded = journey.execute(_EXCLUDE, (list(query.exclusive),))
            located = journey.execute(_FIND, ids)
            locked = journey.execute(_LOCK_PATIENTLY if query.patient else _LOCK, ids)
        if excluded is not None:
            found.taken = {row[0] for row in excluded.fetchall()}
        states = {row[0]: State(*row) for row in locked.fetchall()}
        for what, entity_id, number in located.fetchall():
            key = (What(what), entity_id)
            found.numbers[key] = number
            if number in states:
                found.states[number] = states[number]
            else:
                found.busy.add(key)

    def _read(
        self,
        connection: Connection,
        query: Query,
        found: Found,
        stale: list[int],
        missed: list[Key],
    ) -> None:
        """What takes a second journey, if anything is to be read."""
        expire = {
            found.numbers[key]: before
            for key, before in query.expire.items()
            if key in found.numbers and key not in found.busy
        }
        expire = {number: at for number, at in expire.items() if found.states[number].messages}
        # What is in memory of a queue may be what goes.
        bodies = self._bodies(query, found, {*stale, *expire})
        notifiers = query.ids(What.NOTIFIER)
        if not (
            stale or missed or bodies or expire or notifiers or query.certificates or query.services
        ):
            return
        cursors: dict[str, Answer] = {}
        with self._together(connection) as journey:

            def ask(name: str, statement: str, *values: Any) -> None:
                cursors[name] = journey.execute(statement, values)

            if stale:
                ask("queues", _QUEUES, stale)
            # As long as for a queue that is there and not in memory, and for its messages.
            places = {key: int.from_bytes(key[1][:7], "big") % query.highest for key in missed}
            for number, place in enumerate(places.values()):
                ask(f"decoy {number}", _DECOY, place)
            if decoys := [
                (places[key], query.bodies[key]) for key in missed if key in query.bodies
            ]:
                ask("decoy messages", _DECOY_MESSAGES, *columns(decoys, 2))
            if expire:
                ask("expired", EXPIRE, list(expire), list(expire.values()))
            if bodies:
                ask("messages", _MESSAGES, list(bodies), list(bodies.values()))
            if notifiers:
                ask("notifications", _NOTIFICATIONS, notifiers)
            if query.certificates:
                ask("certificates", _CERTIFICATES, list(query.certificates))
            if query.services:
                ask("counts", _COUNTS, list(query.services))
        for row in _rows(cursors, "queues"):
            found.rows[row[0]] = row
        for queue, number in _rows(cursors, "expired"):
            found.expired.setdefault(queue, []).append(number)
        for row in _rows(cursors, "messages"):
            found.messages.setdefault(row[0], []).append(row)
        _rows(cursors, "decoy messages")  # which take time, too
        for row in _rows(cursors, "notifications"):
            found.notifications.setdefault(row[0], []).append(row[1:])
        found.services = list(_rows(cursors, "certificates"))
        found.counts = dict(_rows(cursors, "counts"))

    def _bodies(self, query: Query, found: Found, stale: set[int]) -> dict[int, int]:
        """How many messages to read, of queues of which more are wanted than are in memory.

        Of those that are `stale` none are.
        """
        bodies: dict[int, int] = {}
        for key, wanted in query.bodies.items():
            number = found.numbers.get(key)
            state = None if number is None else found.states.get(number)
            if number is None or state is None or not state.messages:
                continue
            known = query.known.get(number)
            there = 0 if known is None or number in stale else known.messages
            if there < min(wanted, state.messages):
                bodies[number] = max(wanted, bodies.get(number, 0))
        return bodies

    # -- its end

    def leave(self) -> None:
        """Nothing has changed: ends the transaction."""
        self._give_back()

    def write(self, rows: Rows) -> None:
        """Writes and commits."""
        connection = self._connection
        assert connection is not None
        try:
            self._write(connection, rows)
        finally:
            self._give_back()

    def again(self, rows: Rows) -> None:
        """Makes a transaction again whose end is not known, unless it was committed after all.

        Raises `ConflictError` when others have changed its queues since.
        """
        try:
            connection = self._take()
            # Waits for a former attempt that is still under way, which has this row's lock.
            mark = connection.execute(_HOLD, (self._relay, self._number), binary=True).fetchone()
            if mark is not None and mark[0] == rows.batch:
                return
            self._lock_again(connection, rows)
            self._write(connection, rows)
        finally:
            self._give_back()

    def _lock_again(self, connection: Connection, rows: Rows) -> None:
        base = {number: version for number, version in rows.base.items() if version}
        locked = connection.execute(
            "SELECT number, version FROM queue_state WHERE number = ANY(%b::bigint[])"
            " ORDER BY number FOR UPDATE",
            (list(base),),
            binary=True,
        ).fetchall()
        if dict(locked) != base:
            raise ConflictError

    def _write(self, connection: Connection, rows: Rows) -> None:
        with self._together(connection) as journey:

            def write(statement: str, *values: Any) -> None:
                journey.execute(statement, values)

            write(_MARK, rows.batch, self._relay, self._number)
            if rows.deleted:
                for table in ("message", "link"):
                    write(f"DELETE FROM {table} WHERE queue = ANY(%b::bigint[])", rows.deleted)  # noqa: S608
                for table in ("queue", "queue_state"):
                    write(f"DELETE FROM {table} WHERE number = ANY(%b::bigint[])", rows.deleted)  # noqa: S608
            if rows.freed:
                # An id may go from one queue to another.
                write(
                    "UPDATE queue SET notifier_id = NULL WHERE number = ANY(%b::bigint[])",
                    rows.freed,
                )
            if rows.queues:
                write(_WRITE_QUEUES, *columns(rows.queues, len(QUEUE_COLUMNS)))
            if rows.unlinked:
                write("DELETE FROM link WHERE queue = ANY(%b::bigint[])", rows.unlinked)
            if rows.links:
                write(_WRITE_LINKS, *columns(rows.links, len(LINK_COLUMNS)))
            if rows.new_states:
                write(_WRITE_NEW_STATES, *columns(rows.new_states, 6))
            if rows.states:
                write(_WRITE_STATES, *columns(rows.states, 6))
            if rows.removed:
                write(_REMOVE_MESSAGES, *columns(rows.removed, 2))
            if rows.messages:
                write(_WRITE_MESSAGES, *columns(rows.messages, 6))
            self._write_others(journey, rows)
            journey.execute("COMMIT")

    def _write_others(self, journey: Journeys, rows: Rows) -> None:
        """Notifications, services, and what others are told."""

        def write(statement: str, *values: Any) -> None:
            journey.execute(statement, values)

        if rows.dropped:
            write("DELETE FROM notification WHERE notifier_id = ANY(%b::bytea[])", rows.dropped)
        if rows.taken:
            write("DELETE FROM notification WHERE number = ANY(%b::bigint[])", rows.taken)
        if rows.notifications:
            write(_WRITE_NOTIFICATIONS, *columns(rows.notifications, 4))
        if rows.services:
            write(_WRITE_SERVICES, *columns(rows.services, 5))
        if rows.claims:
            write(_TELL_FORMER, rows.claims, self._relay)
            write(_CLAIM, self._relay, rows.claims)
        if rows.service_notices:
            some = [(each, notice.word(), self_) for each, notice, self_ in rows.service_notices]
            write(_TELL_SERVICES, *columns(some, 3), self._relay)
        for relay, notices in rows.notices.items():
            for payload in payloads(notices):
                write(_TELL, channel(relay), payload)

    # -- connections

    def _together(self, connection: Connection) -> AbstractContextManager[Journeys]:
        """Statements that go together; see `Journeys.together`."""
        journeys = self._journeys
        if journeys is None or journeys.connection is not connection:
            journeys = self._journeys = Journeys(connection)
        return journeys.together()

    def prepare(self) -> None:
        """Connects, so that this is done when there is work; what fails is tried again then."""
        with suppress(Error):
            self._kept.get()

    def close(self) -> None:
        """Ends the connection."""
        self._kept.close()

    def _take(self) -> Connection:
        self._kept.undo()
        connection = self._connection = self._kept.get()
        if not self._entered:
            connection.execute(
                "INSERT INTO lane VALUES (%b::integer, %b::integer, 0) ON CONFLICT DO NOTHING",
                (self._relay, self._number),
            )
            connection.commit()
            self._entered = True
        return connection

    def _give_back(self) -> None:
        """Ends the transaction; what was not committed is undone."""
        self._connection = None
        self._kept.undo()


def _rows(cursors: dict[str, Answer], name: str) -> Iterable[Any]:
    cursor = cursors.get(name)
    return () if cursor is None else cursor.fetchall()
