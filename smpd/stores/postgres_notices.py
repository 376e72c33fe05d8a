"""What relays on one PostgreSQL store tell each other, by LISTEN and NOTIFY.

A notice is sent with the transaction that it is about, to the one relay that is concerned. It
only says where to look: the relay locks what it is about, and sees for itself. So a
notice may come late, twice, or for nothing, and after a lost connection everything is looked at.

The kinds, each with the id of
``q`` a queue that was sent to, taken or deleted, ``b`` one that was blocked;
``n`` a notifier that has a notification, was taken or deleted;
``s`` a service that was taken;
``e`` a service, and of a notifier that it has lost, ``d`` of one that was deleted.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from twisted.logger import Logger

from smpd.stores.group_commit import CallFromThread
from smpd.stores.interface import Coming, Elsewhere, StoreError, StoreUnusable, Wanted, What
from smpd.stores.postgres_database import Connection, connect
from smpd.stores.postgres_lane import channel
from smpd.stores.postgres_rows import Notice, notices

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

PRESENCE: Final = 0x736D7064
"""With its number, the advisory lock that a relay holds while it runs."""
_RETRY: Final = 1.0
_MANY: Final = 100
"""Queues that are asked for together."""


class Noticed(Protocol):
    """Who is told; called by the reactor's thread."""

    def noticed(self, some: Sequence[Notice]) -> None:
        """Other relays have told this."""

    def listening(self) -> None:
        """Notices come from now on, and may have been lost before."""


class Listener:
    """A connection that hears what other relays tell, and shows them that this one is there.

    It has a thread, which connects again when the connection is lost.
    """

    log = Logger()

    def __init__(
        self, database: str, relay: int, noticed: Noticed, call_from_thread: CallFromThread
    ) -> None:
        self._database = database
        self._relay = relay
        self._noticed = noticed
        self._call_from_thread = call_from_thread
        self._here, self._there = socket.socketpair()
        self._stopping = False
        self._deaf = False
        self._thread = Thread(target=self._run, name="store listener", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends, within so many seconds or without being waited for."""
        self._stopping = True
        with suppress(OSError):
            # The thread may have seen the end by itself.
            self._here.send(b"\0")
        self._thread.join(seconds)
        self._here.close()

    # -- in the thread

    def _run(self) -> None:
        # The other half may be closed before, when nobody waits for the thread any more.
        with self._there:
            self._stay_connected()

    def _stay_connected(self) -> None:
        while not self._stopping:
            try:
                connection = connect(self._database)
                try:
                    self._listen(connection)
                finally:
                    connection.close()
            except (StoreUnusable, psycopg.Error):
                self._call_from_thread(self._lost)
                self._wait(self._there, seconds=_RETRY)

    def _listen(self, connection: Connection) -> None:
        # Shared: the database may not have noticed yet that a former connection was lost.
        connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", (PRESENCE, self._relay))
        connection.execute(f"LISTEN {channel(self._relay)}")
        self._call_from_thread(self._found)
        libpq = connection.pgconn
        while not self._stopping:
            self._wait(connection, self._there)
            libpq.consume_input()
            some: list[Notice] = []
            while (notify := libpq.notifies()) is not None:
                some += notices(notify.extra.decode("ascii", "replace"))
            if some:
                self._call_from_thread(self._noticed.noticed, some)

    @staticmethod
    def _wait(*those: FileDescriptorLike, seconds: float | None = None) -> None:
        """Waits until one of them can be read."""
        # `select` would not take the numbers that a busy relay's connections get.
        with selectors.DefaultSelector() as selector:
            for each in those:
                selector.register(each, selectors.EVENT_READ)
            selector.select(seconds)

    # -- in the reactor's thread

    def _lost(self) -> None:
        if not self._deaf and not self._stopping:
            self._deaf = True
            self.log.error("the store: nothing is heard of other relays until it answers again")

    def _found(self) -> None:
        if self._deaf:
            self._deaf = False
            self.log.info("the store: other relays are heard again")
        self._noticed.listening()


class HearingStore(Protocol):
    """What `Hearing` needs of the store."""

    @property
    def number(self) -> int:
        """The number of this relay."""

    def admit(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        """See `smpd.stores.interface.Store`."""

    def later(self, call: Callable[[], None]) -> None:
        """Does something in a moment."""

    def follow(self, notifier_id: bytes) -> None:
        """Remembers that there may be notifications for a subscriber here."""

    def follow_service(self, service_id: bytes) -> None:
        """Looks what waits for a service that has its connection here."""

    def unclaim(self, service_id: bytes) -> None:
        """Forgets that a service has its connection here."""

    def is_claimed(self, service_id: bytes) -> bool:
        """Whether a service has its connection here, as far as is known."""

    def relay_of(self, service_id: bytes) -> Coming:
        """The number of the relay that has the connection of a service."""


class Hearing:
    """Looks where notices say, and tells the relay."""

    def __init__(self, store: HearingStore) -> None:
        self._store = store

    def take(self, elsewhere: Elsewhere, some: Iterable[Notice]) -> None:
        """What other relays have told."""
        queues, notifiers, services = (set_like for set_like in elsewhere.followed())
        for kind, entity_id, other_id in some:
            if kind in "qb":
                if entity_id in queues:
                    tell = elsewhere.queue_changed if kind == "q" else elsewhere.queue_blocked
                    self._look([Wanted(What.RECIPIENT, entity_id, 1)], tell)
            elif kind == "n":
                if entity_id in notifiers or services:
                    self._store.follow(entity_id)
                if entity_id in notifiers:
                    self._look([Wanted(What.NOTIFIER, entity_id)], elsewhere.notifier_changed)
            elif kind == "s":
                self._look_at_service(elsewhere, entity_id)
            elif kind in "ed":
                elsewhere.service_lost(entity_id, other_id, deleted=kind == "d")

    def look_everywhere(self, elsewhere: Elsewhere) -> None:
        """Looks at all that somebody here wants to hear of."""
        queues, notifiers, services = (list(each) for each in elsewhere.followed())
        for start in range(0, len(queues), _MANY):
            some = queues[start : start + _MANY]
            self._look([Wanted(What.RECIPIENT, each, 1) for each in some], elsewhere.queue_changed)
        for start in range(0, len(notifiers), _MANY):
            some = notifiers[start : start + _MANY]
            for notifier_id in some:
                self._store.follow(notifier_id)
            self._look([Wanted(What.NOTIFIER, each) for each in some], elsewhere.notifier_changed)
        for service_id in services:
            self._look_at_service(elsewhere, service_id)

    def look_again(self, elsewhere: Elsewhere, recipient_ids: Iterable[bytes]) -> None:
        """Looks at queues the answers about which became errors."""
        queues = elsewhere.followed()[0]
        for recipient_id in recipient_ids:
            if recipient_id in queues:
                wanted = [Wanted(What.RECIPIENT, recipient_id, 1)]
                self._look(wanted, elsewhere.answers_lost)

    def _look(self, wanted: Sequence[Wanted], tell: Callable[[bytes], None]) -> None:
        # Each in a line of its own: one that is locked for long keeps no other waiting.
        self._store.admit(wanted, partial(self._tell_all, wanted, tell), object())

    def _tell_all(self, wanted: Sequence[Wanted], tell: Callable[[bytes], None]) -> None:
        failed = []
        for each in wanted:
            try:
                tell(each.entity_id)
            except StoreError:
                failed.append(each)
        if failed:
            # Nobody will tell of it again.
            self._store.later(partial(self._look, failed, tell))

    def _look_at_service(self, elsewhere: Elsewhere, service_id: bytes) -> None:
        store = self._store
        store.unclaim(service_id)

        def found(relay: int | None) -> None:
            # None: it could not be found out, and is when the service comes again.
            if relay not in (None, 0, store.number) and not store.is_claimed(service_id):
                elsewhere.service_taken(service_id)
            elif relay == store.number:
                store.follow_service(service_id)

        store.relay_of(service_id).addCallback(found)
