"""The store on disk: SQLite for records, files for the bodies of messages.

Queues that are used are in memory, with the dictionaries of `MemoryStore` as index;
others are read when they are needed, and those used least go when there are too many.
What has changed stays until it is safe, so what is in memory is always newer than what
is on disk. `smpd.stores.group_commit` has the changes written by a thread of its own.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import islice
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
from smpd.stores.memory import MemoryStore
from smpd.stores.sqlite_changes import Changes, NotedNotification
from smpd.stores.sqlite_file import StoreFiles, failure_reason, open_files
from smpd.stores.sqlite_reader import (
    BY_LINK,
    BY_NOTIFIER,
    BY_NUMBER,
    BY_RECIPIENT,
    BY_SENDER,
    FROM_NUMBER,
    SqliteReader,
)
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
_QUEUES_READ: Final = 32
"""Queues that expiry reads from disk in one step: about 5 ms."""
_ROWS_READ: Final = 500
"""Rows of queues or messages that it looks at on disk in one step: about 2 ms."""

_MESSAGES_PER_QUEUE: Final = 4
"""Messages, without their bodies, that take the room of a queue in memory."""

_NOT_READ: Final = Messages()
"""The messages of a queue that are on disk only; never changed."""


class _Lookup(Enum):
    """Where the last queue that was looked for was found."""

    CACHED = auto()
    READ = auto()
    MISSED = auto()


def open_sqlite(
    directory: Path,
    *,
    call_later: CallLater,
    call_from_thread: CallFromThread,
    commit_interval: float = 0.005,
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


class SqliteStore(MemoryStore):
    """Queues in memory while they are used, and on disk.

    A `Queue` that was found or added may be used until control is back with the reactor;
    then it may be dropped from memory, and has to be looked up again.
    """

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
        super().__init__()
        self._files = files
        self._reader = SqliteReader(files.reader, files.bodies)
        self._call_later = call_later
        self._cached_queues = cached_queues
        # In the order of use, the one used last at the end.
        self._recent: OrderedDict[bytes, Queue] = OrderedDict()
        self._recipients = self._recent
        self._numbers: dict[int, Queue] = {}
        self._queue_count = files.queue_count
        self._notification_numbers: dict[bytes, list[int]] = {}
        self._changes = Changes()
        self._in_flight = Changes()
        self._looked_up = _Lookup.MISSED
        self._closed = False
        self._trimming: IDelayedCall | None = None
        self._tidying: IDelayedCall | None = None
        self._settled = self._tidied = self._loaded_messages = 0
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

    # -- finding

    def by_recipient(self, recipient_id: bytes) -> Queue | None:
        return self._found(self._recipients.get(recipient_id), BY_RECIPIENT, recipient_id)

    def by_sender(self, sender_id: bytes) -> Queue | None:
        return self._found(self._senders.get(sender_id), BY_SENDER, sender_id)

    def by_notifier(self, notifier_id: bytes) -> Queue | None:
        return self._found(self._notifiers.get(notifier_id), BY_NOTIFIER, notifier_id)

    def by_link(self, link_id: bytes) -> Queue | None:
        return self._found(self._links.get(link_id), BY_LINK, link_id)

    def _found(self, queue: Queue | None, query: str, entity_id: bytes) -> Queue | None:
        """The queue that was found in memory, or what there is on disk."""
        if queue is None:
            queue = self._load(query, entity_id)
            self._looked_up = _Lookup.MISSED if queue is None else _Lookup.READ
            return queue
        self._looked_up = _Lookup.CACHED
        self._recent.move_to_end(queue.recipient_id)
        return queue

    def _load(self, query: str, value: object) -> Queue | None:
        row = self._reader.queue_row(query, value)
        if row is None:
            return None
        number = row[0]
        if number in self._numbers or self._is_deleted(number):
            # It has lost the id since, as memory tells, and the disk will learn it.
            return None
        queue = self._reader.queue(row)
        queue.messages = _NOT_READ
        self._enter(queue)
        return queue

    def _is_deleted(self, number: int) -> bool:
        return number in self._changes.deleted or number in self._in_flight.deleted

    def _enter(self, queue: Queue) -> None:
        super()._enter(queue)
        self._numbers[queue.number] = queue
        self._trim_later()

    def _excess(self) -> int:
        """How many queues are to be dropped; many messages take the room of queues."""
        room = self._cached_queues - self._loaded_messages // _MESSAGES_PER_QUEUE
        return len(self._recent) - max(room, 0)

    def _trim_later(self) -> None:
        if self._trimming is None and self._excess() > 0:
            # Not at once: somebody has found one of them just now.
            self._trimming = self._call_later(0, self._trim)

    def _trim(self) -> None:
        """Drops the queues that were used least, but none with changes that are not safe."""
        self._trimming = None
        oldest = list(islice(self._recent.values(), max(self._excess(), 0)))
        for queue in oldest:
            if self._excess() > 0 and not self._is_pinned(queue):
                self._drop(queue)

    def _is_pinned(self, queue: Queue) -> bool:
        waiting = queue.messages.waiting
        if waiting:
            last = waiting[-1]
            assert isinstance(last, StoredMessage)
            if not last.safe:
                return True
        return self.unsafe(queue) > 0

    def _drop(self, queue: Queue) -> None:
        del self._recent[queue.recipient_id]
        del self._senders[queue.sender_id]
        del self._numbers[queue.number]
        self._loaded_messages -= len(queue.messages.waiting)
        if queue.link is not None:
            del self._links[queue.link.link_id]
        if queue.notifier is not None:
            del self._notifiers[queue.notifier.notifier_id]

    def refused(self, queue: Queue | None) -> None:
        # A queue that is read costs a search by its id, a row and a record made from it.
        if self._looked_up is _Lookup.CACHED:
            self._reader.search_sender(b"" if queue is None else queue.sender_id)
        if self._looked_up is not _Lookup.READ:
            row = self._reader.queue_row(FROM_NUMBER, secrets.randbelow(self.noted + 1))
            if row is not None:
                self._reader.queue(row)

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
            self._forget_notifications(self._notification_numbers.pop(notifier.notifier_id, ()))
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
            self._withdraw(message.number)
        self._loaded_messages -= len(queue.messages.waiting)
        queue.messages = Messages()
        super().delete(queue)
        del self._numbers[queue.number]
        self._queue_count -= 1
        self.noted = change = self._commits.note()
        self._changes.delete(queue, change)

    # -- messages

    def _messages(self, queue: Queue) -> Messages:
        """The messages of a queue, which are read when they are needed first."""
        messages = queue.messages
        if messages is _NOT_READ:
            read = self._reader.messages(queue.number)
            waiting: list[Message] = [*read]
            # A marker is the last one while it is there (smp-server.md §6).
            messages = Messages(waiting, not (waiting and waiting[-1].is_quota))
            queue.messages = messages
            self._loaded_messages += len(waiting)
            self._trim_later()
        return messages

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

    def head(self, queue: Queue) -> Message | None:
        waiting = self._messages(queue).waiting
        if not waiting:
            return None
        first = waiting[0]
        assert isinstance(first, StoredMessage)
        # With its body, so that a disk that fails is noticed here.
        return first if first.content is not None else first.whole()

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        self._writable()
        removed = self._messages(queue).remove(msg_id)
        if removed is not None:
            self._forget_messages(queue, (removed,))
        return removed

    def message_count(self, queue: Queue) -> int:
        return len(self._messages(queue).waiting)

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

    def expire_all(self, before: float, step: int) -> Iterator[int]:
        numbers = list(self._numbers)
        for start in range(0, len(numbers), step):
            expired = 0
            for number in numbers[start : start + step]:
                queue = self._numbers.get(number)
                if queue is not None and queue.messages is not _NOT_READ:
                    expired += self.expire(queue, before)
            yield expired
        yield from self._expire_on_disk(before)

    def _expire_on_disk(self, before: float) -> Iterator[int]:
        """Expires the messages of queues of which they are on disk only.

        Looks at rows in the order of queues, since it is the first one that tells.
        """
        position = (-1, -1)
        seen = -1
        while rows := self._reader.some_messages(*position, _ROWS_READ):
            expired = read = 0
            for number, message, timestamp, is_quota in rows:
                position = (number, message)
                if number == seen:
                    continue
                seen = number
                if timestamp < before and not is_quota:
                    expired += self._expire_queue(number, before)
                    read += 1
                    if read == _QUEUES_READ:
                        break
            yield expired

    def _expire_queue(self, number: int, before: float) -> int:
        queue = self._numbers.get(number)
        if queue is None:
            queue = self._load_unused(number)
        return 0 if queue is None else self.expire(queue, before)

    def _load_unused(self, number: int) -> Queue | None:
        """A queue that nobody has asked for: the first to be dropped."""
        queue = self._load(BY_NUMBER, number)
        if queue is not None:
            self._recent.move_to_end(queue.recipient_id, last=False)
        return queue

    def unused(self, before: int, step: int) -> Iterator[list[Queue]]:
        # Those in memory may have been used since their rows were written.
        seen = set(self._numbers)
        yield from super().unused(before, step)
        last = -1
        size = min(step, _QUEUES_READ)
        while rows := self._reader.some_queues(last, min(step, _ROWS_READ)):
            found: list[Queue] = []
            for number, used_on in rows:
                last = number
                if number not in seen and used_on < before:
                    queue = self._numbers.get(number) or self._load_unused(number)
                    if queue is not None and queue.used_on < before:
                        found.append(queue)
                        if len(found) == size:
                            break
            yield found

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

    def _forget_notifications(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not self._withdraw(number):
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
