"""Conformance Q: what a relay knows after it was stopped or killed and started again.

The reference keeps messages only when it is stopped by SIGINT (items 254 and 255). This
relay keeps everything that it has answered: a store on disk however it ended, a store
in memory with a snapshot when it was stopped in order.
"""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.conformance.clients import (
    ALGORITHMS,
    Connection,
    GetRelay,
    Queue,
    Relay,
    acknowledge,
    make_queue,
    make_secured_queue,
    make_service,
    new_id,
    new_key,
    next_event,
    next_message,
    next_msg,
    no_event,
    pause,
    refused,
    soon,
)
from tests.conformance.notifiers import Notifier, make_notifier, next_notification
from tests.conformance.numbers import conforms
from tests.conformance.operated import OperatedRelay
from tests.conformance.relays import STORE, RelayProcess, Settings
from tests.smpd.stores.postgres_stores import new_database
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.bodies import QuotaBody
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.messages import Msg, Nmsg

T = TypeVar("T")

VERSIONS = (6, 9, 15, 16, 18)
KEEPING = STORE if STORE != "memory" else "sqlite"
KEPT: Settings = {"store.kind": KEEPING}
SNAPSHOT: Settings = {"store.kind": "memory", "store.snapshot": "snapshot"}
FORGETFUL: Settings = {"store.kind": "memory"}
TTL = 6.0
OLD = TTL + 1.1
"""Seconds after which a message is older than that, although its time is in whole seconds."""


@dataclass(frozen=True)
class Way:
    """A store, and how the relay that has it is ended."""

    settings: Settings
    by: signal.Signals


def ways(*numbers: signal.Signals) -> pytest.MarkDecorator:
    """Every store with each signal that it survives. Snapshots are for --slow: it takes time."""
    stopped = [number for number in numbers if number is not signal.SIGKILL]
    every = [pytest.param(Way(KEPT, number), id=f"{KEEPING}-{number.name}") for number in numbers]
    every += [
        pytest.param(Way(SNAPSHOT, number), id=f"memory-{number.name}", marks=pytest.mark.slow)
        for number in stopped
    ]
    return pytest.mark.parametrize("way", every)


each_way = ways(signal.SIGTERM, signal.SIGKILL)
each_store = ways(signal.SIGTERM)


async def restart(relay: Relay, by: signal.Signals) -> None:
    """Ends the relay and starts it again."""
    process = relay.process
    assert isinstance(process, RelayProcess)
    # In a thread: a relay that stops in order says farewell to its clients, which are here.
    await deferToThread(process.end, by)
    process.start()


async def all_of(checks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Does all at the same time, since the relay does some things at intervals only."""
    results: list[T] = await gatherResults(
        [Deferred.fromCoroutine(one) for one in checks], consumeErrors=True
    )
    return results


async def drained(recipient: SMPClient, queue: Queue, first: Msg) -> list[bytes | None]:
    """The bodies of all messages of a queue, None for the marker of the quota."""
    bodies: list[bytes | None] = []
    message: Msg | None = first
    while message is not None:
        opened = queue.created.open(message)
        bodies.append(None if isinstance(opened, QuotaBody) else opened.body)
        message = await acknowledge(recipient, queue, message)
    return bodies


async def until_size(recipient: SMPClient, queue: Queue, wanted: int) -> None:
    """Waits until the relay holds as many messages as that."""
    while (await recipient.queue_info(*queue.own))["qiSize"] != wanted:
        await pause(0.02)


async def subscribed(recipient: SMPClient, queue: Queue) -> Msg:
    """The first message, which SUB brings."""
    await recipient.subscribe(*queue.own)
    return await next_msg(recipient, queue)


async def fill(sender: SMPClient, queue: Queue, bodies: Sequence[bytes]) -> None:
    """Sends all that a queue takes, and one message more."""
    for body in bodies:
        await sender.send(queue.sender_id, body)
    with refused("QUOTA"):
        await sender.send(queue.sender_id, b"too many")


# -- queues


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=lambda by: by.name)
@ensureDeferred
async def test_212_nothing_is_known_without_a_store(relays: GetRelay, by: signal.Signals) -> None:
    relay = relays(FORGETFUL)
    recipient = await relay.connect()
    queue, sender_key = await make_secured_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await recipient.send(queue.sender_id, b"hello", key=sender_key)
    await restart(relay, by)
    client = await relay.connect()
    with refused("AUTH"):
        await client.subscribe(*queue.own)
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello", key=sender_key)
    with refused("AUTH"):
        await client.subscribe_notifications(*notifier.own)


@dataclass
class Everything:
    """A queue with a notifier, its sender's key, and another one that was deleted."""

    version: int
    queue: Queue
    sender_key: PrivateKey
    notifier: Notifier
    deleted: Queue
    deleted_notifier: Notifier


async def make_everything(relay: Relay, version: int, algorithm: Algorithm) -> Everything:
    """All of that, by a client of this version."""
    recipient = await relay.connect(version)
    queue, sender_key = await make_secured_queue(recipient, algorithm)
    notifier = await make_notifier(recipient, queue, algorithm)
    deleted = await make_queue(recipient, algorithm)
    deleted_notifier = await make_notifier(recipient, deleted, algorithm)
    await recipient.delete(*deleted.own)
    return Everything(version, queue, sender_key, notifier, deleted, deleted_notifier)


@each_way
@ensureDeferred
async def test_213_queues_are_as_they_were(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    kinds = [(version, Algorithm.ED25519) for version in VERSIONS]
    kinds += [(18, algorithm) for algorithm in ALGORITHMS]
    made = await all_of(make_everything(relay, *kind) for kind in kinds)
    for _ in range(2):
        await restart(relay, way.by)
        await all_of(everything_is_there(relay, one) for one in made)


async def everything_is_there(relay: Relay, one: Everything) -> None:
    """SUB, NSUB and SEND with the old keys, and nothing of the deleted queue."""
    recipient, sender = await relay.connect(one.version), await relay.connect(one.version)
    await recipient.subscribe(*one.queue.own)
    await sender.subscribe_notifications(*one.notifier.own)
    await sender.send(one.queue.sender_id, b"hello", key=one.sender_key, notify=True)
    message = await next_msg(recipient, one.queue)
    assert one.queue.open(message).body == b"hello"
    assert (await next_notification(sender, one.notifier))[0] == message.msg_id
    assert await acknowledge(recipient, one.queue, message) is None
    for key in (None, new_key()):
        with refused("AUTH"):
            await sender.send(one.queue.sender_id, b"hello", key=key)
    with refused("AUTH"):
        await recipient.subscribe(one.queue.recipient_id, new_key())
    with refused("AUTH"):
        await recipient.subscribe(*one.deleted.own)
    with refused("AUTH"):
        await sender.send(one.deleted.sender_id, b"hello")
    with refused("AUTH"):
        await sender.subscribe_notifications(*one.deleted_notifier.own)


@each_way
@ensureDeferred
async def test_213_a_suspended_queue_and_new_keys(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    recipient = await relay.connect()
    suspended = await make_queue(recipient)
    await recipient.suspend(*suspended.own)
    shared = await make_queue(recipient, mode=QueueMode.CONTACT)
    keys = [new_key(), new_key(Algorithm.X25519)]
    await recipient.set_recipient_keys(*shared.own, [key.public for key in keys])
    await restart(relay, way.by)
    client = await relay.connect()
    with refused("AUTH"):
        await client.send(suspended.sender_id, b"hello")
    await client.subscribe(*suspended.own)
    for key in keys:
        await client.subscribe(shared.recipient_id, key)
    with refused("AUTH"):
        await client.subscribe(*shared.own)


# -- messages


@each_way
@ensureDeferred
async def test_214_messages_and_the_marker_in_their_order(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    texts = [b"one", b"", b"three" * 3000, b"four"]
    queues: list[tuple[int, Queue, Queue]] = []
    for version in VERSIONS:
        recipient, sender = await relay.connect(version), await relay.connect(version)
        full = await make_queue(recipient, subscribe=False)
        await fill(sender, full, texts)
        partly = await make_queue(recipient)
        for text in texts[:3]:
            await sender.send(partly.sender_id, text)
        # One is acknowledged, the next delivered by that, the third waits.
        first = await next_msg(recipient, partly)
        assert await acknowledge(recipient, partly, first) is not None
        queues.append((version, full, partly))
    await restart(relay, way.by)
    for version, full, partly in queues:
        recipient, sender = await relay.connect(version), await relay.connect(version)
        message = await subscribed(recipient, full)
        with refused("QUOTA"):
            await sender.send(full.sender_id, b"still too many")
        assert (await recipient.queue_info(*full.own))["qiSize"] == 5
        assert await drained(recipient, full, message) == [*texts, None]
        await sender.send(full.sender_id, b"room again")
        assert (await next_message(recipient, full)).body == b"room again"
        message = await subscribed(recipient, partly)
        assert await drained(recipient, partly, message) == texts[1:3]


@each_way
@ensureDeferred
async def test_214_messages_of_both_sides_of_a_restart(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    recipient = await relay.connect()
    queue = await make_queue(recipient, subscribe=False)
    texts = [b"one", b"two", b"three", b"four"]
    for text in texts[:3]:
        sender = await relay.connect()
        await sender.send(queue.sender_id, text)
        await restart(relay, way.by)
    recipient = await relay.connect()
    await recipient.send(queue.sender_id, texts[3])
    with refused("QUOTA"):
        await recipient.send(queue.sender_id, b"too many")
    message = await subscribed(recipient, queue)
    assert await drained(recipient, queue, message) == [*texts, None]
    await restart(relay, way.by)
    recipient = await relay.connect()
    await recipient.subscribe(*queue.own)
    await no_event(recipient)
    await recipient.send(queue.sender_id, b"five")
    assert (await next_message(recipient, queue)).body == b"five"


@each_way
@ensureDeferred
async def test_215_delivered_and_not_acknowledged(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    known: list[tuple[int, Queue, Msg]] = []
    for version in VERSIONS:
        recipient = await relay.connect(version)
        queue = await make_queue(recipient)
        await recipient.send(queue.sender_id, b"first")
        message = await next_msg(recipient, queue)
        await recipient.send(queue.sender_id, b"second")
        known.append((version, queue, message))
    for _ in range(2):
        await restart(relay, way.by)
        for version, queue, message in known:
            # The same id and the same content, encrypted as it was.
            assert await subscribed(await relay.connect(version), queue) == message
    for version, queue, message in known:
        recipient = await relay.connect(version)
        assert await subscribed(recipient, queue) == message
        second = await acknowledge(recipient, queue, message)
        assert second is not None
        assert queue.open(second).body == b"second"


@asynccontextmanager
async def operated(directory: Path, settings: Settings, connections: list[Connection]) -> Any:
    """A relay in this process, which is stopped and started again in no time."""
    operated = OperatedRelay(directory, settings)
    operated.start()
    try:
        yield Relay(operated, connections), operated.service.relay.counters
    finally:
        await operated.end()


@conforms(146, 160)
@each_store
@ensureDeferred
async def test_146_what_is_old_at_the_start(
    tmp_path: Path, connections: list[Connection], way: Way
) -> None:
    """Long before the first round, and without a SEND that would look for old messages."""
    late = {"queues.expiry_interval": 7200, "notifications.expiry_interval": 7200}
    settings = {**way.settings, "queues.message_ttl": TTL, "notifications.ttl": TTL, **late}
    if way.settings["store.kind"] == "postgres":
        settings["store.database"] = new_database()
    async with operated(tmp_path, settings, connections) as (relay, counters):
        recipient = await relay.connect()
        queue = await make_queue(recipient)
        notifier = await make_notifier(recipient, queue)
        for text in (b"old", b"older"):
            await recipient.send(queue.sender_id, text, notify=True)
        await pause(OLD)
        for text in (b"young", b"younger"):
            await recipient.send(queue.sender_id, text, notify=True)
        assert (await recipient.queue_info(*queue.own))["qiSize"] == 4
        assert (counters.messages_expired, counters.notifications_expired) == (0, 0)
    async with operated(tmp_path, settings, connections) as (relay, counters):
        recipient, notified = await relay.connect(), await relay.connect()
        await soon(until_size(recipient, queue, 2))
        assert (counters.messages_expired, counters.notifications_expired) == (2, 2)
        await notified.subscribe_notifications(*notifier.own)
        first = await subscribed(recipient, queue)
        assert (await next_notification(notified, notifier))[0] == first.msg_id
        assert await drained(recipient, queue, first) == [b"young", b"younger"]
        await next_notification(notified, notifier)
        await no_event(notified, 0.5)


# -- notifications and services


@each_way
@ensureDeferred
async def test_160_notifications(relays: GetRelay, way: Way) -> None:
    """A relay that is killed while it delivers them may deliver them twice, and none less."""
    relay = relays(way.settings)
    known: list[tuple[int, Notifier, list[bytes]]] = []
    for version in VERSIONS:
        recipient = await relay.connect(version)
        queue = await make_queue(recipient)
        notifier = await make_notifier(recipient, queue)
        ids = []
        for _ in range(3):
            await recipient.send(queue.sender_id, b"hello", notify=True)
            message = await next_msg(recipient, queue)
            ids.append(message.msg_id)
            await acknowledge(recipient, queue, message)
        known.append((version, notifier, ids))
    await restart(relay, way.by)
    for version, notifier, ids in known:
        notified = await relay.connect(version)
        await notified.subscribe_notifications(*notifier.own)
        assert [(await next_notification(notified, notifier))[0] for _ in ids] == ids
    # They are safely gone when what is written after that is safe; in a database, soon.
    await make_queue(await relay.connect())
    if way.settings["store.kind"] == "postgres":
        await pause(2.0)
    await restart(relay, way.by)
    clients = []
    for version, notifier, _ in known:
        clients.append(notified := await relay.connect(version))
        await notified.subscribe_notifications(*notifier.own)
    await all_of(no_event(notified, 0.5) for notified in clients)


@each_way
@ensureDeferred
async def test_167_services(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    service = make_service()
    recipient, client = await relay.connect(), await relay.connect(service=service)
    known: list[tuple[Queue, Notifier]] = []
    for _ in range(3):
        queue = await make_queue(recipient)
        known.append((queue, await make_notifier(recipient, queue)))
        await client.subscribe_notifications(*known[-1][1].own)
    # One is not its own any more.
    await recipient.delete_notifier(*known.pop()[0].own)
    service_id = client.service_id
    assert service_id is not None
    for _ in range(2):
        await restart(relay, way.by)
        recipient, client = await relay.connect(), await relay.connect(service=service)
        assert client.service_id == service_id
        assert await client.subscribe_service_notifications() == 2
        for queue, notifier in known:
            await recipient.send(queue.sender_id, b"hello", notify=True)
            message = await subscribed(recipient, queue)
            assert (await next_notification(client, notifier))[0] == message.msg_id
            await acknowledge(recipient, queue, message)


# -- links


@each_way
@ensureDeferred
async def test_181_link_data(relays: GetRelay, way: Way) -> None:
    relay = relays(way.settings)
    recipient, sender = await relay.connect(), await relay.connect()
    data = LinkData(b"fixed" * 400, b"user" * 3000)
    changed = LinkData(data.fixed, b"changed")
    once = await make_queue(recipient, link=data)
    secured = await make_queue(recipient, link=data)
    contact = await make_queue(recipient, mode=QueueMode.CONTACT, link=data, link_id=new_id())
    removed = await make_queue(recipient, mode=QueueMode.CONTACT, link=data, link_id=new_id())
    sender_key = new_key()
    ids = [each.created.link_id for each in (once, secured, contact, removed)]
    once_id, secured_id, contact_id, removed_id = (link_id or b"" for link_id in ids)
    await sender.secure_link(secured_id, sender_key)
    await recipient.set_link(*contact.own, contact_id, changed)
    await recipient.delete_link(*removed.own)
    for _ in range(2):
        await restart(relay, way.by)
        client = await relay.connect()
        lnk = await client.secure_link(secured_id, sender_key)
        assert (lnk.sender_id, lnk.data) == (secured.sender_id, data)
        lnk = await client.get_link(contact_id)
        assert (lnk.sender_id, lnk.data) == (contact.sender_id, changed)
        with refused("AUTH"):
            await client.get_link(removed_id)
        with refused("AUTH"):
            await client.secure_link(secured_id, new_key())
    lnk = await client.secure_link(once_id, new_key())
    assert (lnk.sender_id, lnk.data) == (once.sender_id, data)


# -- as executed on the reference


@ways(signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
@ensureDeferred
async def test_254_everything_at_once(relays: GetRelay, way: Way) -> None:
    """Whatever ended it: the reference does this after SIGINT only."""
    relay = relays(way.settings)
    recipient = await relay.connect()
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await recipient.send(queue.sender_id, b"one", notify=True)
    message = await next_msg(recipient, queue)
    await fill(recipient, queue, [b"two", b"three", b"four"])
    await restart(relay, way.by)
    client = await relay.connect()
    again = await subscribed(client, queue)
    assert (again.msg_id, queue.open(again)) == (message.msg_id, queue.open(message))
    await client.subscribe_notifications(*notifier.own)
    event = await next_event(client)
    assert event.entity_id == notifier.notifier_id
    assert isinstance(event.message, Nmsg)
    assert notifier.open(event.message)[0] == message.msg_id
    with refused("QUOTA"):
        await client.send(queue.sender_id, b"too many")
    assert await drained(client, queue, again) == [b"one", b"two", b"three", b"four", None]
    await client.send(queue.sender_id, b"five")
    assert (await next_message(client, queue)).body == b"five"
