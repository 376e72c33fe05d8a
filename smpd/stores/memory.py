"""The store that keeps everything in memory and nothing on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smpd.queues import Link, Message, Notifier, Queue, Status
from smpd.stores.interface import (
    Collision,
    Coming,
    Notification,
    RoleMismatch,
    Service,
    Store,
    Written,
)
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData
from txsimplex.smp.errors import BlockingInformation


class MemoryStore(Store):
    """Dictionaries."""

    def __init__(self) -> None:
        self._recipients: dict[bytes, Queue] = {}
        self._senders: dict[bytes, Queue] = {}
        self._notifiers: dict[bytes, Queue] = {}
        self._links: dict[bytes, Queue] = {}
        self._notifications: dict[bytes, list[Notification]] = {}
        self._services: dict[bytes, Service] = {}
        self._associated: dict[bytes, int] = {}

    def by_recipient(self, recipient_id: bytes) -> Queue | None:
        return self._recipients.get(recipient_id)

    def by_sender(self, sender_id: bytes) -> Queue | None:
        return self._senders.get(sender_id)

    def by_notifier(self, notifier_id: bytes) -> Queue | None:
        return self._notifiers.get(notifier_id)

    def by_link(self, link_id: bytes) -> Queue | None:
        return self._links.get(link_id)

    def queue_count(self) -> int:
        return len(self._recipients)

    def add(self, queue: Queue) -> None:
        link, notifier = queue.link, queue.notifier
        if (
            self.by_recipient(queue.recipient_id) is not None
            or self.by_sender(queue.sender_id) is not None
            or (link is not None and self.by_link(link.link_id) is not None)
            or (notifier is not None and self.by_notifier(notifier.notifier_id) is not None)
        ):
            raise Collision
        self._enter(queue)
        if notifier is not None:
            self._count_association(notifier.service_id, 1)

    def _enter(self, queue: Queue) -> None:
        """Lets a queue be found by its ids."""
        self._recipients[queue.recipient_id] = queue
        self._senders[queue.sender_id] = queue
        if queue.link is not None:
            self._links[queue.link.link_id] = queue
        if queue.notifier is not None:
            self._notifiers[queue.notifier.notifier_id] = queue

    def secure(self, queue: Queue, key: PublicKey) -> None:
        queue.sender_key = key

    def set_recipient_keys(self, queue: Queue, keys: Sequence[PublicKey]) -> None:
        queue.recipient_keys = list(keys)

    def set_link(self, queue: Queue, link_id: bytes, data: LinkData) -> None:
        if self.by_link(link_id) not in (None, queue):
            raise Collision
        self.delete_link(queue)
        queue.link = Link(link_id, data)
        self._links[link_id] = queue

    def delete_link(self, queue: Queue) -> None:
        if queue.link is not None:
            del self._links[queue.link.link_id]
            queue.link = None

    def set_notifier(self, queue: Queue, notifier: Notifier) -> None:
        if self.by_notifier(notifier.notifier_id) is not None:
            raise Collision
        self.delete_notifier(queue)
        queue.notifier = notifier
        self._notifiers[notifier.notifier_id] = queue
        self._count_association(notifier.service_id, 1)

    def delete_notifier(self, queue: Queue) -> None:
        notifier = queue.notifier
        if notifier is not None:
            del self._notifiers[notifier.notifier_id]
            self._notifications.pop(notifier.notifier_id, None)
            self._count_association(notifier.service_id, -1)
            queue.notifier = None

    def set_status(
        self, queue: Queue, status: Status, blocked: BlockingInformation | None = None
    ) -> None:
        queue.status = status
        queue.blocked = blocked

    def use(self, queue: Queue, day: int) -> None:
        queue.used_on = day

    def delete(self, queue: Queue) -> None:
        self.delete_link(queue)
        self.delete_notifier(queue)
        del self._recipients[queue.recipient_id]
        del self._senders[queue.sender_id]
        queue.messages.waiting.clear()
        queue.status = Status.DELETED

    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        was_empty = not queue.messages.waiting
        return Written(queue.messages.write(message, quota), was_empty)

    def head(self, queue: Queue) -> Message | None:
        waiting = queue.messages.waiting
        return waiting[0] if waiting else None

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        return queue.messages.remove(msg_id)

    def message_count(self, queue: Queue) -> int:
        return len(queue.messages.waiting)

    def expire(self, queue: Queue, before: float) -> int:
        return queue.messages.expire(before)

    def expire_all(self, before: float, step: int) -> Iterator[int | Coming]:
        ids = list(self._recipients)
        for start in range(0, len(ids), step):
            expired = 0
            for recipient_id in ids[start : start + step]:
                queue = self._recipients.get(recipient_id)
                if queue is not None:
                    expired += queue.messages.expire(before)
            yield expired

    def unused(self, before: int, step: int) -> Iterator[Sequence[bytes] | Coming]:
        ids = list(self._recipients)
        for start in range(0, len(ids), step):
            some = (
                self._recipients.get(recipient_id) for recipient_id in ids[start : start + step]
            )
            yield [
                queue.recipient_id for queue in some if queue is not None and queue.used_on < before
            ]

    def add_notification(self, notifier_id: bytes, notification: Notification) -> None:
        self._notifications.setdefault(notifier_id, []).append(notification)

    def notifiers_waiting(self) -> list[bytes]:
        return list(self._notifications)

    def take_notifications(self, notifier_id: bytes) -> list[Notification]:
        return self._notifications.pop(notifier_id, [])

    def expire_notifications(self, before: float) -> int | Coming:
        expired = 0
        for notifier_id in list(self._notifications):
            waiting = self._notifications[notifier_id]
            kept = [one for one in waiting if one.timestamp >= before]
            expired += len(waiting) - len(kept)
            if kept:
                self._notifications[notifier_id] = kept
            else:
                del self._notifications[notifier_id]
        return expired

    def add_service(self, service: Service) -> Service:
        known = self._services.setdefault(service.fingerprint, service)
        if known.role is not service.role:
            raise RoleMismatch
        return known

    def associate(self, queue: Queue, service_id: bytes | None) -> None:
        notifier = queue.notifier
        if notifier is not None:
            self._count_association(notifier.service_id, -1)
            notifier.service_id = service_id
            self._count_association(service_id, 1)

    def notifier_count(self, service_id: bytes) -> int:
        return self._associated.get(service_id, 0)

    # -- all of it

    def queues(self) -> Iterator[Queue]:
        """All queues."""
        return iter(self._recipients.values())

    def services(self) -> Iterator[Service]:
        """All services."""
        return iter(self._services.values())

    def notifications(self) -> Iterator[tuple[bytes, Sequence[Notification]]]:
        """The notifications that wait, by notifier."""
        return iter(self._notifications.items())

    def take_over(self, other: MemoryStore) -> None:
        """Has what `other` had, and nothing else; `other` is not to be used after it."""
        self.__dict__.update(other.__dict__)

    def _count_association(self, service_id: bytes | None, change: int) -> None:
        if service_id is not None:
            self._associated[service_id] = self._associated.get(service_id, 0) + change
