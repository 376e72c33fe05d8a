"""Records of the SQLite store to rows and back (`smpd/stores/schema`).

Whatever is read raises `DamagedRow` when it is not what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Any, Final

from smpd.queues import Link, Message, Notifier, Queue, Status
from smpd.stores.bodies import Place
from smpd.stores.interface import Notification, Service
from txsimplex.encoding import ParseError, Reader, large, short
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation

Row = tuple[Any, ...]

QUEUE_COLUMNS: Final = (
    "number",
    "recipient_id",
    "sender_id",
    "recipient_keys",
    "secret",
    "sender_key",
    "mode",
    "status",
    "blocked",
    "used_on",
    "service_id",
    "notifier_id",
    "notifier_key",
    "notifier_secret",
    "notifier_service_id",
)
LINK_COLUMNS: Final = ("queue", "link_id", "fixed", "user")
MESSAGE_COLUMNS: Final = (
    "queue",
    "number",
    "msg_id",
    "timestamp",
    "notify",
    "file",
    "offset",
    "size",
)
NOTIFICATION_COLUMNS: Final = ("number", "notifier_id", "timestamp", "nonce", "meta")
SERVICE_COLUMNS: Final = ("service_id", "fingerprint", "role", "chain", "created_on", "notifiers")

_PLACE: Final = Struct(">IQI")


class DamagedRow(Exception):
    """A row that this store has not written."""


ReadBody = Callable[[Place], bytes]


class StoredMessage(Message):
    """A message whose body is in memory until it is safe, and then on disk.

    `queue` and `number` are its row's, `place` is where its body is once it is safe.
    """

    __slots__ = ("_read", "content", "number", "place", "queue", "safe")

    def __init__(
        self,
        message: Message,
        queue: int,
        read: ReadBody,
    ) -> None:
        self.msg_id = message.msg_id
        self.timestamp = message.timestamp
        self.notify = message.notify
        self.content = message.body
        self.queue = queue
        self.number = 0
        self.place: Place | None = None
        self.safe = False
        self._read = read

    @classmethod
    def from_row(cls, row: Row, queue: int, read: ReadBody) -> StoredMessage:
        """From a row of `MESSAGE_COLUMNS` without the first."""
        number, msg_id, timestamp, notify, file, offset, size = row
        message = cls(Message(msg_id, timestamp, bool(notify), None), queue, read)
        message.number = number
        message.settle(None if file is None else Place(file, offset, size))
        return message

    def settle(self, place: Place | None) -> None:
        """It is safe: its body is read from disk from now on."""
        self.place = place
        self.content = None
        self.safe = True

    @property
    def body(self) -> bytes | None:
        """The body, None for the quota marker. Raises what reading raises."""
        if self.content is None and self.place is not None:
            return self._read(self.place)
        return self.content

    @body.setter
    def body(self, body: bytes | None) -> None:
        self.content = body

    @property
    def is_quota(self) -> bool:
        """Whether this marks where senders were refused."""
        return self.content is None and self.place is None

    def row(self, place: Place | None) -> Row:
        """A row of `MESSAGE_COLUMNS`."""
        where = (None, None, None) if place is None else place
        return (
            self.queue,
            self.number,
            self.msg_id,
            self.timestamp,
            int(self.notify),
            *where,
        )

    def whole(self) -> Message:
        """The message with its body in memory. Raises what reading raises."""
        return Message(self.msg_id, self.timestamp, self.notify, self.body)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self.msg_id, self.timestamp, self.notify, self.body) == (
            other.msg_id,
            other.timestamp,
            other.notify,
            other.body,
        )

    __hash__ = None  # type: ignore[assignment]


def queue_row(queue: Queue) -> Row:
    """A row of `QUEUE_COLUMNS`."""
    notifier = queue.notifier
    if notifier is None:
        notifies: Row = (None, None, None, None)
    else:
        notifies = (
            notifier.notifier_id,
            notifier.key.encode(),
            notifier.secret,
            notifier.service_id,
        )
    return (
        queue.number,
        queue.recipient_id,
        queue.sender_id,
        b"".join([short(key.encode()) for key in queue.recipient_keys]),
        queue.secret,
        None if queue.sender_key is None else queue.sender_key.encode(),
        None if queue.mode is None else queue.mode.value.decode("ascii"),
        queue.status.value,
        None if queue.blocked is None else queue.blocked.encode(),
        queue.used_on,
        queue.service_id,
        *notifies,
    )


def link_row(queue: Queue, link: Link) -> Row:
    """A row of `LINK_COLUMNS`."""
    return (queue.number, link.link_id, link.data.fixed, link.data.user)


def queue_from_row(row: Row) -> Queue:
    """A queue from `QUEUE_COLUMNS` and `LINK_COLUMNS` without the first."""
    (
        number,
        recipient_id,
        sender_id,
        recipient_keys,
        secret,
        sender_key,
        mode,
        status,
        blocked,
        used_on,
        service_id,
        notifier_id,
        notifier_key,
        notifier_secret,
        notifier_service_id,
        link_id,
        fixed,
        user,
    ) = row
    try:
        queue = Queue(
            recipient_id,
            _keys(recipient_keys),
            secret,
            sender_id,
            None if mode is None else QueueMode(mode.encode("ascii")),
            None if sender_key is None else PublicKey.decode(sender_key),
            None if link_id is None else Link(link_id, LinkData(fixed, user)),
            None,
            Status(status),
            None if blocked is None else BlockingInformation.decode(blocked),
            used_on,
            service_id,
        )
        if notifier_id is not None:
            queue.notifier = Notifier(
                notifier_id, PublicKey.decode(notifier_key), notifier_secret, notifier_service_id
            )
    except (ParseError, ValueError) as error:
        raise DamagedRow from error
    queue.number = number
    return queue


def _keys(data: bytes) -> list[PublicKey]:
    reader = Reader(data)
    keys = []
    while reader.remaining:
        keys.append(PublicKey.decode(reader.short()))
    return keys


def notification_row(number: int, notifier_id: bytes, notification: Notification) -> Row:
    """A row of `NOTIFICATION_COLUMNS`."""
    return (
        number,
        notifier_id,
        notification.timestamp,
        notification.nonce,
        notification.meta,
    )


def service_row(service: Service, notifiers: int) -> Row:
    """A row of `SERVICE_COLUMNS`."""
    return (
        service.service_id,
        service.fingerprint,
        service.role.value.decode("ascii"),
        b"".join([large(certificate) for certificate in service.chain]),
        service.created_on,
        notifiers,
    )


def service_from_row(row: Row) -> Service:
    """A service from `SERVICE_COLUMNS`."""
    service_id, fingerprint, role, chain, created_on, _ = row
    reader = Reader(chain)
    certificates = []
    try:
        while reader.remaining:
            certificates.append(reader.large())
        return Service(
            service_id, Role(role.encode("ascii")), tuple(certificates), fingerprint, created_on
        )
    except (ParseError, ValueError) as error:
        raise DamagedRow from error


def encode_places(places: Iterable[Place]) -> bytes:
    """Places of bodies, one after the other."""
    return b"".join([_PLACE.pack(*place) for place in places])


def decode_places(data: bytes) -> Sequence[Place]:
    """What `encode_places` writes."""
    if len(data) % _PLACE.size:
        raise DamagedRow
    return [Place(*fields) for fields in _PLACE.iter_unpack(data)]
