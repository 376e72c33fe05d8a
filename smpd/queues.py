"""Queues and their messages, and who may do what (docs/spec/smp-server.md §1, §6).

No repr shows an id or what belongs to users, since it may end up in a log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from txsimplex.boxes import BoxKey
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.errors import BlockingInformation

ID_SIZE: Final = 24
"""Bytes of every id that the relay makes."""

DAY: Final = 86400
"""Seconds; times of use are kept by the day only."""


class Status(Enum):
    """Whether a queue takes messages."""

    ACTIVE = "active"
    BLOCKED = "blocked"
    OFF = "off"
    DELETED = "deleted"
    """Only of a record that a command of the same block still holds."""


@dataclass(slots=True)
class Message:
    """A message as the relay keeps it; the quota marker has no body."""

    msg_id: bytes = field(repr=False)
    timestamp: int
    notify: bool
    body: bytes | None = field(repr=False)

    @property
    def is_quota(self) -> bool:
        """Whether this marks where senders were refused."""
        return self.body is None


@dataclass(slots=True)
class Notifier:
    """Who may ask for the notifications of a queue; `secret` encrypts them (32 bytes)."""

    notifier_id: bytes = field(repr=False)
    key: PublicKey
    secret: bytes = field(repr=False)
    service_id: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class Link:
    """A short link: its id and the data behind it."""

    link_id: bytes = field(repr=False)
    data: LinkData = field(repr=False)


@dataclass(slots=True)
class Messages:
    """The messages of one queue, first in first out, and its quota (§6).

    The messages accepted are `quota` at most; the next one leaves a marker in its
    place, and then nothing is accepted until all, the marker included, are gone.
    A list, since a deque takes 600 bytes even when it is empty.
    """

    waiting: list[Message] = field(default_factory=list)
    can_write: bool = True

    def write(self, message: Message, quota: int) -> bool:
        """Appends `message`, or refuses it: False is QUOTA."""
        waiting = self.waiting
        if waiting and not self.can_write:
            return False
        self.can_write = len(waiting) < quota
        if self.can_write:
            waiting.append(message)
        else:
            waiting.append(Message(message.msg_id, message.timestamp, False, None))
        return self.can_write

    def remove(self, msg_id: bytes) -> Message | None:
        """Removes the first message if it is `msg_id`, and returns it."""
        if self.waiting and self.waiting[0].msg_id == msg_id:
            return self.waiting.pop(0)
        return None

    def expire(self, before: float) -> int:
        """Removes messages older than `before` from the front, and counts them.

        Stops at the first newer one and at a quota marker (§6.1).
        """
        waiting = self.waiting
        expired = 0
        for message in waiting:
            if message.is_quota or message.timestamp >= before:
                break
            expired += 1
        del waiting[:expired]
        return expired


@dataclass(slots=True, eq=False)
class Queue:
    """The record of a queue. `secret` encrypts its messages to the recipient (32 bytes)."""

    recipient_id: bytes = field(repr=False)
    recipient_keys: list[PublicKey]
    secret: bytes = field(repr=False)
    sender_id: bytes = field(repr=False)
    mode: QueueMode | None = None
    sender_key: PublicKey | None = None
    link: Link | None = None
    notifier: Notifier | None = None
    status: Status = Status.ACTIVE
    blocked: BlockingInformation | None = None
    used_on: int = 0
    """The day of the last use, in seconds since 1970."""
    service_id: bytes | None = field(default=None, repr=False)
    messages: Messages = field(default_factory=Messages, repr=False)
    number: int = field(default=0, repr=False)
    """What a store on disk knows it by; 0 before it is in one."""
    _box: BoxKey | None = field(default=None, repr=False)

    @property
    def box(self) -> BoxKey:
        """`secret` made ready for boxes."""
        if self._box is None:
            self._box = BoxKey(self.secret)
        return self._box

    @property
    def is_contact(self) -> bool:
        """Whether its link may be read without a key (§1)."""
        if self.mode is None:
            return self.sender_key is None
        return self.mode is QueueMode.CONTACT

    @property
    def is_secured_messaging(self) -> bool:
        """Whether its link has served its purpose (§1)."""
        return self.mode is not QueueMode.CONTACT and self.sender_key is not None


def day_of(now: float) -> int:
    """The start of the UTC day of `now`, in seconds since 1970."""
    return int(now) // DAY * DAY


def new_id(random: Callable[[int], bytes]) -> bytes:
    """A random id."""
    return random(ID_SIZE)
