"""Stores of every kind as sources and targets of conversions, for tests."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import psycopg

from smpd.queues import Message, Messages, Queue, Status
from smpd.stores.conversion import Record, Source, Target, Waiting, copy
from smpd.stores.interface import Service
from smpd.stores.postgres_conversion import PostgresSource, PostgresTarget
from smpd.stores.records import encode_message, encode_notification, encode_queue, encode_service
from smpd.stores.snapshot_conversion import SnapshotSource, SnapshotTarget
from smpd.stores.sqlite_conversion import SqliteSource, SqliteTarget
from tests.smpd.people import key, random
from tests.smpd.stores.postgres_stores import TABLES, new_database
from tests.smpd.stores.records import NOW, link, message, new_queue, notification, notifier, service
from txsimplex.keys import Algorithm
from txsimplex.smp.commands import QueueMode, Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason


class Place(ABC):
    """Where there is a store of one kind, or none yet."""

    @abstractmethod
    def source(self) -> Source:
        """The store there."""

    @abstractmethod
    def target(self) -> Target:
        """A new store there."""

    def remove(self) -> None:
        """Removes all there is."""
        return


class InDirectory(Place):
    """A temporary directory."""

    def __init__(self) -> None:
        self.parent = Path(tempfile.mkdtemp(prefix="conversion-"))
        self.path = self.parent / "store"

    def remove(self) -> None:
        shutil.rmtree(self.parent)


class SqlitePlace(InDirectory):
    """A SQLite store."""

    def source(self) -> Source:
        return SqliteSource(self.path)

    def target(self) -> Target:
        return SqliteTarget(self.path)


class SnapshotPlace(InDirectory):
    """A snapshot."""

    def source(self) -> Source:
        return SnapshotSource(self.path)

    def target(self) -> Target:
        return SnapshotTarget(self.path)


class PostgresPlace(Place):
    """A database of the session's server; two of them are used again and again."""

    _free: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.database = self._free.pop() if self._free else new_database()
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute("SET search_path = smpd")
            connection.execute(f"TRUNCATE {TABLES}")

    def source(self) -> Source:
        return PostgresSource(self.database)

    def target(self) -> Target:
        return PostgresTarget(self.database)

    def remove(self) -> None:
        self._free.append(self.database)


KINDS: dict[str, type[SqlitePlace] | type[SnapshotPlace] | type[PostgresPlace]] = {
    "sqlite": SqlitePlace,
    "postgres": PostgresPlace,
    "snapshot": SnapshotPlace,
}


def fill(place: Place, records: Iterable[Record]) -> None:
    """Makes a store with these records."""
    target = place.target()
    try:
        for record in records:
            target.write(record)
        target.counts()
        target.finish()
    finally:
        target.close()


def convert(origin: Place, destination: Place) -> None:
    """Copies everything."""
    source = origin.source()
    try:
        target = destination.target()
        try:
            there, written = copy(source, target, lambda _: None)
        finally:
            target.close()
    finally:
        source.close()
    assert there == written


def contents(place: Place) -> dict[str, object]:
    """All there is in a store, as bytes and in an order of its own."""
    source = place.source()
    try:
        return in_order(source.records())
    finally:
        source.close()


def in_order(records: Iterable[Record]) -> dict[str, object]:
    """Records as bytes: services and queues by their ids, with what is in the order it has."""
    services: list[bytes] = []
    queues: dict[bytes, list[bytes]] = {}
    waiting: dict[bytes, list[bytes]] = {}
    last: list[bytes] = []
    for record in records:
        if isinstance(record, Message):
            last.append(encode_message(record))
        elif isinstance(record, Queue):
            last = queues[encode_queue(replace(record, messages=Messages()))] = []
        elif isinstance(record, Waiting):
            of_notifier = waiting.setdefault(record.notifier_id, [])
            of_notifier.append(encode_notification(record.notification))
        else:
            services.append(encode_service(record))
    return {"services": sorted(services), "queues": queues, "notifications": waiting}


def of_every_sort() -> list[Record]:
    """Services, queues and notifications of every sort, and messages in some of the queues."""
    one, other = service(), service(Role.MESSAGING)
    records: list[Record] = [one, other]
    plain = new_queue()
    records += [plain, *(message(NOW + n, random(16_000 + n), n % 2 == 0) for n in range(5))]
    full = new_queue(mode=QueueMode.CONTACT, link=link())
    records += [full, message(NOW, b"first"), message(NOW, b""), message(NOW + 1, None)]
    old = new_queue(mode=None, notifier=notifier(one.service_id), service_id=other.service_id)
    old.sender_key = key(Algorithm.X25519).public
    old.recipient_keys = [key().public, key(Algorithm.ED448).public]
    records.append(old)
    blocked = new_queue(notifier=notifier(), link=link())
    blocked.status = Status.BLOCKED
    blocked.blocked = BlockingInformation(BlockingReason.SPAM, None)
    records.append(blocked)
    off = new_queue(notifier=notifier(one.service_id))
    off.status, off.used_on = Status.OFF, 0
    records += [off, message(NOW, None)]
    assert old.notifier is not None
    assert blocked.notifier is not None
    ids = [old.notifier.notifier_id, blocked.notifier.notifier_id]
    records += [Waiting(ids[n % 2], notification(NOW + n)) for n in range(6)]
    # Of a notifier that is gone: it expires some time.
    records.append(Waiting(random(24), notification()))
    return records


def services_in(records: Iterable[Record]) -> list[Service]:
    """The services among records."""
    return [record for record in records if isinstance(record, Service)]
