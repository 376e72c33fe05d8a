"""What the core and its edge processes say to each other (docs/architecture.md).

Frames: 4 bytes of length of the payload, one of kind, 4 of the connection's number, and the
payload. The edge gives the numbers, each only once; 0 is the edge itself. No I/O here: bytes
to values and back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from struct import Struct
from typing import Final

from smpd.peers import Opened
from txsimplex.encoding import ParseError, Reader, large, maybe, nonempty, short, u16
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.commands import Role
from txsimplex.smp.handshake import RelayIdentity, ServiceClaim
from txsimplex.smp.transmissions import Proof

CHANNEL: Final = 3
"""The descriptor of the channel in an edge process; those behind it are sockets that listen."""

MAX_PAYLOAD: Final = 128 * 1024
"""Bytes. The content of a block is the largest that there is often, certificates may be larger."""

_HEAD: Final = Struct(">IBI")
_CONTENT_HEAD: Final = Struct(">IBIH")
_SINGLE_HEAD: Final = Struct(">IBIHBH")
HEAD_SIZE: Final = _HEAD.size
"""Bytes before a payload."""
SINGLE_HEAD_SIZE: Final = _SINGLE_HEAD.size
"""Bytes before the one transmission of a block."""
_SPACE: Final = 256 * 1024


class Kind(IntEnum):
    """What a frame is about."""

    # From the core.
    START = 1
    """An edge is to begin; a `Start`."""
    IDENTITY = 2
    """What connections from now on are shown."""
    ACCEPTED = 3
    """The core takes part in a connection; the id of its service, or nothing."""
    REFUSED = 4
    """The core refuses the service of a connection."""
    CONTENT = 5
    """The content of a block for the client, behind its length as in the block."""
    LEARN = 6
    """The key that a command of this connection was verified with, and its entity."""
    HOLD = 7
    """Nothing more is to be read from the client."""
    GO_ON = 8
    """It is to be read from again."""
    CLOSE = 9
    """The connection is to be closed in order; with number 0, all of them, and the edge ends."""
    STOP_LISTENING = 10
    """No more connections are to be accepted."""
    ANSWER = 11
    """As `CONTENT`; and one more block of the client is being, or was, carried out."""
    CARRIED_OUT = 12
    """So many more blocks of the client were carried out, without an answer so far."""
    MUCH_SENT = 13
    """A block had many answers: the edge is to say `TAKEN` when the client has taken them."""
    PING = 14
    """The edge is to say `PONG`."""

    # From an edge.
    LISTENING = 32
    """The edge accepts connections."""
    STOPPED = 33
    """It does not any more, and what it had received before was sent."""
    OPENED = 34
    """A connection that has shaken hands; an `Opened`."""
    BLOCK = 35
    """A block from a client: proofs and its content."""
    BAD_BLOCK = 36
    """A block that did not open."""
    FULL = 37
    """The client takes no messages of others for now."""
    READY = 38
    """It does again."""
    CLOSED = 39
    """The connection is gone."""
    LOG = 40
    """Something for the log: a `Level` and a text."""
    OPENED_BY_UNIX = 41
    """As `OPENED`, for a connection that came through a Unix socket, as from tor."""
    TAKEN = 42
    """The client has taken most of what was sent before `MUCH_SENT`."""
    PONG = 43
    """The edge has come to the `PING`."""


_CONTENT: Final = Kind.CONTENT.value


class Level(IntEnum):
    """How bad it is what an edge has to log."""

    WARNING = 0
    ERROR = 1


Frame = tuple[int, int, bytes]
"""Kind, number of the connection (0 for none), and payload."""


head: Final = _HEAD.pack
"""What precedes a payload: ``head(size, kind, connection)``, the size of the payload in bytes."""


def content_head(connection: int, size: int, kind: int = _CONTENT) -> bytes:
    """What precedes the content, of `size` bytes, of a block for a client."""
    return _CONTENT_HEAD.pack(size + 2, kind, connection, size)


def single_head(connection: int, size: int, kind: int = _CONTENT) -> bytes:
    """What precedes the one transmission, of `size` bytes, of a block for a client."""
    return _SINGLE_HEAD.pack(size + 5, kind, connection, size + 3, 1, size)


class Decoder:
    """Cuts what is received into frames.

    Bytes are put into `space()`, and `take()` is told how many.
    """

    __slots__ = ("_buffer", "_end", "_start", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(_SPACE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Where to put what is received next: never empty."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
        elif start:
            # The beginning of one frame at most, so this is little.
            self._buffer[: end - start] = self._buffer[start:end]
            self._start, self._end = 0, end - start
        return self._view[self._end :]

    def take(self, count: int) -> list[Frame]:
        """The frames that are whole with the next `count` bytes.

        Raises `ParseError` for a frame that is too large; nothing can be read after it.
        """
        position, end = self._start, self._end + count
        view = self._view
        frames: list[Frame] = []
        while end - position >= HEAD_SIZE:
            size, kind, connection = _HEAD.unpack_from(view, position)
            if size > MAX_PAYLOAD:
                raise ParseError("a frame that is too large")
            start = position + HEAD_SIZE
            stop = start + size
            if stop > end:
                break
            frames.append((kind, connection, bytes(view[start:stop])))
            position = stop
        self._start, self._end = position, end
        return frames


# -- the beginning


@dataclass(frozen=True, slots=True)
class Start:
    """What an edge is told first. Times in seconds, water marks in blocks.

    `listening` are the descriptors of the sockets that it accepts connections from. Unix sockets
    may bring it `most_by_unix` connections, 0 for any number.
    """

    listening: tuple[int, ...]
    handshake_time: float
    send_queue: int
    minimum_version: int
    maximum_version: int
    request_client_certificates: bool
    setup_time: float
    close_time: float
    high_water: int
    low_water: int
    most_by_unix: int = 0

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Start:
        """What `encode` gives. Raises `ParseError`."""
        try:
            values = json.loads(payload)
            if not isinstance(values, dict) or {each.name for each in fields(cls)} != set(values):
                raise ParseError("not the settings of an edge")
            return cls(**{**values, "listening": tuple(values["listening"])})
        except (ValueError, TypeError, RecursionError) as error:
            raise ParseError("not the settings of an edge") from error


def encode_identity(identity: RelayIdentity) -> bytes:
    """Certificates and key of a relay."""
    key = large(identity.signing_key.encode())
    return nonempty(identity.chain, large) + key + short(identity.key_hash)


def decode_identity(payload: bytes) -> RelayIdentity:
    """What `encode_identity` gives. Raises `ParseError`."""
    reader = Reader(payload)
    chain = reader.nonempty(reader.large)
    key = PrivateKey.decode(reader.large())
    key_hash = reader.short()
    reader.finish()
    return RelayIdentity(chain, key, key_hash)


# -- connections


def encode_opened(opened: Opened) -> bytes:
    """A connection that has shaken hands."""
    key = opened.session_key
    return b"".join(
        (
            u16(opened.version),
            short(opened.session_id),
            maybe(key, lambda key: short(key.raw)),
            maybe(opened.secret, short),
            maybe(opened.service, _encode_claim),
        )
    )


def decode_opened(payload: bytes) -> Opened:
    """What `encode_opened` gives. Raises `ParseError`."""
    reader = Reader(payload)
    version, session_id = reader.u16(), reader.short()
    key = reader.maybe(lambda: _x25519(reader.short()))
    secret = reader.maybe(reader.short)
    service = reader.maybe(lambda: _decode_claim(reader))
    reader.finish()
    return Opened(version, session_id, key, secret, service)


def _x25519(raw: bytes) -> PrivateKey:
    if len(raw) != Algorithm.X25519.key_size:
        raise ParseError("not a session key")
    return PrivateKey(Algorithm.X25519, raw)


def _encode_claim(claim: ServiceClaim) -> bytes:
    key = short(claim.session_key.encode())
    return claim.role.value + nonempty(claim.chain, large) + short(claim.fingerprint) + key


def _decode_claim(reader: Reader) -> ServiceClaim:
    try:
        role = Role(reader.take(1))
    except ValueError:
        raise ParseError("not a role") from None
    chain = tuple(reader.nonempty(reader.large))
    return ServiceClaim(role, chain, reader.short(), PublicKey.decode(reader.short()))


def encode_learned(entity_id: bytes, key: PublicKey) -> bytes:
    """The key of an entity."""
    return short(entity_id) + key.encode()


def decode_learned(payload: bytes) -> tuple[bytes, PublicKey]:
    """What `encode_learned` gives. Raises `ParseError`."""
    reader = Reader(payload)
    return reader.short(), PublicKey.decode(reader.rest())


# -- proofs

NO_PROOFS: Final = b"\0"

# What nearly all blocks have: one proof, with a key of 32 bytes.
_ONE_RIGHT: Final = b"\1\1\x20"
_ONE_RIGHT_END: Final = 35


def encode_proofs(proofs: Sequence[Proof | None]) -> bytes:
    """What an edge has found out about the transmissions of a block, in their order."""
    parts = [bytes((len(proofs),))]
    for proof in proofs:
        if proof is None:
            parts.append(b"\0")
        else:
            parts.append(bytes((1 if proof.right else 2, len(proof.key))))
            parts.append(proof.key)
    return b"".join(parts)


def decode_proofs(payload: bytes) -> tuple[list[Proof | None], int]:
    """Proofs, none or one for each transmission, and where the content behind them starts.

    Raises `ParseError`.
    """
    if payload[:3] == _ONE_RIGHT and len(payload) >= _ONE_RIGHT_END:
        return [Proof(True, payload[3:_ONE_RIGHT_END])], _ONE_RIGHT_END
    if payload[:1] == NO_PROOFS:
        return [], 1
    reader = Reader(payload)
    return reader.nonempty(lambda: _decode_proof(reader)), reader.position


def _decode_proof(reader: Reader) -> Proof | None:
    found = reader.u8()
    if found == 0:
        return None
    if found > 2:
        raise ParseError("not a proof")
    return Proof(found == 1, reader.short())


# -- the log


def encode_entry(level: Level, text: str) -> bytes:
    """An entry of the log; the end of a long one is left out."""
    return bytes((level,)) + text.encode("utf-8", "replace")[: MAX_PAYLOAD - 1]


def decode_entry(payload: bytes) -> tuple[Level, str]:
    """What `encode_entry` gives. Raises `ParseError`."""
    try:
        return Level(payload[0]), payload[1:].decode("utf-8", "replace")
    except (IndexError, ValueError):
        raise ParseError("not an entry of a log") from None
