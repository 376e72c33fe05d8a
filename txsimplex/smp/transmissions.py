"""Transmissions and batches (docs/spec/smp-wire.md §8, §9).

A block's content is a count and as many transmissions, each behind its length.
A transmission is an authenticator and what it authorises: session id (sent up to
version 6, implied later), correlation id, entity id, and a command or message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from txsimplex.encoding import PAD_BYTE, ParseError, Reader, short
from txsimplex.keys import PublicKey
from txsimplex.smp import errors
from txsimplex.smp.commands import Command, check_credentials, read_command
from txsimplex.smp.errors import Error
from txsimplex.smp.messages import Message, check_entity, read_message
from txsimplex.smp.versions import IMPLIED_SESSION, SERVICE_CERTIFICATES

MAX_CONTENT: Final = 16365
"""Bytes that the transmissions of a block and their lengths may take (§8)."""
LARGEST_TRANSMISSION: Final = MAX_CONTENT - 2
"""Bytes of a transmission that fits into a block."""
MAX_TRANSMISSIONS: Final = 255

ED25519_SIGNATURE: Final = 64
ED448_SIGNATURE: Final = 114
X25519_AUTHENTICATOR: Final = 80
_NO_SIGNATURE: Final = 0x30
_AUTHENTICATOR_SIZES: Final = frozenset(
    (0, ED25519_SIGNATURE, ED448_SIGNATURE, X25519_AUTHENTICATOR)
)


class Proof(NamedTuple):
    """That an authenticator is, or is not, `right` with the raw public `key` of its algorithm."""

    right: bool
    key: bytes


@dataclass(slots=True)
class Transmission:
    """A command as a relay received it.

    `header` is the correlation id and the entity id as encoded, which the answer
    repeats; `authorized` what the authenticator authorises (§9.1). `proof` is what was
    found out about the authenticator before, `made_with` the key of which that does not say
    that the authenticator is right with it, and it is.
    """

    corr_id: bytes
    entity_id: bytes
    header: bytes
    command: Command
    authenticator: bytes
    service_signature: bytes | None
    authorized: bytes
    proof: Proof | None = None
    made_with: PublicKey | None = None


@dataclass(slots=True)
class Signed:
    """A transmission as far as its authenticator is concerned; see `Transmission`."""

    corr_id: bytes
    entity_id: bytes
    authenticator: bytes
    service_signature: bytes | None
    authorized: bytes


@dataclass(slots=True)
class Refused:
    """A transmission that is answered with `error` before anything is looked up."""

    header: bytes
    error: Error


NO_SERVICE_SIGNATURE: Final = 0x30
"""The byte behind an authenticator where no service signature follows (from version 16 on)."""
EMPTY_HEADER: Final = b"\0\0"
"""No correlation id and no entity id."""
BAD_BLOCK: Final = Refused(EMPTY_HEADER, errors.BLOCK)


def cut(content: bytes) -> list[tuple[int, int]]:
    """Where the transmissions of a block's `content` start and end (§8).

    Raises `ParseError` for a count of 0, lengths beyond the end and trailing bytes.
    """
    size = len(content)
    if size == 0 or content[0] == 0:
        raise ParseError("no transmissions")
    places = []
    position = 1
    for _ in range(content[0]):
        start = position + 2
        if start > size:
            raise ParseError("fewer transmissions than the count")
        position = start + (content[position] << 8 | content[position + 1])
        places.append((start, position))
    if position != size:
        raise ParseError("lengths do not add up")
    return places


class Framing:
    """How transmissions of a session are read and written: its version and session id.

    Used by both sides. `session_id` has 12 to 32 bytes (§4.3).
    """

    __slots__ = ("session", "version")

    def __init__(self, version: int, session_id: bytes) -> None:
        self.version = version
        self.session = short(session_id)

    @property
    def session_id(self) -> bytes:
        """The session's id."""
        return self.session[1:]

    # -- the relay's side

    def read_commands(self, content: bytes, first: int = 0) -> list[Transmission | Refused]:
        """The commands in a block's `content`, in order; bad ones with their error (§9.3).

        The content starts at the byte `first`.
        """
        size, start = len(content), first + 3
        if (
            size > start
            and content[first] == 1
            and (content[first + 1] << 8 | content[first + 2]) == size - start
        ):
            return [self.read_command(content, start, size)]
        if first:
            content = content[first:]
        try:
            places = cut(content)
        except ParseError:
            return [BAD_BLOCK]
        return [self.read_command(content, start, end) for start, end in places]

    def read_command(self, content: bytes, start: int, end: int) -> Transmission | Refused:
        """The command in ``content[start:end]``, or the error to answer (§9.3, 1 to 5)."""
        try:
            # Lengths may lead beyond the end, which is noticed when all are read.
            position = start + 1 + content[start]
            authenticator = content[start + 1 : position]
            signature = None
            if authenticator and self.version >= SERVICE_CERTIFICATES:
                if content[position] == NO_SERVICE_SIGNATURE:
                    position += 1
                else:
                    signature, position = _read_service_signature(content, position, end)
            sent = position
            if self.version < IMPLIED_SESSION:
                position += 1 + content[position]
            corr_end = position + 1 + content[position]
            entity_end = corr_end + 1 + content[corr_end]
        except (ParseError, IndexError):
            return BAD_BLOCK
        if entity_end > end:
            return BAD_BLOCK
        corr_id = content[position + 1 : corr_end]
        if sent != position and content[sent:position] != self.session:
            return Refused(short(corr_id) + b"\0", errors.SESSION)
        if len(authenticator) not in _AUTHENTICATOR_SIZES:
            return Refused(short(corr_id) + b"\0", errors.BLOCK)
        header = content[position:entity_end]
        command = read_command(content, entity_end, end, self.version)
        if isinstance(command, Error):
            return Refused(header, command)
        entity_id = content[corr_end + 1 : entity_end]
        error = check_credentials(command, bool(authenticator), bool(entity_id))
        if error is not None:
            return Refused(header, error)
        authorized = self.session + content[position:end]
        return Transmission(
            corr_id, entity_id, header, command, authenticator, signature, authorized
        )

    def read_signed(self, content: bytes, start: int, end: int) -> Signed | None:
        """The command in ``content[start:end]`` if it has an authenticator and an entity id.

        The command itself is not read, nor whether a session id is the right one. None also
        when it cannot be read.
        """
        try:
            position = start + 1 + content[start]
            if position == start + 1:
                return None
            authenticator = content[start + 1 : position]
            signature = None
            if self.version >= SERVICE_CERTIFICATES:
                if content[position] == NO_SERVICE_SIGNATURE:
                    position += 1
                else:
                    signature, position = _read_service_signature(content, position, end)
            if self.version < IMPLIED_SESSION:
                position += 1 + content[position]
            corr_end = position + 1 + content[position]
            entity_end = corr_end + 1 + content[corr_end]
        except (ParseError, IndexError):
            return None
        if entity_end > end or entity_end == corr_end + 1:
            return None
        return Signed(
            content[position + 1 : corr_end],
            content[corr_end + 1 : entity_end],
            authenticator,
            signature,
            self.session + content[position:end],
        )

    def answer(self, header: bytes, message: bytes) -> bytes:
        """A transmission of a relay: `message` under the `header` of its command (§9)."""
        if self.version < IMPLIED_SESSION:
            return b"\0" + self.session + header + message
        return b"\0" + header + message

    def instead(self, answer: bytes, message: bytes) -> bytes:
        """What `answer` would have been with another `message`, under the same header."""
        start = 1 if self.version >= IMPLIED_SESSION else 1 + len(self.session)
        entity = start + 1 + answer[start]
        return self.answer(answer[start : entity + 1 + answer[entity]], message)

    def event(self, entity_id: bytes, message: bytes) -> bytes:
        """A transmission that no command asked for: with an empty correlation id."""
        return self.answer(b"\0" + short(entity_id), message)

    # -- the client's side

    def authorized(self, corr_id: bytes, entity_id: bytes, command: bytes) -> bytes:
        """What the authenticator of a command authorises, session id included (§9.1)."""
        return self.session + short(corr_id) + short(entity_id) + command

    def transmission(
        self, authorized: bytes, authenticator: bytes, service_signature: bytes | None = None
    ) -> bytes:
        """A transmission of a client, from what `authorized` gave and its proofs (§9)."""
        sent = authorized
        if self.version >= IMPLIED_SESSION:
            sent = authorized[len(self.session) :]
        if not authenticator:
            return b"\0" + sent
        head = short(authenticator)
        if self.version >= SERVICE_CERTIFICATES:
            head += b"0" if service_signature is None else b"1" + short(service_signature)
        return head + sent

    def read_messages(self, content: bytes) -> list[Received]:
        """The broker messages in a block's `content`, in order."""
        try:
            places = cut(content)
        except ParseError:
            return [Received(b"", b"", errors.BLOCK)]
        return [self._read_message(content, start, end) for start, end in places]

    def _read_message(self, content: bytes, start: int, end: int) -> Received:
        reader = Reader(content, start, end)
        try:
            if reader.short() and self.version >= SERVICE_CERTIFICATES:
                _, reader.position = _read_service_signature(content, reader.position, end)
            session = reader.short() if self.version < IMPLIED_SESSION else None
            corr_id, entity_id = reader.short(), reader.short()
        except ParseError:
            return Received(b"", b"", errors.BLOCK)
        if session is not None and short(session) != self.session:
            return Received(corr_id, b"", errors.SESSION)
        message = read_message(content, reader.position, end, self.version)
        if isinstance(message, Message):
            error = check_entity(message, bool(entity_id))
            if error is not None:
                return Received(corr_id, entity_id, error)
        return Received(corr_id, entity_id, message)


def _read_service_signature(content: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    reader = Reader(content, position, end)
    signature = reader.maybe(reader.short)
    if signature is not None and len(signature) != ED25519_SIGNATURE:
        raise ParseError("not an Ed25519 signature")
    return signature, reader.position


@dataclass(slots=True)
class Received:
    """A broker message as a client received it, or the client's error about it."""

    corr_id: bytes
    entity_id: bytes
    message: Message | Error


@dataclass(slots=True)
class TooLarge:
    """Stands in `pack`'s result for a transmission that fits into no block."""

    position: int


def frame(transmissions: Sequence[bytes]) -> bytes:
    """The content of a block: 1 to 255 transmissions that fit (§8)."""
    parts = [len(transmissions).to_bytes(1, "big")]
    for transmission in transmissions:
        parts.append(len(transmission).to_bytes(2, "big"))
        parts.append(transmission)
    return b"".join(parts)


_PADDED: Final = Struct(">HBH")


def frame_padded(parts: Sequence[bytes], size: int) -> bytes:
    """`frame` of one transmission, made up of `parts`, padded to `size` bytes.

    It is for each block that a relay sends, so it is done in one go.
    """
    length = sum(map(len, parts))
    return b"".join((_PADDED.pack(length + 3, 1, length), *parts)).ljust(size, PAD_BYTE)


def fits(transmissions: Sequence[bytes]) -> bool:
    """Whether all of `transmissions` fit into one block."""
    count = len(transmissions)
    return count <= MAX_TRANSMISSIONS and 2 * count + sum(map(len, transmissions)) <= MAX_CONTENT


def pack(transmissions: Sequence[bytes]) -> list[bytes | TooLarge]:
    """Contents of as few blocks as hold `transmissions`, in order (§8).

    Blocks are filled from the end of the list, so the first may be the one that
    is not full; a transmission that fits into none stands alone as `TooLarge`.
    """
    if transmissions and fits(transmissions):
        return [frame(transmissions)]
    blocks: list[bytes | TooLarge] = []
    batch: list[bytes] = []
    size = 0
    for position in range(len(transmissions) - 1, -1, -1):
        transmission = transmissions[position]
        length = len(transmission) + 2
        if length > MAX_CONTENT:
            _close(blocks, batch)
            blocks.append(TooLarge(position))
            batch, size = [], 0
            continue
        if size + length > MAX_CONTENT or len(batch) == MAX_TRANSMISSIONS:
            _close(blocks, batch)
            batch, size = [], 0
        batch.append(transmission)
        size += length
    _close(blocks, batch)
    blocks.reverse()
    return blocks


def _close(blocks: list[bytes | TooLarge], batch: list[bytes]) -> None:
    if batch:
        batch.reverse()
        blocks.append(frame(batch))
