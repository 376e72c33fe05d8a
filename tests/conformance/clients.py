"""Clients of a relay under test, and what they expect of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import pytest
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint

from tests.conformance.relays import ConfiguredRelay, Settings
from txsimplex.boxes import PlainBlocks
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.deadlines import within
from txsimplex.client.errors import RelayError
from txsimplex.client.queues import CreatedQueue
from txsimplex.client.raw import RawClient
from txsimplex.client.sending import SenderCommands
from txsimplex.client.session import SMP_ALPN, Service, global_clock, open_blocks, open_session
from txsimplex.client.smp import SMPClient, connect
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.bodies import MessageBody
from txsimplex.smp.commands import Command, LinkData, NotifierRequest, QueueMode, Role
from txsimplex.smp.errors import decode_error
from txsimplex.smp.messages import Err, Message, Msg
from txsimplex.smp.transmissions import Received
from txsimplex.smp.versions import SMP_RANGE, VersionRange

WAIT = 10.0
"""Seconds that anything may take before the test fails."""
SIGNING_ALGORITHMS = (Algorithm.ED25519, Algorithm.ED448)
ALGORITHMS = (*SIGNING_ALGORITHMS, Algorithm.X25519)
"""What the keys of a queue can be of."""

_PLAIN = PlainBlocks()
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


# -- connections


class Connection(Protocol):
    """What is closed after a test."""

    def abort(self) -> None:
        """Closes at once."""

    async def lost(self) -> None:
        """Waits until it is closed."""


class Relay:
    """A running relay as its clients see it. It keeps the connections, to close them all."""

    def __init__(self, process: ConfiguredRelay, connections: list[Connection]) -> None:
        self.process = process
        self.connections = connections

    @property
    def key_hash(self) -> bytes:
        """The identity in its address."""
        return self.process.credentials.key_hash

    def endpoint(self) -> TCP4ClientEndpoint:
        """Where it listens."""
        from twisted.internet import reactor

        return TCP4ClientEndpoint(reactor, "127.0.0.1", self.process.port)

    async def connect(
        self,
        version: int | None = None,
        *,
        alpn: bytes | None = SMP_ALPN,
        service: Service | None = None,
        key_hash: bytes | None = None,
        **options: Any,
    ) -> SMPClient:
        """A client, of `version` if that is given; `options` are those of `connect`."""
        location = self.process.location
        if key_hash is not None:
            location = type(location)(location.hosts, location.port, key_hash)
        options.setdefault("versions", versions_to(version))
        client = await connect(
            self.endpoint(),
            location,
            alpn=alpn,
            service=service,
            command_timeout=WAIT,
            timeout=WAIT,
            **options,
        )
        self.connections.append(client)
        return client

    async def raw(
        self, version: int | None = None, *, service: Service | None = None, **options: Any
    ) -> RawClient:
        """A client that does the handshake and nothing else by itself."""
        options.setdefault("versions", versions_to(version))
        session = await open_session(
            self.endpoint(), self.process.location, service=service, timeout=WAIT, **options
        )
        self.connections.append(session.blocks)
        return RawClient(session, global_clock(), WAIT)

    async def blocks(
        self,
        *,
        alpn: bytes | None = SMP_ALPN,
        context: SSL.Context | None = None,
        service: Service | None = None,
    ) -> BlockConnection:
        """A connection with TLS and without a handshake: the relay's hello waits in it."""
        connection = await open_blocks(
            self.endpoint(), alpn=alpn, context=context, service=service, timeout=WAIT
        )
        self.connections.append(connection)
        return connection


class GetRelay(Protocol):
    """The fixture `relays`."""

    def __call__(self, settings: Settings, algorithm: Algorithm = Algorithm.ED25519) -> Relay:
        """The relay with these settings, and certificates of this algorithm."""


def versions_to(version: int | None) -> VersionRange:
    """The versions of a client whose highest is `version`."""
    return SMP_RANGE if version is None else VersionRange(SMP_RANGE.minimum, version)


async def close_all(connections: Sequence[Connection]) -> None:
    """Closes connections, whatever state they are in."""
    for connection in connections:
        connection.abort()
    for connection in connections:
        await connection.lost()


async def next_content(connection: BlockConnection) -> bytes:
    """The content of the next block, which is not encrypted."""
    return _PLAIN.open(await soon(connection.next_block()))


def send_content(connection: BlockConnection, content: bytes) -> None:
    """Sends a block that is not encrypted."""
    connection.send(content, _PLAIN.seal)


async def soon(waited_for: Any, seconds: float = WAIT) -> Any:
    """What a coroutine gives, if it does within `seconds`; otherwise `TimedOutError`."""
    return await within(seconds, Deferred.fromCoroutine(waited_for), global_clock())


async def pause(seconds: float) -> None:
    """Lets time pass."""
    done: Deferred[None] = Deferred()
    global_clock().callLater(seconds, done.callback, None)
    await done


# -- keys, queues and services


def new_key(algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
    """A new private key."""
    return PrivateKey.generate(algorithm, os.urandom)


def new_id() -> bytes:
    """24 random bytes: a correlation id, or the id of no queue."""
    return os.urandom(24)


@dataclass
class Queue:
    """A queue with all that its recipient knows."""

    created: CreatedQueue
    key: PrivateKey = field(repr=False)
    notifier_dh_key: PrivateKey | None = field(default=None, repr=False)

    @property
    def recipient_id(self) -> bytes:
        """The id for the recipient's commands."""
        return self.created.recipient_id

    @property
    def sender_id(self) -> bytes:
        """The id for the sender's commands."""
        return self.created.sender_id

    @property
    def own(self) -> tuple[bytes, PrivateKey]:
        """Id and key, as the client's methods for recipients take them."""
        return self.created.recipient_id, self.key

    def open(self, message: Msg) -> MessageBody:
        """An ordinary message, decrypted."""
        body = self.created.open(message)
        assert isinstance(body, MessageBody)
        return body


async def make_queue(
    client: SMPClient,
    algorithm: Algorithm = Algorithm.ED25519,
    *,
    key: PrivateKey | None = None,
    mode: QueueMode | None = QueueMode.MESSAGING,
    subscribe: bool = True,
    password: bytes | None = None,
    link: LinkData | None = None,
    link_id: bytes | None = None,
    notifier_key: PrivateKey | None = None,
) -> Queue:
    """Creates a queue (NEW); with `notifier_key` it has a notifier from the start."""
    recipient_key = key or new_key(algorithm)
    dh_key, notifier, notifier_dh_key = new_key(Algorithm.X25519), None, None
    if notifier_key is not None:
        notifier_dh_key = new_key(Algorithm.X25519)
        notifier = NotifierRequest(notifier_key.public, notifier_dh_key.public)
    created = await client.create_queue(
        recipient_key,
        dh_key,
        mode=mode,
        subscribe=subscribe,
        password=password,
        link=link,
        link_id=link_id,
        notifier=notifier,
    )
    return Queue(created, recipient_key, notifier_dh_key)


async def make_secured_queue(
    recipient: SMPClient, algorithm: Algorithm = Algorithm.ED25519, **options: Any
) -> tuple[Queue, PrivateKey]:
    """A queue that its recipient has secured, and the sender's key."""
    queue = await make_queue(recipient, algorithm, **options)
    sender_key = new_key(algorithm)
    await recipient.secure(*queue.own, sender_key.public)
    return queue, sender_key


def make_service(role: Role = Role.NOTIFIER) -> Service:
    """A service with a new certificate, in a chain of two."""
    since = datetime.now(UTC) - timedelta(days=1)
    authority_key, key = new_key(), new_key()
    authority = make_authority(authority_key, since, os.urandom, common_name="a service's CA")
    leaf = make_online("a service", key.public, authority, authority_key, since, os.urandom)
    return Service(role, (leaf, authority), key)


# -- expectations


@contextmanager
def refused(error: str) -> Iterator[None]:
    """Expects that the relay answers with `error`, such as "CMD SYNTAX"."""
    with pytest.raises(RelayError) as caught:
        yield
    assert str(caught.value.error) == error


def err(error: str) -> Err:
    """The message ERR with an error in its text form."""
    return Err(decode_error(error.encode()))


def of(kind: type[_M], received: Received) -> _M:
    """The message received, which must be of `kind`."""
    assert isinstance(received.message, kind), received.message
    return received.message


async def ask(
    client: RawClient,
    command: Command | bytes,
    entity_id: bytes = b"",
    key: PrivateKey | None = None,
    *,
    service_signed: bool = False,
) -> Message:
    """The answer to a command: the next message, which must have the command's ids."""
    corr_id = new_id()
    client.send_transmissions(
        client.transmission(
            command, corr_id=corr_id, entity_id=entity_id, key=key, service_signed=service_signed
        )
    )
    received = await client.next_message()
    assert (received.corr_id, received.entity_id) == (corr_id, entity_id)
    assert isinstance(received.message, Message), received.message
    return received.message


async def next_event(client: SMPClient, seconds: float = WAIT) -> Received:
    """The next thing that the relay sends by itself; it has no correlation id."""
    event: Received = await soon(client.events.__anext__(), seconds)
    assert event.corr_id == b""
    return event


async def no_event(client: SMPClient, seconds: float = 0.0) -> None:
    """Expects that the relay has nothing to say by itself, and will not for `seconds`."""
    await pause(seconds)
    # What the relay sent before PONG has arrived before PONG.
    await client.ping()
    assert len(client.events) == 0, await next_event(client)


async def next_msg(client: SMPClient, queue: Queue) -> Msg:
    """The next event, which must be MSG of `queue`, still encrypted."""
    event = await next_event(client)
    assert event.entity_id == queue.recipient_id
    return of(Msg, event)


async def next_message(client: SMPClient, queue: Queue) -> MessageBody:
    """The next event, which must be MSG of `queue`, decrypted."""
    return queue.open(await next_msg(client, queue))


async def acknowledge(client: SMPClient, queue: Queue, message: Msg) -> Msg | None:
    """ACK; the next message of the queue if there is one."""
    return await client.ack(*queue.own, message.msg_id)


async def deliver(
    relay: SenderCommands, recipient: SMPClient, queue: Queue, key: PrivateKey | None = None
) -> None:
    """A message of the greatest size that a sender sends is what its recipient gets."""
    body = os.urandom(16048)
    await relay.send(queue.sender_id, body, key=key)
    message = await next_msg(recipient, queue)
    assert queue.open(message).body == body
    await acknowledge(recipient, queue, message)
