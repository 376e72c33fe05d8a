"""Opens the PostgreSQL store (docs/architecture.md)."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
from twisted.logger import Logger

from smpd.stores.group_commit import CallFromThread, CallLater, Worker, WriterThread
from smpd.stores.postgres_batches import LaneThread
from smpd.stores.postgres_database import (
    Connection,
    check_schema,
    connect,
    is_reckless,
    unusable,
)
from smpd.stores.postgres_lane import Lane
from smpd.stores.postgres_notices import Listener
from smpd.stores.postgres_presence import check_not_taken
from smpd.stores.postgres_rounds import PostgresRounds
from smpd.stores.postgres_store import PostgresStore

_log = Logger()


def open_postgres(
    database: str,
    *,
    call_later: CallLater,
    call_from_thread: CallFromThread,
    connections: int = 4,
    commit_interval: float = 0.006,
    cached_queues: int = 20_000,
    answer_timeout: float = 5.0,
    worker: Callable[[], Worker] = WriterThread,
    seconds: Callable[[], float] = time.monotonic,
) -> PostgresStore:
    """Opens the store in a database, given as a connection string of libpq or as a URL.

    `connections` is how many transactions are made at the same time, `commit_interval` how
    long work is gathered for one while others are under way, in seconds; `answer_timeout` how long
    work waits for a database that does not answer. Raises `StoreUnusable`.
    """
    connection = connect(database)
    try:
        check_schema(connection)
        check_not_taken(connection)
        if is_reckless(connection):
            _log.warn(
                "the database does not sync (fsync or full_page_writes is off): "
                "a power failure takes what was answered"
            )
        relay = _first(connection, "SELECT nextval('smpd.relay_number')")
        numbers = _first(connection, "SELECT nextval('smpd.queue_number')")
        count = _first(connection, "SELECT count(*) FROM smpd.queue_state")
    except psycopg.Error as error:
        raise unusable(error) from None
    finally:
        connection.close()
    lanes = [LaneThread(Lane(database, relay, number), worker()) for number in range(connections)]
    for each in lanes:
        each.worker.submit(each.lane.prepare)
    store = PostgresStore(
        relay,
        PostgresRounds(database, relay, worker(), call_from_thread, numbers),
        lanes,
        queue_count=count,
        commit_interval=commit_interval,
        cached_queues=cached_queues,
        answer_timeout=answer_timeout,
        call_later=call_later,
        call_from_thread=call_from_thread,
        seconds=seconds,
    )
    store.listen(Listener(database, relay, store, call_from_thread))
    return store


def _first(connection: Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
