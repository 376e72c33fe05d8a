"""Messages and notifications of the SQLite store to rows and back (`smpd/stores/schema`).

What is read raises `DamagedRow` when it is not what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Final

from smpd.queues import Message
from smpd.stores.bodies import Place
from smpd.stores.interface import Notification
from smpd.stores.rows import DamagedRow, Row

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

_PLACE: Final = Struct(">IQI")

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


def notification_row(number: int, notifier_id: bytes, notification: Notification) -> Row:
    """A row of `NOTIFICATION_COLUMNS`."""
    return (
        number,
        notifier_id,
        notification.timestamp,
        notification.nonce,
        notification.meta,
    )


def encode_places(places: Iterable[Place]) -> bytes:
    """Places of bodies, one after the other."""
    return b"".join([_PLACE.pack(*place) for place in places])


def decode_places(data: bytes) -> Sequence[Place]:
    """What `encode_places` writes."""
    if len(data) % _PLACE.size:
        raise DamagedRow
    return [Place(*fields) for fields in _PLACE.iter_unpack(data)]
