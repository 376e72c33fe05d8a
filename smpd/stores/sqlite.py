"""The store on disk: SQLite for records, files for the bodies of messages.

Changes are made in memory at once (`smpd.stores.sqlite_cache`) and noted;
`smpd.stores.group_commit` has them written by a thread of its own, many together.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from smpd.queues import Message, Messages, Notifier, Queue, Status
from smpd.stores.group_commit import (
    CallFromThread,
    CallLater,
    GroupCommit,
    Steps,
    Worker,
    WriterThread,
)
from smpd.stores.interface import Notification, Service, StoreError, StoreUnusable, Written
from smpd.stores.sqlite_cache import QueueCache
from smpd.stores.sqlite_changes import Changes, NotedNotification
from smpd.stores.sqlite_file import StoreFiles, failure_reason, open_files
from smpd.stores.sqlite_reader import SqliteReader
from smpd.stores.sqlite_rows import StoredMessage
from smpd.stores.sqlite_writer import Batch, SqliteWriter
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData
from txsimplex.smp.errors import BlockingInformation

__all__ = ["SqliteStore", "StoreUnusable", "open_sqlite"]

_TIDY_TIME: Final = 1.0
"""Seconds after which the places of removed messages are wiped."""
_BUSY_TIDIES: Final = 10
"""After so many of these times the log of the database is emptied even under load."""
_FLUSH_TIME: Final = 5.0
_CLOSE_TIME: Final = 10.0
"""Seconds that closing waits for a disk that fails or does not answer."""
_LAST_TIME: Final = 1.0
"""Seconds that it waits after that for the thread, which may hang in the disk."""


def open_sqlite(
    directory: Path,
    *,
    call_later: CallLater,
    call_from_thread: CallFromThread,
    commit_interval: float = 0.006,
    cached_queues: int = 20_000,
    worker: Worker | None = None,
) -> SqliteStore:
    """Opens the store in `directory`, which is made if it is not there.

    `commit_interval` is how long changes are gathered for a commit, in seconds, and
    `cached_queues` how many queues are kept in memory beyond those that have to be. Commits
    are made by `worker`, a thread unless one is given. Raises `StoreUnusable`.
    """
    files = open_files(directory)
    try:
        return SqliteStore(
            files,
            worker or WriterThread(),
            call_later=call_later,
            call_from_thread=call_from_thread,
            commit_interval=commit_interval,
            cached_queues=cached_queues,
        )
    except StoreError as error:
        files.close()
        raise StoreUnusable(f"cannot use the store {directory}: {error}") from error


class SqliteStore(QueueCache):
    """Changes queues in memory, and has the changes written. See `QueueCache` for finding them."""

    log = Logger()

    def __init__(
        self,
        files: StoreFiles,
        worker: Worker,
        *,
        call_later: CallLater,
        call_from_thread: CallFromThread,
        commit_interval: float,
        cached_queues: int,
    ) -> None:
        super().__init__(SqliteReader(files.reader, files.bodies), call_later, cached_queues)
        self._files = files
        self._queue_count = files.queue_count
        self._notification_numbers: dict[bytes, list[int]] = {}
        self._changes = Changes()
        self._in_flight = Changes()
        self._closed = False
        self._tidying: IDelayedCall | None = None
        self._settled = self._tidied = 0
        self._writer = SqliteWriter(
            files.writer,
            files.bodies,
            files.live,
            noted=files.noted,
            queue_count=files.queue_count,
            to_wipe=files.to_wipe,
            wipe_note=files.wipe_note,
        )
        for number, notifier_id, notification in self._reader.notifications():
            super().add_notification(notifier_id, notification)
            self._notification_numbers.setdefault(notifier_id, []).append(number)
        self._commits: GroupCommit[Batch] = GroupCommit(
            Steps(
                gather=self._gather,
                write=self._writer.write,
                settle=self._settle,
                moved=self._moved,
                reason=failure_reason,
            ),
            worker,
            start=files.noted,
            interval=commit_interval,
            call_later=call_later,
            call_from_thread=call_from_thread,
        )
        self.noted = self.committed = files.noted
        if files.to_wipe:
            self._tidy_later()

    # -- commits

    def unsafe(self, queue: Queue) -> int:
        number = queue.number
        last = self._changes.last
        return last.get(number, 0) if number in last else self._in_flight.last.get(number, 0)

    def flush(self) -> None:
        """Makes what was noted safe now. Waits some seconds for a disk that does not answer."""
        self._commits.flush(_FLUSH_TIME)

    def close(self) -> None:
        """Makes what was noted safe, as far as the disk lets it, and closes all files."""
        if self._closed:
            return
        self._closed = True
        safe = self._commits.flush(_CLOSE_TIME, persist=True)
        if safe:
            self._commits.submit(self._tidy_at_last)
        else:
            self.log.error(
                "the store is closed without the last changes: {reason}",
                reason=self._commits.failure or "the disk does not answer",
            )
        for timer in (self._trimming, self._tidying):
            if timer is not None and timer.active():
                timer.cancel()
        if self._commits.stop(_CLOSE_TIME if safe else _LAST_TIME):
            self._files.close()

    def _is_deleted(self, number: int) -> bool:
        return number in self._changes.deleted or number in self._in_flight.deleted

    def _writable(self) -> None:
        if self._commits.failure is not None:
            raise StoreError(self._commits.failure)

    def _note(self, queue: Queue) -> None:
        """Notes that the row of a queue has changed."""
        self.noted = change = self._commits.note()
        self._changes.queues[queue.number] = queue
        self._changes.last[queue.number] = change

    def _gather(self, items: list[Any]) -> Batch:
        changes, self._changes = self._changes, Changes()
        self._in_flight = changes
        return changes.batch(items, self.noted, self._queue_count, self.notifier_count)

    def _settle(self, batch: Batch) -> None:
        for message, place in zip(batch.messages, batch.places, strict=True):
            message.settle(place)
        self._in_flight = Changes()
        self._settled += 1
        self._tidy_later()
        self._trim_later()

    def _moved(self) -> None:
        self.committed = self._commits.committed
        self.failure = self._commits.failure
        self.on_commit()

    def _withdraw(self, number: int) -> bool:
        """Takes back a change that was not handed to the writer yet."""
        taken_back = self._commits.withdraw(number)
        self.committed = self._commits.committed
        return taken_back

    def _tidy_later(self) -> None:
        if self._tidying is None:
            self._tidying = self._call_later(_TIDY_TIME, self._begin_to_tidy)

    def _begin_to_tidy(self) -> None:
        """Wipes what was removed, and empties the log when there is not much to do or at times."""
        self._tidying = None
        busy, self._settled = self._settled > 1, 0
        self._tidied += 1
        self._commits.submit(self._wipe)
        if not busy or self._tidied % _BUSY_TIDIES == 0:
            self._commits.submit(self._empty_log)
        if busy:
            self._tidy_later()

    def _wipe(self) -> None:
        """In the writer's thread, where commits come in between."""
        with self._logged("wipe"):
            if self._writer.wipe():
                self._commits.submit(self._wipe)

    def _empty_log(self) -> None:
        """In the writer's thread."""
        with self._logged("empty its log"):
            self._writer.empty_log()

    def _tidy_at_last(self) -> None:
        """In the writer's thread. What is not wiped in time is wiped at the next start."""
        with self._logged("wipe"):
            end = time.monotonic() + _LAST_TIME
            while self._writer.wipe() and time.monotonic() < end:
                pass
            self._writer.empty_log()

    @contextmanager
    def _logged(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.log.error(
                "the store cannot {action}: {reason}", action=action, reason=failure_reason(error)
            )

    def queue_count(self) -> int:
        return self._queue_count

    # -- changing queues

    def add(self, queue: Queue) -> None:
        self._writable()
        self._know_count(queue.notifier)
        queue.number = self.noted + 1
        try:
            super().add(queue)
        except BaseException:
            queue.number = 0
            raise
        self._note(queue)
        self._queue_count += 1
        if queue.link is not None:
            self._changes.links[queue.number] = queue

    def secure(self, queue: Queue, key: PublicKey) -> None:
        self._writable()
        super().secure(queue, key)
        self._note(queue)

    def set_recipient_keys(self, queue: Queue, keys: Sequence[PublicKey]) -> None:
        self._writable()
        super().set_recipient_keys(queue, keys)
        self._note(queue)

    def set_link(self, queue: Queue, link_id: bytes, data: LinkData) -> None:
        self._writable()
        super().set_link(queue, link_id, data)
        self._note_link(queue)

    def delete_link(self, queue: Queue) -> None:
        if queue.link is not None:
            self._writable()
            super().delete_link(queue)
            self._note_link(queue)

    def _note_link(self, queue: Queue) -> None:
        self.noted = change = self._commits.note()
        self._changes.links[queue.number] = queue
        self._changes.last[queue.number] = change

    def set_notifier(self, queue: Queue, notifier: Notifier) -> None:
        self._writable()
        self._know_count(notifier)
        self._know_count(queue.notifier)
        super().set_notifier(queue, notifier)
        self._changes.notifiers[queue.number] = queue
        self._note(queue)

    def delete_notifier(self, queue: Queue) -> None:
        notifier = queue.notifier
        if notifier is not None:
            self._writable()
            self._know_count(notifier)
            super().delete_notifier(queue)
            numbers = self._notification_numbers.pop(notifier.notifier_id, ())
            self._forget_notifications(numbers, self._commits.give_way)
            self._changes.notifiers[queue.number] = queue
            self._note(queue)

    def set_status(
        self, queue: Queue, status: Status, blocked: BlockingInformation | None = None
    ) -> None:
        self._writable()
        super().set_status(queue, status, blocked)
        self._note(queue)

    def use(self, queue: Queue, day: int) -> None:
        self._writable()
        super().use(queue, day)
        self._note(queue)

    def delete(self, queue: Queue) -> None:
        self._writable()
        self._know_count(queue.notifier)
        for message in queue.messages.waiting:
            assert isinstance(message, StoredMessage)
            # Who sent it is told when the queue is gone for good: a crash may bring that back.
            self._commits.give_way(message.number)
        self._loaded_messages -= len(queue.messages.waiting)
        queue.messages = Messages()
        super().delete(queue)
        del self._numbers[queue.number]
        self._queue_count -= 1
        self.noted = change = self._commits.note()
        self._changes.delete(queue, change)

    # -- messages

    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        self._writable()
        messages = self._messages(queue)
        waiting = messages.waiting
        size = len(waiting)
        accepted = messages.write(message, quota)
        if len(waiting) > size:
            stored = StoredMessage(waiting[-1], queue.number, self._reader.body)
            waiting[-1] = stored
            self._loaded_messages += 1
            self.noted = stored.number = self._commits.note_item(stored)
        return Written(accepted, not size)

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        self._writable()
        removed = self._messages(queue).remove(msg_id)
        if removed is not None:
            self._forget_messages(queue, (removed,))
        return removed

    def expire(self, queue: Queue, before: float) -> int:
        messages = self._messages(queue)
        waiting = messages.waiting
        if not waiting or waiting[0].timestamp >= before:
            return 0
        self._writable()
        former = list(waiting)
        expired = messages.expire(before)
        self._forget_messages(queue, former[:expired])
        return expired

    def _forget_messages(self, queue: Queue, messages: Iterable[Message]) -> None:
        """Takes back messages that were not written, and notes the others for removal."""
        removed = self._changes.removed
        for message in messages:
            assert isinstance(message, StoredMessage)
            self._loaded_messages -= 1
            if message.safe or not self._withdraw(message.number):
                removed.append(message)
                self.noted = change = self._commits.note()
                self._changes.last[queue.number] = change

    # -- notifications

    def add_notification(self, notifier_id: bytes, notification: Notification) -> None:
        self._writable()
        super().add_notification(notifier_id, notification)
        noted = NotedNotification(notifier_id, notification)
        self.noted = noted.number = self._commits.note_item(noted)
        self._notification_numbers.setdefault(notifier_id, []).append(noted.number)

    def take_notifications(self, notifier_id: bytes) -> list[Notification]:
        if notifier_id not in self._notifications:
            return []
        self._writable()
        self._forget_notifications(self._notification_numbers.pop(notifier_id))
        return super().take_notifications(notifier_id)

    def expire_notifications(self, before: float) -> int:
        self._writable()
        expired = 0
        for notifier_id in list(self._notifications):
            waiting = self._notifications[notifier_id]
            old = sum(one.timestamp < before for one in waiting)
            if old:
                expired += old
                numbers = self._notification_numbers[notifier_id]
                pairs = list(zip(waiting, numbers, strict=True))
                self._forget_notifications([n for one, n in pairs if one.timestamp < before])
                kept = [(one, n) for one, n in pairs if one.timestamp >= before]
                if kept:
                    self._notifications[notifier_id] = [one for one, _ in kept]
                    self._notification_numbers[notifier_id] = [n for _, n in kept]
                else:
                    del self._notifications[notifier_id]
                    del self._notification_numbers[notifier_id]
        return expired

    def _forget_notifications(
        self, numbers: Iterable[int], take_back: Callable[[int], bool] | None = None
    ) -> None:
        take_back = take_back or self._withdraw
        for number in numbers:
            if not take_back(number):
                self._changes.taken.append(number)
                self.noted = self._commits.note()

    # -- services

    def add_service(self, service: Service) -> Service:
        if service.fingerprint not in self._services:
            known = self._reader.service(service.fingerprint)
            if known is None:
                self._writable()
                self._associated[service.service_id] = 0
                self._changes.services.append(service)
                self.noted = self._commits.note()
            else:
                self._services[service.fingerprint] = known
        return super().add_service(service)

    def associate(self, queue: Queue, service_id: bytes | None) -> None:
        notifier = queue.notifier
        if notifier is not None:
            self._writable()
            self._know_count(notifier)
            if service_id is not None:
                self.notifier_count(service_id)
            super().associate(queue, service_id)
            self._note(queue)

    def notifier_count(self, service_id: bytes) -> int:
        count = self._associated.get(service_id)
        if count is None:
            count = self._associated[service_id] = self._reader.notifier_count(service_id)
        return count

    def _know_count(self, notifier: Notifier | None) -> None:
        """Reads the count of a notifier's service, which may fail, before it changes."""
        if notifier is not None and notifier.service_id is not None:
            self.notifier_count(notifier.service_id)

    def _count_association(self, service_id: bytes | None, change: int) -> None:
        super()._count_association(service_id, change)
        if service_id is not None:
            self._changes.counts.add(service_id)
