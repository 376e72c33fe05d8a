"""Changes of the SQLite store on their way into a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smpd.queues import Queue
from smpd.stores.interface import Notification, Service
from smpd.stores.rows import Row, link_row, queue_row, service_row
from smpd.stores.sqlite_rows import StoredMessage, notification_row
from smpd.stores.sqlite_writer import Batch


class NotedNotification:
    """A notification that waits to be written."""

    __slots__ = ("notification", "notifier_id", "number")

    def __init__(self, notifier_id: bytes, notification: Notification) -> None:
        self.notifier_id = notifier_id
        self.notification = notification
        self.number = 0


class Changes:
    """What has changed and cannot be taken back; queues by their numbers.

    `last` has the number of the last change of each queue. `links` and `notifiers` are the
    queues whose links and notifiers are others now. Messages in `removed` and notifications
    in `taken` are on disk, or on their way there.
    """

    __slots__ = (
        "counts",
        "deleted",
        "last",
        "links",
        "notifiers",
        "queues",
        "removed",
        "services",
        "taken",
    )

    def __init__(self) -> None:
        self.last: dict[int, int] = {}
        self.queues: dict[int, Queue] = {}
        self.links: dict[int, Queue] = {}
        self.notifiers: dict[int, Queue] = {}
        self.deleted: set[int] = set()
        self.removed: list[StoredMessage] = []
        self.taken: list[int] = []
        self.services: list[Service] = []
        self.counts: set[bytes] = set()

    def delete(self, queue: Queue, change: int) -> None:
        """Notes that a queue is gone, and forgets what has changed in it."""
        number = queue.number
        for changed in (self.queues, self.links, self.notifiers):
            changed.pop(number, None)
        self.deleted.add(number)
        self.last[number] = change

    def batch(
        self, items: list[Any], noted: int, queue_count: int, notifier_count: Callable[[bytes], int]
    ) -> Batch:
        """Rows for all of it as it is now, and for the messages and notifications in `items`."""
        messages: list[StoredMessage] = []
        notifications: list[Row] = []
        for item in items:
            if type(item) is StoredMessage:
                messages.append(item)
            else:
                row = notification_row(item.number, item.notifier_id, item.notification)
                notifications.append(row)
        # Those of queues that are gone go with these, and their places are to be noted once.
        removed = [message for message in self.removed if message.queue not in self.deleted]
        return Batch(
            noted=noted,
            queue_count=queue_count,
            deleted=list(self.deleted),
            freed=list(self.notifiers),
            queues=[queue_row(queue) for queue in self.queues.values()],
            unlinked=list(self.links),
            links=[
                link_row(queue, queue.link)
                for queue in self.links.values()
                if queue.link is not None
            ],
            messages=messages,
            removed=[(message.queue, message.number) for message in removed],
            to_wipe=[message.place for message in removed if message.place is not None],
            notifications=notifications,
            taken=self.taken,
            services=[
                service_row(service, notifier_count(service.service_id))
                for service in self.services
            ],
            notifier_counts=[(each, notifier_count(each)) for each in self.counts],
        )
