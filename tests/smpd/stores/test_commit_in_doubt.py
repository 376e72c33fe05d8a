"""A commit that says that it failed, though it did not: whatever comes then, nothing is lost.

SQLite does this when the disk is full: the commit is in its log, and what moves it from there
to its place fails in the same call.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smpd.queues import Message, Queue
from smpd.stores.sqlite import SqliteStore
from tests.smpd.people import random
from tests.smpd.stores.disk_stores import TICK, DiskStores, Loop
from tests.smpd.stores.records import message, new_queue

BODY = 16_064


class Doubtful:
    """A connection whose commits are reported as failed while `in_doubt`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.in_doubt = False
        self.commits = 0

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        """As of a connection."""
        cursor = self._connection.execute(statement, *arguments)
        if statement == "COMMIT":
            self.commits += 1
            if self.in_doubt:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture
def stores() -> Iterator[DiskStores]:
    """Stores that are closed after the test."""
    stores = DiskStores()
    yield stores
    stores.clear()


def doubtful(store: SqliteStore) -> Doubtful:
    """The connection of the writer, which can be put in doubt."""
    connection: Any = Doubtful(store._files.writer)
    store._writer._connection = connection
    made: Doubtful = connection
    return made


def waiting(store: SqliteStore, queue: Queue) -> list[Message]:
    """What a queue holds, in order, in a store where it is looked up."""
    found = store.by_recipient(queue.recipient_id)
    assert found is not None
    messages = []
    while (first := store.head(found)) is not None:
        messages.append(Message(first.msg_id, first.timestamp, first.notify, first.body))
        store.remove(found, first.msg_id)
    return messages


def killed(stores: DiskStores, directory: Path) -> Path:
    """The files as they are when the process is killed at this moment."""
    copy = stores.directory()
    shutil.copytree(directory, copy, dirs_exist_ok=True)
    return copy


@pytest.mark.parametrize("end", ["killed", "killed later", "recovered"])
def test_a_commit_in_doubt(stores: DiskStores, end: str) -> None:
    directory, loop = stores.directory(), Loop()
    store = stores.open(directory, loop)
    connection = doubtful(store)
    store.add(queue := new_queue())
    written = [message(body=random(BODY)) for _ in range(5)]
    store.write(queue, written[0], 128)
    loop.clock.pump([TICK] * 4)
    loop.turn()
    safe = store.committed
    assert safe == store.noted
    connection.in_doubt = True
    for one in written[1:4]:
        store.write(queue, one, 128)
    loop.clock.pump([TICK] * 4)
    loop.turn()
    assert (store.failure, store.committed) == ("the disk is full", safe)
    if end != "killed":
        before = connection.commits
        for _ in range(5):
            loop.turn(1)
        assert connection.commits > before
    if end != "recovered":
        again = stores.open(killed(stores, directory))
        assert waiting(again, queue) == written[:4]
    connection.in_doubt = False
    for _ in range(3):
        loop.turn(1)
    assert store.failure is None
    store.write(queue, written[4], 128)
    store.flush()
    again = stores.open(killed(stores, directory))
    assert waiting(again, queue) == written
