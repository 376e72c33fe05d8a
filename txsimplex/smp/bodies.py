"""What a relay encrypts to a recipient: messages and notifications (smp-wire.md §14).

The body of MSG and the meta data of NMSG have a fixed size each, whatever is
inside. Their keys are the DH secrets that the relay shares with the recipient.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from txsimplex.boxes import BoxKey, nonce_from
from txsimplex.encoding import PAD_BYTE, LargeMessageError, ParseError, Reader, i64, short, unpad

BODY_SIZE: Final = 16106
"""Bytes that a message is padded to before it is encrypted (§14.2)."""
SEALED_BODY_SIZE: Final = 16122
"""Bytes of the body of every MSG."""
META_SIZE: Final = 128
"""Bytes that the meta data of a notification is padded to (§14.3)."""
SEALED_META_SIZE: Final = 144

_QUOTA: Final = b"QUOTA "
_PADDING: Final = PAD_BYTE * BODY_SIZE
_HEAD: Final = Struct(">Hq2s")
_PLAIN_HEAD: Final = Struct(">q2s")
_FLAGS: Final = {True: b"T ", False: b"F "}


@dataclass(frozen=True, slots=True)
class MessageBody:
    """A message: when the relay took it (seconds since 1970), its flag, what was sent."""

    timestamp: int
    notify: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class QuotaBody:
    """Instead of a message: the queue was full at `timestamp`, and senders were refused."""

    timestamp: int


def encode_message_body(timestamp: int, notify: bool, body: bytes) -> bytes:
    """The plain text of a message (§14.2)."""
    return _PLAIN_HEAD.pack(timestamp, _FLAGS[notify]) + body


def encode_quota_body(timestamp: int) -> bytes:
    """The plain text of the notice that the queue was full (§14.2)."""
    return _QUOTA + i64(timestamp)


def decode_body(plain: bytes) -> MessageBody | QuotaBody:
    """Reads the plain text of a message or notice. Raises `ParseError`.

    The notice is tried first: a message whose time begins with ``QUOTA `` would be
    taken for one (about the year 1.8·10^11).
    """
    if plain.startswith(_QUOTA):
        reader = Reader(plain, len(_QUOTA))
        notice = QuotaBody(reader.i64())
        reader.finish()
        return notice
    reader = Reader(plain)
    timestamp, notify = reader.i64(), reader.bool()
    # Flags of later versions may stand between the one that is known and the space.
    space = plain.find(b" ", reader.position)
    if space < 0:
        raise ParseError("no body")
    return MessageBody(timestamp, notify, plain[space + 1 :])


def seal_body(key: BoxKey, msg_id: bytes, plain: bytes) -> bytes:
    """The body of a MSG: `plain` padded and encrypted, 16,122 bytes.

    `key` is of the queue's DH secret. Raises `LargeMessageError`.
    """
    return key.seal_padded(plain, nonce_from(msg_id), BODY_SIZE)


def seal_message(key: BoxKey, msg_id: bytes, timestamp: int, notify: bool, body: bytes) -> bytes:
    """`seal_body` of `encode_message_body`, with the message copied once less."""
    size = len(body) + _PLAIN_HEAD.size
    if size > BODY_SIZE - 2:
        raise LargeMessageError(f"{size} bytes do not fit into {BODY_SIZE}")
    padding = _PADDING[: BODY_SIZE - 2 - size]
    padded = b"".join((_HEAD.pack(size, timestamp, _FLAGS[notify]), body, padding))
    return key.seal(padded, nonce_from(msg_id))


def open_body(key: BoxKey, msg_id: bytes, sealed: bytes) -> MessageBody | QuotaBody:
    """What `seal_body` has encrypted. Raises `BoxError` or `ParseError`."""
    return decode_body(unpad(key.open(sealed, nonce_from(msg_id))))


def seal_meta(key: BoxKey, nonce: bytes, msg_id: bytes, timestamp: int) -> bytes:
    """The meta data of a NMSG: which message came when, 144 bytes (§14.3).

    `key` is of the notifier's DH secret, `nonce` has 24 random bytes.
    """
    return key.seal_padded(short(msg_id) + i64(timestamp), nonce, META_SIZE)


def open_meta(key: BoxKey, nonce: bytes, sealed: bytes) -> tuple[bytes, int]:
    """Id and time of the message that a NMSG announces. Raises `BoxError` or `ParseError`.

    Bytes behind them are left to later versions.
    """
    reader = Reader(key.open_padded(sealed, nonce))
    return reader.short(), reader.i64()
