"""A relay with several processes: what clients notice of it, which is nothing.

The conformance tests and those of this folder run with several processes too, with
SIMPLEXD_TEST_PROCESSES=2.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from tests.conformance.clients import (
    WAIT,
    Connection,
    Queue,
    Relay,
    close_all,
    make_queue,
    make_secured_queue,
    next_event,
    next_message,
    of,
    pause,
    refused,
    soon,
)
from tests.conformance.relays import Credentials, RelayProcess
from tests.stalls import at_most
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.errors import ClientError
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Prxy
from txsimplex.smp.messages import End, Msg
from txsimplex.smp.transmissions import frame

EDGES = 2
QUOTA = {"queues.quota": 10_000}
COMPLAINTS = ("Traceback", "Unhandled")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RelayProcess]:
    """A relay of its own, of a core and edges."""
    credentials = Credentials.make(Algorithm.ED25519)
    process = RelayProcess(tmp_path, credentials, {"server.processes": EDGES, **QUOTA})
    with process:
        yield process
    assert not any(complaint in process.log for complaint in COMPLAINTS), process.log


@pytest.fixture
def relay(process: RelayProcess, connections: list[Connection]) -> Relay:
    """The same for clients."""
    return Relay(process, connections)


def edges_of(process: RelayProcess) -> list[int]:
    """The edge processes that live."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def lives(pid: int) -> bool:
    """Whether there is such a process, dead ones that nobody waits for left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process' sockets."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(each.readlink())
        except FileNotFoundError:
            continue
        if name.startswith("socket:["):
            found.add(name[8:-1])
    return found


def edge_of(process: RelayProcess, client: SMPClient) -> int:
    """The edge that has a client's connection."""
    transport: Any = client.session.blocks.transport
    port = f":{transport.getHost().port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[2].endswith(port) and fields[1].endswith(f":{process.port:04X}"):
            for pid in edges_of(process):
                if fields[9] in sockets_of(pid):
                    return pid
    raise AssertionError("no edge has this connection")


async def on_each_edge(relay: Relay) -> list[SMPClient]:
    """A client on each edge."""
    assert isinstance(relay.process, RelayProcess)
    found: dict[int, SMPClient] = {}
    deadline = time.monotonic() + 20
    while len(found) < EDGES:
        assert time.monotonic() < deadline, "one edge gets all connections"
        client = await relay.connect()
        edge = edge_of(relay.process, client)
        if edge in found:
            # The other may not have been run yet.
            await pause(0.02)
        found.setdefault(edge, client)
    return list(found.values())


async def until(done: Callable[[], object], seconds: float = WAIT) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it does not come"
        await pause(0.02)


# -- one relay


@ensureDeferred
async def test_messages_from_edge_to_edge(relay: Relay) -> None:
    sender, recipient = await on_each_edge(relay)
    queue, sender_key = await make_secured_queue(recipient)
    for number in range(20):
        await sender.send(queue.sender_id, b"message %d" % number, key=sender_key)
        message = of(Msg, await next_event(recipient))
        assert queue.open(message).body == b"message %d" % number
        assert await recipient.ack(*queue.own, message.msg_id) is None
    with refused("AUTH"):
        await sender.send(queue.sender_id, b"not from the sender", key=queue.key)


@ensureDeferred
async def test_one_subscriber_among_all_edges(relay: Relay) -> None:
    first, second = await on_each_edge(relay)
    queue = await make_queue(first)
    await second.subscribe(*queue.own)
    event = await next_event(first)
    assert (event.entity_id, event.message) == (queue.recipient_id, End())
    await first.send(queue.sender_id, b"to the second")
    assert (await next_message(second, queue)).body == b"to the second"


@ensureDeferred
async def test_a_key_learned_by_one_edge_is_of_no_use_when_it_has_changed(relay: Relay) -> None:
    first, second = await on_each_edge(relay)
    queue = await make_queue(first)
    await first.delete(*queue.own)
    for client in (first, second, first):
        with refused("AUTH"):
            await client.subscribe(*queue.own)


async def _unread_answers(relay: Relay, blocks: int) -> None:
    """A client that asks for a relay 255 times with each block, and reads no answer."""
    client = await relay.raw()
    client.session.blocks.pause_reading()
    location = RelayLocation((Host.parse("10.0.0.1"),), "", bytes(32))
    asked = client.transmission(Prxy(location), corr_id=b"1")
    for _ in range(blocks):
        client.send_content(frame([asked] * 255))


@ensureDeferred
async def test_what_a_client_does_not_read_costs_an_edge_little(
    process: RelayProcess, relay: Relay
) -> None:
    """Each answer is a block: all of them would be 160 MiB."""
    before = {pid: resident(pid) for pid in edges_of(process)}
    await _unread_answers(relay, 40)
    other = await relay.connect()
    for _ in range(20):
        await pause(0.1)
        await other.ping()
        assert all(resident(pid) < size + 24 * 2**20 for pid, size in before.items())


# -- edges that end


class Load:
    """A recipient and a sender that come back whenever their connections are lost.

    The sender sends each message until it is answered; what is answered must arrive, in order.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.accepted: list[bytes] = []
        self.received: list[bytes] = []
        self.reconnected = 0
        self.running = True
        # The last answer may come after `running` has become false.
        self._all_sent = False

    async def run(self) -> None:
        """Until `running` is false and all is delivered."""
        recipient = await self.relay.connect()
        queue, sender_key = await make_secured_queue(recipient)
        receiving = Deferred.fromCoroutine(self._receive(recipient, queue))
        await self._send(queue, sender_key)
        self._all_sent = True
        await receiving

    async def _send(self, queue: Queue, key: PrivateKey) -> None:
        sender = await self.relay.connect()
        number = 0
        while self.running:
            body = b"%d" % number
            try:
                await sender.send(queue.sender_id, body, key=key)
            except ClientError:
                sender = await self._again()
            else:
                self.accepted.append(body)
                number += 1

    async def _receive(self, recipient: SMPClient, queue: Queue) -> None:
        while not self._all_sent or self.accepted[-1] not in self.received:
            try:
                message = of(Msg, await next_event(recipient, 1.0))
                following: Msg | None = message
                while following is not None:
                    self.received.append(queue.open(following).body)
                    following = await recipient.ack(*queue.own, following.msg_id)
            except (ClientError, StopAsyncIteration):
                if not recipient.connected:
                    recipient = await self._again()
                    await recipient.subscribe(*queue.own)

    async def _again(self) -> SMPClient:
        self.reconnected += 1
        for _ in range(100):
            try:
                return await self.relay.connect()
            except ClientError:
                await pause(0.05)
        raise AssertionError("the relay takes no connections")


@pytest.mark.slow
@ensureDeferred
async def test_an_edge_that_is_killed_under_load(process: RelayProcess, relay: Relay) -> None:
    """It is replaced, its clients come back, and what was answered is there."""
    loads = [Load(relay) for _ in range(6)]
    running = gatherResults([Deferred.fromCoroutine(load.run()) for load in loads])
    await _until_accepted(loads, 10)
    for _ in range(2):
        before = edges_of(process)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda before=before: _all_new(process, before))  # type: ignore[misc]
        await pause(1)
        await _until_accepted(loads, 10)
    for load in loads:
        load.running = False
    await soon(_wait(running), 30)
    assert sum(load.reconnected for load in loads) > 0
    for load in loads:
        _check(load.accepted, load.received)
    assert process.log.count("an edge process has ended") == 2


@pytest.mark.slow
@ensureDeferred
async def test_an_edge_that_hangs_is_replaced(process: RelayProcess, relay: Relay) -> None:
    """When it has said nothing for half a minute; those of the other edge notice nothing."""
    client, other = await on_each_edge(relay)
    hung = edge_of(process, client)
    began = time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    # Longer where the machine has so much to do that the core looks too late.
    await until(lambda: not lives(hung), 150)
    assert time.monotonic() - began > 25
    await soon(client.lost())
    await other.ping()
    await on_each_edge(relay)
    assert hung not in edges_of(process)
    assert process.log.count("has not answered for 30 seconds: it is ended") == 1


async def _until_accepted(loads: Sequence[Load], count: int) -> None:
    """Waits until each has so many messages more accepted."""
    wanted = [len(load.accepted) + count for load in loads]
    await until(
        lambda: all(len(load.accepted) >= least for load, least in zip(loads, wanted, strict=True)),
        30,
    )


def _all_new(process: RelayProcess, before: Sequence[int]) -> bool:
    now = edges_of(process)
    return len(now) == EDGES and before[0] not in now


async def _wait(waited_for: Deferred[Any]) -> None:
    await waited_for


def _check(accepted: Sequence[bytes], received: Sequence[bytes]) -> None:
    """All that was accepted has come in order; a message may come twice if its end was not seen."""
    numbers = [int(body) for body in received]
    assert sorted(set(numbers)) == numbers or numbers == sorted(numbers)
    assert {int(body) for body in accepted} <= set(numbers)


@ensureDeferred
async def test_without_the_core_there_are_no_edges(process: RelayProcess, relay: Relay) -> None:
    clients = await on_each_edge(relay)
    edges = edges_of(process)
    os.kill(process.pid, signal.SIGKILL)
    for client in clients:
        await soon(client.lost())
    await until(lambda: not any(map(lives, edges)))


# -- the end of all


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@ensureDeferred
async def test_all_stop_in_order(
    number: signal.Signals, process: RelayProcess, relay: Relay
) -> None:
    clients = await on_each_edge(relay)
    edges = edges_of(process)
    for pid in edges:
        # As Ctrl-C and systemd do, which tell all processes; the core alone decides.
        os.kill(pid, number)
    for client in clients:
        await client.ping()
    os.kill(process.pid, number)
    for client in clients:
        await soon(client.lost())
    with at_most(4):
        await until(lambda: not process.running, 30)
    assert not any(map(lives, edges))
    assert "Server Shut Down" in process.log
    assert "edge process" not in process.log


@ensureDeferred
async def test_an_edge_that_starts_says_nothing_of_ctrl_c(
    process: RelayProcess, relay: Relay
) -> None:
    """From its first moment on: Python would tell where in its imports it was."""
    before = edges_of(process)
    os.kill(before[0], signal.SIGKILL)
    await until(lambda: len(set(edges_of(process)) - set(before)) == 1)
    (edge,) = set(edges_of(process)) - set(before)
    arguments = Path(f"/proc/{edge}/cmdline")
    await until(lambda: arguments.read_text().startswith(sys.executable))
    for _ in range(50):
        os.kill(edge, signal.SIGINT)
        await pause(0.01)
    await on_each_edge(relay)
    assert edge in edges_of(process)


@ensureDeferred
async def test_messages_survive_a_stop(tmp_path: Path, connections: list[Connection]) -> None:
    settings = {"server.processes": EDGES, "store.kind": "sqlite", **QUOTA}
    process = RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519), settings)
    with process:
        client = await Relay(process, connections).connect()
        queue = await make_queue(client, subscribe=False)
        for number in range(5):
            await client.send(queue.sender_id, b"message %d" % number)
        # The reactor stands still while the relay is ended, and could not answer its farewell.
        await close_all(connections)
        connections.clear()
    with process:
        client = await Relay(process, connections).connect()
        await client.subscribe(*queue.own)
        assert (await next_message(client, queue)).body == b"message 0"
        await close_all(connections)
        connections.clear()


@ensureDeferred
async def test_a_new_certificate_is_shown_by_all_edges(
    process: RelayProcess, relay: Relay, tmp_path: Path
) -> None:
    await on_each_edge(relay)
    before = process.log
    os.kill(process.pid, signal.SIGHUP)
    await until(lambda: "certificate read now" in process.log[len(before) :])
    clients = await on_each_edge(relay)
    for client in clients:
        await client.ping()
