"""What clients put into messages for each other (docs/spec/smp-agent.md §8.1, §8.2).

This layer is between sender and recipient of one queue; to a relay it is opaque.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from txsimplex.boxes import BoxKey
from txsimplex.encoding import ParseError, Reader, maybe, u16
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import auth_key, dh_key, encode_key

CONFIRMATION_SIZE: Final = 15904
"""Bytes that a message is padded to which comes with the sender's DH key."""
MESSAGE_SIZE: Final = 16000
"""Bytes that any later message is padded to."""
_NONCE_SIZE: Final = 24


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """Inside the box: a body, and in a confirmation the key that the sender will sign with."""

    body: bytes
    sender_key: PublicKey | None = None

    def encode(self) -> bytes:
        """``_`` or ``K`` and the key, then the body."""
        if self.sender_key is None:
            return b"_" + self.body
        return b"K" + encode_key(self.sender_key) + self.body

    @classmethod
    def decode(cls, data: bytes) -> ClientMessage:
        """Reads what `encode` writes. Raises `ParseError`."""
        reader = Reader(data)
        tag = reader.take(1)
        if tag == b"_":
            return cls(reader.rest())
        if tag == b"K":
            key = auth_key(reader)
            return cls(reader.rest(), key)
        raise ParseError("not a message of a client")


@dataclass(frozen=True, slots=True)
class ClientEnvelope:
    """Around the box: version of the client protocol, nonce, and the sender's DH key at first."""

    version: int
    nonce: bytes
    box: bytes
    dh_key: PublicKey | None = None

    def encode(self) -> bytes:
        """The body of a SEND."""
        return u16(self.version) + maybe(self.dh_key, encode_key) + self.nonce + self.box

    @classmethod
    def decode(cls, data: bytes) -> ClientEnvelope:
        """Reads what `encode` writes. Raises `ParseError`."""
        reader = Reader(data)
        version = reader.u16()
        key = reader.maybe(lambda: dh_key(reader))
        return cls(version, reader.take(_NONCE_SIZE), reader.rest(), key)


def seal_envelope(
    key: BoxKey,
    version: int,
    nonce: bytes,
    message: ClientMessage,
    sender_dh_key: PublicKey | None = None,
) -> ClientEnvelope:
    """The envelope with `message` for the recipient of a queue.

    `key` is of the DH secret between the queue's key, from its address, and the
    sender's, which the first message brings along. Raises `LargeMessageError`.
    """
    size = MESSAGE_SIZE if sender_dh_key is None else CONFIRMATION_SIZE
    box = key.seal_padded(message.encode(), nonce, size)
    return ClientEnvelope(version, nonce, box, sender_dh_key)


def open_envelope(key: BoxKey, envelope: ClientEnvelope) -> ClientMessage:
    """The message in `envelope`. Raises `BoxError` or `ParseError`."""
    return ClientMessage.decode(key.open_padded(envelope.box, envelope.nonce))
