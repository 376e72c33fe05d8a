"""Several relays on one PostgreSQL database: to clients they are one (smp-server.md §4, §5, §7)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from bench.postgres_server import PostgresServer
from tests.conformance.clients import (
    Connection,
    Queue,
    Relay,
    acknowledge,
    close_all,
    make_queue,
    make_secured_queue,
    make_service,
    new_id,
    new_key,
    next_event,
    next_message,
    next_msg,
    no_event,
    of,
    pause,
    refused,
)
from tests.conformance.notifiers import make_notifier, next_notification
from tests.conformance.relays import Credentials, RelayProcess, Settings
from tests.coroutines import until
from tests.smpd.stores.postgres_stores import new_database
from tests.stalls import Stalls, at_most
from txsimplex.client.errors import ClientError, RelayError
from txsimplex.client.smp import SMPClient
from txsimplex.keys import PrivateKey
from txsimplex.smp.bodies import QuotaBody
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.messages import Deld, End, Ends, Msg
from txsimplex.smp.transmissions import Received

pytestmark = pytest.mark.slow

AT_ONCE = 1.0
"""Seconds in which what is done at one relay is known at another; it takes some milliseconds."""
MOMENT = 0.3
COMPLAINTS = ("Traceback", "Unhandled")
DATA = LinkData(b"fixed", b"user")


class Cluster:
    """Relays with the same identity on one database."""

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        self._directory = directory
        self._credentials = Credentials.make()
        self.database = new_database()
        self._settings = {
            **(settings or {}),
            "store.kind": "postgres",
            "store.database": self.database,
        }
        self.processes: list[RelayProcess] = []
        self.connections: list[Connection] = []

    def relay(self) -> Relay:
        """One more relay, started."""
        directory = self._directory / f"relay-{len(self.processes)}"
        directory.mkdir(mode=0o700)
        process = RelayProcess(directory, self._credentials, self._settings)
        self.processes.append(process)
        return Relay(process.start(), self.connections)

    def end(self) -> None:
        """Ends all that run."""
        with ExitStack() as stack:
            for process in self.processes:
                stack.callback(process.end)

    @property
    def faults(self) -> str:
        """What any of them has complained of since the last time."""
        return "".join(process.new_faults() for process in self.processes)

    def terminate_listeners(self) -> int:
        """Ends the connections on which relays hear of each other; how many there were."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN smpd%'"
            ).rowcount


@pytest.fixture(scope="module")
def cluster_of_all(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Relay, Relay]]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster, cluster.relay(), cluster.relay()
    finally:
        cluster.end()


@pytest.fixture
def both(cluster_of_all: tuple[Cluster, Relay, Relay]) -> Iterator[tuple[Relay, Relay]]:
    """Two relays that all tests have."""
    cluster, *relays = cluster_of_all
    yield relays[0], relays[1]
    pytest_twisted.blockon(Deferred.fromCoroutine(close_all(cluster.connections)))
    cluster.connections.clear()
    faults = cluster.faults
    if faults:
        pytest.fail(f"a relay logged a fault:\n{faults}", pytrace=False)


@pytest.fixture
def cluster(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Cluster]:
    """Relays of a test's own, which it may end."""
    cluster = Cluster(tmp_path)
    yield cluster
    pytest_twisted.blockon(Deferred.fromCoroutine(close_all(cluster.connections)))
    cluster.end()
    for process in cluster.processes:
        assert not any(complaint in process.log for complaint in COMPLAINTS), process.log


async def at_once(client: SMPClient) -> Received:
    """The next event, which must come soon; what is told in intervals takes half a second more."""
    with at_most(AT_ONCE + 0.5):
        return await next_event(client)


def of_queue(message: Msg | None) -> Msg:
    """A message, of which there must be one."""
    assert message is not None
    return message


# -- messages


@ensureDeferred
async def test_a_message_reaches_the_subscriber_at_once(both: tuple[Relay, Relay]) -> None:
    """Whichever of the two relays it was sent to, and in the order in which they were."""
    here, there = both
    recipient, sender, neighbour = await here.connect(), await there.connect(), await here.connect()
    queue, key = await make_secured_queue(recipient)
    times = []
    with Stalls() as stalls:
        for number in range(30):
            body = b"%d" % number
            start = time.monotonic()
            await (neighbour if number % 3 else sender).send(queue.sender_id, body, key=key)
            message = await next_msg(recipient, queue)
            times.append(time.monotonic() - start)
            assert queue.open(message).body == body
            assert await acknowledge(recipient, queue, message) is None
    assert median(times) < AT_ONCE / 4
    assert max(times) < AT_ONCE * 2 + stalls.longest


@ensureDeferred
async def test_messages_that_wait_come_in_order(both: tuple[Relay, Relay]) -> None:
    recipient, senders = await both[0].connect(), [await each.connect() for each in both]
    queue = await make_queue(recipient)
    for number in range(4):
        await senders[number % 2].send(queue.sender_id, b"%d" % number)
    message: Msg | None = await next_msg(recipient, queue)
    for number in range(4):
        assert message is not None
        assert queue.open(message).body == b"%d" % number
        message = await acknowledge(recipient, queue, message)
    assert message is None


@ensureDeferred
async def test_quota(both: tuple[Relay, Relay]) -> None:
    """One quota for all relays, over until the marker was acknowledged, wherever."""
    here, there = both
    recipient, other = await here.connect(), await there.connect()
    senders = [await each.connect() for each in both]
    queue = await make_queue(recipient, subscribe=False)
    for number in range(4):
        await senders[number % 2].send(queue.sender_id, b"hello")
    for sender in senders:
        with refused("QUOTA"):
            await sender.send(queue.sender_id, b"hello")
    await other.subscribe(*queue.own)
    message: Msg | None = await next_msg(other, queue)
    for _ in range(4):
        assert message is not None
        message = await acknowledge(other, queue, message)
    assert message is not None
    assert isinstance(queue.created.open(message), QuotaBody)
    for sender in senders:
        with refused("QUOTA"):
            await sender.send(queue.sender_id, b"hello")
    assert await acknowledge(other, queue, message) is None
    await senders[0].send(queue.sender_id, b"again")
    assert (await next_message(other, queue)).body == b"again"


@ensureDeferred
async def test_get_at_one_relay_and_ack_at_another(both: tuple[Relay, Relay]) -> None:
    """Each acknowledges what it has got, and the first one to do it deletes it (§5.4)."""
    getters = [await each.connect() for each in both]
    subscriber = await both[1].connect()
    queue = await make_queue(subscriber)
    for body in (b"one", b"two"):
        await getters[0].send(queue.sender_id, body)
    message = await next_msg(subscriber, queue)
    for getter in getters:
        assert await getter.get(*queue.own) == message
    for getter in getters:
        assert await getter.ack(*queue.own, message.msg_id) is None
    for getter in getters:
        second = of_queue(await getter.get(*queue.own))
        assert queue.open(second).body == b"two"
    # The subscriber's own for the first one brings the second.
    assert await acknowledge(subscriber, queue, message) == second
    assert await acknowledge(subscriber, queue, second) is None
    assert await getters[0].get(*queue.own) is None
    # A connection that has got nothing has nothing to acknowledge.
    with refused("NO_MSG"):
        await (await both[0].connect()).ack(*queue.own, second.msg_id)


# -- subscribers


@ensureDeferred
async def test_the_subscriber_is_one_in_all_relays(both: tuple[Relay, Relay]) -> None:
    clients = [await each.connect() for each in both]
    sender = await both[0].connect()
    queue = await make_queue(clients[0])
    for number in range(10):
        former, new = clients[number % 2], clients[1 - number % 2]
        await new.subscribe(*queue.own)
        # The former one gets nothing more from the moment of the answer on, END but for that.
        await sender.send(queue.sender_id, b"hello")
        message = await next_msg(new, queue)
        assert await at_once(former) == Received(b"", queue.recipient_id, End())
        with refused("NO_MSG"):
            await former.ack(*queue.own, message.msg_id)
        assert await acknowledge(new, queue, message) is None
        for client in clients:
            await no_event(client)


@ensureDeferred
async def test_back_and_forth_with_a_message_that_waits(both: tuple[Relay, Relay]) -> None:
    """The same one, with the same id, for everybody who subscribes; one END for each who had."""
    clients = [await each.connect() for each in both for _ in range(2)]
    queue = await make_queue(clients[0], subscribe=False)
    await clients[0].send(queue.sender_id, b"hello")
    first: Msg | None = None
    for number in range(20):
        client = clients[number % 4]
        await client.subscribe(*queue.own)
        # Of the last time that it was subscribed.
        while (event := await next_event(client)).message == End():
            pass
        message = of(Msg, event)
        assert first in (None, message)
        first = message
        await pause(0.05)
    for client in clients[:3]:
        assert (await next_event(client)).message == End()
    await pause(1.0)
    for client in clients:
        await no_event(client)
    last = clients[3]
    assert first is not None
    assert await acknowledge(last, queue, first) is None
    await clients[0].send(queue.sender_id, b"second")
    assert (await next_message(last, queue)).body == b"second"


@ensureDeferred
async def test_a_deleted_queue(both: tuple[Relay, Relay]) -> None:
    """DELD to its subscriber at another relay, and AUTH everywhere from then on."""
    here, there = both
    subscriber, other, sender = await here.connect(), await there.connect(), await here.connect()
    queue, key = await make_secured_queue(subscriber)
    await sender.send(queue.sender_id, b"hello", key=key)
    await next_msg(subscriber, queue)
    await other.delete(*queue.own)
    with refused("AUTH"):
        await sender.send(queue.sender_id, b"hello", key=key)
    with refused("AUTH"):
        await subscriber.subscribe(*queue.own)
    assert await at_once(subscriber) == Received(b"", queue.recipient_id, Deld())
    await no_event(subscriber, MOMENT)


# -- what is changed at one relay is so at the other


@ensureDeferred
async def test_suspended(both: tuple[Relay, Relay]) -> None:
    here, there = both
    recipient, sender = await here.connect(), await there.connect()
    for _ in range(5):
        queue = await make_queue(recipient)
        await sender.send(queue.sender_id, b"hello")
        await recipient.suspend(*queue.own)
        with refused("AUTH"):
            await sender.send(queue.sender_id, b"hello")
        assert (await next_message(recipient, queue)).body == b"hello"


@ensureDeferred
async def test_keys_of_senders(both: tuple[Relay, Relay]) -> None:
    """From the answer to KEY on, nobody sends without the key, and nobody else makes one his."""
    here, there = both
    recipient, sender = await here.connect(), await there.connect()
    for _ in range(5):
        queue, key = await make_queue(recipient, subscribe=False), new_key()
        await sender.send(queue.sender_id, b"anybody")
        await recipient.secure(*queue.own, key.public)
        with refused("AUTH"):
            await sender.send(queue.sender_id, b"anybody")
        with refused("AUTH"):
            await sender.sender_secure(queue.sender_id, new_key())
        await sender.sender_secure(queue.sender_id, key)
        await sender.send(queue.sender_id, b"hello", key=key)
        queue, key = await make_queue(recipient, subscribe=False), new_key()
        await sender.sender_secure(queue.sender_id, key)
        with refused("AUTH"):
            await recipient.secure(*queue.own, new_key().public)
        await recipient.secure(*queue.own, key.public)


@ensureDeferred
async def test_one_of_two_keys_is_taken(both: tuple[Relay, Relay]) -> None:
    """Two senders secure the same queue at two relays at the same moment."""
    senders = [await each.connect() for each in both]
    recipient = await both[0].connect()

    async def secure(sender: SMPClient, queue: Queue, key: PrivateKey) -> bool:
        try:
            await sender.sender_secure(queue.sender_id, key)
        except RelayError as error:
            if str(error.error) != "AUTH":
                raise
            return False
        return True

    for _ in range(10):
        queue = await make_queue(recipient, subscribe=False)
        keys = [new_key(), new_key()]
        won = await gatherResults(
            [
                Deferred.fromCoroutine(secure(sender, queue, key))
                for sender, key in zip(senders, keys, strict=True)
            ]
        )
        assert sorted(won) == [False, True]
        await senders[0].send(queue.sender_id, b"hello", key=keys[won.index(True)])
        with refused("AUTH"):
            await senders[1].send(queue.sender_id, b"hello", key=keys[won.index(False)])


@ensureDeferred
async def test_keys_of_recipients(both: tuple[Relay, Relay]) -> None:
    """A key that was replaced at one relay is wrong at all, whoever has used it there before."""
    clients = [await each.connect() for each in both]
    queue = await make_queue(clients[0], mode=QueueMode.CONTACT)
    key = queue.key
    for number in range(10):
        at, other = clients[number % 2], clients[1 - number % 2]
        for client in clients:
            await client.queue_info(queue.recipient_id, key)
        new = new_key()
        await at.set_recipient_keys(queue.recipient_id, key, [new.public])
        for client in (other, at):
            with refused("AUTH"):
                await client.queue_info(queue.recipient_id, key)
            await client.queue_info(queue.recipient_id, new)
        key = new


@ensureDeferred
async def test_links(both: tuple[Relay, Relay]) -> None:
    """One that goes from one queue to another is at each moment one queue's at all relays."""
    clients = [await each.connect() for each in both]
    queues = [await make_queue(each, mode=QueueMode.CONTACT) for each in clients]
    link_id = new_id()
    for number in range(6):
        at, other = clients[number % 2], clients[1 - number % 2]
        queue, next_one = queues[number % 2], queues[1 - number % 2]
        data = LinkData(b"fixed %d" % number, b"user")
        await at.set_link(*queue.own, link_id, data)
        for client in (other, at):
            found = await client.get_link(link_id)
            assert (found.sender_id, found.data) == (queue.sender_id, data)
            with refused("AUTH"):
                await client.set_link(*next_one.own, link_id, data)
        changed = LinkData(data.fixed, b"changed")
        await other.set_link(*queue.own, link_id, changed)
        assert (await at.get_link(link_id)).data == changed
        await other.delete_link(*queue.own)
        for client in clients:
            with refused("AUTH"):
                await client.get_link(link_id)


@ensureDeferred
async def test_a_one_time_link(both: tuple[Relay, Relay]) -> None:
    clients = [await each.connect() for each in both]
    queue = await make_queue(clients[0], link=DATA)
    link_id, key = queue.created.link_id, new_key()
    assert link_id is not None
    found = await clients[1].secure_link(link_id, key)
    assert (found.sender_id, found.data) == (queue.sender_id, DATA)
    with refused("AUTH"):
        await clients[0].secure_link(link_id, new_key())
    await clients[1].send(queue.sender_id, b"hello", key=key)
    for client in clients:
        with refused("AUTH"):
            await client.secure_link(link_id, key)


# -- notifications


@ensureDeferred
async def test_notifications(both: tuple[Relay, Relay]) -> None:
    """They come wherever they are subscribed to, and those that waited, too."""
    here, there = both
    recipient, sender = await here.connect(), await here.connect()
    notified = await there.connect()
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await sender.send(queue.sender_id, b"before", notify=True)
    message = await next_msg(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    assert (await next_notification(notified, notifier))[0] == message.msg_id
    times = []
    with Stalls() as stalls:
        for number in range(5):
            assert await acknowledge(recipient, queue, message) is None
            await sender.send(queue.sender_id, b"%d" % number, notify=True)
            message = await next_msg(recipient, queue)
            start = time.monotonic()
            assert (await next_notification(notified, notifier))[0] == message.msg_id
            times.append(time.monotonic() - start)
    assert max(times) < AT_ONCE + 0.2 + stalls.longest
    await no_event(notified, MOMENT)


@ensureDeferred
async def test_the_subscriber_of_a_notifier_is_one(both: tuple[Relay, Relay]) -> None:
    clients = [await each.connect() for each in both]
    recipient = await both[0].connect()
    queue = await make_queue(recipient, subscribe=False)
    notifier = await make_notifier(recipient, queue)
    await clients[0].subscribe_notifications(*notifier.own)
    for number in range(4):
        former, new = clients[number % 2], clients[1 - number % 2]
        await new.subscribe_notifications(*notifier.own)
        assert await at_once(former) == Received(b"", notifier.notifier_id, End())
        await recipient.send(queue.sender_id, b"hello", notify=True)
        await next_notification(new, notifier)
        await no_event(former, MOMENT)


@ensureDeferred
async def test_deleted_notifiers(both: tuple[Relay, Relay]) -> None:
    """By NDEL, by NKEY and with the queue; a notifier that is gone is gone at all relays."""
    here, there = both
    recipient, notified = await here.connect(), await there.connect()
    queue = await make_queue(recipient)

    async def replace() -> object:
        return await make_notifier(recipient, queue)

    for end in (
        lambda: recipient.delete_notifier(*queue.own),
        replace,
        lambda: recipient.delete(*queue.own),
    ):
        notifier = await make_notifier(recipient, queue)
        await notified.subscribe_notifications(*notifier.own)
        await end()
        with refused("AUTH"):
            await notified.subscribe_notifications(*notifier.own)
        event = await at_once(notified)
        assert event == Received(b"", notifier.notifier_id, Deld())
    await no_event(notified, MOMENT)


# -- services


async def service_queues(recipient: SMPClient, count: int) -> list[tuple[Queue, Any]]:
    """Queues with notifiers."""
    queues = [await make_queue(recipient, subscribe=False) for _ in range(count)]
    return [(queue, await make_notifier(recipient, queue)) for queue in queues]


async def notified_of(service: SMPClient, queues: list[tuple[Queue, Any]]) -> None:
    """All of these, in any order, and nothing else."""
    wanted = {notifier.notifier_id for _, notifier in queues}
    assert {(await next_event(service)).entity_id for _ in wanted} == wanted
    await no_event(service, MOMENT)


@ensureDeferred
async def test_a_service_at_one_relay_after_the_other(both: tuple[Relay, Relay]) -> None:
    """ENDS to its former connection; what is sent anywhere goes to the new one."""
    recipient = await both[0].connect()
    certificate = make_service()
    first = await both[0].connect(service=certificate)
    queues = await service_queues(recipient, 3)
    for _, notifier in queues:
        await first.subscribe_notifications(*notifier.own)
    former = first
    for number in range(4):
        new = await both[1 - number % 2].connect(service=certificate)
        assert new.service_id == first.service_id
        assert await new.subscribe_service_notifications() == 3
        event = await at_once(former)
        assert event == Received(b"", first.service_id or b"", Ends(3))
        for queue, _ in queues:
            await recipient.send(queue.sender_id, b"hello", notify=True)
        await notified_of(new, queues)
        await no_event(former)
        # NSUBS again is answered with the same number, and nothing else happens.
        assert await new.subscribe_service_notifications() == 3
        for queue, _ in queues:
            message = of_queue(await recipient.get(*queue.own))
            await recipient.ack(*queue.own, message.msg_id)
        former = new


@ensureDeferred
async def test_a_service_that_was_away(both: tuple[Relay, Relay]) -> None:
    """It gets what came meanwhile at any relay, whether it has been there before or not."""
    recipient, certificate = await both[0].connect(), make_service()
    queues = await service_queues(recipient, 2)
    first = await both[0].connect(service=certificate)
    for _, notifier in queues:
        await first.subscribe_notifications(*notifier.own)
    for relay in (both[0], both[1], both[0], both[0]):
        first.abort()
        await first.lost()
        senders = [await each.connect() for each in both]
        for (queue, _), sender in zip(queues, senders, strict=True):
            await sender.send(queue.sender_id, b"hello", notify=True)
        first = await relay.connect(service=certificate)
        assert await first.subscribe_service_notifications() == 2
        await notified_of(first, queues)
        for queue, _ in queues:
            message = of_queue(await recipient.get(*queue.own))
            await recipient.ack(*queue.own, message.msg_id)


@ensureDeferred
async def test_what_a_service_loses_at_another_relay(both: tuple[Relay, Relay]) -> None:
    here, there = both
    recipient, ordinary = await here.connect(), await here.connect()
    service = await there.connect(service=make_service())
    (taken, deleted) = await service_queues(recipient, 2)
    for _, notifier in (taken, deleted):
        await service.subscribe_notifications(*notifier.own)
    await ordinary.subscribe_notifications(*taken[1].own)
    event = await at_once(service)
    assert event == Received(b"", taken[1].notifier_id, End())
    await recipient.delete_notifier(*deleted[0].own)
    event = await at_once(service)
    assert event == Received(b"", deleted[1].notifier_id, Deld())
    assert await service.subscribe_service_notifications() == 0
    # And a service takes a notifier from an ordinary connection at another relay.
    await service.subscribe_notifications(*taken[1].own)
    event = await at_once(ordinary)
    assert event == Received(b"", taken[1].notifier_id, End())
    await recipient.send(taken[0].sender_id, b"hello", notify=True)
    await notified_of(service, [taken])


# -- relays come and go


@ensureDeferred
async def test_a_relay_that_is_added(cluster: Cluster) -> None:
    first = await deferToThread(cluster.relay)
    recipient = await first.connect()
    queues = [await make_queue(recipient) for _ in range(3)]
    await recipient.send(queues[0].sender_id, b"hello")
    message = await next_msg(recipient, queues[0])
    second = await deferToThread(cluster.relay)
    sender = await second.connect()
    await sender.subscribe(*queues[0].own)
    assert await next_msg(sender, queues[0]) == message
    assert (await at_once(recipient)).message == End()
    await sender.send(queues[1].sender_id, b"hello")
    assert (await next_message(recipient, queues[1])).body == b"hello"
    # And one that is stopped in order takes nothing with it.
    await deferToThread(cluster.processes[0].end)
    await sender.subscribe(*queues[1].own)
    assert (await next_message(sender, queues[1])).body == b"hello"


class Sending:
    """A client that sends numbered messages and tries again, at any relay that takes them."""

    def __init__(self, relays: list[Relay], queue: Queue, key: PrivateKey) -> None:
        self._relays = relays
        self._queue = queue
        self._key = key
        self._client: SMPClient | None = None
        self.answered: list[int] = []
        self.stopped = False

    async def run(self) -> None:
        """Until it is stopped."""
        number = 0
        while not self.stopped:
            try:
                if self._client is None or not self._client.connected:
                    self._client = await self._relays[-1].connect()
                body = b"%d" % number
                await self._client.send(self._queue.sender_id, body, key=self._key, timeout=8)
            except RelayError as error:
                if str(error.error) != "QUOTA" and "STORE" not in str(error.error):
                    raise
                await pause(0.02)
            except (ClientError, OSError):
                self._relays.reverse()
                await pause(0.05)
            else:
                self.answered.append(number)
                number += 1


class Receiving:
    """A client that takes what comes, and subscribes again when its relay is gone."""

    def __init__(self, relays: list[Relay], queue: Queue) -> None:
        self._relays = relays
        self._queue = queue
        self.received: list[int] = []
        self.stopped = False

    async def run(self) -> None:
        """Until it is stopped and nothing more comes."""
        while True:
            try:
                client = await self._relays[-1].connect()
                await client.subscribe(*self._queue.own)
                await self._take(client)
            except (ClientError, OSError, StopAsyncIteration):
                self._relays.reverse()
                await pause(0.05)
            else:
                return

    async def _take(self, client: SMPClient) -> None:
        while True:
            try:
                event = await next_event(client, 1.0)
            except ClientError:
                if not client.connected:
                    raise
                if self.stopped and (await client.queue_info(*self._queue.own))["qiSize"] == 0:
                    return
                continue
            assert isinstance(event.message, Msg), event
            message: Msg | None = event.message
            while message is not None:
                opened = self._queue.created.open(message)
                if not isinstance(opened, QuotaBody):
                    self.received.append(int(opened.body))
                message = await acknowledge(client, self._queue, message)


async def until_answered(traffic: list[tuple[Sending, Receiving]], count: int) -> None:
    """Waits until each sender has so many answers more."""
    wanted = [len(sender.answered) + count for sender, _ in traffic]
    await until(
        lambda: all(
            len(sender.answered) >= least
            for (sender, _), least in zip(traffic, wanted, strict=True)
        ),
        30,
    )


@ensureDeferred
async def test_a_relay_that_is_killed_under_load(cluster: Cluster) -> None:
    """Its clients come to the other one, and everything that was answered arrives, in order."""
    relays = [await deferToThread(cluster.relay) for _ in range(2)]
    maker = await relays[0].connect()
    traffic = []
    for number in range(6):
        queue, key = await make_secured_queue(maker, subscribe=False)
        order = list(relays)
        if number % 2:
            order.reverse()
        traffic.append((Sending(list(order), queue, key), Receiving(order[::-1], queue)))
    sending = [Deferred.fromCoroutine(sender.run()) for sender, _ in traffic]
    receiving = [Deferred.fromCoroutine(receiver.run()) for _, receiver in traffic]
    await until_answered(traffic, 10)
    await pause(1.0)
    await deferToThread(cluster.processes[1].end, signal.SIGKILL)
    await until_answered(traffic, 10)
    await pause(1.0)
    for sender, _ in traffic:
        sender.stopped = True
    await gatherResults(sending)
    for _, receiver in traffic:
        receiver.stopped = True
    await gatherResults(receiving)
    for sender, receiver in traffic:
        # One may come twice: sent again after its answer was lost, or not acknowledged in time.
        once = list(dict.fromkeys(receiver.received))
        assert once == sorted(once)
        assert set(once) >= set(sender.answered)


@ensureDeferred
async def test_what_happens_while_a_relay_hears_nothing(
    both: tuple[Relay, Relay], cluster_of_all: tuple[Cluster, Relay, Relay]
) -> None:
    """The connection on which it hears of others is lost: after it is back nothing was missed."""
    cluster = cluster_of_all[0]
    here, there = both
    subscriber, notified = await here.connect(), await here.connect()
    other = await there.connect()
    sent, taken, deleted = [await make_queue(subscriber) for _ in range(3)]
    told, freed = [(queue, await make_notifier(other, queue)) for queue in (sent, taken)]
    for _, notifier in (told, freed):
        await notified.subscribe_notifications(*notifier.own)
    assert cluster.terminate_listeners() == 2
    await other.send(sent.sender_id, b"hello", notify=True)
    await other.subscribe(*taken.own)
    await other.delete_notifier(*taken.own)
    await other.delete(*deleted.own)
    events = [await next_event(subscriber, 5.0) for _ in range(3)]
    assert {event.entity_id: type(event.message) for event in events} == {
        sent.recipient_id: Msg,
        taken.recipient_id: End,
        deleted.recipient_id: Deld,
    }
    events = [await next_event(notified, 5.0) for _ in range(2)]
    assert {event.entity_id for event in events} == {
        told[1].notifier_id,
        freed[1].notifier_id,
    }
    for client in (subscriber, notified, other):
        await no_event(client, MOMENT)
    # It hears again.
    await other.subscribe(*sent.own)
    await next_msg(other, sent)
    assert (await at_once(subscriber)).message == End()
    # What it has logged of that is what it should.
    faults = cluster.faults
    assert "Traceback" not in faults
    assert faults.count("nothing is heard of other relays") <= 2


def age(database: str, queue: Queue, days: int) -> None:
    """Lets a queue be unused for so long."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE smpd.queue SET used_on = used_on - %s * 86400 WHERE recipient_id = %s",
            (days, queue.recipient_id),
        )
        # So that relays know that they have to read it again.
        connection.execute(
            "UPDATE smpd.queue_state SET version = version + 1 FROM smpd.queue"
            " WHERE queue.number = queue_state.number AND recipient_id = %s",
            (queue.recipient_id,),
        )


async def until_gone(database: str, queue: Queue) -> None:
    """Waits until a round has removed a queue."""

    def is_gone() -> bool:
        with psycopg.connect(database) as connection:
            found = connection.execute(
                "SELECT FROM smpd.queue WHERE recipient_id = %s", (queue.recipient_id,)
            )
            return found.rowcount == 0

    await until(is_gone, 20)


@ensureDeferred
async def test_unused_queues(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """One that has its subscriber at another relay that runs is in use; others go."""
    settings = {"queues.unused_ttl": 30 * 86400, "queues.expiry_interval": 0.5}
    cluster = Cluster(tmp_path, settings)
    try:
        first = await deferToThread(cluster.relay)
        subscriber = await first.connect()
        used, unused, left = [await make_queue(subscriber) for _ in range(3)]
        other = await first.connect()
        for queue in (unused, left):
            await other.subscribe(*queue.own)
        other.abort()
        await other.lost()
        for _ in range(2):
            await next_event(subscriber)
        second = await deferToThread(cluster.relay)
        client = await second.connect()
        for queue in (used, unused):
            age(cluster.database, queue, 100)
        await until_gone(cluster.database, unused)
        # The other relay has its round, too.
        await pause(1.0)
        assert await client.get(*used.own) is None
        assert await client.get(*left.own) is None
        with refused("AUTH"):
            await client.get(*unused.own)
        # When that relay is there no more, its subscriptions are none.
        age(cluster.database, used, 100)
        await close_all(cluster.connections)
        cluster.connections.clear()
        await deferToThread(cluster.processes[0].end, signal.SIGKILL)
        await until_gone(cluster.database, used)
        with refused("AUTH"):
            await (await second.connect()).get(*used.own)
    finally:
        await close_all(cluster.connections)
        await deferToThread(cluster.end)
