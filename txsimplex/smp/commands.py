"""Commands that clients and proxies send to a relay (docs/spec/smp-wire.md §10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final

from txsimplex.addresses import RelayLocation, is_password
from txsimplex.encoding import (
    ParseError,
    Reader,
    boolean,
    large,
    maybe,
    nonempty,
    short,
    u16,
)
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp import errors
from txsimplex.smp.errors import Error
from txsimplex.smp.versions import NOTIFIER_IN_NEW, SENDER_SECURES, SHORT_LINKS
from txsimplex.smp.vocabulary import Vocabulary, Word


class Role(Enum):
    """What a service client is for (smp-wire.md §6.2); other clients have none."""

    MESSAGING = b"M"
    NOTIFIER = b"N"
    PROXY = b"P"


class Credentials(Enum):
    """Which of authenticator and entity id a command has (smp-wire.md §9.3).

    `errors` are those of a command with neither, with the id only, with the
    authenticator only, and with both.
    """

    CREATOR = (errors.NO_AUTH, errors.NO_AUTH, None, errors.HAS_AUTH)
    SENDER = (errors.NO_ENTITY, None, errors.NO_ENTITY, None)
    NEITHER = (None, errors.HAS_AUTH, errors.HAS_AUTH, errors.HAS_AUTH)
    ENTITY_ONLY = (errors.NO_ENTITY, None, errors.NO_ENTITY, errors.HAS_AUTH)
    BOTH = (errors.NO_AUTH, errors.NO_AUTH, errors.NO_AUTH, None)

    errors: tuple[Error | None, ...]

    def __init__(self, *given: Error | None) -> None:
        self.errors = given


class QueueMode(Enum):
    """What a queue is for: one contact's messages, or a contact address."""

    MESSAGING = b"M"
    CONTACT = b"C"


@dataclass(slots=True)
class LinkData:
    """Data behind a short link, opaque to the relay: an immutable and a changeable part."""

    fixed: bytes = field(repr=False)
    user: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Both parts as large strings."""
        return large(self.fixed) + large(self.user)

    @classmethod
    def read(cls, reader: Reader) -> LinkData:
        """Reads what `encode` writes."""
        return cls(reader.large(), reader.large())


@dataclass(slots=True)
class LinkRequest:
    """Link data given with NEW; `link_id` only for contact queues (§10.1)."""

    sender_id: bytes
    data: LinkData
    link_id: bytes | None = None


@dataclass(slots=True)
class QueueRequest:
    """The queue that NEW asks for: its mode and, if wanted, its link."""

    mode: QueueMode
    link: LinkRequest | None = None


@dataclass(slots=True)
class NotifierRequest:
    """Keys of the notifier given with NEW."""

    key: PublicKey
    dh_key: PublicKey


@dataclass(slots=True)
class Command(Word):
    """A command."""

    credentials: ClassVar[Credentials] = Credentials.BOTH
    role: ClassVar[Role | None] = Role.MESSAGING
    of_recipient: ClassVar[bool] = False
    service_signed: ClassVar[bool] = False
    """Whether a service session signs it in addition (smp-server.md §3)."""


COMMANDS: Final = Vocabulary[Command]()
_command = COMMANDS.word
read_command = COMMANDS.read


def auth_key(reader: Reader) -> PublicKey:
    """A key that authorises commands: Ed25519, Ed448 or X25519 (§2)."""
    key = PublicKey.decode(reader.short())
    if key.algorithm is Algorithm.X448:
        raise ParseError("X448 does not authorise")
    return key


def dh_key(reader: Reader) -> PublicKey:
    """An X25519 key (§2)."""
    key = PublicKey.decode(reader.short())
    if key.algorithm is not Algorithm.X25519:
        raise ParseError("not an X25519 key")
    return key


def encode_key(key: PublicKey) -> bytes:
    """A key as a short string."""
    return short(key.encode())


def basic_auth(reader: Reader) -> bytes:
    """A password of printable Latin-1 without space and ``@ : /`` (§1)."""
    password = reader.short()
    if not is_password(password):
        raise ParseError("not a password")
    return password


# -- of the recipient


@_command(b"NEW")
@dataclass(slots=True)
class New(Command):
    """Creates a queue (§10.1)."""

    recipient_key: PublicKey
    dh_key: PublicKey
    password: bytes | None = field(default=None, repr=False)
    subscribe: bool = True
    request: QueueRequest | None = None
    notifier: NotifierRequest | None = None

    credentials: ClassVar[Credentials] = Credentials.CREATOR
    service_signed: ClassVar[bool] = True

    def encode(self, version: int) -> bytes:
        head = b"NEW " + encode_key(self.recipient_key) + encode_key(self.dh_key)
        mode = b"S" if self.subscribe else b"C"
        if version < SENDER_SECURES:
            password = b"" if self.password is None else b"A" + short(self.password)
            return head + password + mode
        head += maybe(self.password, short) + mode
        if version < SHORT_LINKS:
            request = self.request
            return head + boolean(request is not None and request.mode is QueueMode.MESSAGING)
        head += maybe(self.request, _encode_request)
        if version < NOTIFIER_IN_NEW:
            return head
        return head + maybe(self.notifier, lambda n: encode_key(n.key) + encode_key(n.dh_key))

    @classmethod
    def read(cls, reader: Reader, version: int) -> New:
        key, dh = auth_key(reader), dh_key(reader)
        if version < SENDER_SECURES:
            password = None
            tag = reader.take(1)
            if tag == b"A":
                password = basic_auth(reader)
                tag = reader.take(1)
            new = cls(key, dh, password, _subscribe(tag))
        else:
            password = reader.maybe(lambda: basic_auth(reader))
            new = cls(key, dh, password, _subscribe(reader.take(1)))
            if version < SHORT_LINKS:
                secure = reader.bool()
                new.request = QueueRequest(QueueMode.MESSAGING if secure else QueueMode.CONTACT)
            else:
                new.request = reader.maybe(lambda: _read_request(reader))
                if version >= NOTIFIER_IN_NEW:
                    new.notifier = reader.maybe(
                        lambda: NotifierRequest(auth_key(reader), dh_key(reader))
                    )
        reader.finish()
        return new


def _subscribe(tag: bytes) -> bool:
    if tag == b"S":
        return True
    if tag == b"C":
        return False
    raise ParseError("not a subscription mode")


def _encode_request(request: QueueRequest) -> bytes:
    def link(link: LinkRequest) -> bytes:
        head = b"" if request.mode is QueueMode.MESSAGING else short(link.link_id or b"")
        return head + short(link.sender_id) + link.data.encode()

    return request.mode.value + maybe(request.link, link)


def _read_request(reader: Reader) -> QueueRequest:
    try:
        mode = QueueMode(reader.take(1))
    except ValueError:
        raise ParseError("not a queue mode") from None

    def link() -> LinkRequest:
        link_id = None if mode is QueueMode.MESSAGING else reader.short()
        return LinkRequest(reader.short(), LinkData.read(reader), link_id)

    return QueueRequest(mode, reader.maybe(link))


@_command(b"SUB")
@dataclass(slots=True)
class Sub(Command):
    """Subscribes to a queue."""

    of_recipient: ClassVar[bool] = True
    service_signed: ClassVar[bool] = True


@_command(b"SUBS")
@dataclass(slots=True)
class Subs(Command):
    """Subscribes a messaging service to all its queues."""


@dataclass(slots=True)
class _WithKey(Command):
    key: PublicKey

    def encode(self, version: int) -> bytes:
        return self.tag + b" " + encode_key(self.key)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Command:
        key = auth_key(reader)
        reader.finish()
        return cls(key)


@_command(b"KEY")
@dataclass(slots=True)
class Key(_WithKey):
    """The recipient secures the queue with the sender's key."""

    of_recipient: ClassVar[bool] = True


@_command(b"RKEY")
@dataclass(slots=True)
class Rkey(Command):
    """Replaces the recipient's keys of a contact queue."""

    keys: list[PublicKey]

    of_recipient: ClassVar[bool] = True

    def encode(self, version: int) -> bytes:
        return b"RKEY " + nonempty(self.keys, encode_key)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Rkey:
        keys = reader.nonempty(lambda: auth_key(reader))
        reader.finish()
        return cls(keys)


@_command(b"LSET")
@dataclass(slots=True)
class Lset(Command):
    """Sets the data of the queue's short link."""

    link_id: bytes
    data: LinkData

    of_recipient: ClassVar[bool] = True

    def encode(self, version: int) -> bytes:
        return b"LSET " + short(self.link_id) + self.data.encode()

    @classmethod
    def read(cls, reader: Reader, version: int) -> Lset:
        command = cls(reader.short(), LinkData.read(reader))
        reader.finish()
        return command


@_command(b"LDEL")
@dataclass(slots=True)
class Ldel(Command):
    """Removes the queue's short link."""

    of_recipient: ClassVar[bool] = True


@_command(b"NKEY")
@dataclass(slots=True)
class Nkey(Command):
    """Adds a notifier to the queue."""

    key: PublicKey
    dh_key: PublicKey

    of_recipient: ClassVar[bool] = True

    def encode(self, version: int) -> bytes:
        return b"NKEY " + encode_key(self.key) + encode_key(self.dh_key)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Nkey:
        command = cls(auth_key(reader), dh_key(reader))
        reader.finish()
        return command


@_command(b"NDEL")
@dataclass(slots=True)
class Ndel(Command):
    """Removes the queue's notifier."""

    of_recipient: ClassVar[bool] = True


@_command(b"GET")
@dataclass(slots=True)
class Get(Command):
    """Asks for the first message without subscribing."""

    of_recipient: ClassVar[bool] = True


@_command(b"ACK")
@dataclass(slots=True)
class Ack(Command):
    """Confirms a message, which the relay then deletes."""

    msg_id: bytes

    of_recipient: ClassVar[bool] = True

    def encode(self, version: int) -> bytes:
        return b"ACK " + short(self.msg_id)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Ack:
        msg_id = reader.short()
        reader.finish()
        return cls(msg_id)


@_command(b"OFF")
@dataclass(slots=True)
class Off(Command):
    """Suspends the queue: senders are refused."""

    of_recipient: ClassVar[bool] = True


@_command(b"DEL")
@dataclass(slots=True)
class Del(Command):
    """Deletes the queue and its messages."""

    of_recipient: ClassVar[bool] = True


@_command(b"QUE")
@dataclass(slots=True)
class Que(Command):
    """Asks for the state of the queue."""

    of_recipient: ClassVar[bool] = True


# -- of the sender


@_command(b"SKEY")
@dataclass(slots=True)
class Skey(_WithKey):
    """The sender secures the queue with its own key."""


_FLAGS: Final = {b"T ": True, b"F ": False}


@_command(b"SEND")
@dataclass(slots=True)
class Send(Command):
    """A message: whether to notify, and its body of at most `max_message_length` bytes."""

    notify: bool
    body: bytes

    credentials: ClassVar[Credentials] = Credentials.SENDER

    def encode(self, version: int) -> bytes:
        return (b"SEND T " if self.notify else b"SEND F ") + self.body

    @classmethod
    def read(cls, reader: Reader, version: int) -> Send:
        data, start, end = reader.data, reader.position, reader.end
        notify = _FLAGS.get(data[start : start + 2])
        if notify is None or start + 2 > end:
            # Flags of later versions may stand between the one that is known and the space.
            notify = reader.bool()
            start = data.find(b" ", start, end) - 1
            if start < 0:
                raise ParseError("no body")
        return cls(notify, data[start + 2 : end])


@_command(b"PING")
@dataclass(slots=True)
class Ping(Command):
    """Keeps a connection alive."""

    credentials: ClassVar[Credentials] = Credentials.NEITHER
    role: ClassVar[Role | None] = None


@_command(b"LKEY")
@dataclass(slots=True)
class Lkey(_WithKey):
    """Secures the queue behind a one-time link and asks for its data."""


@_command(b"LGET")
@dataclass(slots=True)
class Lget(Command):
    """Asks for the data behind a contact link."""

    credentials: ClassVar[Credentials] = Credentials.ENTITY_ONLY


# -- of the notifier


@_command(b"NSUB")
@dataclass(slots=True)
class Nsub(Command):
    """Subscribes to the notifications of a queue."""

    role: ClassVar[Role | None] = Role.NOTIFIER
    service_signed: ClassVar[bool] = True


@_command(b"NSUBS")
@dataclass(slots=True)
class Nsubs(Command):
    """Subscribes a notification service to all its queues."""

    role: ClassVar[Role | None] = Role.NOTIFIER


# -- private routing


@_command(b"PRXY")
@dataclass(slots=True)
class Prxy(Command):
    """Asks the proxy for a session with a relay."""

    relay: RelayLocation
    password: bytes | None = field(default=None, repr=False)

    credentials: ClassVar[Credentials] = Credentials.NEITHER

    def encode(self, version: int) -> bytes:
        return b"PRXY " + self.relay.encode() + maybe(self.password, short)

    @classmethod
    def read(cls, reader: Reader, version: int) -> Prxy:
        relay = RelayLocation.read(reader)
        password = reader.maybe(lambda: basic_auth(reader))
        reader.finish()
        return cls(relay, password)


@_command(b"PFWD")
@dataclass(slots=True)
class Pfwd(Command):
    """Forwards an encrypted transmission of `version` to the relay of a session."""

    version: int
    key: PublicKey
    transmission: bytes

    credentials: ClassVar[Credentials] = Credentials.ENTITY_ONLY

    def encode(self, version: int) -> bytes:
        return b"PFWD " + u16(self.version) + encode_key(self.key) + self.transmission

    @classmethod
    def read(cls, reader: Reader, version: int) -> Pfwd:
        return cls(reader.u16(), dh_key(reader), reader.rest())


@_command(b"RFWD")
@dataclass(slots=True)
class Rfwd(Command):
    """A forwarded transmission, from proxy to relay."""

    transmission: bytes

    credentials: ClassVar[Credentials] = Credentials.NEITHER
    role: ClassVar[Role | None] = Role.PROXY

    def encode(self, version: int) -> bytes:
        return b"RFWD " + self.transmission

    @classmethod
    def read(cls, reader: Reader, version: int) -> Rfwd:
        return cls(reader.rest())


def check_credentials(command: Command, authorized: bool, entity: bool) -> Error | None:
    """The error when authenticator or entity id are there or not, against the rule (§9.3)."""
    return command.credentials.errors[2 * authorized + entity]
