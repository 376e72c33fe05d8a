"""Conformance G: suspending and deleting queues."""

from __future__ import annotations

from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    ALGORITHMS,
    Relay,
    make_queue,
    make_secured_queue,
    new_key,
    next_event,
    next_msg,
    no_event,
    refused,
)
from tests.conformance.relays import REFERENCE_TEST_SETTINGS
from tests.stalls import at_most
from txsimplex.smp.messages import Deld, End
from txsimplex.smp.transmissions import Received

END_INTERVAL = float(str(REFERENCE_TEST_SETTINGS["delivery.end_interval"]))


@ensureDeferred
async def test_105_off(relay: Relay) -> None:
    client = await relay.connect()
    for algorithm in ALGORITHMS:
        queue = await make_queue(client, algorithm)
        with refused("AUTH"):
            await client.suspend(queue.recipient_id, new_key(algorithm))
        with refused("AUTH"):
            await client.suspend(queue.sender_id, queue.key)
        await client.suspend(*queue.own)
        await client.suspend(*queue.own)


@ensureDeferred
async def test_106_send_after_off(relay: Relay) -> None:
    client = await relay.connect()
    queue, sender_key = await make_secured_queue(client)
    unsecured = await make_queue(client)
    for each in (queue, unsecured):
        await client.suspend(*each.own)
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello", key=sender_key)
    for each in (queue, unsecured):
        with refused("AUTH"):
            await client.send(each.sender_id, b"hello")
    await no_event(client)


@ensureDeferred
async def test_107_sub_after_off(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client)
    await client.send(queue.sender_id, b"hello")
    message = await next_msg(client, queue)
    await client.suspend(*queue.own)
    await client.subscribe(*queue.own)
    assert await next_msg(client, queue) == message


@ensureDeferred
async def test_108_del(relay: Relay) -> None:
    client = await relay.connect()
    for algorithm in ALGORITHMS:
        queue = await make_queue(client, algorithm)
        with refused("AUTH"):
            await client.delete(queue.recipient_id, new_key(algorithm))
        with refused("AUTH"):
            await client.delete(queue.sender_id, queue.key)
        await client.delete(*queue.own)


@ensureDeferred
async def test_109_everything_after_del(relay: Relay) -> None:
    client = await relay.connect()
    queue, sender_key = await make_secured_queue(client)
    await client.send(queue.sender_id, b"hello", key=sender_key)
    message = await next_msg(client, queue)
    await client.delete(*queue.own)
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello", key=sender_key)
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello")
    with refused("AUTH"):
        await client.ack(*queue.own, message.msg_id)
    for command in (client.suspend, client.subscribe, client.delete, client.queue_info):
        with refused("AUTH"):
            await command(*queue.own)
    with refused("AUTH"):
        await client.sender_secure(queue.sender_id, sender_key)


@ensureDeferred
async def test_110_del_by_another_connection(relay: Relay) -> None:
    other = await relay.connect()
    for version, event in ((18, Deld()), (10, Deld()), (9, End()), (6, End())):
        subscribed = await relay.connect(version)
        queue = await make_queue(subscribed)
        await other.delete(*queue.own)
        with at_most(2 * END_INTERVAL):
            assert await next_event(subscribed) == Received(b"", queue.recipient_id, event)
        await no_event(subscribed)
    await no_event(other)


@ensureDeferred
async def test_111_del_by_the_subscribed_connection(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client)
    await client.delete(*queue.own)
    await no_event(client, 1.5 * END_INTERVAL)
