"""The client against a relay, over real TLS: connecting, every command, events, and failures."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    socket,
)
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.python.failure import Failure

from tests.coroutines import in_reactor, until, within
from tests.txsimplex.client.conftest import RunningRelay, StartRelay
from txsimplex.boxes import BoxError
from txsimplex.client.errors import (
    DisconnectedError,
    HandshakeError,
    IdentityError,
    RelayError,
    TimedOutError,
    TooLargeError,
)
from txsimplex.client.queues import CreatedQueue, shared_box
from txsimplex.client.session import Service, open_blocks
from txsimplex.client.smp import Request, SMPClient, connect
from txsimplex.issuing import make_authority
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import errors
from txsimplex.smp.bodies import MessageBody, QuotaBody, open_meta
from txsimplex.smp.commands import (
    Del,
    LinkData,
    NotifierRequest,
    Nsub,
    Ping,
    QueueMode,
    Role,
    Send,
    Sub,
)
from txsimplex.smp.messages import Deld, End, Err, Msg, Nmsg, Pong, Sok
from txsimplex.smp.transmissions import Received
from txsimplex.smp.versions import VersionRange, max_message_length

AUTH_ALGORITHMS = [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519]


def new_key(algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
    return PrivateKey.generate(algorithm, os.urandom)


def at(version: int) -> VersionRange:
    return VersionRange(6, version)


async def new_queue(client: SMPClient, key: PrivateKey, **options: Any) -> CreatedQueue:
    return await client.create_queue(key, new_key(Algorithm.X25519), **options)


async def next_event(client: SMPClient) -> Received:
    """The next event; a test that waits in vain for one fails after some seconds."""
    return await within(10, client.events.__anext__())


async def next_message(client: SMPClient, queue: CreatedQueue) -> tuple[Msg, bytes]:
    event = await next_event(client)
    assert event.entity_id == queue.recipient_id
    assert isinstance(event.message, Msg)
    return event.message, body_of(queue, event.message)


def body_of(queue: CreatedQueue, message: Msg | None) -> bytes:
    assert message is not None
    opened = queue.open(message)
    assert isinstance(opened, MessageBody)
    return opened.body


async def refused(error: errors.Error, command: Any) -> None:
    """`command` is answered by `error`."""
    with pytest.raises(RelayError) as info:
        await command
    assert info.value.error == error


# -- connecting


@pytest.mark.parametrize("version", [*range(6, 13), *range(14, 19)])
@in_reactor
async def test_a_message_at_every_version(relay: RunningRelay, version: int) -> None:
    recipient = await relay.connect(versions=at(version))
    sender = await relay.connect(versions=at(version))
    assert recipient.version == version
    assert recipient.session.encrypted is (version >= 11)
    key = new_key()
    queue = await new_queue(recipient, key)
    sender_key = new_key(Algorithm.X25519 if version >= 7 else Algorithm.ED448)
    await recipient.secure(queue.recipient_id, key, sender_key.public)
    body = os.urandom(max_message_length(version))
    await sender.send(queue.sender_id, body, key=sender_key)
    message, received = await next_message(recipient, queue)
    assert received == body
    assert await recipient.ack(queue.recipient_id, key, message.msg_id) is None
    await sender.close()
    await recipient.close()


@in_reactor
async def test_without_alpn_it_is_version_6(relay: RunningRelay) -> None:
    client = await relay.connect(alpn=None)
    assert client.session.alpn is None
    assert client.version == 6
    assert client.session.signer.server_key is None
    await new_queue(client, new_key())
    await client.close()


@pytest.mark.parametrize(
    ("options", "encrypted"),
    [({}, True), ({"proxy": True}, False), ({"session_key": False}, False)],
    ids=["plain", "proxy", "without key"],
)
@in_reactor
async def test_when_blocks_are_encrypted(
    relay: RunningRelay, options: dict[str, bool], encrypted: bool
) -> None:
    client = await relay.connect(**options)
    assert client.version == 18
    assert client.session.encrypted is encrypted
    for _ in range(3):
        await client.ping()
    await client.close()


@in_reactor
async def test_another_identity_is_refused(relay: RunningRelay) -> None:
    address = replace(relay.address, location=replace(relay.address.location, key_hash=bytes(32)))
    with pytest.raises(IdentityError):
        await connect(relay.endpoint(), address)


@in_reactor
async def test_no_version_in_common(relay: RunningRelay) -> None:
    with pytest.raises(HandshakeError) as info:
        await relay.connect(versions=VersionRange(19, 20))
    assert str(info.value) == "VERSION"


@in_reactor
async def test_an_alpn_that_the_relay_does_not_know(relay: RunningRelay) -> None:
    with pytest.raises(DisconnectedError):
        await relay.connect(alpn=b"imap")


@in_reactor
async def test_a_certificate_of_another_time(relay: RunningRelay) -> None:
    with pytest.raises(IdentityError, match="not valid yet"):
        await relay.connect(now=lambda: datetime(2001, 1, 1, tzinfo=UTC))


@in_reactor
async def test_nobody_listens(relay: RunningRelay) -> None:
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", unused.getsockname()[1])
        with pytest.raises(DisconnectedError, match="cannot connect"):
            await connect(endpoint, relay.address)


@in_reactor
async def test_a_server_that_says_nothing(relay: RunningRelay) -> None:
    with socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", silent.getsockname()[1])
        with pytest.raises(TimedOutError):
            await connect(endpoint, relay.address, timeout=0.2)
        accepted, _ = silent.accept()
        await until(lambda: _closed(accepted))
        accepted.close()


def _closed(connection: socket) -> bool:
    """Whether the other end is closed; reads all that it has sent."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


# -- commands


@pytest.mark.parametrize("algorithm", AUTH_ALGORITHMS, ids=lambda a: a.name)
@in_reactor
async def test_life_of_a_queue(relay: RunningRelay, algorithm: Algorithm) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    key, sender_key = new_key(algorithm), new_key(algorithm)
    queue = await new_queue(recipient, key)
    assert queue.mode is QueueMode.MESSAGING
    assert len({queue.recipient_id, queue.sender_id}) == 2

    await sender.send(queue.sender_id, b"unsecured")
    message, body = await next_message(recipient, queue)
    assert body == b"unsecured"
    await recipient.ack(queue.recipient_id, key, message.msg_id)
    await refused(errors.NO_MSG, recipient.ack(queue.recipient_id, key, message.msg_id))

    await sender.sender_secure(queue.sender_id, sender_key)
    await refused(errors.AUTH, sender.send(queue.sender_id, b"unsigned"))
    for text in (b"one", b"two"):
        await sender.send(queue.sender_id, text, key=sender_key)
    message, body = await next_message(recipient, queue)
    assert body == b"one"
    second = await recipient.ack(queue.recipient_id, key, message.msg_id)
    assert body_of(queue, second) == b"two"

    info = await recipient.queue_info(queue.recipient_id, key)
    assert (info["qiSnd"], info["qiSize"]) == (True, 1)
    await recipient.suspend(queue.recipient_id, key)
    await refused(errors.AUTH, sender.send(queue.sender_id, b"late", key=sender_key))
    await recipient.delete(queue.recipient_id, key)
    await refused(errors.AUTH, recipient.queue_info(queue.recipient_id, key))
    await sender.close()
    await recipient.close()


@in_reactor
async def test_get_without_subscription(relay: RunningRelay) -> None:
    client, sender = await relay.connect(), await relay.connect()
    key = new_key()
    queue = await new_queue(client, key, subscribe=False)
    assert await client.get(queue.recipient_id, key) is None
    await sender.send(queue.sender_id, b"hello", notify=True)
    message = await client.get(queue.recipient_id, key)
    assert message is not None
    opened = queue.open(message)
    assert isinstance(opened, MessageBody)
    assert (opened.notify, opened.body) == (True, b"hello")
    assert await client.ack(queue.recipient_id, key, message.msg_id) is None
    assert await client.get(queue.recipient_id, key) is None
    await refused(errors.PROHIBITED, client.subscribe(queue.recipient_id, key))
    await sender.close()
    await client.close()


@in_reactor
async def test_another_subscriber(relay: RunningRelay) -> None:
    first, second = await relay.connect(), await relay.connect()
    key = new_key()
    queue = await new_queue(first, key)
    await second.subscribe(queue.recipient_id, key)
    event = await next_event(first)
    assert (event.entity_id, event.message) == (queue.recipient_id, End())
    await first.delete(queue.recipient_id, key)
    event = await next_event(second)
    assert (event.entity_id, event.message) == (queue.recipient_id, Deld())
    await first.close()
    await second.close()


@in_reactor
async def test_contact_queue_and_its_link(relay: RunningRelay) -> None:
    owner, client = await relay.connect(), await relay.connect()
    key, second_key = new_key(), new_key()
    data = LinkData(b"fixed", b"user")
    queue = await new_queue(owner, key, mode=QueueMode.CONTACT, link=data, link_id=b"l" * 24)
    assert queue.link_id == b"l" * 24
    link = await client.get_link(b"l" * 24)
    assert (link.sender_id, link.data) == (queue.sender_id, data)
    await owner.set_link(queue.recipient_id, key, b"l" * 24, LinkData(b"fixed", b"new"))
    assert (await client.get_link(b"l" * 24)).data.user == b"new"
    await owner.delete_link(queue.recipient_id, key)
    await refused(errors.AUTH, client.get_link(b"l" * 24))
    await owner.set_recipient_keys(queue.recipient_id, key, [second_key.public])
    await refused(errors.AUTH, owner.queue_info(queue.recipient_id, key))
    await owner.queue_info(queue.recipient_id, second_key)
    await owner.close()
    await client.close()


@in_reactor
async def test_a_one_time_link(relay: RunningRelay) -> None:
    owner, client = await relay.connect(), await relay.connect()
    key, sender_key = new_key(), new_key(Algorithm.X25519)
    data = LinkData(b"fixed" * 400, b"user" * 3000)
    queue = await new_queue(owner, key, link=data)
    assert queue.link_id is not None
    link = await client.secure_link(queue.link_id, sender_key)
    assert link.data == data
    await client.send(link.sender_id, b"hello", key=sender_key)
    assert (await next_message(owner, queue))[1] == b"hello"
    await owner.close()
    await client.close()


@in_reactor
async def test_notifications(relay: RunningRelay) -> None:
    owner, notified = await relay.connect(), await relay.connect()
    key, notifier_key, dh_key = new_key(), new_key(), new_key(Algorithm.X25519)
    queue = await new_queue(
        owner, key, notifier=NotifierRequest(notifier_key.public, dh_key.public)
    )
    assert queue.notifier is not None
    await notified.subscribe_notifications(queue.notifier.notifier_id, notifier_key)
    await owner.send(queue.sender_id, b"hello", notify=True)
    event = await next_event(notified)
    assert event.entity_id == queue.notifier.notifier_id
    assert isinstance(event.message, Nmsg)
    box = shared_box(dh_key, queue.notifier.dh_key)
    msg_id, _ = open_meta(box, event.message.nonce, event.message.meta)
    message, _ = await next_message(owner, queue)
    assert msg_id == message.msg_id

    made = await owner.add_notifier(queue.recipient_id, key, notifier_key.public, dh_key.public)
    assert made.notifier_id != queue.notifier.notifier_id
    assert (await next_event(notified)).message == Deld()
    await owner.delete_notifier(queue.recipient_id, key)
    gone = notified.subscribe_notifications(made.notifier_id, notifier_key)
    await refused(errors.AUTH, gone)
    await owner.close()
    await notified.close()


@in_reactor
async def test_a_notification_service(relay: RunningRelay) -> None:
    service_key = new_key()
    certificate = make_authority(service_key, datetime.now(UTC), os.urandom)
    service = Service(Role.NOTIFIER, [certificate], service_key)
    owner, notified = await relay.connect(), await relay.connect(service=service)
    assert notified.service_id is not None
    key, notifier_key, dh_key = new_key(), new_key(), new_key(Algorithm.X25519)
    queue = await new_queue(
        owner, key, notifier=NotifierRequest(notifier_key.public, dh_key.public)
    )
    assert queue.notifier is not None
    answer = await notified.request(Nsub(), queue.notifier.notifier_id, notifier_key)
    assert answer == Sok(notified.service_id)
    await notified.close()

    again = await relay.connect(service=service)
    assert again.service_id == notified.service_id
    assert await again.subscribe_service_notifications() == 1
    await owner.send(queue.sender_id, b"hello", notify=True)
    event = await next_event(again)
    assert isinstance(event.message, Nmsg)
    await refused(
        errors.SERVICE,
        again.request(Nsub(), queue.notifier.notifier_id, notifier_key, service_signed=False),
    )
    await owner.close()
    await again.close()


@in_reactor
async def test_a_messaging_service(relay: RunningRelay) -> None:
    service_key = new_key(Algorithm.ED448)
    certificate = make_authority(service_key, datetime.now(UTC), os.urandom)
    client = await relay.connect(service=Service(Role.MESSAGING, [certificate], service_key))
    queue = await new_queue(client, new_key())
    assert queue.service_id == client.service_id is not None
    await refused(errors.PROHIBITED, client.subscribe_service())
    await refused(errors.PROHIBITED, client.subscribe_service_notifications())
    await client.ping()
    await client.close()


@in_reactor
async def test_service_commands_need_a_service(relay: RunningRelay) -> None:
    client = await relay.connect()
    with pytest.raises(ValueError, match="no service"):
        await client.subscribe_service()
    await client.close()


@in_reactor
async def test_the_password(start_relay: StartRelay) -> None:
    relay = start_relay("queues.password = correct-horse")
    client = await relay.connect()
    await refused(errors.AUTH, new_queue(client, new_key()))
    await new_queue(client, new_key(), password=b"correct-horse")
    await client.close()


@in_reactor
async def test_quota(start_relay: StartRelay) -> None:
    relay = start_relay("queues.quota = 2")
    client, sender = await relay.connect(), await relay.connect()
    key = new_key()
    queue = await new_queue(client, key)
    for _ in range(2):
        await sender.send(queue.sender_id, b"hello")
    await refused(errors.QUOTA, sender.send(queue.sender_id, b"hello"))
    message: Msg | None = (await next_message(client, queue))[0]
    for _ in range(2):
        assert message is not None
        message = await client.ack(queue.recipient_id, key, message.msg_id)
    assert message is not None
    assert isinstance(queue.open(message), QuotaBody)
    await sender.close()
    await client.close()


# -- many at once


@in_reactor
async def test_many_commands_with_answers_in_order(relay: RunningRelay) -> None:
    client, other = await relay.connect(), await relay.connect()
    keys = [new_key(AUTH_ALGORITHMS[n % 3]) for n in range(60)]
    queues = [await new_queue(client, key) for key in keys]
    requests = [
        Request(Sub(), queue.recipient_id, key) for queue, key in zip(queues, keys, strict=True)
    ]
    requests[7] = Request(Sub(), queues[7].sender_id, keys[7])
    requests.insert(20, Request(Send(False, bytes(16360)), queues[0].sender_id))
    requests.insert(40, Request(Ping()))
    answers = await other.send_many(requests)
    assert len(answers) == 62
    bad, large, pong = answers.pop(7), answers.pop(19), answers.pop(38)
    assert isinstance(bad, RelayError)
    assert bad.error == errors.AUTH
    assert isinstance(large, TooLargeError)
    assert pong == Pong()
    assert answers == [Sok()] * 59
    deleted = await other.send_many(
        [Request(Del(), queue.recipient_id, key) for queue, key in zip(queues, keys, strict=True)]
    )
    assert not any(isinstance(answer, Exception) for answer in deleted)
    assert await other.send_many([]) == []
    await client.close()
    await other.close()


@in_reactor
async def test_concurrent_commands(relay: RunningRelay) -> None:
    client = await relay.connect()
    pings = [Deferred.fromCoroutine(client.ping()) for _ in range(300)]
    assert len(await gatherResults(pings)) == 300
    await client.close()


# -- events


@in_reactor
async def test_events_by_callback(relay: RunningRelay, logged_failures: list[Failure]) -> None:
    events: list[Received] = []

    def on_event(event: Received) -> None:
        events.append(event)
        if len(events) == 1:
            raise KeyError("the receiver's fault")

    client = await relay.connect(on_event=on_event)
    key = new_key()
    queue = await new_queue(client, key)
    await client.send(queue.sender_id, b"one")
    assert isinstance(events[0].message, Msg)
    await client.send(queue.sender_id, b"two")
    second = await client.ack(queue.recipient_id, key, events[0].message.msg_id)
    assert body_of(queue, second) == b"two"
    assert len(client.events) == 0
    await client.close()
    assert [failure.type for failure in logged_failures] == [KeyError]
    logged_failures.clear()


@in_reactor
async def test_events_end_with_the_connection(relay: RunningRelay) -> None:
    client = await relay.connect()
    queue = await new_queue(client, new_key())
    await client.send(queue.sender_id, b"hello")
    await client.close()
    assert [type(event.message) async for event in client.events] == [Msg]


@in_reactor
async def test_reading_waits_for_those_who_take_events(relay: RunningRelay) -> None:
    client, sender = await relay.connect(events_kept=3), await relay.connect()
    keys = [new_key() for _ in range(40)]
    queues = [await new_queue(client, key) for key in keys]
    for queue in queues:
        await sender.send(queue.sender_id, bytes(16000))
    for _ in range(20):
        await sender.ping()
    assert 3 <= len(client.events) < 40
    by_id = {queue.recipient_id: queue for queue in queues}
    for _ in queues:
        event = await next_event(client)
        assert isinstance(event.message, Msg)
        assert body_of(by_id.pop(event.entity_id), event.message) == bytes(16000)
    await client.ping()
    await sender.close()
    await client.close()


@in_reactor
async def test_a_block_that_cannot_be_read_is_an_event(relay: RunningRelay) -> None:
    client = await relay.connect()
    client.session.send(b"\x00")
    event = await next_event(client)
    assert (event.entity_id, event.message) == (b"", Err(errors.BLOCK))
    await client.ping()
    await client.close()


# -- failures


@in_reactor
async def test_a_lost_connection_fails_what_waits(relay: RunningRelay) -> None:
    client = await relay.connect()
    client.session.blocks.pause_reading()
    waiting = [Deferred.fromCoroutine(client.ping()) for _ in range(3)]
    many = Deferred.fromCoroutine(client.send_many([Request(Ping()), Request(Ping())]))
    client.abort()
    await client.lost()
    for each in waiting:
        with pytest.raises(DisconnectedError):
            await each
    assert [type(answer) for answer in await many] == [DisconnectedError] * 2
    assert not client.connected
    with pytest.raises(DisconnectedError):
        await client.ping()
    await client.close()


@in_reactor
async def test_the_relay_closes(relay: RunningRelay) -> None:
    client = await relay.connect()
    await relay.service.sessions.close_all(1.0)
    await client.lost()
    with pytest.raises(DisconnectedError):
        await client.ping()


@in_reactor
async def test_commands_time_out(relay: RunningRelay) -> None:
    client = await relay.connect(command_timeout=0.05)
    client.session.blocks.pause_reading()
    with pytest.raises(TimedOutError):
        await client.ping()
    answers = await client.send_many([Request(Ping())] * 2, timeout=0.01)
    assert [type(answer) for answer in answers] == [TimedOutError] * 2
    client.session.blocks.resume_reading()
    await client.ping(timeout=10)
    assert len(client.events) == 0
    await client.close()


@in_reactor
async def test_a_command_can_be_cancelled(relay: RunningRelay) -> None:
    client = await relay.connect()
    waiting = Deferred.fromCoroutine(client.ping())
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    await client.ping()
    await client.close()


@in_reactor
async def test_a_block_that_does_not_open_ends_the_connection(relay: RunningRelay) -> None:
    client = await relay.connect()
    client.session.open = _fails
    waiting = Deferred.fromCoroutine(client.ping())
    with pytest.raises(DisconnectedError):
        await waiting
    await client.lost()


def _fails(block: bytes) -> bytes:
    raise BoxError


@in_reactor
async def test_connecting_can_be_cancelled(relay: RunningRelay) -> None:
    waiting = Deferred.fromCoroutine(relay.connect())
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting


@in_reactor
async def test_the_kernel_asks_whether_the_relay_is_there(relay: RunningRelay) -> None:
    """smp-wire.md §4.4."""
    connected: list[Any] = []
    endpoint = relay.endpoint()

    class Watched:
        async def connect(self, factory: Any) -> Any:
            connected.append(await endpoint.connect(factory))
            return connected[0]

    blocks = await open_blocks(Watched())  # type: ignore[arg-type]
    handle: socket = connected[0].transport.getHandle()
    assert handle.getsockopt(SOL_SOCKET, SO_KEEPALIVE)
    options = (TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT)
    assert [handle.getsockopt(IPPROTO_TCP, each) for each in options] == [30, 15, 4]
    blocks.abort()
