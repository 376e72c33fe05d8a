"""A file that holds everything of a store in memory while the relay is stopped.

After the head (what it is, its version) come records: one byte of kind, the length
in four bytes, the content (`smpd.stores.records`). Messages follow their queue in
their order. The last record is the SHA-256 of all that stands before it, so that a file
that was cut off or changed is never taken for a smaller one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from smpd.queues import Queue
from smpd.stores.interface import Collision, RoleMismatch, StoreUnusable
from smpd.stores.memory import MemoryStore
from smpd.stores.records import (
    encode_message,
    encode_notification,
    encode_queue,
    encode_service,
    read_message,
    read_notification,
    read_queue,
    read_service,
)
from txsimplex.encoding import ParseError, Reader, short, u16, u32, whole
from txsimplex.whole_files import sync_directory

Read = Callable[[int], bytes]
"""Gives as many of the next bytes as it is asked for, fewer only at the end."""

_WHAT: Final = b"simplexd snapshot\n"
_VERSION: Final = 1
_SERVICE: Final = b"S"
_QUEUE: Final = b"Q"
_MESSAGE: Final = b"M"
_NOTIFICATION: Final = b"N"
_END: Final = b"E"
_DIGEST: Final = hashlib.sha256
_LONGEST: Final = 1 << 25
"""Bytes of a record; the longest there can be is a service's chain of 255 certificates."""
_BUFFER: Final = 1 << 20
_PRIVATE: Final = 0o600


class SnapshotError(StoreUnusable):
    """A snapshot that cannot be used; the text is a sentence that names its file."""


def encode_snapshot(store: MemoryStore) -> Iterator[bytes]:
    """The snapshot of a store, piece by piece."""
    digest = _DIGEST()
    for piece in _pieces(store):
        digest.update(piece)
        yield piece
    yield _record(_END, digest.digest())


def _pieces(store: MemoryStore) -> Iterator[bytes]:
    yield _WHAT + u16(_VERSION)
    for service in store.services():
        yield _record(_SERVICE, encode_service(service))
    for queue in store.queues():
        yield _record(_QUEUE, encode_queue(queue))
        for message in queue.messages.waiting:
            yield _record(_MESSAGE, encode_message(message))
    for notifier_id, waiting in store.notifications():
        for one in waiting:
            yield _record(_NOTIFICATION, short(notifier_id) + encode_notification(one))


def _record(kind: bytes, content: bytes) -> bytes:
    return kind + u32(len(content)) + content


def decode_snapshot(read: Read) -> MemoryStore:
    """The store of a snapshot. Raises `ParseError` when it is not one, or not whole."""
    if read(len(_WHAT)) != _WHAT:
        raise ParseError("it is no snapshot")
    version = _exactly(read, 2)
    if version != u16(_VERSION):
        number = int.from_bytes(version, "big")
        raise ParseError(f"its version is {number}, this relay reads {_VERSION}")
    digest = _DIGEST(_WHAT + version)
    filling = _Filling()
    while True:
        head = _exactly(read, 5)
        kind, size = head[:1], int.from_bytes(head[1:], "big")
        if size > _LONGEST:
            raise ParseError("it is damaged")
        content = _exactly(read, size)
        if kind == _END:
            break
        digest.update(head)
        digest.update(content)
        filling.record(kind, content)
    if content != digest.digest() or read(1):
        raise ParseError("it is damaged")
    return filling.store


def _exactly(read: Read, size: int) -> bytes:
    data = read(size)
    if len(data) != size:
        raise ParseError("it is cut off")
    return data


class _Filling:
    """Puts records into a new store."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._queue: Queue | None = None

    def record(self, kind: bytes, content: bytes) -> None:
        """Adds one. Raises `ParseError`."""
        try:
            self._add(kind, content)
        except (Collision, RoleMismatch, ParseError):
            raise ParseError("it is damaged") from None

    def _add(self, kind: bytes, content: bytes) -> None:
        if kind == _QUEUE:
            self._queue = whole(content, read_queue)
            self.store.add(self._queue)
        elif kind == _MESSAGE and self._queue is not None:
            self._queue.messages.waiting.append(whole(content, read_message))
        elif kind == _NOTIFICATION:
            reader = Reader(content)
            notifier_id, notification = reader.short(), read_notification(reader)
            reader.finish()
            self.store.add_notification(notifier_id, notification)
        elif kind == _SERVICE:
            service = whole(content, read_service)
            if self.store.add_service(service) is not service:
                raise ParseError("a service twice")
        else:
            raise ParseError("an unknown record")


def save(store: MemoryStore, path: Path) -> None:
    """Writes the snapshot of a store; the file is the former one or the new one, whole.

    Raises `SnapshotError`.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        try:
            _write(temporary, encode_snapshot(store))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be written: {error.strerror}.") from None


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(descriptor, "wb", buffering=_BUFFER) as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(descriptor)


def load(path: Path, store: MemoryStore) -> bool:
    """Fills a store from a snapshot, and says whether there was one.

    Raises `SnapshotError`, and then the store is as it was: for a file that cannot be read
    or is damaged, and for a place where none could be written, since all would
    be lost at the end.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            read = decode_snapshot(file.read)
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise SnapshotError(f"No snapshot can be written to {path.parent}.") from None
        return False
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}.") from None
    except ParseError as error:
        raise SnapshotError(f"{path} cannot be used: {error}.") from None
    store.take_over(read)
    return True


def discard(path: Path) -> None:
    """Removes a snapshot from which the relay has gone on.

    After a crash the past would come back otherwise, and with it what was delivered long ago.
    Raises `SnapshotError`.
    """
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be removed: {error.strerror}.") from None
