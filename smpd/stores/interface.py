"""What every store does (docs/spec/smp-server.md §1, §6, §7, §8).

A store keeps records and answers questions about them; the rules of the protocol
are in `smpd.relay`. It hands out one `Queue` object per queue: the relay reads its
fields freely and changes them through the store only, so that a store can note
each change. Any method may raise `StoreError`, after which nothing has changed.
Records that are removed keep their own fields: the relay looks at them once more,
to tell those who were subscribed.

A change is seen at once and safe later: changes are numbered, a store that keeps them
on disk commits many together, and then moves its mark. What depends on a change is
answered when the mark has passed its number (`docs/architecture.md`). A store in memory
has nothing to wait for: its numbers stay 0.

A store may be shared by several relays (`shared`). Then a queue can be found and changed only
while nobody else changes it: what has to do with queues is given to `admit`, with what it
looks at. Other stores have everything at any time, and do at once what they are given.

`tests/smpd/stores/contract.py` is the suite that every store passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from smpd.queues import Message, Notifier, Queue, Status
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData, Role
from txsimplex.smp.errors import BlockingInformation


class StoreError(Exception):
    """The store cannot do it now. Its text goes to clients: it names no queue."""


class StoreUnusable(Exception):
    """A store cannot be opened. Its text is a sentence for the operator, with file and reason."""


class Collision(Exception):
    """An id is taken already."""


class RoleMismatch(Exception):
    """The service is known with another role."""


@dataclass(slots=True)
class Service:
    """A service that presented a certificate (§8)."""

    service_id: bytes = field(repr=False)
    role: Role
    chain: tuple[bytes, ...] = field(repr=False)
    fingerprint: bytes = field(repr=False)
    created_on: int


@dataclass(slots=True)
class Notification:
    """A notification that waits for its subscriber: its time and encrypted content."""

    timestamp: int
    nonce: bytes = field(repr=False)
    meta: bytes = field(repr=False)


@dataclass(slots=True)
class Written:
    """What became of a message: `accepted` or over quota, and whether none was there."""

    accepted: bool
    was_empty: bool


class What(Enum):
    """What something is looked for by."""

    RECIPIENT = "recipient"
    SENDER = "sender"
    NOTIFIER = "notifier"
    LINK = "link"
    NEW_SENDER = "new sender"
    """A sender id that a client has chosen, and that may be given to a queue."""
    NEW_LINK = "new link"
    """A link id of that kind."""
    SERVICE = "service"
    """A service's id: how many notifiers are associated with it."""
    CERTIFICATE = "certificate"
    """The fingerprint of a service's certificate."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something that work looks at: a queue, unless `what` says otherwise.

    `bodies` is how many of the queue's messages, from the first one, may be looked at;
    `expire_before` that those of before that second since 1970 may be expired.
    """

    what: What
    entity_id: bytes = field(repr=False)
    bodies: int = 0
    expire_before: int | None = None


class Coming(Protocol):
    """What a store does not have at once: a Deferred."""

    def addCallback(self, callback: Callable[[Any], Any]) -> Any:
        """Calls `callback` with the value when it is there, and has what that returns then."""


class Elsewhere(Protocol):
    """What a relay is told of others on the same store. Each may come once more than needed.

    Called as work that was admitted to the queue in question, if there still is one.
    """

    def queue_changed(self, recipient_id: bytes) -> None:
        """A queue that has, or had, its subscriber here: it has a message, was taken or deleted."""

    def queue_blocked(self, recipient_id: bytes) -> None:
        """A queue that has its subscriber here was blocked."""

    def answers_lost(self, recipient_id: bytes) -> None:
        """A queue that has its subscriber here, who was answered with an error in place of OK.

        The subscriber does not know which message is the first one now.
        """

    def notifier_changed(self, notifier_id: bytes) -> None:
        """A notifier that has, or had, its subscriber here: it was taken or deleted."""

    def service_taken(self, service_id: bytes) -> None:
        """A service that has, or had, its connection here has one at another relay now."""

    def service_lost(self, service_id: bytes, notifier_id: bytes, *, deleted: bool) -> None:
        """A service that has its connection here has lost one of its notifiers."""

    def followed(self) -> tuple[Iterable[bytes], Iterable[bytes], Iterable[bytes]]:
        """Recipient ids, notifier ids and service ids of which somebody here wants to hear."""


def _ignore() -> None:
    """Nobody waits."""


class Store(ABC):
    """Queues, messages, notifications and services."""

    noted: int = 0
    """The number of the last change."""
    committed: int = 0
    """The number up to which changes are safe. A message that was removed before it was
    written needs nothing to be safe: both changes go with it."""
    failure: str | None = None
    """Why changes cannot be made safe now. Meanwhile what would change something raises
    `StoreError` with this text before it has; what was noted is kept and tried again."""
    on_commit: Callable[[], None] = staticmethod(_ignore)
    """Called, by the reactor's thread, whenever `committed` has moved or `failure` changed."""
    shared: bool = False
    """Whether other relays use it too, and `admit` has to be asked for everything."""
    elsewhere: Elsewhere | None = None
    """Who is told of what other relays do to a shared store."""

    def admit(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        """Calls `work` when what is wanted can be found and changed: at once or later.

        Work of the same `line`, such as a connection, is done in the order in which it was
        given. When the store cannot admit it, `work` is called nevertheless, after some time, and
        all that it asks of the store raises `StoreError`.
        """
        work()

    def spoiled(self, number: int) -> str | None:
        """Why the change with a number that the mark has passed was not made after all.

        None, as nearly always, if it was. Asked while `on_commit` is called.
        """
        return None

    def claim_queue(self, queue: Queue) -> None:
        """The queue has its subscriber here from now on, and nowhere else.

        Like the other claims it does not fail for what was found before.
        """
        return

    def claim_notifier(self, queue: Queue) -> None:
        """The queue's notifier has its subscriber here from now on, and nowhere else."""
        return

    def claim_service(self, service_id: bytes, *, newly: bool) -> None:
        """The service has its connection here from now on, and nowhere else.

        `newly` if it is another connection than that of the last claim.
        """
        return

    def is_ours(self, queue: Queue) -> bool:
        """Whether the queue has its subscriber here rather than at another relay."""
        return True

    def is_our_notifier(self, queue: Queue) -> bool:
        """The same for its notifier."""
        return True

    def unsafe(self, queue: Queue) -> int:
        """The number of the last change of `queue` that is not safe yet; 0 when all are.

        Messages that were written do not count: no command finds that done already.
        """
        return 0

    def refused(self, queue: Queue | None) -> None:
        """Called when a command on `queue` was not authorised, or on one that is not there.

        For a store that finds some queues faster than others: it takes the time here that
        it has saved, so that the time of an answer does not tell which queues there are.
        """
        return

    # -- finding

    @abstractmethod
    def by_recipient(self, recipient_id: bytes) -> Queue | None:
        """The queue with this recipient id."""

    @abstractmethod
    def by_sender(self, sender_id: bytes) -> Queue | None:
        """The queue with this sender id."""

    @abstractmethod
    def by_notifier(self, notifier_id: bytes) -> Queue | None:
        """The queue with this notifier id."""

    @abstractmethod
    def by_link(self, link_id: bytes) -> Queue | None:
        """The queue with this link id."""

    @abstractmethod
    def queue_count(self) -> int:
        """How many queues there are; of a shared store, as far as it is known here."""

    # -- changing queues

    @abstractmethod
    def add(self, queue: Queue) -> None:
        """A new queue with its notifier and link. Raises `Collision` if an id is taken."""

    @abstractmethod
    def secure(self, queue: Queue, key: PublicKey) -> None:
        """Sets the sender's key."""

    @abstractmethod
    def set_recipient_keys(self, queue: Queue, keys: Sequence[PublicKey]) -> None:
        """Replaces the recipient's keys."""

    @abstractmethod
    def set_link(self, queue: Queue, link_id: bytes, data: LinkData) -> None:
        """Sets the link. Raises `Collision` if another queue has `link_id`."""

    @abstractmethod
    def delete_link(self, queue: Queue) -> None:
        """Removes the link, if there is one."""

    @abstractmethod
    def set_notifier(self, queue: Queue, notifier: Notifier) -> None:
        """Adds the notifier or replaces it. Raises `Collision` if its id is taken."""

    @abstractmethod
    def delete_notifier(self, queue: Queue) -> None:
        """Removes the notifier, if there is one, and its notifications."""

    @abstractmethod
    def set_status(
        self, queue: Queue, status: Status, blocked: BlockingInformation | None = None
    ) -> None:
        """Suspends, blocks or activates the queue."""

    @abstractmethod
    def use(self, queue: Queue, day: int) -> None:
        """Notes the day of use, in seconds since 1970."""

    @abstractmethod
    def delete(self, queue: Queue) -> None:
        """Removes the queue and all that belongs to it."""

    # -- messages

    @abstractmethod
    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        """Appends a message, or the quota marker (§6)."""

    @abstractmethod
    def head(self, queue: Queue) -> Message | None:
        """The first message."""

    @abstractmethod
    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        """Removes the first message if it is `msg_id`, and returns it."""

    @abstractmethod
    def message_count(self, queue: Queue) -> int:
        """How many messages wait, quota marker included."""

    @abstractmethod
    def expire(self, queue: Queue, before: float) -> int:
        """Removes messages of before `before` (seconds since 1970) and counts them (§6.1)."""

    @abstractmethod
    def expire_all(self, before: float, step: int) -> Iterator[int | Coming]:
        """Expires the messages of all queues, `step` queues each time it is asked to go on.

        Yields how many messages went, at once or to come; in the latter case it is to be
        asked again when that has come. Queues may come and go meanwhile.
        """

    @abstractmethod
    def unused(self, before: int, step: int) -> Iterator[Sequence[bytes] | Coming]:
        """Recipient ids of the queues last used before the day `before` (seconds since 1970).

        Looks at `step` queues each time it is asked to go on, as `expire_all` does. Queues
        may come, go and be used meanwhile, those that it has given among them.
        """

    # -- notifications

    @abstractmethod
    def add_notification(self, notifier_id: bytes, notification: Notification) -> None:
        """Keeps a notification until it is delivered, expires or loses its notifier."""

    @abstractmethod
    def notifiers_waiting(self) -> list[bytes]:
        """The notifiers that have notifications; of a shared store, for subscribers here."""

    def nobody_waits(self, notifier_id: bytes) -> None:
        """Nobody here wants the notifications of a notifier that has some."""
        return

    @abstractmethod
    def take_notifications(self, notifier_id: bytes) -> list[Notification]:
        """Removes and returns the notifications of one notifier, oldest first."""

    @abstractmethod
    def expire_notifications(self, before: float) -> int | Coming:
        """Removes notifications of before `before` (seconds since 1970) and counts them."""

    # -- services

    @abstractmethod
    def add_service(self, service: Service) -> Service:
        """The service with this fingerprint, the given one if none was known.

        Raises `RoleMismatch` when it is known with another role.
        """

    @abstractmethod
    def associate(self, queue: Queue, service_id: bytes | None) -> None:
        """Sets or clears the service of the queue's notifier."""

    @abstractmethod
    def notifier_count(self, service_id: bytes) -> int:
        """How many notifiers are associated with the service."""

    def flush(self) -> None:
        """Makes what was noted safe now, and waits for that, within bounds."""
        return

    def close(self) -> None:
        """Ends the use of the store; nothing is called after it."""
        return
