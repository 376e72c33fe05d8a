"""The snapshot of a store in memory as a source and a target of a conversion.

All of it is in memory meanwhile, as it is in the relay. While a relay runs there is no snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from smpd.queues import Message, Messages, Queue
from smpd.stores.conversion import Counts, Record, Source, Target, Waiting
from smpd.stores.interface import Collision, RoleMismatch, StoreUnusable
from smpd.stores.memory import MemoryStore
from smpd.stores.snapshot import load, save


def _records(store: MemoryStore) -> Iterator[Record]:
    yield from store.services()
    for queue in store.queues():
        yield queue
        yield from queue.messages.waiting
    for notifier_id, waiting in store.notifications():
        for one in waiting:
            yield Waiting(notifier_id, one)


def _count(store: MemoryStore) -> Counts:
    counts = Counts()
    for record in _records(store):
        counts.add(record)
    return counts


class SnapshotSource(Source):
    """The snapshot in a file. Raises `StoreUnusable` when there is none or it is damaged."""

    def __init__(self, path: Path) -> None:
        self._store = MemoryStore()
        if not load(path, self._store):
            raise StoreUnusable(f"there is no snapshot {path}")

    def records(self) -> Iterator[Record]:
        return _records(self._store)

    def counts(self) -> Counts:
        return _count(self._store)

    def close(self) -> None:
        return


class SnapshotTarget(Target):
    """A new snapshot. Raises `StoreUnusable` when there is a file already."""

    def __init__(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            raise StoreUnusable(f"{path} is there already")
        self._path = path
        self._store = MemoryStore()
        self._queue: Queue | None = None

    def write(self, record: Record) -> None:
        try:
            self._add(record)
        except (Collision, RoleMismatch):
            raise StoreUnusable("the source has two of one id: it is damaged") from None

    def _add(self, record: Record) -> None:
        if isinstance(record, Message):
            assert self._queue is not None, "a message without a queue"
            messages = self._queue.messages
            messages.waiting.append(record)
            messages.can_write = not record.is_quota
        elif isinstance(record, Queue):
            # Its messages may be those of the source, which come one by one.
            self._queue = replace(record, messages=Messages())
            self._store.add(self._queue)
        elif isinstance(record, Waiting):
            self._store.add_notification(record.notifier_id, record.notification)
        else:
            self._store.add_service(record)

    def counts(self) -> Counts:
        return _count(self._store)

    def finish(self) -> None:
        save(self._store, self._path)

    def close(self) -> None:
        return
