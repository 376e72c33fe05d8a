"""Servers of blocks with TLS on their own sockets (smp-wire.md §4, §5)."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import socket
import ssl
import subprocess
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import connectProtocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.coroutines import finish, in_reactor, sleep, until
from tests.txsimplex.block_peers import (
    Bytes,
    Echo,
    Receivers,
    Recorder,
    Records,
    block,
    connect,
    connect_raw,
    context_of_server,
    credentials,
    endpoint_of,
)
from txsimplex import listening, openssl
from txsimplex.block_port import BlockPort, UnixBlockPort
from txsimplex.block_server import BlockServer, HandshakeBudget, UnixBlockServer
from txsimplex.blocks_transport import BLOCK_SIZE, TransportLimits
from txsimplex.tls import client_context

Listen = Callable[..., BlockPort]


def server_ends() -> list[BlockServer]:
    """The connections that the reactor still knows of."""
    from twisted.internet import reactor

    known: Any = reactor
    return [
        each for each in known.getReaders() + known.getWriters() if isinstance(each, BlockServer)
    ]


def calls_waiting() -> list[Any]:
    """Delayed calls of connections and ports."""
    from twisted.internet import reactor

    known: Any = reactor
    ours = (BlockServer, HandshakeBudget)
    calls = known.getDelayedCalls()
    return [call for call in calls if isinstance(getattr(call.func, "__self__", None), ours)]


@pytest.fixture(params=["direct", "public"])
def tls_class(request: pytest.FixtureRequest) -> Any:
    """Each way to OpenSSL that there is."""
    if request.param == "public":
        return openssl.PublicSocketTLS
    if openssl.SocketTLS is openssl.PublicSocketTLS:
        pytest.skip("pyOpenSSL's own functions are out of reach")
    return openssl.DirectSocketTLS


@pytest.fixture
def listen(tls_class: Any) -> Iterator[Listen]:
    """Makes ports; when the test is over they and all their connections must be gone."""
    from twisted.internet import reactor

    class Server(BlockServer):
        pass

    Server.tls_class = tls_class
    ports: list[BlockPort] = []

    def listen(receivers: Receivers, **options: Any) -> BlockPort:
        options.setdefault("interface", "127.0.0.1")
        port = BlockPort(0, receivers, reactor=reactor, **options)
        port.transport = Server
        port.startListening()
        ports.append(port)
        return port

    yield listen

    async def stop() -> None:
        for port in ports:
            stopped: Deferred[None] = port.stopListening()
            await stopped
        await until(lambda: not server_ends())
        await until(lambda: not calls_waiting())

    finish(stop())


async def secured_pair(
    listen: Listen, server: type[Recorder] = Recorder, **options: Any
) -> tuple[Recorder, Recorder]:
    """A server's receiver and a client's, connected."""
    receivers, client = Receivers(server), Recorder()
    await connect(listen(receivers, **options), client)
    await client.until_secured()
    await receivers.made[0].until_secured()
    return receivers.made[0], client


async def close(client: Recorder, server: Recorder) -> None:
    client.transport.loseConnection()
    await client.until_lost()
    await server.until_lost()


# -- setting up


@pytest.mark.parametrize(("version", "size"), [(SSL.TLS1_2_VERSION, 12), (SSL.TLS1_3_VERSION, 32)])
@in_reactor
async def test_both_sides_have_the_same_session_id(version: int, size: int, listen: Listen) -> None:
    context = client_context(alpn=(b"smp/1",))
    context.set_max_proto_version(version)
    receivers, client = Receivers(), Recorder()
    await connect(listen(receivers), client, context=context)
    session_id = (await client.until_secured()).session_id
    [server] = receivers.made
    assert (await server.until_secured()).session_id == session_id
    assert len(session_id) == size
    await close(client, server)
    assert server.times_secured == client.times_secured == 1


@in_reactor
async def test_addresses_are_those_of_the_socket(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    assert server.transport.getPeer() == client.transport.getHost()
    assert server.transport.getHost() == client.transport.getPeer()
    assert "127.0.0.1" not in repr(server.transport)
    await close(client, server)
    assert "closed" in repr(server.transport)


@in_reactor
async def test_ipv6(listen: Listen) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    server, client = await secured_pair(listen, interface="::1")
    peer: Any = server.transport.getPeer()
    assert peer.host == "::1"
    assert peer == client.transport.getHost()
    await close(client, server)


@in_reactor
async def test_small_writes_are_not_held_back(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    transport: Any = server.transport
    assert transport.getTcpNoDelay()
    await close(client, server)


@in_reactor
async def test_a_refused_connection_is_closed(listen: Listen) -> None:
    port = listen(Receivers(lambda: None))
    client = await connect_raw(port, Bytes())
    await client.until_lost()
    assert client.received == b""


@in_reactor
async def test_a_factory_that_fails_loses_one_connection_only(
    listen: Listen, logged_failures: list[Failure]
) -> None:
    answers = [Recorder()]

    def make() -> Recorder:
        if not logged_failures:
            raise RuntimeError("no receiver today")
        return answers[0]

    port = listen(Receivers(make))
    client = await connect_raw(port, Bytes())
    await client.until_lost()
    assert [failure.type for failure in logged_failures] == [RuntimeError]
    other = Recorder()
    await connect(port, other)
    await other.until_secured()
    await answers[0].until_secured()
    await close(other, answers[0])
    logged_failures.clear()


@in_reactor
async def test_a_new_context_serves_those_who_come_later(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers)
    first, second = Recorder(), Recorder()
    await connect(port, first)
    await first.until_secured()
    renewed = credentials(seed=b"renewed")
    receivers.context = context_of_server(renewed)
    await connect(port, second)
    await second.until_secured()
    assert first.peer_chain == credentials().chain
    assert second.peer_chain == renewed.chain
    first.transport.sendBlock(block(1))
    second.transport.sendBlock(block(2))
    await until(lambda: [each.blocks for each in receivers.made] == [[block(1)], [block(2)]])
    await close(first, receivers.made[0])
    await close(second, receivers.made[1])


@in_reactor
async def test_who_was_accepted_before_has_the_context_of_then(listen: Listen) -> None:
    """It belongs to the receiver, which was made at the same time."""
    receivers = Receivers()
    port = listen(receivers)
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    await until(lambda: len(receivers.made) == 1)
    receivers.context = context_of_server(credentials(seed=b"renewed"))
    shown = await deferToThread(leaf_of, client)
    assert shown == credentials().chain[0]


def leaf_of(client: socket.socket) -> bytes:
    """The certificate that a server shows in TLS on a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["smp/1"])
    with context.wrap_socket(client) as connection:
        return connection.getpeercert(binary_form=True) or b""


@in_reactor
async def test_two_ports_can_share_a_number(listen: Listen) -> None:
    one, two = Receivers(), Receivers()
    port = listen(one, reuse_port=True)
    from twisted.internet import reactor

    other = BlockPort(
        port.getHost().port, two, interface="127.0.0.1", reactor=reactor, reuse_port=True
    )
    other.startListening()
    clients = [Recorder() for _ in range(20)]
    for client in clients:
        await connect(port, client)
        await client.until_secured()
    assert len(one.made) + len(two.made) == 20
    for client in clients:
        client.transport.abortConnection()
    for session in one.made + two.made:
        await session.until_lost()
    await other.stopListening()


# -- set-up that does not succeed


@in_reactor
async def test_a_client_that_says_nothing_is_dropped_in_time(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers, limits=TransportLimits(setup_time=0.2))
    client = await connect_raw(port, Bytes())
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionAborted)
    await client.until_lost()
    assert receivers.made[0].times_secured == 0


@in_reactor
async def test_a_client_that_does_not_finish_tls_is_dropped_in_time(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers, limits=TransportLimits(setup_time=2.0))
    records = Records()
    hello = hello_of(records)
    client = await connect_raw(port, Bytes())
    client.tcp.write(hello)
    await until(lambda: len(client.received) > 300)
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionAborted)
    await client.until_lost()


@in_reactor
async def test_a_client_that_sends_its_hello_bytewise_is_dropped_in_time(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers, limits=TransportLimits(setup_time=0.3))
    hello = hello_of(Records())
    client = await connect_raw(port, Bytes())
    for byte in hello[:20]:
        client.tcp.write(bytes([byte]))
        await sleep(0.02)
    await receivers.made[0].until_lost()
    assert receivers.made[0].times_secured == 0
    await client.until_lost()


def hello_of(records: Records) -> bytes:
    with contextlib.suppress(SSL.WantReadError):
        records.tls.do_handshake()
    return records.taken()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\x00" * 300,
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" * 3,
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x40\x00" + bytes(16384),
        b"\x00" * 4096,
        b"\xff" * 40000,
    ],
    ids=["http", "oversize", "cut", "alert", "data", "zeros", "ones"],
)
@in_reactor
async def test_garbage_ends_the_connection_quietly(garbage: bytes, listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Bytes())
    with log_events() as events:
        client.tcp.write(garbage)
        reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionLost)
    assert events == []
    assert receivers.made[0].times_secured == 0
    await client.until_lost()
    assert len(receivers.made[0].reasons) == 1


@implementer(ILogObserver)
class Events(list[LogEvent]):
    """What is logged, but for what the clients' endpoints log."""

    def __call__(self, event: LogEvent) -> None:
        if not str(event.get("log_namespace")).startswith("twisted.internet.endpoints"):
            self.append(event)


@contextlib.contextmanager
def log_events() -> Iterator[list[LogEvent]]:
    events = Events()
    globalLogPublisher.addObserver(events)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(events)


def reset(client: Bytes) -> None:
    client.tcp.abortConnection()


@in_reactor
async def test_a_reset_before_tls(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Bytes())
    await until(lambda: len(receivers.made) == 1)
    with log_events() as events:
        reset(client)
        await receivers.made[0].until_lost()
    assert events == []
    await client.until_lost()


@in_reactor
async def test_a_reset_during_tls(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Bytes())
    client.tcp.write(hello_of(Records()))
    await until(lambda: len(client.received) > 0)
    with log_events() as events:
        reset(client)
        await receivers.made[0].until_lost()
    assert events == []
    await client.until_lost()


@in_reactor
async def test_a_reset_at_the_end_of_tls(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    with log_events() as events:
        reset(client)
        await receivers.made[0].until_lost()
    assert events == []
    await client.until_lost()


@in_reactor
async def test_a_reset_while_blocks_are_underway(listen: Listen) -> None:
    receivers = Receivers(Echo)
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    client.tcp.pauseProducing()
    client.write(block(1) * 40)
    await until(lambda: receivers.made[0].times_secured == 1)
    await sleep(0.1)
    with log_events() as events:
        reset(client)
        await receivers.made[0].until_lost()
    assert events == []
    assert len(receivers.made[0].reasons) == 1
    await client.until_lost()


@in_reactor
async def test_an_end_without_goodbye(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    client.write(block(1))
    await until(lambda: receivers.made[0].blocks == [block(1)])
    client.tcp.loseConnection()
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionLost)
    await client.until_lost()


@in_reactor
async def test_an_end_with_goodbye(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    client.write(block(1))
    client.tls.shutdown()
    client.flush()
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionDone)
    assert receivers.made[0].blocks == [block(1)]
    await client.until_lost()


# -- blocks


@in_reactor
async def test_blocks_go_both_ways_in_order(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    for number in range(60):
        client.transport.sendBlock(block(number))
        server.transport.sendBlock(block(1000 + number))
    await until(lambda: len(client.blocks) == len(server.blocks) == 60)
    assert server.blocks == [block(number) for number in range(60)]
    assert client.blocks == [block(1000 + number) for number in range(60)]
    assert {type(each) for each in server.blocks} == {bytes}
    await close(client, server)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=lambda kind: kind.__name__)
@in_reactor
async def test_a_block_may_be_any_kind_of_bytes(kind: type[Any], listen: Listen) -> None:
    server, client = await secured_pair(listen)
    server.transport.sendBlock(kind(block(7)))
    client.transport.sendBlock(kind(block(8)))
    await until(lambda: len(client.blocks) == len(server.blocks) == 1)
    assert client.blocks == [block(7)]
    assert server.blocks == [block(8)]
    await close(client, server)


@in_reactor
async def test_the_senders_buffer_may_be_used_again(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    client.transport.pauseReading()
    shared = bytearray(BLOCK_SIZE)
    for number in range(600):
        shared[:] = block(number)
        server.transport.sendBlock(memoryview(shared))
    shared[:] = bytes(BLOCK_SIZE)
    assert server.transport.buffered > 0
    client.transport.resumeReading()
    await until(lambda: len(client.blocks) == 600)
    assert client.blocks == [block(number) for number in range(600)]
    await close(client, server)


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE + 1])
@in_reactor
async def test_a_block_of_another_size_is_not_sent(size: int, listen: Listen) -> None:
    server, client = await secured_pair(listen)
    with pytest.raises(ValueError, match="16384"):
        server.transport.sendBlock(bytes(size))
    with pytest.raises(ValueError, match="16384"):
        client.transport.sendBlock(bytes(size))
    transport: Any = server.transport
    with pytest.raises(NotImplementedError):
        transport.write(b"x")
    with pytest.raises(NotImplementedError):
        transport.writeSequence([b"x"])
    await close(client, server)


@pytest.mark.parametrize("size", [1000, 5000, BLOCK_SIZE - 1, BLOCK_SIZE])
@in_reactor
async def test_records_need_not_be_blocks(size: int, listen: Listen) -> None:
    receivers = Receivers(Echo)
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    sent = b"".join(block(number) for number in range(5))
    for start in range(0, len(sent), size):
        client.write(sent[start : start + size])
    await until(lambda: len(client.application_data) == len(sent))
    assert client.application_data == sent
    client.tcp.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@in_reactor
async def test_records_come_in_any_pieces(listen: Listen) -> None:
    receivers = Receivers(Echo)
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    sent = block(1) + block(2)[:700] + block(2)[700:] + block(3)
    for part in (block(1), block(2)[:700], block(2)[700:], block(3)):
        client.tls.send(part)
    encrypted = client.taken()
    for start, end in [(0, 1), (1, 4), (4, 5), (5, 6), (6, 16405), (16405, 16407), (16407, None)]:
        client.tcp.write(encrypted[start:end])
        await sleep(0.02)
    await until(lambda: len(client.application_data) == len(sent))
    assert client.application_data == sent
    client.tcp.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@in_reactor
async def test_records_of_one_byte(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    for byte in block(3)[:2000]:
        client.tls.send(bytes([byte]))
    client.tls.send(block(3)[2000:])
    client.flush()
    await until(lambda: receivers.made[0].blocks == [block(3)])
    client.tcp.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


def waiting_in(pipe: IO[bytes]) -> int:
    """How many bytes the process at its other end has not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("command", ["K", "k"], ids=["update asked for", "update told"])
@in_reactor
async def test_key_updates_are_harmless(command: str, listen: Listen) -> None:
    """OpenSSL's client, told to change its keys between blocks."""
    receivers = Receivers(Echo)
    address: Any = listen(receivers).getHost()
    arguments = ["openssl", "s_client", "-connect", f"127.0.0.1:{address.port}", "-tls1_3"]
    child = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    typed, shown = child.stdin, child.stdout
    sent = b"x" * (BLOCK_SIZE - 1) + b"\n"
    await until(lambda: bool(receivers.made and receivers.made[0].times_secured))
    got, expected = b"", 0
    os.set_blocking(shown.fileno(), False)

    def everything_is_back() -> bool:
        nonlocal got
        got += shown.read() or b""
        return got.count(sent) >= expected

    for _ in range(3):
        typed.write(command.encode() + b"\n")
        typed.flush()
        # It takes the letter for a command where it reads it alone.
        await until(lambda: waiting_in(typed) == 0)
        typed.write(sent)
        typed.flush()
        expected += 1
        await until(everything_is_back)
    assert got.count(sent) == 3
    typed.close()
    await receivers.made[0].until_lost()
    await deferToThread(child.wait)
    shown.close()


# -- back-pressure


@in_reactor
async def test_a_peer_that_does_not_read_pauses_its_sender(listen: Listen) -> None:
    limits = TransportLimits(high_water=10, low_water=3)
    server, client = await secured_pair(listen, limits=limits)
    client.transport.pauseReading()
    sent = 0
    while not server.paused:
        server.transport.sendBlock(block(sent))
        sent += 1
        assert sent < 2000
        if sent % 20 == 0:
            await sleep(0)
    assert server.transport.buffered == 10 * BLOCK_SIZE
    assert server.resumed == 0
    server.transport.sendBlock(block(sent))
    assert server.paused == 1
    assert client.blocks == []
    client.transport.resumeReading()
    await until(lambda: server.resumed == 1)
    assert server.transport.buffered <= 10 * BLOCK_SIZE
    await until(lambda: len(client.blocks) == sent + 1)
    assert client.blocks == [block(number) for number in range(sent + 1)]
    assert server.transport.buffered == 0
    server.transport.sendBlock(block(sent + 1))
    await until(lambda: len(client.blocks) == sent + 2)
    await close(client, server)


@in_reactor
async def test_a_client_that_sends_and_never_reads_is_bounded(listen: Listen) -> None:
    receivers = Receivers(Echo, context_of_server())
    port = listen(receivers, limits=TransportLimits(high_water=4, low_water=1))
    hostile = await connect_raw(port, Records())
    await hostile.ready
    hostile.tcp.pauseProducing()
    other = Recorder()
    await connect(port, other)
    await other.until_secured()
    most = 0
    for _ in range(2000):
        hostile.write(block(1) * 10)
        await sleep(0)
        most = max(most, receivers.made[0].transport.buffered)
        if receivers.made[0].paused:
            break
    await sleep(0.1)
    assert receivers.made[0].paused == 1
    assert most <= 5 * BLOCK_SIZE
    # The other one is served meanwhile.
    other.transport.sendBlock(block(2))
    await until(lambda: other.blocks == [block(2)])
    hostile.tcp.abortConnection()
    await receivers.made[0].until_lost()
    await hostile.until_lost()
    await close(other, receivers.made[1])


@in_reactor
async def test_bursts_arrive_whole_when_written_in_parts(listen: Listen) -> None:
    """The kernel's buffers are made small, so that hardly a record goes out in one piece."""
    server, client = await secured_pair(listen)
    transport: Any = server.transport
    transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = []
    for burst in range(15):
        for number in range(burst * 3):
            server.transport.sendBlock(block(burst * 100 + number))
            sent.append(block(burst * 100 + number))
        await sleep(0)
    await until(lambda: len(client.blocks) == len(sent))
    assert client.blocks == sent
    assert server.resumed == server.paused > 0
    await close(client, server)


@in_reactor
async def test_nothing_is_delivered_while_reading_is_paused(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    server.transport.pauseReading()
    for number in range(5):
        client.transport.sendBlock(block(number))
    await sleep(0.1)
    assert server.blocks == []
    server.transport.resumeReading()
    server.transport.resumeReading()
    await until(lambda: len(server.blocks) == 5)
    server.transport.pauseReading()
    server.transport.pauseReading()
    client.transport.loseConnection()
    await sleep(0.1)
    assert server.reasons == []
    server.transport.resumeReading()
    await server.until_lost()
    await client.until_lost()
    server.transport.resumeReading()
    server.transport.pauseReading()
    assert server.blocks == [block(number) for number in range(5)]


class OneAtATime(Recorder):
    """Pauses after each block, and goes on in the next turn."""

    def blockReceived(self, block: bytes) -> None:
        from twisted.internet import reactor

        clock: Any = reactor
        super().blockReceived(block)
        self.transport.pauseReading()
        clock.callLater(0, self.transport.resumeReading)


@in_reactor
async def test_reading_may_be_paused_by_each_block(listen: Listen) -> None:
    server, client = await secured_pair(listen, OneAtATime)
    for number in range(30):
        client.transport.sendBlock(block(number))
    await until(lambda: len(server.blocks) == 30)
    assert server.blocks == [block(number) for number in range(30)]
    await sleep(0)
    await close(client, server)


# -- closing


@in_reactor
async def test_an_orderly_close_writes_all_that_is_buffered(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    client.transport.pauseReading()
    sent = [block(number) for number in range(500)]
    for each in sent:
        server.transport.sendBlock(each)
    assert server.transport.buffered > 0
    server.transport.loseConnection()
    server.transport.loseConnection()
    server.transport.sendBlock(block(5000))
    await sleep(0.05)
    client.transport.resumeReading()
    client_reason, server_reason = await client.until_lost(), await server.until_lost()
    assert client.blocks == sent
    assert client_reason.check(error.ConnectionDone)
    assert server_reason.check(error.ConnectionDone)
    assert len(server.reasons) == len(client.reasons) == 1


@in_reactor
async def test_an_orderly_close_says_goodbye(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    server = await receivers.made[0].until_secured()
    server.sendBlock(block(1))
    server.loseConnection()
    await until(lambda: client.clean_end)
    assert client.application_data == block(1)
    client.tcp.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@in_reactor
async def test_what_comes_after_a_close_is_not_delivered_and_does_no_harm(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    for number in range(50):
        server.transport.sendBlock(block(number))
    for number in range(50):
        client.transport.sendBlock(block(number))
    server.transport.loseConnection()
    await client.until_lost()
    await server.until_lost()
    # Unread data in the server's socket has not made it reset the connection.
    assert client.blocks == [block(number) for number in range(50)]
    assert server.blocks == []


@in_reactor
async def test_a_close_that_cannot_be_finished_is_cut_short(listen: Listen) -> None:
    server, client = await secured_pair(listen, limits=TransportLimits(close_time=0.2))
    client.transport.pauseReading()
    for number in range(1000):
        server.transport.sendBlock(block(number))
    server.transport.loseConnection()
    reason = await server.until_lost()
    assert reason.check(error.ConnectionAborted)
    client.transport.resumeReading()
    await client.until_lost()
    assert len(client.blocks) < 1000


@in_reactor
async def test_a_peer_that_does_not_close_is_not_waited_for_long(listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers, limits=TransportLimits(close_time=0.2)), Bytes())
    records = Records()
    client.tcp.write(hello_of(records))
    await until(lambda: len(client.received) > 300)
    records.tls.bio_write(client.received)
    records.tls.do_handshake()
    client.tcp.write(records.taken())
    server = await receivers.made[0].until_secured()
    client.tcp.pauseProducing()
    server.loseConnection()
    client.tcp.write(b"x" * 100_000)
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionAborted)
    client.tcp.resumeProducing()
    await client.until_lost()


@in_reactor
async def test_an_abort_is_immediate(listen: Listen) -> None:
    server, client = await secured_pair(listen)
    client.transport.pauseReading()
    for number in range(500):
        server.transport.sendBlock(block(number))
    server.transport.abortConnection()
    server.transport.abortConnection()
    server.transport.sendBlock(block(0))
    server.transport.loseConnection()
    server.transport.resumeReading()
    assert server.reasons == []
    reason = await server.until_lost()
    assert reason.check(error.ConnectionAborted)
    assert server.transport.buffered == 0
    client.transport.resumeReading()
    await client.until_lost()
    assert len(server.reasons) == 1


class EndsAtTheFirstBlock(Recorder):
    def __init__(self, end: str) -> None:
        super().__init__()
        self._end = end

    def blockReceived(self, block: bytes) -> None:
        super().blockReceived(block)
        self.transport.sendBlock(block)
        getattr(self.transport, self._end)()


@pytest.mark.parametrize("end", ["loseConnection", "abortConnection"])
@in_reactor
async def test_the_receiver_may_end_it_while_it_is_given_a_block(end: str, listen: Listen) -> None:
    receivers, client = Receivers(lambda: EndsAtTheFirstBlock(end)), Recorder()
    await connect(listen(receivers), client)
    transport = await client.until_secured()
    for number in range(10):
        transport.sendBlock(block(number))
    await receivers.made[0].until_lost()
    await client.until_lost()
    assert receivers.made[0].blocks == [block(0)]


class Faulty(Recorder):
    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def secured(self, transport: Any) -> None:
        super().secured(transport)
        if self._where == "secured":
            raise RuntimeError("receiver's fault")

    def blockReceived(self, block: bytes) -> None:
        raise RuntimeError("receiver's fault")


@pytest.mark.parametrize("where", ["secured", "blockReceived"])
@in_reactor
async def test_a_receivers_fault_ends_its_connection_only(where: str, listen: Listen) -> None:
    receivers = Receivers(lambda: Faulty(where) if not receivers.made else Recorder())
    port = listen(receivers)
    client, other = Recorder(), Recorder()
    await connect(port, client)
    transport = await client.until_secured()
    with log_events() as events:
        transport.sendBlock(block(1))
        reason = await receivers.made[0].until_lost()
    assert reason.check(RuntimeError)
    await client.until_lost()
    assert where == "secured" or [event["failure"].type for event in events] == [RuntimeError]
    await connect(port, other)
    await other.until_secured()
    await receivers.made[1].until_secured()
    await close(other, receivers.made[1])


@in_reactor
async def test_the_port_closes_without_its_connections(listen: Listen) -> None:
    receivers, client = Receivers(), Recorder()
    port = listen(receivers)
    await connect(port, client)
    await client.until_secured()
    stopped: Deferred[None] = port.stopListening()
    await stopped
    client.transport.sendBlock(block(1))
    await until(lambda: receivers.made[0].blocks == [block(1)])
    await close(client, receivers.made[0])
    port.startListening()


# -- many


def descriptors() -> int:
    return len(open_descriptors())


def open_descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


@pytest.mark.parametrize(
    "finish_tls",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["without TLS", "with TLS"],
)
@in_reactor
async def test_a_thousand_connections_leave_nothing_behind(
    finish_tls: bool, listen: Listen
) -> None:
    receivers = Receivers()
    port = listen(receivers)
    before = descriptors()
    context = client_context(alpn=(b"smp/1",))
    for _ in range(20):
        clients = [Records(context) if finish_tls else Bytes() for _ in range(50)]
        await gatherResults([connectProtocol(endpoint_of(port), client) for client in clients])
        for client in clients:
            if isinstance(client, Records):
                await client.ready
        for number, client in enumerate(clients):
            if number % 2:
                client.tcp.abortConnection()
            else:
                client.tcp.loseConnection()
        for client in clients:
            await client.until_lost()
    await until(lambda: len(receivers.made) == 1000)
    await until(lambda: all(receiver.reasons for receiver in receivers.made))
    assert [len(receiver.reasons) for receiver in receivers.made] == [1] * 1000
    assert descriptors() <= before
    assert calls_waiting() == []
    assert server_ends() == []


@in_reactor
async def test_a_lack_of_descriptors_is_survived(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers)
    first = Recorder()
    await connect(port, first)
    await first.until_secured()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sockets = [socket.socket() for _ in range(5)]
    with log_events() as events:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()), hard))
        try:
            filler = fill_descriptors()
            for each in sockets:
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", port.getHost().port))
            await until(lambda: told_of_lack(events))
            first.transport.sendBlock(block(1))
            await until(lambda: receivers.made[0].blocks == [block(1)])
        finally:
            for descriptor in filler:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not any("127.0.0.1" in str(event) for event in events)
    for each in sockets:
        each.close()
    second = Recorder()
    await connect(port, second)
    await second.until_secured()
    await close(first, receivers.made[0])
    await close(second, receivers.made[-1])


@in_reactor
async def test_a_port_of_twisteds_names_nobody_when_descriptors_lack() -> None:
    """As an endpoint has it that puts a protocol between."""
    from twisted.internet import reactor

    port: Any = await listening.listen(reactor, "haproxy:tcp:0:interface=127.0.0.1", Receivers())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, log_events() as events:
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()), hard))
        try:
            filler = fill_descriptors()
            client.connect_ex(("127.0.0.1", port.getHost().port))
            await until(lambda: told_of_lack(events))
        finally:
            for descriptor in filler:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not any("127.0.0.1" in str(event) for event in events)
    await port.stopListening()


def told_of_lack(events: Sequence[LogEvent]) -> bool:
    return any("EMFILE" in str(event.get("log_format")) for event in events)


def fill_descriptors() -> list[int]:
    filler = []
    with contextlib.suppress(OSError):
        while True:
            filler.append(os.open(os.devnull, os.O_RDONLY))
    return filler


def test_the_budget_of_handshakes_is_renewed_in_the_next_turn() -> None:
    clock: Any = Clock()
    budget = HandshakeBudget(clock, share=0.010)
    budget.spend(0.004)
    assert budget.available()
    assert clock.getDelayedCalls() == []
    budget.spend(0.007)
    assert not budget.available()
    budget.spend(0.001)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert budget.available()
    assert clock.getDelayedCalls() == []


@in_reactor
async def test_handshakes_beyond_the_budget_are_made_in_later_turns(listen: Listen) -> None:
    from twisted.internet import reactor

    clock: Any = reactor
    receivers = Receivers()
    port = listen(receivers, handshakes=HandshakeBudget(clock, share=0.000001))
    clients = [Recorder() for _ in range(30)]
    for client in clients:
        await connect(port, client)
    for client in clients:
        await client.until_secured()
    for client in clients:
        client.transport.loseConnection()
    for receiver in receivers.made:
        await receiver.until_lost()
    for client in clients:
        await client.until_lost()


# -- Unix sockets


@in_reactor
async def test_a_unix_socket(tmp_path: Path, tls_class: Any) -> None:
    from twisted.internet import reactor

    class Server(UnixBlockServer):
        pass

    Server.tls_class = tls_class
    receivers = Receivers(Echo)
    path = tmp_path / "socket"
    port = UnixBlockPort(str(path).encode(), receivers, reactor=reactor)
    port.transport = Server
    port.startListening()
    assert path.stat().st_mode & 0o777 == 0o600
    client = Recorder()
    await connect(port, client)
    transport = await client.until_secured()
    server = await receivers.made[0].until_secured()
    assert server.session_id == transport.session_id
    host, peer = server.getHost(), server.getPeer()
    assert (host.name, peer.name) == (str(path).encode(), None)  # type: ignore[attr-defined]
    for number in range(100):
        transport.sendBlock(block(number))
    await until(lambda: len(client.blocks) == 100)
    assert client.blocks == [block(number) for number in range(100)]
    await close(client, receivers.made[0])
    stopped: Deferred[None] = port.stopListening()
    await stopped
    assert not path.exists()
