"""PostgreSQL stores for tests, on databases of the session's server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg

from smpd.queues import Message, Notifier, Queue, Status
from smpd.stores.group_commit import InPlace, Worker
from smpd.stores.interface import (
    Coming,
    Notification,
    Service,
    Store,
    Wanted,
    What,
    Written,
)
from smpd.stores.postgres import open_postgres
from smpd.stores.postgres_database import connect, upgrade
from smpd.stores.postgres_store import PostgresStore
from tests import postgres
from tests.smpd.stores.disk_stores import Loop
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData
from txsimplex.smp.errors import BlockingInformation

T = TypeVar("T")

TABLES = "queue, queue_state, link, message, notification, service, lane"


def new_database() -> str:
    """A new database with the tables of a store."""
    database = postgres.server().database()
    with connect(database) as connection:
        upgrade(connection)
    return database


class PostgresStores:
    """Stores, which are closed together; in `database`, or in a new one."""

    def __init__(self, database: str | None = None) -> None:
        self._opened: list[PostgresStore] = []
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def database(self) -> str:
        """The database that is used again and again."""
        if self._database is None:
            self._database = new_database()
        return self._database

    def emptied(self) -> str:
        """A database that is used again and again, with nothing in it."""
        self.close_stores()
        self._connected().execute(f"TRUNCATE {TABLES}")
        return self.database

    def query(self, text: str) -> list[Any]:
        """The rows of a query of that database."""
        return self._connected().execute(text).fetchall()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = psycopg.connect(self.database, autocommit=True)
            self._connection.execute("SET search_path = smpd")
        return self._connection

    def open(
        self,
        database: str | None = None,
        loop: Loop | None = None,
        *,
        worker: Callable[[], Worker] = InPlace,
        **options: Any,
    ) -> PostgresStore:
        """The store of a database, of an empty one if none is given."""
        loop = loop or Loop()
        store = open_postgres(
            database or self.emptied(),
            call_later=loop.clock.callLater,
            call_from_thread=loop.call_from_thread,
            worker=worker,
            **{"connections": 2, **options},
        )
        self._opened.append(store)
        return store

    def close(self, store: PostgresStore) -> None:
        """Closes a store."""
        self._opened.remove(store)
        store.close()

    def close_stores(self) -> None:
        """Closes all stores."""
        while self._opened:
            self._opened.pop().close()

    def close_all(self) -> None:
        """Closes everything."""
        self.close_stores()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def one_at_a_time(self) -> Store:
        """An empty store each call of which is a transaction of its own."""
        loop = Loop()
        return OneAtATime(self.open(self.emptied(), loop), loop, self)


class OneAtATime(Store):
    """A shared store as if it were one's own: everything is admitted when it is called."""

    def __init__(self, store: PostgresStore, loop: Loop, stores: PostgresStores) -> None:
        self.store = store
        self.loop = loop
        self._stores = stores

    def _do(self, wanted: Sequence[Wanted], call: Callable[[], T]) -> T:
        results: list[T] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except Exception as failure:  # noqa: BLE001
                failures.append(failure)

        self.store.admit(wanted, work, self)
        self.store.flush()
        self.loop.turn()
        if failures:
            raise failures[0]
        return results[0]

    def _in(self, queue: Queue, call: Callable[[], T], *more: Wanted, bodies: int = 2) -> T:
        services = []
        if queue.notifier is not None:
            services.append(Wanted(What.NOTIFIER, queue.notifier.notifier_id))
        wanted = [Wanted(What.RECIPIENT, queue.recipient_id, bodies), *services, *more]
        return self._do(wanted, call)

    @property
    def noted(self) -> int:  # type: ignore[override]
        """As of the store."""
        return self.store.noted

    @property
    def committed(self) -> int:  # type: ignore[override]
        """As of the store."""
        return self.store.committed

    def unsafe(self, queue: Queue) -> int:
        return self.store.unsafe(queue)

    def refused(self, queue: Queue | None) -> None:
        self.store.refused(queue)

    # -- finding

    def by_recipient(self, recipient_id: bytes) -> Queue | None:
        wanted = [Wanted(What.RECIPIENT, recipient_id)]
        return self._do(wanted, lambda: self.store.by_recipient(recipient_id))

    def by_sender(self, sender_id: bytes) -> Queue | None:
        return self._do([Wanted(What.SENDER, sender_id)], lambda: self.store.by_sender(sender_id))

    def by_notifier(self, notifier_id: bytes) -> Queue | None:
        wanted = [Wanted(What.NOTIFIER, notifier_id)]
        return self._do(wanted, lambda: self.store.by_notifier(notifier_id))

    def by_link(self, link_id: bytes) -> Queue | None:
        return self._do([Wanted(What.LINK, link_id)], lambda: self.store.by_link(link_id))

    def queue_count(self) -> int:
        return self.store.queue_count()

    # -- changing queues

    def add(self, queue: Queue) -> None:
        wanted = [
            Wanted(What.RECIPIENT, queue.recipient_id),
            Wanted(What.NEW_SENDER, queue.sender_id),
        ]
        if queue.link is not None:
            wanted.append(Wanted(What.NEW_LINK, queue.link.link_id))
        if queue.notifier is not None:
            wanted.append(Wanted(What.NOTIFIER, queue.notifier.notifier_id))
        self._do(wanted, lambda: self.store.add(queue))

    def secure(self, queue: Queue, key: PublicKey) -> None:
        self._in(queue, lambda: self.store.secure(queue, key))

    def set_recipient_keys(self, queue: Queue, keys: Sequence[PublicKey]) -> None:
        self._in(queue, lambda: self.store.set_recipient_keys(queue, keys))

    def set_link(self, queue: Queue, link_id: bytes, data: LinkData) -> None:
        wanted = Wanted(What.NEW_LINK, link_id)
        self._in(queue, lambda: self.store.set_link(queue, link_id, data), wanted)

    def delete_link(self, queue: Queue) -> None:
        self._in(queue, lambda: self.store.delete_link(queue))

    def set_notifier(self, queue: Queue, notifier: Notifier) -> None:
        wanted = Wanted(What.NOTIFIER, notifier.notifier_id)
        self._in(queue, lambda: self.store.set_notifier(queue, notifier), wanted)

    def delete_notifier(self, queue: Queue) -> None:
        self._in(queue, lambda: self.store.delete_notifier(queue))

    def set_status(
        self, queue: Queue, status: Status, blocked: BlockingInformation | None = None
    ) -> None:
        self._in(queue, lambda: self.store.set_status(queue, status, blocked))

    def use(self, queue: Queue, day: int) -> None:
        self._in(queue, lambda: self.store.use(queue, day))

    def delete(self, queue: Queue) -> None:
        self._in(queue, lambda: self.store.delete(queue))

    # -- messages

    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        return self._in(queue, lambda: self.store.write(queue, message, quota), bodies=0)

    def head(self, queue: Queue) -> Message | None:
        return self._in(queue, lambda: self.store.head(queue), bodies=1)

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        return self._in(queue, lambda: self.store.remove(queue, msg_id))

    def message_count(self, queue: Queue) -> int:
        return self._in(queue, lambda: self.store.message_count(queue), bodies=0)

    def expire(self, queue: Queue, before: float) -> int:
        wanted = [Wanted(What.SENDER, queue.sender_id, 0, int(before))]
        return self._do(wanted, lambda: self.store.expire(queue, before))

    def expire_all(self, before: float, step: int) -> Iterator[int | Coming]:
        return self._steps(self.store.expire_all(before, step))

    def unused(self, before: int, step: int) -> Iterator[Sequence[bytes] | Coming]:
        return self._steps(self.store.unused(before, step))

    def _steps(self, steps: Iterator[Any]) -> Iterator[Any]:
        for step in steps:
            yield self._came(step)

    def _came(self, coming: Any) -> Any:
        came: list[Any] = []
        coming.addCallback(came.append)
        self.loop.turn()
        return came[0]

    # -- notifications

    def add_notification(self, notifier_id: bytes, notification: Notification) -> None:
        wanted = [Wanted(What.NOTIFIER, notifier_id)]
        self._do(wanted, lambda: self.store.add_notification(notifier_id, notification))

    def notifiers_waiting(self) -> list[bytes]:
        """All of them, whoever may be subscribed, as the database has them."""
        rows = self._stores.query("SELECT DISTINCT notifier_id FROM smpd.notification")
        return [row[0] for row in rows]

    def take_notifications(self, notifier_id: bytes) -> list[Notification]:
        wanted = [Wanted(What.NOTIFIER, notifier_id)]
        return self._do(wanted, lambda: self.store.take_notifications(notifier_id))

    def expire_notifications(self, before: float) -> int:
        return int(self._came(self.store.expire_notifications(before)))

    # -- services

    def add_service(self, service: Service) -> Service:
        wanted = [Wanted(What.CERTIFICATE, service.fingerprint)]
        return self._do(wanted, lambda: self.store.add_service(service))

    def associate(self, queue: Queue, service_id: bytes | None) -> None:
        self._in(queue, lambda: self.store.associate(queue, service_id))

    def notifier_count(self, service_id: bytes) -> int:
        wanted = [Wanted(What.SERVICE, service_id)]
        return self._do(wanted, lambda: self.store.notifier_count(service_id))

    def flush(self) -> None:
        self.store.flush()

    def close(self) -> None:
        self.store.close()
