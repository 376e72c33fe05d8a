"""What work has changed in queues of the PostgreSQL store, until it is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from smpd.queues import Message, Messages, Queue
from smpd.stores.interface import Notification, Service
from smpd.stores.postgres_rows import Notice, Rows, State
from smpd.stores.rows import link_row, queue_row, service_row


@dataclass(slots=True)
class SharedMessages(Messages):
    """The messages of a queue that relays share, as far as they are in memory.

    `waiting` has the first ones, `numbers` theirs, `count` says how many there are. The rest
    is the queue's row in queue_state.
    """

    numbers: list[int] = field(default_factory=list)
    version: int = 0
    count: int = 0
    subscriber: int = 0
    notifier_subscriber: int = 0

    def take(self, state: State) -> None:
        """Takes over what others have changed; of the messages nothing is known then."""
        self.waiting.clear()
        self.numbers.clear()
        _, self.version, self.count, self.can_write, self.subscriber, self.notifier_subscriber = (
            state
        )

    def keep(self, message: Message, number: int) -> None:
        """Keeps the next message."""
        self.waiting.append(message)
        self.numbers.append(number)

    def drop(self, count: int) -> None:
        """Removes messages from the front of those in memory."""
        del self.waiting[:count]
        del self.numbers[:count]


def shared(queue: Queue) -> SharedMessages:
    """What is known of the messages of a queue that is in the store."""
    messages = queue.messages
    assert isinstance(messages, SharedMessages)
    return messages


class Changes:
    """What one transaction is to write; queues by their numbers.

    `base` has the versions of the changed queues before, 0 for new ones. `links` and `freed`
    are the queues whose links and notifiers are others now. `notices` are for other relays.
    `others` says whether something else than queues has changed.
    """

    __slots__ = (
        "base",
        "claims",
        "deleted",
        "dropped",
        "freed",
        "links",
        "lost_from",
        "messages",
        "notices",
        "notifications",
        "others",
        "queues",
        "removed",
        "service_notices",
        "services",
        "states",
        "taken",
    )

    def __init__(self) -> None:
        self.base: dict[int, int] = {}
        self.states: dict[int, Queue] = {}
        self.queues: dict[int, Queue] = {}
        self.links: dict[int, Queue] = {}
        self.freed: set[int] = set()
        self.deleted: set[int] = set()
        self.messages: dict[tuple[int, int], Message] = {}
        self.removed: list[tuple[int, int]] = []
        self.lost_from: set[bytes] = set()
        self.dropped: set[bytes] = set()
        self.notifications: list[tuple[bytes, Notification]] = []
        self.taken: list[int] = []
        self.services: list[Service] = []
        self.claims: set[bytes] = set()
        self.notices: dict[int, dict[Notice, None]] = {}
        self.service_notices: list[tuple[bytes, Notice, bool]] = []
        self.others = False

    @property
    def any(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.base or self.others)

    def touch(self, queue: Queue) -> int:
        """Notes that something of a queue changes; its new version."""
        messages = shared(queue)
        self.base.setdefault(queue.number, messages.version)
        self.states[queue.number] = queue
        messages.version += 1
        return messages.version

    def remove(self, queue: Queue, number: int) -> None:
        """Notes that a message goes, which may not have been written yet."""
        self.lost_from.add(queue.recipient_id)
        if self.messages.pop((queue.number, number), None) is None:
            self.removed.append((queue.number, number))

    def delete(self, queue: Queue) -> None:
        """Notes that a queue goes, and forgets what has changed in it."""
        number = queue.number
        base = self.base.setdefault(number, shared(queue).version)
        for changed in (self.states, self.queues, self.links):
            changed.pop(number, None)
        self.freed.discard(number)
        for key in [key for key in self.messages if key[0] == number]:
            del self.messages[key]
        if base:
            self.deleted.add(number)
        else:
            del self.base[number]

    def drop_notifications(self, notifier_id: bytes) -> None:
        """Notes that the notifications of a notifier go with it."""
        self.notifications = [one for one in self.notifications if one[0] != notifier_id]
        self.dropped.add(notifier_id)

    def tell(self, relay: int, notice: Notice) -> None:
        """Has another relay told of something when it is written."""
        self.notices.setdefault(relay, {})[notice] = None

    def rows(self, batch: int) -> Rows:
        """All of it as it is now."""
        states = {number: _state(queue) for number, queue in self.states.items()}
        return Rows(
            batch=batch,
            base=self.base,
            deleted=list(self.deleted),
            freed=[number for number in self.freed if self.base[number]],
            queues=[queue_row(queue) for queue in self.queues.values()],
            unlinked=[number for number in self.links if self.base[number]],
            links=[
                link_row(queue, queue.link)
                for queue in self.links.values()
                if queue.link is not None
            ],
            new_states=[state for number, state in states.items() if not self.base[number]],
            states=[state for number, state in states.items() if self.base[number]],
            messages=[
                (*key, message.msg_id, message.timestamp, message.notify, message.body)
                for key, message in self.messages.items()
            ],
            removed=[key for key in self.removed if key[0] not in self.deleted],
            lost_from=list(self.lost_from),
            dropped=list(self.dropped),
            notifications=[
                (notifier_id, one.timestamp, one.nonce, one.meta)
                for notifier_id, one in self.notifications
            ],
            taken=self.taken,
            services=[service_row(service, 0)[:-1] for service in self.services],
            claims=list(self.claims),
            notices={relay: list(notices) for relay, notices in self.notices.items()},
            service_notices=self.service_notices,
        )


def _state(queue: Queue) -> State:
    messages = shared(queue)
    return State(
        queue.number,
        messages.version,
        messages.count,
        messages.can_write,
        messages.subscriber,
        messages.notifier_subscriber,
    )
