"""Conformance F: creating and securing queues."""

from __future__ import annotations

import os

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    ALGORITHMS,
    GetRelay,
    Queue,
    Relay,
    acknowledge,
    err,
    make_queue,
    make_secured_queue,
    new_id,
    new_key,
    next_message,
    next_msg,
    no_event,
    of,
    refused,
)
from tests.conformance.numbers import conforms
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Key, New, QueueMode, QueueRequest, Skey, Sub
from txsimplex.smp.messages import Ids, Ok, Sok
from txsimplex.smp.transmissions import Received, cut
from txsimplex.smp.versions import max_message_length

PASSWORD = b"correct-horse"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_084_new(relay: Relay, algorithm: Algorithm) -> None:
    client = await relay.raw()
    key = new_key(algorithm)
    new = New(
        key.public,
        new_key(Algorithm.X25519).public,
        request=QueueRequest(QueueMode.MESSAGING),
    )
    received = await client.request(new, corr_id=b"abcd", key=key)
    assert (received.corr_id, received.entity_id) == (b"abcd", b"")
    ids = of(Ids, received)
    assert len(ids.recipient_id) == len(ids.sender_id) == 24
    assert len({ids.recipient_id, ids.sender_id, ids.dh_key.raw}) == 3
    assert ids.mode is QueueMode.MESSAGING
    assert (ids.link_id, ids.service_id, ids.notifier) == (None, None, None)


@ensureDeferred
async def test_085_unsigned_send_to_unsecured_queue(relay: Relay) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient)
    for body in (b"hello", b"", os.urandom(5000)):
        await sender.send(queue.sender_id, body)
        message = await next_msg(recipient, queue)
        assert queue.open(message).body == body
        assert await acknowledge(recipient, queue, message) is None


@ensureDeferred
async def test_086_ack_of_the_only_message(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client)
    await client.send(queue.sender_id, b"hello")
    message = await next_msg(client, queue)
    assert await acknowledge(client, queue, message) is None
    with refused("NO_MSG"):
        await acknowledge(client, queue, message)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_087_signed_send_to_unsecured_queue(relay: Relay, algorithm: Algorithm) -> None:
    client = await relay.connect()
    queue = await make_queue(client, algorithm)
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello", key=new_key(algorithm))
    await no_event(client)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_088_key_by_others(relay: Relay, algorithm: Algorithm) -> None:
    client = await relay.connect()
    queue, sender_key = await make_queue(client, algorithm), new_key(algorithm)
    with refused("AUTH"):
        await client.secure(queue.recipient_id, new_key(algorithm), sender_key.public)
    with refused("AUTH"):
        await client.secure(queue.recipient_id, sender_key, sender_key.public)
    with refused("AUTH"):
        await client.secure(queue.sender_id, queue.key, sender_key.public)
    await client.send(queue.sender_id, b"still not secured")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_089_key(relay: Relay, algorithm: Algorithm) -> None:
    client, raw = await relay.connect(), await relay.raw()
    queue, sender_key = await make_queue(client, algorithm), new_key(algorithm)
    for _ in range(2):
        answer = await raw.request(
            Key(sender_key.public), corr_id=new_id(), entity_id=queue.recipient_id, key=queue.key
        )
        assert (answer.entity_id, answer.message) == (queue.recipient_id, Ok())
    for other in ALGORITHMS:
        with refused("AUTH"):
            await client.secure(*queue.own, new_key(other).public)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_090_send_to_secured_queue(relay: Relay, algorithm: Algorithm) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    queue, sender_key = await make_secured_queue(recipient, algorithm)
    await sender.send(queue.sender_id, b"hello", key=sender_key)
    assert (await next_message(recipient, queue)).body == b"hello"
    with refused("AUTH"):
        await sender.send(queue.sender_id, b"unsigned")
    for other in ALGORITHMS:
        with refused("AUTH"):
            await sender.send(queue.sender_id, b"by somebody else", key=new_key(other))
    with refused("AUTH"):
        await sender.send(queue.recipient_id, b"to the recipient's id", key=sender_key)


@pytest.mark.parametrize("version", [6, 7, 8, 10, 11, 18])
@ensureDeferred
async def test_091_longest_body(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(), await relay.connect(version)
    queue = await make_queue(recipient)
    longest = os.urandom(max_message_length(version))
    await sender.send(queue.sender_id, longest)
    message = await next_msg(recipient, queue)
    assert queue.open(message).body == longest
    assert await acknowledge(recipient, queue, message) is None
    with refused("LARGE_MSG"):
        await sender.send(queue.sender_id, longest + b"x")
    await no_event(recipient)
    assert max_message_length(18) == 16048


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_092_skey(relay: Relay, algorithm: Algorithm) -> None:
    client, raw = await relay.connect(), await relay.raw()
    queue, sender_key = await make_queue(client, algorithm), new_key(algorithm)
    command = Skey(sender_key.public)
    with refused("AUTH"):
        await client.request(command, queue.sender_id, new_key(algorithm))
    with refused("AUTH"):
        await client.request(command, queue.recipient_id, sender_key)
    answer = await raw.request(command, corr_id=b"abcd", entity_id=queue.sender_id, key=sender_key)
    assert answer == Received(b"abcd", queue.sender_id, Ok())
    await client.send(queue.sender_id, b"hello", key=sender_key)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_093_skey_again(relay: Relay, algorithm: Algorithm) -> None:
    client = await relay.connect()
    queue, sender_key = await make_queue(client), new_key(algorithm)
    await client.sender_secure(queue.sender_id, sender_key)
    for other in ALGORITHMS:
        with refused("AUTH"):
            await client.sender_secure(queue.sender_id, new_key(other))
    await client.sender_secure(queue.sender_id, sender_key)


@ensureDeferred
async def test_094_skey_on_contact_queue(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client, mode=QueueMode.CONTACT)
    with refused("AUTH"):
        await client.sender_secure(queue.sender_id, new_key())
    await client.send(queue.sender_id, b"still not secured")


@ensureDeferred
async def test_095_rkey_replaces_the_recipients_keys(relay: Relay) -> None:
    client = await relay.connect()
    for algorithm in ALGORITHMS:
        queue, new = await make_queue(client, mode=QueueMode.CONTACT), new_key(algorithm)
        await client.set_recipient_keys(*queue.own, [queue.key.public, new.public])
        for key in (queue.key, new):
            await client.queue_info(queue.recipient_id, key)
        await client.set_recipient_keys(queue.recipient_id, queue.key, [new.public])
        await client.queue_info(queue.recipient_id, new)
        with refused("AUTH"):
            await client.queue_info(*queue.own)


@ensureDeferred
async def test_096_a_key_removes_itself(relay: Relay) -> None:
    client = await relay.connect()
    queue, other = await make_queue(client, mode=QueueMode.CONTACT), new_key()
    await client.set_recipient_keys(*queue.own, [other.public])
    with refused("AUTH"):
        await client.queue_info(*queue.own)
    with refused("AUTH"):
        await client.set_recipient_keys(*queue.own, [queue.key.public])


@ensureDeferred
async def test_097_rkey_on_messaging_queue(relay: Relay) -> None:
    client = await relay.connect()
    for mode in (QueueMode.MESSAGING, None):
        queue = await make_queue(client, mode=mode)
        with refused("AUTH"):
            await client.set_recipient_keys(*queue.own, [new_key().public])
        await client.queue_info(*queue.own)


# -- who may create queues


@ensureDeferred
async def test_098_new_queues_disabled(relays: GetRelay) -> None:
    client = await relays({"queues.new_queues": "off"}).raw()
    for password in (None, PASSWORD):
        key = new_key()
        new = New(key.public, new_key(Algorithm.X25519).public, password)
        answer = await client.request(new, corr_id=b"abcd", key=key)
        assert answer == Received(b"abcd", b"", err("AUTH"))


async def create(client: SMPClient, password: bytes | None) -> Queue:
    return await make_queue(client, password=password)


@pytest.mark.parametrize("version", [6, 7, 8, 9, 14, 15, 17, 18])
@conforms(99, 101)
@ensureDeferred
async def test_099_password_set(relays: GetRelay, version: int) -> None:
    relay = relays({"queues.password": PASSWORD.decode()})
    client = await relay.connect(version)
    await create(client, PASSWORD)
    for wrong in (None, b"wrong", PASSWORD[:-1], PASSWORD + b"x"):
        with refused("AUTH"):
            await create(client, wrong)


@pytest.mark.parametrize("version", [6, 7, 8, 9, 14, 15, 17, 18])
@conforms(100, 101)
@ensureDeferred
async def test_100_no_password_set(relay: Relay, version: int) -> None:
    client = await relay.connect(version)
    for password in (None, PASSWORD, b"another"):
        queue = await create(client, password)
        await client.queue_info(*queue.own)


async def try_server(client: SMPClient, password: bytes | None, *, by_sender: bool) -> None:
    """What an agent does to see whether a server can be used."""
    queue, sender_key = await create(client, password), new_key()
    if by_sender:
        await client.sender_secure(queue.sender_id, sender_key)
    else:
        await client.secure(*queue.own, sender_key.public)
    await client.delete(*queue.own)


@ensureDeferred
async def test_102_test_of_a_server(relay: Relay, relays: GetRelay) -> None:
    """The steps of the agent's test; agents come with a later part of the work."""
    closed = relays({"queues.password": PASSWORD.decode()})
    for by_sender in (True, False):
        await try_server(await relay.connect(), None, by_sender=by_sender)
        client = await closed.connect()
        await try_server(client, PASSWORD, by_sender=by_sender)
        for wrong in (None, b"wrong"):
            with refused("AUTH"):
                await create(client, wrong)


@ensureDeferred
async def test_103_new_twice_with_the_same_key(relay: Relay) -> None:
    client, key = await relay.connect(), new_key()
    one, other = await make_queue(client, key=key), await make_queue(client, key=key)
    assert one.recipient_id != other.recipient_id
    assert one.sender_id != other.sender_id
    await client.send(one.sender_id, b"to one")
    await client.send(other.sender_id, b"to the other")
    assert (await next_message(client, one)).body == b"to one"
    assert (await next_message(client, other)).body == b"to the other"


@ensureDeferred
async def test_104_empty_correlation_ids(relay: Relay) -> None:
    client = await relay.raw()
    recipients: list[tuple[bytes, PrivateKey]] = []
    for _ in range(50):
        key = new_key()
        new = New(key.public, new_key(Algorithm.X25519).public, subscribe=False)
        answer = await client.request(new, key=key)
        assert (answer.corr_id, answer.entity_id) == (b"", b"")
        recipients.append((of(Ids, answer).recipient_id, key))
    for _ in range(2):
        subs = [client.transmission(Sub(), entity_id=own, key=key) for own, key in recipients]
        client.send_transmissions(*subs)
        content = await client.next_content()
        assert len(cut(content)) == 50
        answers = client.session.framing.read_messages(content)
        assert answers == [Received(b"", own, Sok()) for own, _ in recipients]
