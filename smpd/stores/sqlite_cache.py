"""Queues of the SQLite store in memory: those in use, and those with changes that are not safe.

The dictionaries of `MemoryStore` are the index. What is not found there is read from disk,
and the queues used least go when there are too many. What has changed stays until it is
safe, so what is in memory is always newer than what is on disk.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Final

from twisted.internet.interfaces import IDelayedCall

from smpd.queues import Message, Messages, Queue
from smpd.stores.group_commit import CallLater
from smpd.stores.interface import Coming
from smpd.stores.memory import MemoryStore
from smpd.stores.sqlite_reader import (
    BY_LINK,
    BY_NOTIFIER,
    BY_NUMBER,
    BY_RECIPIENT,
    BY_SENDER,
    UP_TO_NUMBER,
    SqliteReader,
)
from smpd.stores.sqlite_rows import StoredMessage

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


class QueueCache(MemoryStore):
    """Finds queues in memory or on disk, and keeps `cached_queues` of them or more.

    A `Queue` that was found or added may be used until control is back with the reactor;
    then it may be dropped from memory, and has to be looked up again.
    """

    def __init__(self, reader: SqliteReader, call_later: CallLater, cached_queues: int) -> None:
        super().__init__()
        self._reader = reader
        self._call_later = call_later
        self._cached_queues = cached_queues
        # In the order of use, the one used last at the end.
        self._recent: OrderedDict[bytes, Queue] = OrderedDict()
        self._recipients = self._recent
        self._numbers: dict[int, Queue] = {}
        self._loaded_messages = 0
        self._looked_up = _Lookup.MISSED
        self._trimming: IDelayedCall | None = None

    @abstractmethod
    def _is_deleted(self, number: int) -> bool:
        """Whether the queue with this number is gone, which the disk may not know yet."""

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

    def _enter(self, queue: Queue) -> None:
        super()._enter(queue)
        self._numbers[queue.number] = queue
        self._trim_later()

    # -- dropping

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

    # -- time does not tell

    def refused(self, queue: Queue | None) -> None:
        # Each time two searches, one row and a record made from it. What is searched for is the
        # same when the command comes again, as it is for an id that is not there.
        if self._looked_up is _Lookup.READ:
            if queue is not None:
                self._reader.search_sender(queue.sender_id)
            return
        if self._looked_up is _Lookup.CACHED:
            self._reader.queue_row(BY_SENDER, b"" if queue is None else queue.sender_id[::-1])
        row = self._reader.queue_row(UP_TO_NUMBER, 1 + secrets.randbelow(self.noted or 1))
        if row is not None:
            self._reader.queue(row)

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

    def head(self, queue: Queue) -> Message | None:
        waiting = self._messages(queue).waiting
        if not waiting:
            return None
        first = waiting[0]
        assert isinstance(first, StoredMessage)
        # With its body, so that a disk that fails is noticed here.
        return first if first.content is not None else first.whole()

    def message_count(self, queue: Queue) -> int:
        return len(self._messages(queue).waiting)

    # -- going over all queues

    def expire_all(self, before: float, step: int) -> Iterator[int | Coming]:
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

    def unused(self, before: int, step: int) -> Iterator[Sequence[bytes] | Coming]:
        # Those in memory may have been used since their rows were written.
        seen = set(self._numbers)
        yield from super().unused(before, step)
        last = -1
        size = min(step, _QUEUES_READ)
        while rows := self._reader.some_queues(last, min(step, _ROWS_READ)):
            found: list[bytes] = []
            for number, used_on in rows:
                last = number
                if number not in seen and used_on < before:
                    queue = self._numbers.get(number) or self._load_unused(number)
                    if queue is not None and queue.used_on < before:
                        found.append(queue.recipient_id)
                        if len(found) == size:
                            break
            yield found
