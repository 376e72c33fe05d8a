"""Conformance P: how long refusals take, inactivity, and what QUE says."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from statistics import median
from time import perf_counter

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    ALGORITHMS,
    GetRelay,
    Relay,
    acknowledge,
    err,
    make_queue,
    make_secured_queue,
    make_service,
    new_id,
    new_key,
    next_msg,
    pause,
    refused,
    soon,
)
from tests.conformance.notifiers import make_notifier
from tests.conformance.versions import at_versions
from tests.stalls import at_most
from txsimplex.client.raw import RawClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Command, QueueMode, Send, Sub
from txsimplex.smp.transmissions import Received, frame

VERSIONS = (6, 10, 15, 18)

# -- time of AUTH

REFUSALS = 40
"""Commands in one block, whose times add up to one that can be measured."""
LEAST_ROUNDS, MOST_ROUNDS = 9, 60
TOLERANCE = 0.3


class Refusals:
    """A block of commands that are all refused."""

    def __init__(
        self, client: RawClient, command: Command, entity_id: bytes, key: PrivateKey
    ) -> None:
        ids = [new_id() for _ in range(REFUSALS)]
        self._client = client
        self._expected = [Received(corr_id, entity_id, err("AUTH")) for corr_id in ids]
        self._content = frame(
            [
                client.transmission(command, corr_id=corr_id, entity_id=entity_id, key=key)
                for corr_id in ids
            ]
        )

    async def measure(self) -> float:
        """How many seconds they take this time."""
        start = perf_counter()
        self._client.send_content(self._content)
        answers = await self._client.next_batch()
        seconds = perf_counter() - start
        assert answers == self._expected
        return seconds


async def take_as_long(first: Refusals, second: Refusals) -> bool:
    """Whether two refusals take the same time, but for the tolerance.

    They are measured in turn, and what counts is the median of how the times of neighbours
    compare: what the machine does besides, for a moment or for a while, hardly moves it, and
    a true difference stays however often it is measured.
    """
    ratios: list[float] = []
    while len(ratios) < MOST_ROUNDS:
        if len(ratios) % 2:
            time_of_second = await second.measure()
            ratios.append(await first.measure() / time_of_second)
        else:
            ratios.append(await first.measure() / await second.measure())
        if len(ratios) >= LEAST_ROUNDS and abs(median(ratios) - 1) < TOLERANCE:
            return True
    return False


@pytest.mark.parametrize("used", ALGORITHMS)
@pytest.mark.parametrize("right", ALGORITHMS)
@ensureDeferred
async def test_205_time_of_auth(relay: Relay, right: Algorithm, used: Algorithm) -> None:
    """A wrong key for a queue, and for one that does not exist."""
    recipient, raw = await relay.connect(), await relay.raw()
    queue, _ = await make_secured_queue(recipient, right)
    key = new_key(used)
    for command, entity_id in (
        (Sub(), queue.recipient_id),
        (Send(False, b"hello"), queue.sender_id),
    ):
        wrong_key = Refusals(raw, command, entity_id, key)
        no_queue = Refusals(raw, command, new_id(), key)
        assert await take_as_long(wrong_key, no_queue)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_205_other_commands_and_queues(relay: Relay, algorithm: Algorithm) -> None:
    """A signature where none is expected, and queues that may not be secured again."""
    recipient, raw = await relay.connect(), await relay.raw()
    unsecured = await make_queue(recipient)
    key = new_key(algorithm)
    assert await take_as_long(
        Refusals(raw, Send(False, b"hello"), unsecured.sender_id, key),
        Refusals(raw, Send(False, b"hello"), new_id(), key),
    )


# -- inactivity

TTL = 3.0
"""More than a busy machine lets pass between what a test does."""
AS_THE_REFERENCE = {"inactive_clients.ttl": TTL, "inactive_clients.check_interval": 1}
OFTEN = {"inactive_clients.ttl": 4.0, "inactive_clients.check_interval": 0.5}


@ensureDeferred
async def test_206_idle_connections_are_closed(relays: GetRelay) -> None:
    relay = relays(AS_THE_REFERENCE)
    creator = await relay.connect()
    queue = await make_queue(creator, subscribe=False)
    getter = await relay.connect()
    assert await getter.get(*queue.own) is None
    # One whose only subscription another connection takes.
    former = await relay.connect()
    await former.subscribe(*queue.own)
    subscriber = await relay.connect()
    await subscriber.subscribe(*queue.own)
    service = await relay.connect(service=make_service())
    legacy = await relay.connect(alpn=None)
    start = perf_counter()
    last = await relay.connect()
    for client in (creator, getter, former, service, legacy, last):
        await soon(client.lost())
    assert perf_counter() - start > TTL
    await subscriber.ping()


@ensureDeferred
async def test_207_subscribed_connections_are_not_closed(relays: GetRelay) -> None:
    relay = relays(AS_THE_REFERENCE)
    creator = await relay.connect()
    await make_queue(creator)
    subscribed = [creator]
    for version in (6, 15, 18):
        queue = await make_queue(creator, subscribe=False)
        notifier = await make_notifier(creator, queue)
        subscriber = await relay.connect(version)
        await subscriber.subscribe(*queue.own)
        notified = await relay.connect(version)
        await notified.subscribe_notifications(*notifier.own)
        subscribed += (subscriber, notified)
    queue = await make_queue(creator, subscribe=False)
    notifier = await make_notifier(creator, queue)
    of_one = await relay.connect(service=make_service())
    await of_one.subscribe_notifications(*notifier.own)
    # A service that has no notifiers yet is subscribed all the same.
    of_all = await relay.connect(service=make_service())
    assert await of_all.subscribe_service_notifications() == 0
    subscribed += (of_one, of_all)
    # All of them have done nothing for longer than this one when it is closed.
    idle = await relay.connect()
    await soon(idle.lost())
    for client in subscribed:
        await client.ping()


@ensureDeferred
async def test_208_busy_connections_are_not_closed(relays: GetRelay) -> None:
    relay = relays(OFTEN)
    busy = [await relay.connect(), await relay.connect(alpn=None)]
    idle = await relay.connect()
    with at_most(10):
        while idle.connected:
            for client in busy:
                await client.ping()
            await pause(0.1)
    for client in busy:
        await client.ping()


# -- QUE


def base64_of(data: bytes) -> str:
    """Ids in the answer to QUE."""
    return base64.b64encode(data).decode("ascii")


@at_versions(*VERSIONS)
async def test_209_state_of_a_new_queue(relay: Relay, version: int) -> None:
    recipient, other = await relay.connect(version), await relay.connect(version)
    for mode in (QueueMode.MESSAGING, QueueMode.CONTACT):
        queue = await make_queue(recipient, mode=mode)
        state = {"qiSnd": False, "qiNtf": False, "qiSize": 0}
        subscribed = {**state, "qiSub": {"qSubThread": "noSub"}}
        assert await recipient.queue_info(*queue.own) == subscribed
        # Another connection has no subscription of its own.
        assert await other.queue_info(*queue.own) == state
    assert await other.get(*queue.own) is None
    assert await other.queue_info(*queue.own) == {
        **state,
        "qiSub": {"qSubThread": "prohibitSub"},
    }


@at_versions(*VERSIONS)
async def test_210_state_of_a_queue_in_use(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    sender_key: PrivateKey = new_key()
    await recipient.secure(*queue.own, sender_key.public)
    assert (await recipient.queue_info(*queue.own))["qiSnd"] is True
    await make_notifier(recipient, queue)
    for body in (b"one", b"two"):
        await sender.send(queue.sender_id, body, key=sender_key)
    message = await next_msg(recipient, queue)
    at = datetime.fromtimestamp(queue.open(message).timestamp, UTC)
    expected = {
        "qiSnd": True,
        "qiNtf": True,
        "qiSub": {"qSubThread": "noSub", "qDelivered": base64_of(message.msg_id)},
        "qiSize": 2,
        "qiMsg": {
            "msgId": base64_of(message.msg_id),
            "msgTs": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "msgType": "message",
        },
    }
    assert await recipient.queue_info(*queue.own) == expected
    second = await acknowledge(recipient, queue, message)
    assert second is not None
    state = await recipient.queue_info(*queue.own)
    assert state["qiSize"] == 1
    assert state["qiSub"]["qDelivered"] == state["qiMsg"]["msgId"] == base64_of(second.msg_id)
    # Another connection sees the message, but it is not delivered there.
    assert "qiSub" not in await sender.queue_info(*queue.own)
    assert (await sender.queue_info(*queue.own))["qiMsg"] == state["qiMsg"]
    assert await acknowledge(recipient, queue, second) is None
    state = await recipient.queue_info(*queue.own)
    assert state["qiSub"] == {"qSubThread": "noSub"}
    assert state["qiSize"] == 0
    assert "qiMsg" not in state


@at_versions(*VERSIONS)
async def test_210_quota_marker_at_the_head(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    for _ in range(4):
        await sender.send(queue.sender_id, b"hello")
    with refused("QUOTA"):
        await sender.send(queue.sender_id, b"hello")
    message = await next_msg(recipient, queue)
    for _ in range(4):
        marker = await acknowledge(recipient, queue, message)
        assert marker is not None
        message = marker
    state = await recipient.queue_info(*queue.own)
    assert state["qiMsg"]["msgType"] == "quota"
    assert state["qiMsg"]["msgId"] == base64_of(message.msg_id) == state["qiSub"]["qDelivered"]
    assert state["qiSize"] == 1
