"""The store that relays share: PostgreSQL (docs/architecture.md).

What is done to queues is done in transactions in which they are locked, many together
(`smpd.stores.postgres_admission`). Relays tell each other what happens by notices
(`smpd.stores.postgres_notices`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Final

from twisted.logger import Logger

from smpd.queues import Message, Notifier, Queue, Status
from smpd.stores.group_commit import CallFromThread, CallLater
from smpd.stores.interface import (
    Coming,
    Notification,
    Service,
    StoreError,
    Wanted,
    Written,
)
from smpd.stores.postgres_admission import Admission
from smpd.stores.postgres_batches import LaneThread
from smpd.stores.postgres_cache import SharedQueues
from smpd.stores.postgres_changes import Changes, SharedMessages, shared
from smpd.stores.postgres_notices import Hearing, Listener
from smpd.stores.postgres_rounds import PostgresRounds
from smpd.stores.postgres_rows import Found, Notice, Query, Rows
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData
from txsimplex.smp.errors import BlockingInformation

_FLUSH_TIME: Final = 5.0
_LAST_TIME: Final = 1.0
"""Seconds that closing waits for threads, which may wait for a database that is gone."""
_LOOK_AGAIN: Final = 1.0
"""Seconds until something is looked at once more that may not be as it will be."""
_STOPPING: Final = "the relay is stopping"


class PostgresStore(SharedQueues):
    """Changes queues in memory while they are locked, and has the changes written."""

    log = Logger()
    shared = True

    def __init__(
        self,
        relay: int,
        rounds: PostgresRounds,
        lanes: Sequence[LaneThread],
        *,
        queue_count: int,
        commit_interval: float,
        cached_queues: int,
        answer_timeout: float,
        call_later: CallLater,
        call_from_thread: CallFromThread,
        seconds: Callable[[], float],
    ) -> None:
        super().__init__(cached_queues)
        self._relay = relay
        self._rounds = rounds
        self._queue_count = queue_count
        self._changes = Changes()
        self._batch = 0
        self._notified: dict[bytes, None] = {}
        self._claimed: set[bytes] = set()
        self._claiming: list[tuple[int, bytes]] = []
        self._call_later = call_later
        self._listener: Listener | None = None
        self._hearing = Hearing(self)
        self._closed = False
        self._admission = Admission(
            self,
            lanes,
            interval=commit_interval,
            patience=answer_timeout,
            call_later=call_later,
            call_from_thread=call_from_thread,
            seconds=seconds,
        )

    # -- work

    def admit(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        if self._closed:
            self.without_store(_STOPPING, work)
        else:
            self._admission.ask(wanted, work, line)

    def spoiled(self, number: int) -> str | None:
        return self._admission.spoiled(number)

    def begin(self, query: Query, found: Found) -> set[int] | None:
        """See `smpd.stores.postgres_batches.Steps`."""
        if not self._is_current(query, found):
            return None
        self._changes = Changes()
        self._take_up(query, found)
        self._expired.clear()
        for number, numbers in found.expired.items():
            queue = self._numbers.get(number)
            if queue is not None and number in self._locked:
                self._forget_expired(queue, numbers)
        return set(self._locked)

    def _forget_expired(self, queue: Queue, numbers: Sequence[int]) -> None:
        """Messages were removed when the queue was locked: whether they had to, work decided."""
        messages = shared(queue)
        self._touch(queue)
        messages.count -= len(numbers)
        gone = set(numbers)
        self._release(queue, sum(number in gone for number in messages.numbers))
        self._changes.removed += [(queue.number, number) for number in numbers]
        self._expired[queue.number] = len(numbers)

    def end(self) -> Rows | None:
        """See `smpd.stores.postgres_batches.Steps`."""
        self._locked = set()
        self._found_notifications = {}
        self._trim()
        changes, self._changes = self._changes, Changes()
        if not changes.any:
            return None
        self._batch += 1
        return changes.rows(self._batch)

    def end_badly(self) -> None:
        """See `smpd.stores.postgres_batches.Steps`."""
        changes, self._changes = self._changes, Changes()
        self._forget(self._locked | set(changes.base))
        self._claimed -= changes.claims
        self._locked = set()

    def given_up(self, numbers: set[int], rows: Rows) -> None:
        """See `smpd.stores.postgres_batches.Steps`."""
        self._forget(numbers | set(rows.base))
        self._claimed -= set(rows.claims)

    def answers_lost(self, rows: Rows) -> None:
        """See `smpd.stores.postgres_batches.Steps`."""
        if self.elsewhere is not None and not self._closed:
            self._hearing.look_again(self.elsewhere, rows.lost_from)

    def lost(self, busy: Set[int]) -> None:
        """See `smpd.stores.postgres_batches.Steps`.

        One that stood by may not have had the last changes. Then versions say nothing any more.
        """
        self._forget(set(self._numbers) - busy)
        self._seen.clear()

    def without_store(self, reason: str, work: Callable[[], None]) -> None:
        """See `smpd.stores.postgres_batches.Steps`."""
        self._problem = reason
        try:
            work()
        finally:
            self._problem = None

    def moved(self, committed: int) -> None:
        """See `smpd.stores.postgres_batches.Steps`."""
        self.committed = committed
        self._follow_claimed()
        self.on_commit()

    def _writable(self) -> None:
        if self._problem is not None:
            raise StoreError(self._problem)

    def _touch(self, queue: Queue) -> int:
        self._writable()
        self.noted += 1
        return self._changes.touch(queue)

    def _touch_row(self, queue: Queue) -> None:
        self._touch(queue)
        self._changes.queues[queue.number] = queue

    def _note(self) -> None:
        self._writable()
        self.noted += 1
        self._changes.others = True

    # -- changing queues

    def queue_count(self) -> int:
        return self._queue_count

    def add(self, queue: Queue) -> None:
        self._writable()
        number = self._rounds.next_number()
        if number is None:
            raise StoreError("the database gives no numbers for queues")
        queue.number, queue.messages = number, SharedMessages()
        try:
            super().add(queue)
        except BaseException:
            queue.number = 0
            raise
        self._locked.add(number)
        self._touch_row(queue)
        if queue.link is not None:
            self._changes.links[number] = queue
        self._queue_count += 1

    def secure(self, queue: Queue, key: PublicKey) -> None:
        self._touch_row(queue)
        super().secure(queue, key)

    def set_recipient_keys(self, queue: Queue, keys: Sequence[PublicKey]) -> None:
        self._touch_row(queue)
        super().set_recipient_keys(queue, keys)

    def set_link(self, queue: Queue, link_id: bytes, data: LinkData) -> None:
        self._writable()
        super().set_link(queue, link_id, data)
        self._touch(queue)
        self._changes.links[queue.number] = queue

    def delete_link(self, queue: Queue) -> None:
        if queue.link is not None:
            self._touch(queue)
            self._changes.links[queue.number] = queue
            super().delete_link(queue)

    def set_notifier(self, queue: Queue, notifier: Notifier) -> None:
        self._writable()
        super().set_notifier(queue, notifier)
        self._touch_row(queue)

    def delete_notifier(self, queue: Queue) -> None:
        notifier = queue.notifier
        if notifier is None:
            return
        self._touch_row(queue)
        self._changes.freed.add(queue.number)
        self._changes.drop_notifications(notifier.notifier_id)
        self._notified.pop(notifier.notifier_id, None)
        self._found_notifications.pop(notifier.notifier_id, None)
        messages = shared(queue)
        if notifier.service_id is not None:
            self._tell_service(notifier.service_id, "d", notifier.notifier_id)
        else:
            self._tell(messages.notifier_subscriber, "n", notifier.notifier_id)
        messages.notifier_subscriber = 0
        super().delete_notifier(queue)

    def set_status(
        self, queue: Queue, status: Status, blocked: BlockingInformation | None = None
    ) -> None:
        self._touch_row(queue)
        super().set_status(queue, status, blocked)
        if status is Status.BLOCKED:
            self._tell(shared(queue).subscriber, "b", queue.recipient_id)

    def use(self, queue: Queue, day: int) -> None:
        self._touch_row(queue)
        super().use(queue, day)

    def delete(self, queue: Queue) -> None:
        self._touch(queue)
        self._tell(shared(queue).subscriber, "q", queue.recipient_id)
        self._forget_bodies(queue)
        super().delete(queue)
        self._changes.delete(queue)
        del self._numbers[queue.number]
        self._locked.discard(queue.number)
        self._queue_count -= 1

    # -- messages

    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        self._writable()
        messages = shared(queue)
        before = messages.count
        if before and not messages.can_write:
            return Written(accepted=False, was_empty=False)
        number = self._touch(queue)
        messages.can_write = accepted = before < quota
        if not accepted:
            message = Message(message.msg_id, message.timestamp, False, None)
        if len(messages.waiting) == before:
            self._keep(queue, message, number)
        messages.count += 1
        self._changes.messages[queue.number, number] = message
        if not before:
            self._tell(messages.subscriber, "q", queue.recipient_id)
        return Written(accepted, not before)

    def head(self, queue: Queue) -> Message | None:
        self._writable()
        messages = shared(queue)
        if not messages.count:
            return None
        assert messages.waiting, "the first message was not asked for"
        return messages.waiting[0]

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        self._writable()
        messages = shared(queue)
        if not messages.waiting or messages.waiting[0].msg_id != msg_id:
            return None
        removed, number = messages.waiting[0], messages.numbers[0]
        self._touch(queue)
        self._release(queue, 1)
        messages.count -= 1
        self._changes.remove(queue, number)
        return removed

    def message_count(self, queue: Queue) -> int:
        return shared(queue).count

    def expire(self, queue: Queue, before: float) -> int:
        return self._expired.pop(queue.number, 0)

    def expire_all(self, before: float, step: int) -> Iterator[int | Coming]:
        return self._rounds.expire_messages(before, step)

    def unused(self, before: int, step: int) -> Iterator[Sequence[bytes] | Coming]:
        return self._rounds.unused_queues(before, step)

    # -- notifications

    def add_notification(self, notifier_id: bytes, notification: Notification) -> None:
        self._note()
        self._changes.notifications.append((notifier_id, notification))
        queue = self._notifiers.get(notifier_id)
        if queue is None or queue.notifier is None:
            return
        if queue.notifier.service_id is not None:
            self._tell_service(queue.notifier.service_id, "n", notifier_id, here=True)
            return
        subscriber = shared(queue).notifier_subscriber
        if subscriber == self._relay:
            self._notified[notifier_id] = None
        else:
            self._tell(subscriber, "n", notifier_id)

    def notifiers_waiting(self) -> list[bytes]:
        return list(self._notified)

    def nobody_waits(self, notifier_id: bytes) -> None:
        self._notified.pop(notifier_id, None)

    def take_notifications(self, notifier_id: bytes) -> list[Notification]:
        self._writable()
        self._notified.pop(notifier_id, None)
        taken = self._found_for(notifier_id)
        rows = self._found_notifications.pop(notifier_id, ())
        new = [one for each, one in self._changes.notifications if each == notifier_id]
        if rows or new:
            self._note()
            self._changes.taken += [row[0] for row in rows]
            self._changes.notifications = [
                each for each in self._changes.notifications if each[0] != notifier_id
            ]
        return taken + new

    def expire_notifications(self, before: float) -> Coming:
        return self._rounds.expire_notifications(before)

    # -- services

    def add_service(self, service: Service) -> Service:
        if service.fingerprint not in self._services:
            self._note()
            self._changes.services.append(service)
        return super().add_service(service)

    def associate(self, queue: Queue, service_id: bytes | None) -> None:
        notifier = queue.notifier
        if notifier is None:
            return
        self._touch_row(queue)
        former, messages = notifier.service_id, shared(queue)
        if former is not None and former != service_id:
            self._tell_service(former, "e", notifier.notifier_id)
        super().associate(queue, service_id)
        if service_id is not None:
            self._tell(messages.notifier_subscriber, "n", notifier.notifier_id)
            messages.notifier_subscriber = 0
            self._follow(notifier.notifier_id)

    # -- who has subscribers

    def unsafe(self, queue: Queue) -> int:
        # What others have changed is committed, or the queue would not be here.
        return self.noted if queue.number in self._changes.base else 0

    def claim_queue(self, queue: Queue) -> None:
        self._writable()
        messages = shared(queue)
        former = messages.subscriber
        if former != self._relay:
            self._touch(queue)
            messages.subscriber = self._relay
            self._tell(former, "q", queue.recipient_id)

    def claim_notifier(self, queue: Queue) -> None:
        self._writable()
        messages, notifier = shared(queue), queue.notifier
        former = messages.notifier_subscriber
        if notifier is None:
            return
        if former != self._relay:
            self._touch(queue)
            messages.notifier_subscriber = self._relay
            self._tell(former, "n", notifier.notifier_id)
        self._follow(notifier.notifier_id)

    def _follow(self, notifier_id: bytes) -> None:
        """Remembers that there are notifications for a subscriber here, if there are."""
        if self._found_notifications.get(notifier_id):
            self._notified[notifier_id] = None

    def claim_service(self, service_id: bytes, *, newly: bool) -> None:
        self._writable()
        if newly or service_id not in self._claimed:
            self._note()
            self._claimed.add(service_id)
            self._changes.claims.add(service_id)
            self._claiming.append((self.noted, service_id))

    def _follow_claimed(self) -> None:
        """Looks what waits for services that other relays know to be here by now."""
        claiming, self._claiming = self._claiming, []
        for number, service_id in claiming:
            if number > self.committed:
                self._claiming.append((number, service_id))
            elif self.spoiled(number) is not None:
                self._claimed.discard(service_id)
            else:
                self.follow_service(service_id)
                # Who has just not seen it yet has told nobody.
                self.later(partial(self.follow_service, service_id))

    def follow_service(self, service_id: bytes) -> None:
        """Remembers the notifications that wait for a service whose connection is here."""
        self._rounds.notifiers_of(service_id).addCallback(self._follow_all)

    def _follow_all(self, notifier_ids: Sequence[bytes]) -> None:
        self._notified.update(dict.fromkeys(notifier_ids))

    def is_ours(self, queue: Queue) -> bool:
        return shared(queue).subscriber == self._relay

    def is_our_notifier(self, queue: Queue) -> bool:
        return shared(queue).notifier_subscriber == self._relay

    def _tell(self, relay: int, kind: str, entity_id: bytes) -> None:
        """Tells another relay, if there is one, when this transaction is committed."""
        if relay not in (0, self._relay):
            self._changes.tell(relay, Notice(kind, entity_id))

    def _tell_service(
        self, service_id: bytes, kind: str, notifier_id: bytes, *, here: bool = False
    ) -> None:
        """Tells the relay that has the connection of a service; this one, too, if `here`."""
        notice = Notice(kind, notifier_id if here else service_id, b"" if here else notifier_id)
        self._changes.service_notices.append((service_id, notice, here))

    # -- what other relays tell

    def listen(self, listener: Listener) -> None:
        """Begins to hear of what other relays do."""
        self._listener = listener
        listener.start()

    def noticed(self, some: Sequence[Notice]) -> None:
        """What other relays tell; see `smpd.stores.postgres_notices`."""
        if self.elsewhere is not None and not self._closed:
            self._hearing.take(self.elsewhere, some)

    def listening(self) -> None:
        """Notices come from now on, and may have been lost before."""
        if self.elsewhere is not None and not self._closed:
            self._hearing.look_everywhere(self.elsewhere)

    def follow(self, notifier_id: bytes) -> None:
        """Remembers that there may be notifications for a subscriber here."""
        self._notified[notifier_id] = None

    def later(self, call: Callable[[], None]) -> None:
        """Does something in a moment, unless the store is closed by then."""

        def then() -> None:
            if not self._closed:
                call()

        self._call_later(_LOOK_AGAIN, then)

    def unclaim(self, service_id: bytes) -> None:
        """Forgets that a service has its connection here; it may be claimed again."""
        self._claimed.discard(service_id)

    def is_claimed(self, service_id: bytes) -> bool:
        """Whether a service was claimed and nothing to the contrary was heard since."""
        return service_id in self._claimed or self._admission.claims(service_id)

    def relay_of(self, service_id: bytes) -> Coming:
        """The number of the relay that has the connection of a service."""
        return self._rounds.relay_of(service_id)

    @property
    def number(self) -> int:
        """The number of this relay."""
        return self._relay

    # -- ending

    def flush(self) -> None:
        """Does what waits, and waits until it is safe; for some seconds."""
        if not self._admission.flush(_FLUSH_TIME):
            self._admission.give_up(_STOPPING)

    def close(self) -> None:
        """Does what waits, and ends all connections to the database."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._listener is not None:
            self._listener.stop(_LAST_TIME)
        self._admission.stop(_LAST_TIME)
        self._rounds.stop(_LAST_TIME)
