"""A relay whose PostgreSQL database fails: clients are told, nothing is lost, it recovers."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import psycopg
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from bench.postgres_server import PostgresServer
from smpd.stores.postgres_database import KeptConnection, connect, upgrade
from smpd.stores.postgres_store import PostgresStore
from tests.conformance.clients import (
    Connection,
    Queue,
    Relay,
    close_all,
    make_queue,
    next_event,
    next_message,
    of,
    pause,
)
from tests.conformance.operated import OperatedRelay
from tests.conformance.relays import Credentials, RelayProcess
from tests.smpd.stores.postgres_sites import before, pid_of, terminate
from tests.stalls import Stalls, at_most
from txsimplex.client.errors import RelayError
from txsimplex.client.smp import SMPClient
from txsimplex.smp.messages import Msg

pytestmark = pytest.mark.slow

PATIENCE = 3.0
"""Seconds that the relay waits for its database."""
SETTINGS = {"store.kind": "postgres", "store.answer_timeout": PATIENCE, "queues.quota": 1000}
RECOVERY = 10.0
"""Seconds within which all goes on when nothing is in its way any more."""
TROUBLE = "it is tried again and again"
BACK = "the database answers again"


def tables_in(server: PostgresServer) -> str:
    """A database with the tables of a relay."""
    database = server.database()
    with connect(database) as connection:
        upgrade(connection)
    return database


@pytest.fixture
def process(own_postgres_server: PostgresServer, tmp_path: Path) -> Iterator[RelayProcess]:
    """A relay whose database's server is the test's own."""
    database = tables_in(own_postgres_server)
    process = RelayProcess(tmp_path, Credentials.make(), {**SETTINGS, "store.database": database})
    with process:
        yield process
        own_postgres_server.start()
        own_postgres_server.go_on()
    assert "Traceback" not in process.log, process.log


@pytest.fixture
def relay(process: RelayProcess, connections: list[Connection]) -> Relay:
    """The same for clients."""
    return Relay(process, connections)


async def answer(client: SMPClient, queue: Queue, body: bytes = b"hello") -> str:
    """The answer to SEND."""
    try:
        await client.send(queue.sender_id, body)
    except RelayError as error:
        return str(error.error)
    return "OK"


async def until_ok(client: SMPClient, queue: Queue, body: bytes) -> float:
    """Sends until it is taken; how many seconds that took."""
    start = time.monotonic()
    with at_most(RECOVERY):
        while (told := await answer(client, queue, body)) != "OK":
            assert told.startswith("STORE "), told
            assert time.monotonic() - start < 60
            await pause(0.02)
    return time.monotonic() - start


async def all_of(client: SMPClient, queue: Queue, last: bytes) -> list[bytes]:
    """The bodies of all messages of a queue, up to the last one."""
    await client.subscribe(*queue.own)
    message: Msg | None = of(Msg, await next_event(client))
    bodies = []
    while message is not None:
        bodies.append(queue.open(message).body)
        message = await client.ack(*queue.own, message.msg_id)
    assert bodies[-1] == last
    return bodies


def told(process: RelayProcess) -> list[str]:
    """What it has logged of the database."""
    return [
        line.partition("the store: ")[2]
        for line in process.log.splitlines()
        if "the store: " in line
    ]


# -- the server goes away


@pytest.mark.parametrize("how", ["kill", "stop"])
@ensureDeferred
async def test_a_server_that_comes_back(
    own_postgres_server: PostgresServer, process: RelayProcess, relay: Relay, how: str
) -> None:
    """After a crash, and after a stop in order, longer than anything waits for it."""
    server = own_postgres_server
    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient, subscribe=False)
    await sender.send(queue.sender_id, b"before")
    under_way = [
        Deferred.fromCoroutine(answer(await relay.connect(), queue, b"%d" % number))
        for number in range(10)
    ]
    await deferToThread(server.kill if how == "kill" else server.stop)
    answers = await gatherResults(under_way)
    start = time.monotonic()
    with Stalls() as stalls:
        refused_with = await answer(sender, queue, b"meanwhile")
    assert PATIENCE - 0.5 < time.monotonic() - start < PATIENCE + 3.0 + stalls.longest
    assert refused_with.startswith("STORE the database"), refused_with
    await sender.ping()
    await deferToThread(server.start)
    await until_ok(sender, queue, b"after")
    bodies = await all_of(recipient, queue, b"after")
    assert bodies[0] == b"before"
    # What was answered with OK is there, and nothing is there twice.
    for number, each in enumerate(answers):
        count = bodies.count(b"%d" % number)
        assert count == 1 if each == "OK" else count <= 1
    lines = told(process)
    assert lines[-1] == BACK
    assert 2 <= len([line for line in lines if TROUBLE in line or line == BACK]) <= 6, lines


@ensureDeferred
async def test_a_server_that_stops_answering(
    own_postgres_server: PostgresServer, tmp_path: Path, connections: list[Connection]
) -> None:
    """It is paused, with its connections: the reactor never waits for it."""
    server = own_postgres_server
    settings = {**SETTINGS, "store.database": tables_in(server)}
    operated = OperatedRelay(tmp_path, settings)
    operated.start()
    turns: list[float] = []
    ticking = LoopingCall(lambda: turns.append(time.monotonic()))
    try:
        relay = Relay(operated, connections)
        sender, other = await relay.connect(), await relay.connect()
        queue = await make_queue(other, subscribe=False)
        await deferToThread(server.pause)
        ticking.start(0.005)
        pings = []
        asked = [Deferred.fromCoroutine(answer(sender, queue)) for _ in range(20)]
        start = time.monotonic()
        with Stalls() as stalls:
            while time.monotonic() - start < PATIENCE + 2.0:
                before = time.monotonic()
                await other.ping()
                pings.append(time.monotonic() - before)
                await pause(0.02)
            answers = await gatherResults(asked)
        ticking.stop()
        assert all(each.startswith("STORE the database") for each in answers), answers
        gaps = sorted(b - a for a, b in pairwise(turns))
        assert gaps[len(gaps) * 99 // 100] < 0.1
        assert gaps[-1] < 0.5 + stalls.longest
        assert median(pings) < 0.1
        await deferToThread(server.go_on)
        await until_ok(sender, queue, b"after")
    finally:
        server.go_on()
        if ticking.running:
            ticking.stop()
        await close_all(connections)
        connections.clear()
        await operated.end()


# -- other relays


@ensureDeferred
async def test_a_relay_that_is_stopped_in_a_transaction(
    own_postgres_server: PostgresServer, process: RelayProcess, relay: Relay
) -> None:
    """It keeps what it has locked until the database ends its session, and nothing else."""
    recipient = await relay.connect()
    locked = [await make_queue(recipient) for _ in range(40)]
    free = await make_queue(recipient, subscribe=False)
    stopped = KeptConnection(str(process.settings["store.database"])).get()
    stopped.execute(
        "SELECT FROM queue_state JOIN queue USING (number) WHERE recipient_id = ANY(%s)"
        " FOR UPDATE OF queue_state",
        ([queue.recipient_id for queue in locked],),
    )
    start = time.monotonic()
    senders = [await relay.connect() for _ in locked]
    asked = [
        Deferred.fromCoroutine(answer(sender, queue))
        for sender, queue in zip(senders, locked, strict=True)
    ]
    other = await relay.connect()
    times = []
    with Stalls() as stalls:
        while time.monotonic() - start < PATIENCE + 1.0:
            before = time.monotonic()
            assert await answer(other, free) == "OK"
            times.append(time.monotonic() - before)
            # Less than what a queue holds, however fast it goes.
            await pause(0.05)
        answers = await gatherResults(asked)
    assert set(answers) == {"STORE the database does not answer in time"}
    assert median(times) < 0.25
    assert max(times) < PATIENCE + stalls.longest
    assert TROUBLE not in process.log
    # The database's own limit is 10 seconds.
    with Stalls() as later:
        took = await until_ok(senders[0], locked[0], b"after")
    limit = 10 + PATIENCE + 2 + stalls.longest + later.longest
    assert time.monotonic() - start < limit, took
    for sender, queue in zip(senders[1:], locked[1:], strict=True):
        assert await answer(sender, queue, b"after") == "OK"
    for _ in locked:
        await next_event(recipient)
    stopped.close()


@ensureDeferred
async def test_a_relay_process_that_is_stopped(
    own_postgres_server: PostgresServer,
    process: RelayProcess,
    relay: Relay,
    connections: list[Connection],
    tmp_path: Path,
) -> None:
    """With its clients' work in all states; it goes on after that as if nothing had been."""
    directory = tmp_path / "another"
    directory.mkdir(mode=0o700)
    settings = {**SETTINGS, "store.database": process.settings["store.database"]}
    with RelayProcess(directory, process.credentials, settings) as second:
        there = Relay(second, connections)
        recipient = await relay.connect()
        queues = [await make_queue(recipient, subscribe=False) for _ in range(6)]
        own = await make_queue(recipient, subscribe=False)
        stopping = [await there.connect() for _ in queues]
        going = [await relay.connect() for _ in queues]
        # Commands of one connection wait for each other.
        apart = await relay.connect()
        taken: list[list[bytes]] = [[] for _ in queues]
        end = time.monotonic() + 5.5

        async def send(client: SMPClient, number: int, name: bytes) -> None:
            count = 0
            while time.monotonic() < end:
                body = b"%s %d" % (name, count)
                count += 1
                if await answer(client, queues[number], body) == "OK":
                    taken[number].append(body)
                await pause(0.02)

        work = [
            Deferred.fromCoroutine(send(client, number, name))
            for name, clients in ((b"stopped", stopping), (b"going", going))
            for number, client in enumerate(clients)
        ]
        await pause(0.5)
        os.kill(second.pid, signal.SIGSTOP)
        times = []
        start = time.monotonic()
        try:
            while time.monotonic() - start < 4.0:
                before = time.monotonic()
                assert await answer(apart, own) == "OK"
                times.append(time.monotonic() - before)
                await pause(0.05)
        finally:
            os.kill(second.pid, signal.SIGCONT)
        await gatherResults(work)
        assert median(times) < 0.5
        for number, queue in enumerate(queues):
            last = b"last"
            await until_ok(going[number], queue, last)
            bodies = await all_of(recipient, queue, last)
            assert set(taken[number]) <= set(bodies)
            assert len(set(bodies)) == len(bodies)
            for name in (b"stopped", b"going"):
                numbers = [int(each.split()[1]) for each in bodies if each.startswith(name)]
                assert numbers == sorted(numbers)
        assert "Traceback" not in second.log


# -- it can be read only


@ensureDeferred
async def test_read_only(
    own_postgres_server: PostgresServer, process: RelayProcess, relay: Relay
) -> None:
    def read_only(state: str) -> None:
        with psycopg.connect(own_postgres_server.dsn, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}")
            connection.execute("SELECT pg_reload_conf()")

    recipient, sender = await relay.connect(), await relay.connect()
    queue = await make_queue(recipient, subscribe=False)
    taken, deadline = 0, time.monotonic() + RECOVERY
    try:
        await deferToThread(read_only, "on")
        await pause(0.5)
        # The server's processes hear of it some time after who has asked for it.
        while (first := await answer(sender, queue)) == "OK":
            assert time.monotonic() < deadline
            taken += 1
            await pause(0.1)
        for told_it in (first, await answer(sender, queue)):
            assert told_it == "STORE the database is read-only"
    finally:
        await deferToThread(read_only, "off")
    await until_ok(sender, queue, b"after")
    assert await all_of(recipient, queue, b"after") == [b"hello"] * taken + [b"after"]
    lines = [line for line in told(process) if TROUBLE in line or line == BACK]
    assert lines == [f"the database is read-only; {TROUBLE}", BACK]


@pytest.fixture
def small_server() -> Iterator[PostgresServer]:
    """A server whose file system is small."""
    if os.geteuid():
        pytest.skip("may not mount a file system")
    place = Path(tempfile.mkdtemp(prefix="small-"))
    place.chmod(0o755)
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(place)],
            check=False,
            capture_output=True,
        )
        if mounted.returncode:
            pytest.skip("may not mount a file system")
        try:
            settings = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
            with PostgresServer(parent=place, settings=settings) as server:
                yield server
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        place.rmdir()


@ensureDeferred
async def test_no_room(
    small_server: PostgresServer, tmp_path: Path, connections: list[Connection]
) -> None:
    """Its disk is full; when there is room again, all goes on."""
    database = tables_in(small_server)
    with RelayProcess(
        tmp_path, Credentials.make(), {**SETTINGS, "store.database": database}
    ) as process:
        relay = Relay(process, connections)
        recipient, sender = await relay.connect(), await relay.connect()
        queue = await make_queue(recipient, subscribe=False)
        await sender.send(queue.sender_id, b"before")
        ballast = small_server.directory / "ballast"

        def fill() -> None:
            with ballast.open("wb") as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
                except OSError:
                    pass

        await deferToThread(fill)
        told_it: str = "OK"
        sent = 0
        while told_it == "OK" and sent < 900:
            told_it = await answer(sender, queue, bytes(15_000))
            sent += told_it == "OK"
        assert told_it == "STORE the database has no room", told_it
        assert await answer(sender, queue, bytes(15_000)) == "STORE the database has no room"
        ballast.unlink()
        small_server.start()
        await until_ok(sender, queue, b"after")
        bodies = await all_of(recipient, queue, b"after")
        assert len(bodies) >= sent + 2
        lines = [line for line in told(process) if TROUBLE in line or line == BACK]
        assert lines[-1] == BACK
        assert len(lines) <= 6, lines
        assert "Traceback" not in process.log
        await close_all(connections)
        connections.clear()


# -- answers that were given up


@pytest.mark.parametrize("how", ["lost", "late"])
@ensureDeferred
async def test_an_acknowledgement_in_doubt(
    postgres_server: PostgresServer, tmp_path: Path, connections: list[Connection], how: str
) -> None:
    """Its answer is an error, and would have brought the next message: delivery goes on after it.

    `lost`: another relay has changed the queue meanwhile; `late`: it is done after all.
    """
    database = tables_in(postgres_server)
    settings = {**SETTINGS, "store.database": database, "store.connections": 1}
    operated = OperatedRelay(tmp_path, settings)
    operated.start()
    try:
        relay = Relay(operated, connections)
        recipient, sender = await relay.connect(), await relay.connect()
        queue = await make_queue(recipient)
        for body in (b"one", b"two", b"three"):
            await sender.send(queue.sender_id, body)
        message = of(Msg, await next_event(recipient))
        store = operated.service.relay.store
        assert isinstance(store, PostgresStore)
        lane = store._admission._lanes[0].lane

        def be_lost() -> None:
            terminate(database, pid_of(lane))
            with psycopg.connect(database) as connection:
                connection.execute("UPDATE smpd.queue_state SET version = version + 1")

        def be_late() -> None:
            time.sleep(PATIENCE + 1.0)

        before(lane, "write", be_lost if how == "lost" else be_late)
        with pytest.raises(RelayError, match="STORE"):
            await recipient.ack(*queue.own, message.msg_id)
        again = of(Msg, await next_event(recipient))
        assert queue.open(again).body == (b"one" if how == "lost" else b"two")
        bodies = []
        following: Msg | None = again
        while following is not None:
            bodies.append(queue.open(following).body)
            following = await recipient.ack(*queue.own, following.msg_id)
        assert bodies[-2:] == [b"two", b"three"]
        await sender.send(queue.sender_id, b"four")
        assert (await next_message(recipient, queue)).body == b"four"
    finally:
        await close_all(connections)
        connections.clear()
        await operated.end()
