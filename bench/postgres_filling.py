"""A PostgreSQL store full of queues and messages, made without a relay."""

from __future__ import annotations

import psycopg

from smpd.queues import Message, Queue
from smpd.stores.postgres_changes import Changes, SharedMessages
from smpd.stores.postgres_database import connect
from smpd.stores.postgres_lane import Lane
from smpd.stores.postgres_rounds import NUMBERS_AT_A_TIME


class PostgresFiller:
    """Fills a database that has the tables, by the statements of the store's own transactions."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._connection = connect(database)
        self._lane = Lane(database, self._next("relay_number"), 0)
        self._changes = Changes()
        self._batch = 0
        self._number = self._end = 0

    def _next(self, sequence: str) -> int:
        row = self._connection.execute("SELECT nextval(%s)", (f"smpd.{sequence}",)).fetchone()
        assert row is not None
        return int(row[0])

    def add(self, queue: Queue, message: Message | None) -> None:
        if self._number == self._end:
            self._number = self._next("queue_number")
            self._end = self._number + NUMBERS_AT_A_TIME
        queue.number, queue.messages = self._number, SharedMessages()
        self._number += 1
        changes = self._changes
        changes.touch(queue)
        changes.queues[queue.number] = queue
        if message is not None:
            changes.messages[queue.number, changes.touch(queue)] = message
            queue.messages.count = 1

    def commit(self) -> None:
        self._batch += 1
        self._lane.again(self._changes.rows(self._batch))
        self._changes = Changes()

    def close(self) -> None:
        try:
            self.commit()
            # As the server does by itself after some time.
            with psycopg.connect(self._database, autocommit=True) as connection:
                connection.execute("VACUUM (ANALYZE)")
        finally:
            self._connection.close()
            self._lane.close()
