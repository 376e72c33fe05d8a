"""Relays' PostgreSQL stores with threads of their own, in tests of lost connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from smpd.queues import Queue, Status
from smpd.stores.group_commit import WriterThread
from smpd.stores.interface import StoreError, Wanted, What
from smpd.stores.postgres_lane import Lane
from tests.smpd.stores.disk_stores import Loop
from tests.smpd.stores.postgres_stores import PostgresStores
from tests.smpd.stores.records import message, new_queue

QUOTA = 4
WAIT = 20.0
"""Seconds that an answer is waited for."""


class Site:
    """A store with a thread for its transactions, and queues that are asked for by id."""

    def __init__(self, stores: PostgresStores, database: str, **options: Any) -> None:
        self.loop = Loop()
        self.store = stores.open(
            database,
            self.loop,
            **{"connections": 1, "answer_timeout": 5.0, "worker": WriterThread, **options},
        )
        self.answers: list[str] = []
        self._needs: list[tuple[int, int]] = []
        self.store.on_commit = self._committed

    @property
    def lane(self) -> Lane:
        """Its only lane."""
        return self.store._admission._lanes[0].lane

    def ask(self, wanted: Sequence[Wanted], work: Callable[[], Any], line: object = None) -> None:
        """Has something done, whose answer waits until it is safe: OK, what it gives, or STORE."""
        place = len(self.answers)
        self.answers.append("waits")

        def attempt() -> None:
            before = self.store.noted
            try:
                result = work()
            except StoreError as problem:
                self.answers[place] = f"STORE {problem}"
                return
            if self.store.noted != before:
                self._needs.append((place, self.store.noted))
            else:
                self.answers[place] = f"{result}"

        self.store.admit(wanted, attempt, line or self)

    def _committed(self) -> None:
        left = []
        for place, need in self._needs:
            if need > self.store.committed:
                left.append((place, need))
                continue
            problem = self.store.spoiled(need)
            self.answers[place] = "OK" if problem is None else f"STORE {problem}"
        self._needs = left

    def wait(self, until: Callable[[], bool] | None = None, seconds: float = WAIT) -> None:
        """Lets time pass until all is answered, or `until` says so."""
        deadline = last = time.monotonic()
        deadline += seconds
        while "waits" in self.answers if until is None else not until():
            now = time.monotonic()
            self.loop.turn(now - last)
            last = now
            assert now < deadline, self.answers
            time.sleep(0.001)

    def add(self) -> Queue:
        """A new queue."""
        new = new_queue()
        self.ask([Wanted(What.NEW_SENDER, new.sender_id)], lambda: self.store.add(new))
        self.wait()
        assert self.answers[-1] == "OK"
        return new

    def send(self, queue: Queue) -> None:
        """Has a message written."""

        def work() -> None:
            found = self.store.by_sender(queue.sender_id)
            assert found is not None
            self.store.write(found, message(), QUOTA)

        self.ask([Wanted(What.SENDER, queue.sender_id)], work)

    def acknowledge(self, queue: Queue) -> None:
        """Has the first message removed."""

        def work() -> None:
            found = self.store.by_recipient(queue.recipient_id)
            assert found is not None
            first = self.store.head(found)
            assert first is not None
            self.store.remove(found, first.msg_id)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id, 2)], work)

    def count(self, queue: Queue) -> None:
        """Asks how many messages wait."""

        def work() -> int | None:
            found = self.store.by_recipient(queue.recipient_id)
            return None if found is None else self.store.message_count(found)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work)

    def suspend(self, queue: Queue) -> None:
        """OFF."""

        def work() -> None:
            found = self.store.by_recipient(queue.recipient_id)
            assert found is not None
            self.store.set_status(found, Status.OFF)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work)

    def answer(self) -> str:
        """The answer to what was asked last."""
        self.wait()
        return self.answers[-1]


def messages_of(database: str, queue: Queue) -> tuple[int, int]:
    """How many messages of a queue there are, and how many it says it has."""
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM smpd.message WHERE queue = queue_state.number), messages"
            " FROM smpd.queue JOIN smpd.queue_state USING (number) WHERE recipient_id = %b",
            (queue.recipient_id,),
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def before(lane: Lane, step: str, action: Callable[[], None]) -> None:
    """Does something, once, in the lane's thread, right before its next `step`."""
    original: Callable[..., Any] = getattr(lane, step)

    def hooked(*arguments: Any) -> Any:
        setattr(lane, step, original)
        action()
        return original(*arguments)

    setattr(lane, step, hooked)


def terminate(database: str, pid: int | None = None) -> None:
    """Ends a connection to the database, or all of relays, as its administrator can."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (pid = %s OR (%s::int IS NULL AND application_name = 'smpd'))",
            (pid, pid),
        )


def pid_of(lane: Lane) -> int:
    """The process of the database that does the lane's transaction."""
    assert lane._connection is not None
    return lane._connection.info.backend_pid
