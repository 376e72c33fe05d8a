"""Queues of the PostgreSQL store in memory: what is true of them while they are locked.

Nothing is true because it is in memory: each transaction compares versions, and reads again
what others have changed. So anything may be dropped between transactions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from smpd.queues import Message, Queue
from smpd.stores.interface import Notification, StoreError, Wanted, What
from smpd.stores.memory import MemoryStore
from smpd.stores.postgres_batches import EXCLUSIVE, Request, key_of
from smpd.stores.postgres_changes import SharedMessages, shared
from smpd.stores.postgres_rows import Found, Key, Known, Query
from smpd.stores.rows import DamagedRow, Row, queue_from_row, service_from_row

_BODIES: Final = 2000
"""Messages, with their bodies, that are kept in memory between transactions."""
_SEEN: Final = 20_000
"""Ids that are remembered as those of nothing."""


class SharedQueues(MemoryStore):
    """What is in memory. The dictionaries of `MemoryStore` have queues that may be out of date.

    Only those that `take_up` was given are found, until the next time.
    """

    def __init__(self, cached_queues: int) -> None:
        super().__init__()
        self._cached_queues = cached_queues
        # In the order of use, the one used last at the end.
        self._recent: OrderedDict[bytes, Queue] = OrderedDict()
        self._recipients = self._recent
        self._locked: set[int] = set()
        self._numbers: dict[int, Queue] = {}
        self._with_bodies: OrderedDict[int, Queue] = OrderedDict()
        self._bodies = 0
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._highest = 1
        self._found_notifications: dict[bytes, list[Row]] = {}
        self._expired: dict[int, int] = {}
        self._problem: str | None = None

    # -- finding

    def by_recipient(self, recipient_id: bytes) -> Queue | None:
        return self._found(self._recipients.get(recipient_id))

    def by_sender(self, sender_id: bytes) -> Queue | None:
        return self._found(self._senders.get(sender_id))

    def by_notifier(self, notifier_id: bytes) -> Queue | None:
        return self._found(self._notifiers.get(notifier_id))

    def by_link(self, link_id: bytes) -> Queue | None:
        return self._found(self._links.get(link_id))

    def _found(self, queue: Queue | None) -> Queue | None:
        if self._problem is not None:
            raise StoreError(self._problem)
        if queue is None or queue.number not in self._locked:
            return None
        return queue

    def number_of(self, key: Key) -> int | None:
        """The number of a queue that is in memory."""
        queue = self._in_memory(key)
        return None if queue is None else queue.number

    def _in_memory(self, key: Key) -> Queue | None:
        what, entity_id = key
        if what is What.RECIPIENT:
            return self._recipients.get(entity_id)
        if what is What.SENDER:
            return self._senders.get(entity_id)
        if what is What.NOTIFIER:
            return self._notifiers.get(entity_id)
        return self._links.get(entity_id) if what is What.LINK else None

    # -- transactions

    def query(self, requests: Sequence[Request]) -> Query:
        """What these requests look at."""
        query = Query(highest=self._highest)
        for request in requests:
            for wanted in request.wanted:
                self._add_to(query, wanted)
        for key in query.keys:
            queue = self._in_memory(key)
            if queue is not None:
                messages = shared(queue)
                # Others, of other transactions, are dropped before it.
                self._recent.move_to_end(queue.recipient_id)
                if queue.number in self._with_bodies:
                    self._with_bodies.move_to_end(queue.number)
                query.known[queue.number] = Known(messages.version, len(messages.waiting))
            elif key in self._seen:
                query.seen.add(key)
        return query

    def _add_to(self, query: Query, wanted: Wanted) -> None:
        what, entity_id = wanted.what, wanted.entity_id
        if what in EXCLUSIVE:
            query.exclusive.add(entity_id)
        if what is What.SERVICE:
            query.services.add(entity_id)
        elif what is What.CERTIFICATE:
            query.certificates.add(entity_id)
        else:
            key = key_of(wanted)
            query.keys.add(key)
            if wanted.bodies:
                # One more for each that may be removed before.
                before = query.bodies.get(key, 1)
                query.bodies[key] = before + wanted.bodies - 1
            if wanted.expire_before is not None:
                query.expire[key] = wanted.expire_before

    def _is_current(self, query: Query, found: Found) -> bool:
        """Whether all that was not read, since it was in memory before, is there and true still.

        Other transactions may have ended meanwhile: what they used may have been dropped, and what
        they have changed may not have been written.
        """
        for number, state in found.states.items():
            if number in found.rows:
                continue
            queue = self._numbers.get(number)
            if queue is None or shared(queue).version != state.version:
                return False
            if number not in found.messages:
                known = query.known.get(number)
                if known is None or len(shared(queue).waiting) < known.messages:
                    return False
        return True

    def _take_up(self, query: Query, found: Found) -> None:
        """Brings what is in memory up to date with what was found and locked."""
        self._locked = set()
        for number, state in found.states.items():
            queue = self._take_row(number, found)
            if queue is None:
                continue
            messages = shared(queue)
            if number in found.rows or messages.version != state.version:
                self._forget_bodies(queue)
                messages.take(state)
            self._locked.add(number)
            self._recent.move_to_end(queue.recipient_id)
        for number, rows in found.messages.items():
            self._take_messages(number, rows)
        self._found_notifications = found.notifications
        self._associated = dict(found.counts)
        for row in found.services:
            service = service_from_row(row)
            self._services[service.fingerprint] = service
        for key in query.keys:
            self._note_missing(key, found)

    def _take_row(self, number: int, found: Found) -> Queue | None:
        """The queue of a number; as its row says, if it was read."""
        queue = self._numbers.get(number)
        row = found.rows.get(number)
        if row is None:
            return queue
        try:
            new = queue_from_row(row)
        except DamagedRow:
            return None
        if queue is None:
            new.messages = SharedMessages()
            self._enter(new)
            return new
        self._leave_index(queue)
        for name in (
            "recipient_keys", "sender_key", "mode", "link", "notifier", "status", "blocked",
            "used_on", "service_id",
        ):  # fmt: skip
            setattr(queue, name, getattr(new, name))
        self._enter(queue)
        return queue

    def _enter(self, queue: Queue) -> None:
        super()._enter(queue)
        self._numbers[queue.number] = queue
        self._highest = max(self._highest, queue.number)

    def _leave_index(self, queue: Queue) -> None:
        """Lets a queue be found no more by what may be another queue's already."""
        if queue.link is not None and self._links.get(queue.link.link_id) is queue:
            del self._links[queue.link.link_id]
        notifier = queue.notifier
        if notifier is not None and self._notifiers.get(notifier.notifier_id) is queue:
            del self._notifiers[notifier.notifier_id]

    def _take_messages(self, number: int, rows: Sequence[Row]) -> None:
        queue = self._numbers.get(number)
        if queue is None or number not in self._locked:
            return
        self._forget_bodies(queue)
        for _, message_number, msg_id, timestamp, notify, body in rows:
            self._keep(queue, Message(msg_id, timestamp, notify, body), message_number)

    def _note_missing(self, key: Key, found: Found) -> None:
        if key in found.numbers:
            self._seen.pop(key, None)
            return
        queue = self._in_memory(key)
        if queue is not None and queue.number not in self._locked:
            # It is gone, or has lost this id.
            self._drop(queue)
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)

    # -- room

    def _keep(self, queue: Queue, message: Message, number: int) -> None:
        """Keeps a message in memory, the next one of its queue."""
        shared(queue).keep(message, number)
        self._bodies += 1
        self._with_bodies[queue.number] = queue
        self._with_bodies.move_to_end(queue.number)

    def _release(self, queue: Queue, count: int) -> None:
        """Drops the first messages of those in memory."""
        messages = shared(queue)
        count = min(count, len(messages.waiting))
        messages.drop(count)
        self._bodies -= count
        if not messages.waiting:
            self._with_bodies.pop(queue.number, None)

    def _forget_bodies(self, queue: Queue) -> None:
        self._release(queue, len(shared(queue).waiting))

    def _trim(self) -> None:
        """Drops what was used least, of what no transaction needs now."""
        for queue in list(islice(self._with_bodies.values(), 100)):
            if self._bodies <= _BODIES:
                break
            if queue.number not in self._locked:
                self._forget_bodies(queue)
        excess = len(self._recent) - self._cached_queues
        for queue in list(islice(self._recent.values(), max(0, excess))):
            if queue.number not in self._locked:
                self._drop(queue)

    def _drop(self, queue: Queue) -> None:
        """Forgets a queue."""
        self._forget_bodies(queue)
        self._leave_index(queue)
        self._recent.pop(queue.recipient_id, None)
        self._senders.pop(queue.sender_id, None)
        self._numbers.pop(queue.number, None)

    def _forget(self, numbers: Iterable[int]) -> None:
        """Forgets queues of which it is not known whether their changes were written."""
        for number in numbers:
            queue = self._numbers.get(number)
            if queue is not None:
                self._drop(queue)
        self._services.clear()

    # -- notifications that were read

    def _found_for(self, notifier_id: bytes) -> list[Notification]:
        rows = self._found_notifications.get(notifier_id, ())
        return [Notification(timestamp, nonce, meta) for _, timestamp, nonce, meta in rows]
