"""Conformance J: quota and expiration."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from smpd.queues import Queue as StoredQueue
from smpd.stores.interface import Store, Written
from smpd.stores.memory import MemoryStore
from tests.conformance.clients import (
    GetRelay,
    Queue,
    Relay,
    acknowledge,
    make_queue,
    new_id,
    next_message,
    next_msg,
    no_event,
    pause,
    refused,
    soon,
)
from tests.conformance.numbers import conforms
from tests.conformance.versions import at_versions
from tests.smpd.stores.records import message as stored_message, new_queue
from txsimplex.client.errors import RelayError
from txsimplex.client.smp import Request, SMPClient
from txsimplex.smp import errors
from txsimplex.smp.bodies import QuotaBody
from txsimplex.smp.commands import Que, Send
from txsimplex.smp.messages import Info, Msg, Ok

VERSIONS = (6, 10, 18)
TTL = 1.0
OLD = TTL + 1.1
"""Seconds after which a message is older than that, although its time is in whole seconds."""
KEEPING = {"queues.quota": 2, "queues.message_ttl": TTL, "queues.expiry_interval": 7200}
"""The relay that looks for old messages long after the tests are over."""
NOW = 1_700_000_000


async def size(recipient: SMPClient, queue: Queue) -> int:
    """How many messages the relay holds, as QUE says."""
    state = await recipient.queue_info(*queue.own)
    count: int = state["qiSize"]
    return count


async def until_size(recipient: SMPClient, queue: Queue, wanted: int) -> None:
    """Waits until the relay holds as many messages as that."""

    async def reached() -> None:
        while await size(recipient, queue) != wanted:
            await pause(0.1)

    await soon(reached())


async def fill(sender: SMPClient, queue: Queue, *bodies: bytes) -> None:
    """Sends all that is accepted, and one message more, at the same time."""
    requests = [Request(Send(False, text), queue.sender_id) for text in (*bodies, b"too many")]
    *accepted, refused_one = await sender.send_many(requests)
    assert accepted == [Ok()] * len(bodies)
    assert isinstance(refused_one, RelayError)
    assert refused_one.error == errors.QUOTA


def body(queue: Queue, message: Msg | None) -> bytes:
    """What was sent."""
    assert message is not None
    return queue.open(message).body


def is_marker(queue: Queue, message: Msg | None) -> bool:
    """Whether a message says that the queue was full."""
    assert message is not None
    return isinstance(queue.created.open(message), QuotaBody)


# -- quota


@at_versions(*VERSIONS)
async def test_137_third_message_of_a_quota_of_2(relays: GetRelay, version: int) -> None:
    relay = relays(KEEPING)
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    for text in (b"one", b"two"):
        await sender.send(queue.sender_id, text)
    for _ in range(2):
        with refused("QUOTA"):
            await sender.send(queue.sender_id, b"three")
    # Another queue is not concerned.
    await sender.send((await make_queue(recipient)).sender_id, b"one")


@at_versions(*VERSIONS)
async def test_138_quota_after_the_first_ack(relays: GetRelay, version: int) -> None:
    relay = relays(KEEPING)
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    await fill(sender, queue, b"one", b"two")
    first = await next_msg(recipient, queue)
    assert body(queue, await acknowledge(recipient, queue, first)) == b"two"
    with refused("QUOTA"):
        await sender.send(queue.sender_id, b"three")


@at_versions(*VERSIONS)
async def test_139_marker_after_the_messages(relays: GetRelay, version: int) -> None:
    relay = relays(KEEPING)
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    await fill(sender, queue, b"one", b"two")
    first = await next_msg(recipient, queue)
    second = await acknowledge(recipient, queue, first)
    assert (body(queue, first), body(queue, second)) == (b"one", b"two")
    assert second is not None
    marker = await acknowledge(recipient, queue, second)
    assert marker is not None
    notice = queue.created.open(marker)
    assert isinstance(notice, QuotaBody)
    assert notice.timestamp >= queue.open(second).timestamp
    # It looks like a message to whoever cannot open it.
    assert (len(marker.msg_id), len(marker.body)) == (24, len(first.body))
    assert len({first.msg_id, second.msg_id, marker.msg_id}) == 3


@at_versions(*VERSIONS)
async def test_140_ack_of_the_marker(relays: GetRelay, version: int) -> None:
    relay = relays(KEEPING)
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    await fill(sender, queue, b"one", b"two")
    message: Msg | None = await next_msg(recipient, queue)
    while not is_marker(queue, message):
        assert message is not None
        message = await acknowledge(recipient, queue, message)
    assert message is not None
    with refused("QUOTA"):
        await sender.send(queue.sender_id, b"three")
    assert await acknowledge(recipient, queue, message) is None
    await sender.send(queue.sender_id, b"three")
    assert (await next_message(recipient, queue)).body == b"three"


@at_versions(*VERSIONS)
async def test_141_size_counts_the_marker(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    await fill(sender, queue, b"one", b"two", b"three", b"four")
    assert await size(recipient, queue) == 5
    with refused("QUOTA"):
        await sender.send(queue.sender_id, b"six")
    assert await size(recipient, queue) == 5


@ensureDeferred
async def test_142_after_the_overflow_nothing_is_stored(relay: Relay) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient)
    texts = (b"one", b"two", b"three", b"four")
    await fill(sender, queue, *texts)
    for _ in range(3):
        with refused("QUOTA"):
            await sender.send(queue.sender_id, b"too many")
    assert await size(recipient, queue) == 5
    message: Msg | None = await next_msg(recipient, queue)
    for text in texts:
        assert message is not None
        assert body(queue, message) == text
        message = await acknowledge(recipient, queue, message)
    assert message is not None
    assert is_marker(queue, message)
    assert await size(recipient, queue) == 1
    assert await acknowledge(recipient, queue, message) is None
    assert await size(recipient, queue) == 0


# -- the store alone


@pytest.fixture(params=[MemoryStore])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind."""
    made: Store = request.param()
    return made


@pytest.fixture
def stored(store: Store) -> StoredQueue:
    """A queue in it."""
    queue = new_queue()
    store.add(queue)
    return queue


def test_142_marker_in_the_store(store: Store, stored: StoredQueue) -> None:
    messages = [stored_message() for _ in range(5)]
    written = [store.write(stored, message, 3).accepted for message in messages]
    assert written == [True, True, True, False, False]
    assert store.message_count(stored) == 4
    for message in messages[:3]:
        assert store.remove(stored, message.msg_id) == message
    marker = store.head(stored)
    assert marker is not None
    assert marker.is_quota
    # It has the id of the first message that was refused.
    assert store.remove(stored, messages[3].msg_id) == marker
    assert store.head(stored) is None
    assert store.message_count(stored) == 0
    assert store.write(stored, messages[4], 3) == Written(accepted=True, was_empty=True)


def test_148_only_the_head_is_deleted(store: Store, stored: StoredQueue) -> None:
    first, second = stored_message(), stored_message()
    store.write(stored, first, 3)
    store.write(stored, second, 3)
    for other in (second.msg_id, new_id(), b""):
        assert store.remove(stored, other) is None
    assert store.message_count(stored) == 2
    assert store.head(stored) == first


def test_149_only_the_first_message_finds_the_queue_empty(
    store: Store, stored: StoredQueue
) -> None:
    messages = [stored_message() for _ in range(4)]
    written = [store.write(stored, message, 3) for message in messages]
    assert [one.was_empty for one in written] == [True, False, False, False]
    for message in messages:
        store.remove(stored, message.msg_id)
    assert store.write(stored, messages[0], 3).was_empty


def test_147_expiration_stops_at_the_first_that_is_young(store: Store, stored: StoredQueue) -> None:
    times = (NOW - 30, NOW - 20, NOW, NOW - 25)
    messages = [stored_message(time) for time in times]
    for message in messages:
        store.write(stored, message, 10)
    assert store.expire(stored, NOW - 10) == 2
    assert store.head(stored) == messages[2]
    assert store.message_count(stored) == 2


def test_147_expiration_stops_at_a_marker(store: Store, stored: StoredQueue) -> None:
    for _ in range(3):
        store.write(stored, stored_message(NOW - 100), 2)
    for expired in (2, 0):
        assert store.expire(stored, NOW) == expired
    marker = store.head(stored)
    assert marker is not None
    assert marker.is_quota
    assert not store.write(stored, stored_message(NOW), 2).accepted


# -- expiration and acknowledgement over the wire


@ensureDeferred
async def test_143_expiry_when_a_message_is_sent(relays: GetRelay) -> None:
    """So a full queue of old messages takes new ones, but not one that holds a marker."""
    relay = relays({"queues.message_ttl": TTL, "queues.expire_on_send": "on", "queues.quota": 2})
    recipient, sender = await relay.connect(), await relay.connect()
    full = await make_queue(recipient, subscribe=False)
    overfull = await make_queue(recipient, subscribe=False)
    hello = Request(Send(False, b"hello"), full.sender_id)
    assert await sender.send_many([hello, hello]) == [Ok(), Ok()]
    await fill(sender, overfull, b"one", b"two")
    await pause(OLD)
    assert (await size(recipient, full), await size(recipient, overfull)) == (2, 3)
    await sender.send(full.sender_id, b"three")
    with refused("QUOTA"):
        await sender.send(overfull.sender_id, b"three")
    assert (await size(recipient, full), await size(recipient, overfull)) == (1, 1)
    await recipient.subscribe(*full.own)
    message = await next_msg(recipient, full)
    assert body(full, message) == b"three"
    assert await acknowledge(recipient, full, message) is None


@conforms(144, 147)
@ensureDeferred
async def test_144_expiry_at_intervals(relays: GetRelay) -> None:
    relay = relays({"queues.message_ttl": TTL, "queues.expiry_interval": 1, "queues.quota": 2})
    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient, subscribe=False)
    overfull = await make_queue(recipient, subscribe=False)
    await fill(sender, overfull, b"one", b"two")
    answers = await recipient.send_many(
        [Request(Send(False, b"hello"), queue.sender_id), Request(Que(), *queue.own)]
    )
    assert isinstance(answers[1], Info)
    assert answers[1].state["qiSize"] == 1
    await until_size(recipient, queue, 0)
    await recipient.subscribe(*queue.own)
    await no_event(recipient)
    await sender.send(queue.sender_id, b"there")
    assert (await next_message(recipient, queue)).body == b"there"
    # Of the other queue only the marker is left.
    await until_size(recipient, overfull, 1)
    await recipient.subscribe(*overfull.own)
    marker = await next_msg(recipient, overfull)
    assert is_marker(overfull, marker)
    with refused("QUOTA"):
        await sender.send(overfull.sender_id, b"three")
    assert await acknowledge(recipient, overfull, marker) is None
    await sender.send(overfull.sender_id, b"three")


@ensureDeferred
async def test_145_old_message_before_the_interval_is_over(relays: GetRelay) -> None:
    relay = relays(KEEPING)
    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient, subscribe=False)
    await sender.send(queue.sender_id, b"old")
    await pause(OLD)
    await sender.send(queue.sender_id, b"new")
    await recipient.subscribe(*queue.own)
    message = await next_msg(recipient, queue)
    assert body(queue, message) == b"old"
    assert body(queue, await acknowledge(recipient, queue, message)) == b"new"


@at_versions(*VERSIONS)
async def test_148_ack_of_what_is_not_the_head(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    for text in (b"one", b"two"):
        await sender.send(queue.sender_id, text)
    first = await next_msg(recipient, queue)
    for wrong in (new_id(), first.msg_id[:-1], first.msg_id + b"x"):
        with refused("NO_MSG"):
            await recipient.ack(*queue.own, wrong)
    assert await size(recipient, queue) == 2
    second = await acknowledge(recipient, queue, first)
    assert second is not None
    with refused("NO_MSG"):
        await acknowledge(recipient, queue, first)
    assert await size(recipient, queue) == 1
    assert await acknowledge(recipient, queue, second) is None


@at_versions(*VERSIONS)
async def test_149_only_the_first_message_is_delivered_at_once(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    for text in (b"one", b"two", b"three"):
        await sender.send(queue.sender_id, text)
    first = await next_msg(recipient, queue)
    await no_event(recipient)
    assert body(queue, first) == b"one"
