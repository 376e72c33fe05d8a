"""The SQLite store as a source and a target of a conversion.

A target is filled in a directory beside it, which takes its place at the end. Meanwhile an empty
store is there, whose lock keeps relays out.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smpd.queues import Message, Queue
from smpd.stores.bodies import Place
from smpd.stores.conversion import (
    Counts,
    Record,
    Source,
    Target,
    Waiting,
    behind_their_queues,
)
from smpd.stores.interface import Notification, Service, StoreUnusable
from smpd.stores.rows import (
    SERVICE_COLUMNS,
    DamagedRow,
    Row,
    link_row,
    queue_from_row,
    queue_row,
    service_from_row,
    service_row,
)
from smpd.stores.sqlite_file import (
    BODIES,
    DATABASE,
    LOCK,
    StoreFiles,
    failure_reason,
    is_store,
    open_files,
)
from smpd.stores.sqlite_reader import ALL_QUEUES
from smpd.stores.sqlite_rows import MESSAGE_COLUMNS, StoredMessage, notification_row
from smpd.stores.sqlite_writer import Batch, SqliteWriter
from txsimplex.whole_files import sync_directory

_BESIDE: Final = ".converting"
"""What the name of a directory ends with that is being filled."""
_ROWS: Final = 5000
"""Rows of a batch, at most."""
_BYTES: Final = 16 << 20
"""Bytes of bodies in a batch, at most, and that of the last one more."""
_CACHE_KIB: Final = 65536
"""Indexes of random ids are filled: pages that are not in memory cost much."""
_LOG_PAGES: Final = 65536
"""And so does it to move the same ones to their place again and again."""

_SERVICES: Final = f"SELECT {', '.join(SERVICE_COLUMNS)} FROM service"  # noqa: S608
_MESSAGES: Final = f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM message ORDER BY queue, number"  # noqa: S608
_NOTIFICATIONS: Final = (
    "SELECT notifier_id, timestamp, nonce, meta FROM notification ORDER BY number"
)
_COUNTS: Final = (
    "SELECT count(*), count(notifier_id), count(notifier_service_id) FROM queue",
    "SELECT count(*) FROM link",
    "SELECT count(*) FROM message",
    "SELECT count(*) FROM notification",
    "SELECT count(*) FROM service",
)


def _count(connection: sqlite3.Connection) -> Counts:
    (of_queues, links, messages, notifications, services) = (
        connection.execute(query).fetchone() for query in _COUNTS
    )
    queues, notifiers, associations = of_queues
    return Counts(
        queues=queues,
        links=links[0],
        messages=messages[0],
        notifiers=notifiers,
        associations=associations,
        notifications=notifications[0],
        services=services[0],
    )


@contextmanager
def _told(action: str, directory: Path) -> Iterator[None]:
    """Failures of the disk and the database become sentences."""
    try:
        yield
    except (sqlite3.Error, OSError, DamagedRow) as error:
        reason = failure_reason(error)
        raise StoreUnusable(f"cannot {action} the store {directory}: {reason}") from error


class SqliteSource(Source):
    """The store in a directory. Raises `StoreUnusable` when there is none or it is in use."""

    def __init__(self, directory: Path) -> None:
        if not is_store(directory):
            raise StoreUnusable(f"there is no store in {directory}")
        self._directory = directory
        self._files = open_files(directory)

    def records(self) -> Iterator[Record]:
        with _told("read", self._directory):
            reader = self._files.reader
            for row in reader.execute(_SERVICES):
                yield service_from_row(row)
            queues = map(queue_from_row, reader.execute(ALL_QUEUES))
            messages = map(self._message, reader.execute(_MESSAGES))
            yield from behind_their_queues(queues, messages)
            for notifier_id, *rest in reader.execute(_NOTIFICATIONS):
                yield Waiting(notifier_id, Notification(*rest))

    def _message(self, row: Row) -> tuple[int, Message]:
        queue, _, msg_id, timestamp, notify, file, offset, size = row
        body = None if file is None else self._files.bodies.read(Place(file, offset, size))
        return queue, Message(msg_id, timestamp, bool(notify), body)

    def counts(self) -> Counts:
        with _told("read", self._directory):
            return _count(self._files.reader)

    def close(self) -> None:
        self._files.close()


class SqliteTarget(Target):
    """A new store in a directory, which is made if it is not there.

    Raises `StoreUnusable` when there is a store with anything in it, or something else.
    """

    def __init__(self, directory: Path) -> None:
        directory = directory.resolve()
        self._directory = directory
        self._beside = directory.with_name(directory.name + _BESIDE)
        self._made = not directory.exists()
        _check_place(directory)
        self._former = open_files(directory)
        try:
            with _told("use", directory):
                if _count(self._former.reader) != Counts():
                    raise StoreUnusable(f"the store {directory} is not empty")
            self._files = self._open_beside()
        except BaseException:
            self._forget_former()
            raise
        self._open = True
        self._finished = False
        self._writer = SqliteWriter(
            self._files.writer, self._files.bodies, self._files.live, noted=0, queue_count=0
        )
        self._noted = 0
        self._queue = 0
        self._queues = 0
        self._associated: dict[bytes, int] = {}
        self._batch = self._new_batch()
        self._rows = self._bytes = 0

    def _open_beside(self) -> StoreFiles:
        if self._beside.is_dir() and _is_ours(self._beside):
            # Of a conversion that was interrupted: another one would have the lock.
            with _told("remove", self._beside):
                shutil.rmtree(self._beside)
        if self._beside.exists() or self._beside.is_symlink():
            raise StoreUnusable(f"{self._beside} is in the way: the store is filled there")
        files = open_files(self._beside)
        files.writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        files.writer.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}").fetchall()
        # It need not be safe before it is whole.
        files.writer.execute("PRAGMA synchronous = OFF")
        return files

    # -- writing

    def write(self, record: Record) -> None:
        self._noted += 1
        if isinstance(record, Message):
            self._write_message(record)
        elif isinstance(record, Queue):
            self._write_queue(record)
        elif isinstance(record, Waiting):
            row = notification_row(self._noted, record.notifier_id, record.notification)
            self._batch.notifications.append(row)
        else:
            self._write_service(record)
        self._rows += 1
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            self._write_batch()

    def _write_message(self, message: Message) -> None:
        stored = StoredMessage(message, self._queue, self._files.bodies.read)
        stored.number = self._noted
        self._batch.messages.append(stored)
        self._bytes += len(message.body or b"")

    def _write_queue(self, queue: Queue) -> None:
        queue.number = self._queue = self._noted
        self._queues += 1
        self._batch.queues.append(queue_row(queue))
        if queue.link is not None:
            self._batch.links.append(link_row(queue, queue.link))
        notifier = queue.notifier
        if notifier is not None and notifier.service_id is not None:
            service_id = notifier.service_id
            self._associated[service_id] = self._associated.get(service_id, 0) + 1

    def _write_service(self, service: Service) -> None:
        self._batch.services.append(service_row(service, 0))

    def _write_batch(self) -> None:
        batch, self._batch = self._batch, self._new_batch()
        batch.noted, batch.queue_count = self._noted, self._queues
        self._rows = self._bytes = 0
        with _told("write", self._directory):
            self._writer.write(batch)

    def _new_batch(self) -> Batch:
        return Batch(
            noted=0,
            queue_count=0,
            deleted=[],
            freed=[],
            queues=[],
            links=[],
            unlinked=[],
            messages=[],
            removed=[],
            to_wipe=[],
            notifications=[],
            taken=[],
            services=[],
            notifier_counts=[],
        )

    # -- ending

    def counts(self) -> Counts:
        self._batch.notifier_counts += self._associated.items()
        self._associated = {}
        self._write_batch()
        with _told("read", self._directory):
            return _count(self._files.reader)

    def finish(self) -> None:
        with _told("finish", self._directory):
            self._writer.empty_log()
            # Nobody gets at either store before both are closed and one is gone.
            locks = [os.dup(self._former.lock), os.dup(self._files.lock)]
            try:
                self._open = False
                self._files.close()
                self._former.close()
                _sync_store(self._beside)
                _remove_store(self._directory)
                self._beside.rename(self._directory)
                self._finished = True
                sync_directory(self._directory.parent)
            finally:
                for lock in locks:
                    os.close(lock)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._files.close()
            self._forget_former()
        elif not self._finished and self._made:
            # Both are closed, and one is removed: the other could not take its place.
            shutil.rmtree(self._directory, ignore_errors=True)
        if not self._finished:
            shutil.rmtree(self._beside, ignore_errors=True)

    def _forget_former(self) -> None:
        """Closes the empty store that kept relays out, and removes it if it was made for that."""
        # No relay takes it up in between.
        lock = os.dup(self._former.lock)
        try:
            self._former.close()
            if self._made:
                shutil.rmtree(self._directory, ignore_errors=True)
        finally:
            os.close(lock)


def _check_place(directory: Path) -> None:
    """Raises `StoreUnusable` unless there is a store or nothing, which can be replaced."""
    if directory.is_mount():
        raise StoreUnusable(
            f"{directory} is a mount point, which cannot be replaced: take a directory in it"
        )
    if directory.is_dir() and not _is_ours(directory):
        raise StoreUnusable(f"{directory} has other things in it than a store")


def _is_ours(directory: Path) -> bool:
    """Whether nothing is in a directory but what a store has in it."""
    names = {LOCK, BODIES, *(f"{DATABASE}{end}" for end in ("", "-wal", "-shm", "-journal"))}
    return all(path.name in names for path in directory.iterdir())


def _sync_store(directory: Path) -> None:
    """Makes a closed store safe whose bodies are, and whose database was not synced."""
    descriptor = os.open(directory / DATABASE, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(directory)


def _remove_store(directory: Path) -> None:
    """Removes a store that is closed and empty, and leaves its directory."""
    (directory / DATABASE).unlink()
    shutil.rmtree(directory / BODIES)
    (directory / LOCK).unlink()
