"""Broker messages: what a relay answers and sends (docs/spec/smp-wire.md §11)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from txsimplex.encoding import (
    ParseError,
    Reader,
    boolean,
    i64,
    large,
    maybe,
    nonempty,
    short,
    u16,
)
from txsimplex.keys import PublicKey
from txsimplex.smp import errors
from txsimplex.smp.commands import LinkData, QueueMode, dh_key, encode_key
from txsimplex.smp.errors import Error, decode_error
from txsimplex.smp.versions import (
    DELETED_EVENT,
    NOTIFIER_IN_NEW,
    SENDER_SECURES,
    SERVICE_CERTIFICATES,
    SHORT_LINKS,
    VersionRange,
)
from txsimplex.smp.vocabulary import Vocabulary, Word

NONCE_SIZE: Final = 24


@dataclass(slots=True)
class Message(Word):
    """A broker message."""

    has_entity: ClassVar[bool | None] = True
    """Whether it comes with an entity id; None where both happen (§9.3)."""


MESSAGES: Final = Vocabulary[Message]()
_message = MESSAGES.word
read_message = MESSAGES.read


@dataclass(slots=True)
class NotifierIds:
    """The notifier made with NEW: its id and the relay's DH key."""

    notifier_id: bytes
    dh_key: PublicKey


@_message(b"IDS")
@dataclass(slots=True)
class Ids(Message):
    """The ids of a new queue and the relay's DH key for it."""

    recipient_id: bytes
    sender_id: bytes
    dh_key: PublicKey
    mode: QueueMode | None = None
    link_id: bytes | None = None
    service_id: bytes | None = None
    notifier: NotifierIds | None = None

    has_entity: ClassVar[bool | None] = None

    def encode(self, version: int) -> bytes:
        data = b"IDS " + short(self.recipient_id) + short(self.sender_id) + encode_key(self.dh_key)
        if version < SENDER_SECURES:
            return data
        if version < SHORT_LINKS:
            return data + boolean(self.mode is QueueMode.MESSAGING)
        data += maybe(self.mode, lambda mode: mode.value) + maybe(self.link_id, short)
        if version < SERVICE_CERTIFICATES:
            return data
        data += maybe(self.service_id, short)
        if version < NOTIFIER_IN_NEW:
            return data
        return data + maybe(self.notifier, lambda n: short(n.notifier_id) + encode_key(n.dh_key))

    @classmethod
    def read(cls, reader: Reader, version: int) -> Ids:
        ids = cls(reader.short(), reader.short(), dh_key(reader))
        if SENDER_SECURES <= version < SHORT_LINKS:
            ids.mode = QueueMode.MESSAGING if reader.bool() else QueueMode.CONTACT
        if version >= SHORT_LINKS:
            ids.mode = reader.maybe(lambda: _mode(reader))
            ids.link_id = reader.maybe(reader.short)
        if version >= SERVICE_CERTIFICATES:
            ids.service_id = reader.maybe(reader.short)
        if version >= NOTIFIER_IN_NEW:
            ids.notifier = reader.maybe(lambda: NotifierIds(reader.short(), dh_key(reader)))
        reader.finish()
        return ids


def _mode(reader: Reader) -> QueueMode:
    try:
        return QueueMode(reader.take(1))
    except ValueError:
        raise ParseError("not a queue mode") from None


@_message(b"LNK")
@dataclass(slots=True)
class Lnk(Message):
    """The data behind a short link."""

    sender_id: bytes
    data: LinkData

    def encode(self, version: int) -> bytes:
        return b"LNK " + short(self.sender_id) + self.data.encode()

    @classmethod
    def read(cls, reader: Reader, version: int) -> Lnk:
        message = cls(reader.short(), LinkData.read(reader))
        reader.finish()
        return message


@_message(b"SOK")
@dataclass(slots=True)
class Sok(Message):
    """Subscribed, with the id of the service if the session is one."""

    service_id: bytes | None = None

    def encode(self, version: int) -> bytes:
        if version < SERVICE_CERTIFICATES:
            return b"OK"
        return b"SOK " + maybe(self.service_id, short)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Sok:
        message = cls(reader.maybe(reader.short))
        reader.finish()
        return message


@dataclass(slots=True)
class _WithCount(Message):
    count: int

    def encode(self, version: int) -> bytes:
        return self.tag + b" " + i64(self.count)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Message:
        count = reader.i64()
        reader.finish()
        return cls(count)


@_message(b"SOKS")
@dataclass(slots=True)
class Soks(_WithCount):
    """A service is subscribed to this many queues."""


@_message(b"MSG")
@dataclass(slots=True)
class Msg(Message):
    """A message, its body encrypted to the recipient."""

    msg_id: bytes
    body: bytes

    def encode(self, version: int) -> bytes:
        return b"MSG " + short(self.msg_id) + self.body

    @classmethod
    def read(cls, reader: Reader, version: int) -> Msg:
        return cls(reader.short(), reader.rest())


@_message(b"NID")
@dataclass(slots=True)
class Nid(Message):
    """The id of a new notifier and the relay's DH key for it."""

    notifier_id: bytes
    dh_key: PublicKey

    def encode(self, version: int) -> bytes:
        return b"NID " + short(self.notifier_id) + encode_key(self.dh_key)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Nid:
        message = cls(reader.short(), dh_key(reader))
        reader.finish()
        return message


@_message(b"NMSG")
@dataclass(slots=True)
class Nmsg(Message):
    """A notification: the encrypted id and time of a message."""

    nonce: bytes
    meta: bytes

    def encode(self, version: int) -> bytes:
        return b"NMSG " + self.nonce + short(self.meta)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Nmsg:
        message = cls(reader.take(NONCE_SIZE), reader.short())
        reader.finish()
        return message


@_message(b"PKEY")
@dataclass(slots=True)
class Pkey(Message):
    """The proxy's session with a relay: its id, versions, chain and signed key."""

    session_id: bytes
    versions: VersionRange
    chain: list[bytes]
    signed_key: bytes

    has_entity: ClassVar[bool | None] = False

    def encode(self, version: int) -> bytes:
        return (
            b"PKEY "
            + short(self.session_id)
            + u16(self.versions.minimum)
            + u16(self.versions.maximum)
            + nonempty(self.chain, large)
            + large(self.signed_key)
        )

    @classmethod
    def read(cls, reader: Reader, version: int) -> Pkey:
        message = cls(
            reader.short(),
            VersionRange.read(reader),
            reader.nonempty(reader.large),
            reader.large(),
        )
        reader.finish()
        return message


@dataclass(slots=True)
class _WithRest(Message):
    response: bytes

    def encode(self, version: int) -> bytes:
        return self.tag + b" " + self.response

    @classmethod
    def read(cls, reader: Reader, version: int) -> Message:
        return cls(reader.rest())


@_message(b"RRES")
@dataclass(slots=True)
class Rres(_WithRest):
    """A relay's answer to a forwarded transmission, for the proxy."""

    has_entity: ClassVar[bool | None] = False


@_message(b"PRES")
@dataclass(slots=True)
class Pres(_WithRest):
    """A relay's answer to a forwarded transmission, from the proxy."""


@_message(b"END")
@dataclass(slots=True)
class End(Message):
    """Another connection has subscribed to the queue."""


@_message(b"ENDS")
@dataclass(slots=True)
class Ends(_WithCount):
    """Another connection of the service has subscribed to this many queues."""


@_message(b"DELD")
@dataclass(slots=True)
class Deld(Message):
    """The queue or notifier was deleted."""

    def encode(self, version: int) -> bytes:
        return b"DELD" if version >= DELETED_EVENT else b"END"


@_message(b"INFO")
@dataclass(slots=True)
class Info(Message):
    """The state of a queue, as the JSON object of §14.4."""

    state: dict[str, Any]

    def encode(self, version: int) -> bytes:
        return b"INFO " + json.dumps(self.state, separators=(",", ":")).encode("ascii")

    @classmethod
    def read(cls, reader: Reader, version: int) -> Info:
        try:
            state = json.loads(reader.rest())
        except (ValueError, RecursionError):
            raise ParseError("not JSON") from None
        if not isinstance(state, dict):
            raise ParseError("not an object")
        return cls(state)


@_message(b"OK")
@dataclass(slots=True)
class Ok(Message):
    """Done."""


@_message(b"ERR")
@dataclass(slots=True)
class Err(Message):
    """Not done."""

    error: Error

    has_entity: ClassVar[bool | None] = None

    def encode(self, version: int) -> bytes:
        return b"ERR " + self.error.encode(version)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Err:
        return cls(decode_error(reader.rest()))


@_message(b"PONG")
@dataclass(slots=True)
class Pong(Message):
    """The answer to PING."""

    has_entity: ClassVar[bool | None] = False


def check_entity(message: Message, entity: bool) -> Error | None:
    """The error when the entity id of a message is there or not, against the rule (§9.3)."""
    if message.has_entity is None or message.has_entity is entity:
        return None
    return errors.NO_ENTITY if message.has_entity else errors.HAS_AUTH
