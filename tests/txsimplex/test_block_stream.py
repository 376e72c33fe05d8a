"""Blocks over TLS over any stream (smp-wire.md §4, §5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.coroutines import finish, in_reactor, sleep, until
from tests.txsimplex.block_peers import (
    Bytes,
    Echo,
    Receivers,
    Recorder,
    Records,
    block,
    connect_raw,
    context_of_server,
    credentials,
    endpoint_of,
)
from txsimplex import block_stream, openssl
from txsimplex.block_port import BlockPort
from txsimplex.block_stream import BlockStream
from txsimplex.blocks_transport import BLOCK_SIZE, TransportLimits
from txsimplex.tls import _use_credentials, client_context

LIMITS = TransportLimits()


class PublicStream(BlockStream):
    """By pyOpenSSL's public interface."""

    tls_class = openssl.PublicMemoryTLS


@pytest.fixture(params=["direct", "public"])
def stream(request: pytest.FixtureRequest) -> type[BlockStream]:
    """Each way to OpenSSL that there is."""
    if request.param == "public":
        return PublicStream
    if openssl.MemoryTLS is openssl.PublicMemoryTLS:
        pytest.skip("pyOpenSSL's own functions are out of reach")
    return BlockStream


class Streams(Factory):
    """A server's streams, for an ordinary port of Twisted's."""

    noisy = False

    def __init__(
        self, receivers: Receivers, stream: type[BlockStream], limits: TransportLimits
    ) -> None:
        self._receivers = receivers
        self._stream = stream
        self._limits = limits

    def buildProtocol(self, addr: IAddress | None) -> BlockStream:
        from twisted.internet import reactor

        clock: Any = reactor
        assert addr is not None
        receiver = self._receivers.buildReceiver(addr)
        assert receiver is not None
        context = self._receivers.context
        return self._stream(receiver, context, server=True, clock=clock, limits=self._limits)


Listen = Callable[..., IListeningPort]


def calls_waiting() -> list[Any]:
    """Delayed calls of streams."""
    from twisted.internet import reactor

    known: Any = reactor
    calls = known.getDelayedCalls()
    return [call for call in calls if isinstance(getattr(call.func, "__self__", None), BlockStream)]


@pytest.fixture(params=["on the socket", "by the transport"])
def listen(
    request: pytest.FixtureRequest, stream: type[BlockStream], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Listen]:
    """Makes ports whose connections are streams; at the end nothing of them must be left."""
    from twisted.internet import reactor

    known: Any = reactor
    if request.param == "by the transport":
        monkeypatch.setattr(block_stream, "_bare_socket", lambda transport: None)
    ports: list[IListeningPort] = []
    made: list[Receivers] = []

    def listen(receivers: Receivers, *, limits: TransportLimits = LIMITS) -> IListeningPort:
        factory = Streams(receivers, stream, limits)
        port: IListeningPort = known.listenTCP(0, factory, interface="127.0.0.1")
        ports.append(port)
        made.append(receivers)
        return port

    yield listen

    async def stop() -> None:
        for port in ports:
            stopped: Any = port.stopListening()
            await stopped
        await until(lambda: all(each.reasons for receivers in made for each in receivers.made))
        await until(lambda: not calls_waiting())

    finish(stop())


async def connect(
    port: IListeningPort,
    receiver: Recorder,
    stream: type[BlockStream],
    *,
    context: SSL.Context | None = None,
    limits: TransportLimits = LIMITS,
) -> BlockStream:
    from twisted.internet import reactor

    clock: Any = reactor
    context = context or client_context(alpn=(b"smp/1",))
    client = stream(receiver, context, server=False, clock=clock, limits=limits)
    await connectProtocol(endpoint_of(port), client)
    return client


async def secured_pair(
    listen: Listen, stream: type[BlockStream], make: type[Recorder] = Recorder, **options: Any
) -> tuple[Recorder, Recorder]:
    receivers, client = Receivers(make), Recorder()
    await connect(listen(receivers, **options), client, stream, **options)
    await client.until_secured()
    await receivers.made[0].until_secured()
    return receivers.made[0], client


async def close(client: Recorder, server: Recorder) -> None:
    client.transport.loseConnection()
    await client.until_lost()
    await server.until_lost()


# -- over real sockets


@pytest.mark.parametrize(("version", "size"), [(SSL.TLS1_2_VERSION, 12), (SSL.TLS1_3_VERSION, 32)])
@in_reactor
async def test_what_both_sides_learn_of_each_other(
    version: int, size: int, listen: Listen, stream: type[BlockStream]
) -> None:
    own = credentials(seed=b"client")
    context = client_context(alpn=(b"smp/1",), chain=own.chain, private_key=own.key)
    context.set_max_proto_version(version)
    receivers, client = Receivers(), Recorder()
    await connect(listen(receivers), client, stream, context=context)
    near = await client.until_secured()
    [server] = receivers.made
    far = await server.until_secured()
    assert near.session_id == far.session_id
    assert len(near.session_id) == size
    assert near.alpn == far.alpn == b"smp/1"
    assert client.peer_chain == credentials().chain
    assert server.peer_chain == own.chain
    assert near.getPeer() == far.getHost()
    assert near.getHost() == far.getPeer()
    await close(client, server)
    assert client.times_secured == server.times_secured == 1
    assert len(client.reasons) == len(server.reasons) == 1


@in_reactor
async def test_blocks_go_both_ways_in_order(listen: Listen, stream: type[BlockStream]) -> None:
    server, client = await secured_pair(listen, stream)
    shared = bytearray(BLOCK_SIZE)
    for number in range(100):
        shared[:] = block(number)
        client.transport.sendBlock(memoryview(shared))
        server.transport.sendBlock(block(1000 + number))
    await until(lambda: len(client.blocks) == len(server.blocks) == 100)
    assert server.blocks == [block(number) for number in range(100)]
    assert client.blocks == [block(1000 + number) for number in range(100)]
    assert {type(each) for each in server.blocks} == {bytes}
    await close(client, server)


@in_reactor
async def test_a_peer_that_does_not_read_pauses_its_sender(
    listen: Listen, stream: type[BlockStream]
) -> None:
    limits = TransportLimits(high_water=10, low_water=3)
    server, client = await secured_pair(listen, stream, limits=limits)
    client.transport.pauseReading()
    sent = 0
    while not server.paused:
        server.transport.sendBlock(block(sent))
        sent += 1
        assert sent < 2000
    assert server.transport.buffered == 10 * BLOCK_SIZE
    server.transport.sendBlock(block(sent))
    assert (server.paused, server.resumed) == (1, 0)
    client.transport.resumeReading()
    await until(lambda: len(client.blocks) == sent + 1)
    assert (server.paused, server.resumed) == (1, 1)
    assert client.blocks == [block(number) for number in range(sent + 1)]
    assert server.transport.buffered == 0
    await close(client, server)


@in_reactor
async def test_an_orderly_close_writes_all_that_is_buffered(
    listen: Listen, stream: type[BlockStream]
) -> None:
    server, client = await secured_pair(listen, stream)
    client.transport.pauseReading()
    sent = [block(number) for number in range(600)]
    for each in sent:
        server.transport.sendBlock(each)
    assert server.transport.buffered > 0
    server.transport.loseConnection()
    server.transport.loseConnection()
    server.transport.sendBlock(block(5000))
    await sleep(0.05)
    client.transport.resumeReading()
    await client.until_lost()
    await server.until_lost()
    assert client.blocks == sent


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
    await client.until_lost()
    await receivers.made[0].until_lost()


@in_reactor
async def test_a_close_that_cannot_be_finished_is_cut_short(
    listen: Listen, stream: type[BlockStream]
) -> None:
    server, client = await secured_pair(listen, stream, limits=TransportLimits(close_time=0.2))
    client.transport.pauseReading()
    for number in range(1000):
        server.transport.sendBlock(block(number))
    server.transport.loseConnection()
    reason = await server.until_lost()
    assert reason.check(error.ConnectionAborted)
    client.transport.resumeReading()
    await client.until_lost()


@in_reactor
async def test_a_server_on_its_own_socket_and_a_client_on_a_stream_close_cleanly(
    stream: type[BlockStream],
) -> None:
    from twisted.internet import reactor

    receivers, client = Receivers(), Recorder()
    port = BlockPort(0, receivers, interface="127.0.0.1", reactor=reactor)
    port.startListening()
    await connect(port, client, stream)
    transport = await client.until_secured()
    await receivers.made[0].until_secured()
    for number in range(50):
        transport.sendBlock(block(number))
        receivers.made[0].transport.sendBlock(block(100 + number))
    transport.loseConnection()
    server_reason = await receivers.made[0].until_lost()
    client_reason = await client.until_lost()
    assert receivers.made[0].blocks == [block(number) for number in range(50)]
    assert server_reason.check(error.ConnectionDone)
    assert client_reason.check(error.ConnectionDone)
    stopped: Deferred[None] = port.stopListening()
    await stopped


@in_reactor
async def test_a_client_that_does_not_finish_tls_is_dropped_in_time(listen: Listen) -> None:
    receivers = Receivers()
    port = listen(receivers, limits=TransportLimits(setup_time=0.2))
    client = await connect_raw(port, Bytes())
    reason = await receivers.made[0].until_lost()
    assert reason.check(error.ConnectionAborted)
    await client.until_lost()


@in_reactor
async def test_a_server_that_says_nothing_is_left_in_time(stream: type[BlockStream]) -> None:
    from twisted.internet import reactor

    known: Any = reactor
    silent = Factory.forProtocol(Bytes)
    silent.noisy = False
    port = known.listenTCP(0, silent, interface="127.0.0.1")
    client = Recorder()
    await connect(port, client, stream, limits=TransportLimits(setup_time=0.2))
    reason = await client.until_lost()
    assert reason.check(error.ConnectionAborted)
    assert client.times_secured == 0
    stopped: Deferred[None] = port.stopListening()
    await stopped


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\x00" * 300, b"\x00" * 40000],
    ids=["http", "oversize", "zeros"],
)
@in_reactor
async def test_garbage_ends_the_connection_quietly(garbage: bytes, listen: Listen) -> None:
    receivers = Receivers()
    client = await connect_raw(listen(receivers), Bytes())
    client.tcp.write(garbage)
    await receivers.made[0].until_lost()
    assert receivers.made[0].times_secured == 0
    await client.until_lost()


@in_reactor
async def test_a_reset_while_blocks_are_underway(listen: Listen) -> None:
    receivers = Receivers(Echo)
    client = await connect_raw(listen(receivers), Records())
    await client.ready
    client.tcp.pauseProducing()
    client.write(block(1) * 40)
    await until(lambda: receivers.made[0].times_secured == 1)
    await sleep(0.05)
    client.tcp.abortConnection()
    await receivers.made[0].until_lost()
    assert len(receivers.made[0].reasons) == 1
    await client.until_lost()


@in_reactor
async def test_an_abort_is_immediate(listen: Listen, stream: type[BlockStream]) -> None:
    server, client = await secured_pair(listen, stream)
    client.transport.abortConnection()
    client.transport.abortConnection()
    client.transport.sendBlock(block(0))
    client.transport.loseConnection()
    client.transport.resumeReading()
    client.transport.pauseReading()
    assert client.reasons == []
    reason = await client.until_lost()
    assert reason.check(error.ConnectionAborted)
    await server.until_lost()
    assert server.blocks == []


@in_reactor
async def test_a_receivers_fault_ends_its_connection(
    listen: Listen, stream: type[BlockStream]
) -> None:
    class Faulty(Recorder):
        def blockReceived(self, block: bytes) -> None:
            raise RuntimeError("receiver's fault")

    server, client = await secured_pair(listen, stream, Faulty)
    client.transport.sendBlock(block(1))
    reason = await server.until_lost()
    assert reason.check(RuntimeError)
    await client.until_lost()


@in_reactor
async def test_small_writes_are_not_held_back(listen: Listen, stream: type[BlockStream]) -> None:
    receivers, client = Receivers(), Recorder()
    protocol = await connect(listen(receivers), client, stream)
    await client.until_secured()
    tcp: Any = protocol.transport
    assert tcp.getTcpNoDelay()
    await receivers.made[0].until_secured()
    await close(client, receivers.made[0])


# -- in memory, piece by piece


class Wire:
    """A transport whose bytes go where the test lets them."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.producer: Any = None
        self.ends: list[str] = []

    def write(self, data: bytes) -> None:
        self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def loseConnection(self) -> None:
        self.ends.append("lose")

    def getPeer(self) -> IAddress:
        return UNIXAddress("/peer")

    def getHost(self) -> IAddress:
        return UNIXAddress("/host")

    def take(self) -> bytes:
        taken, self.written = self.written, b""
        return taken


class Ends:
    """A client's stream and a server's, with a wire each."""

    def __init__(
        self,
        stream: type[BlockStream],
        server: Recorder | None = None,
        client: Recorder | None = None,
        limits: TransportLimits = LIMITS,
    ) -> None:
        self.clock = Clock()
        clock: Any = self.clock
        self.server, self.client = server or Recorder(), client or Recorder()
        self.near = stream(
            self.client, client_context(alpn=()), server=False, clock=clock, limits=limits
        )
        self.far = stream(self.server, context_of_server(), server=True, clock=clock, limits=limits)
        self.near_wire, self.far_wire = Wire(), Wire()
        self.near.makeConnection(self.near_wire)
        self.far.makeConnection(self.far_wire)

    def pump(self, size: int = 1 << 20) -> None:
        """Passes on what was written, in pieces, until nothing is."""
        while self.near_wire.written or self.far_wire.written:
            for data, target in (
                (self.near_wire.take(), self.far),
                (self.far_wire.take(), self.near),
            ):
                for start in range(0, len(data), size):
                    target.dataReceived(data[start : start + size])
            self.clock.advance(0)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100, 16405, 16406, 16407, 65536])
def test_bytes_come_in_any_pieces(size: int, stream: type[BlockStream]) -> None:
    ends = Ends(stream, server=Echo())
    ends.pump(size)
    for number in range(7):
        ends.client.transport.sendBlock(block(number))
    ends.pump(size)
    assert ends.client.blocks == [block(number) for number in range(7)]


@given(
    st.lists(st.integers(0, 3 * BLOCK_SIZE), max_size=8),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=20),
)
def test_records_of_any_size_in_any_pieces(parts: list[int], pieces: list[int]) -> None:
    sent = b"".join(block(number) for number in range(sum(parts) // BLOCK_SIZE + 2))
    tls = SSL.Connection(client_context(alpn=()), None)
    tls.set_connect_state()
    far = Ends(BlockStream)
    far.near_wire.take()
    for _ in range(3):
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            far.far.dataReceived(tls.bio_read(1 << 20))
            tls.bio_write(far.far_wire.take())
    encrypted = tls.bio_read(1 << 20)
    offset = 0
    for size in [*parts, len(sent)]:
        part = sent[offset : offset + size]
        while part:
            part = part[tls.send(part[:BLOCK_SIZE]) :]
        offset += size
        try:
            encrypted += tls.bio_read(1 << 22)
        except SSL.WantReadError:
            continue
    index = 0
    while encrypted:
        size = pieces[index % len(pieces)]
        far.far.dataReceived(encrypted[:size])
        encrypted = encrypted[size:]
        index += 1
    whole = min(offset, len(sent)) // BLOCK_SIZE
    assert far.server.blocks == [block(number) for number in range(whole)]
    assert far.server.reasons == []


@given(
    st.lists(st.integers(0, 17_000), max_size=30),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=30),
)
def test_records_are_counted_whatever_the_pieces(sizes: list[int], pieces: list[int]) -> None:
    clock: Any = Clock()
    counter = BlockStream(Recorder(), context_of_server(), server=True, clock=clock)
    data = b"".join(b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
    complete, counted, position, index = 0, 0, 0, 0
    ends = []
    for size in sizes:
        complete += 5 + size
        ends.append(complete)
    while position < len(data):
        piece = pieces[index % len(pieces)]
        counted += counter._count_records(data[position : position + piece])
        position += piece
        index += 1
        assert counted == sum(end <= position for end in ends)
    assert counted == len(sizes)


def test_a_pause_holds_what_has_come_already(stream: type[BlockStream]) -> None:
    class Pausing(Recorder):
        def blockReceived(self, block: bytes) -> None:
            super().blockReceived(block)
            self.transport.pauseReading()

    ends = Ends(stream, server=Pausing())
    ends.pump()
    for number in range(6):
        ends.client.transport.sendBlock(block(number))
    for received in range(1, 7):
        ends.pump()
        assert ends.server.blocks == [block(number) for number in range(received)]
        assert not ends.far_wire.reading
        ends.server.transport.resumeReading()
        ends.clock.advance(0)
    assert ends.far_wire.reading


def test_reading_may_be_paused_as_soon_as_tls_is_there(stream: type[BlockStream]) -> None:
    class Pausing(Recorder):
        def secured(self, transport: Any) -> None:
            super().secured(transport)
            transport.pauseReading()

    class Hasty(Recorder):
        def secured(self, transport: Any) -> None:
            super().secured(transport)
            for number in range(5):
                transport.sendBlock(block(number))

    ends = Ends(stream, server=Pausing(), client=Hasty())
    ends.pump()
    ends.pump(1000)
    assert ends.server.blocks == []
    ends.client.transport.sendBlock(block(5))
    ends.pump()
    assert ends.server.blocks == []
    ends.server.transport.resumeReading()
    ends.clock.advance(0)
    assert ends.server.blocks == [block(number) for number in range(6)]


def test_a_pause_may_be_taken_back_before_it_took_effect(stream: type[BlockStream]) -> None:
    class Wavering(Recorder):
        def blockReceived(self, block: bytes) -> None:
            super().blockReceived(block)
            self.transport.pauseReading()
            self.transport.resumeReading()

    ends = Ends(stream, server=Wavering())
    ends.pump()
    for number in range(6):
        ends.client.transport.sendBlock(block(number))
    ends.pump()
    assert ends.server.blocks == [block(number) for number in range(6)]
    assert ends.far_wire.reading


def test_what_the_transport_cannot_take_waits(stream: type[BlockStream]) -> None:
    limits = TransportLimits(high_water=4, low_water=1)
    ends = Ends(stream, limits=limits)
    ends.pump()
    producer = ends.near_wire.producer
    producer.pauseProducing()
    for number in range(3):
        ends.client.transport.sendBlock(block(number))
    assert (ends.client.paused, ends.client.transport.buffered) == (0, 3 * BLOCK_SIZE)
    ends.client.transport.sendBlock(block(3))
    ends.client.transport.sendBlock(block(4))
    assert (ends.client.paused, ends.client.transport.buffered) == (1, 5 * BLOCK_SIZE)
    assert ends.near_wire.written == b""
    producer.resumeProducing()
    assert (ends.client.resumed, ends.client.transport.buffered) == (1, 0)
    ends.pump()
    assert ends.server.blocks == [block(number) for number in range(5)]


def test_a_close_waits_for_what_the_transport_could_not_take(stream: type[BlockStream]) -> None:
    ends = Ends(stream)
    ends.pump()
    producer = ends.near_wire.producer
    producer.pauseProducing()
    for number in range(3):
        ends.client.transport.sendBlock(block(number))
    ends.client.transport.loseConnection()
    assert ends.near_wire.ends == []
    producer.resumeProducing()
    assert ends.near_wire.ends == ["lose"]
    assert ends.near_wire.producer is None
    ends.pump()
    assert ends.server.blocks == [block(number) for number in range(3)]
    assert ends.far_wire.ends == ["lose"]


def test_an_abort_of_a_transport_without_it_is_a_close(stream: type[BlockStream]) -> None:
    ends = Ends(stream)
    ends.pump()
    ends.client.transport.abortConnection()
    assert ends.near_wire.ends == ["lose"]
    ends.near.connectionLost(Failure(error.ConnectionDone()))
    ends.near.connectionLost(Failure(error.ConnectionDone()))
    assert len(ends.client.reasons) == 1


def test_time_limits_are_the_clocks(stream: type[BlockStream]) -> None:
    limits = TransportLimits(setup_time=60, close_time=15)
    ends = Ends(stream, limits=limits)
    assert [call.getTime() for call in ends.clock.getDelayedCalls()] == [60, 60]
    ends.clock.advance(59)
    assert ends.far_wire.ends == []
    ends.clock.advance(1)
    assert ends.far_wire.ends == ["lose"]
    other = Ends(stream, limits=limits)
    other.pump()
    assert other.clock.getDelayedCalls() == []
    other.client.transport.loseConnection()
    assert [call.getTime() for call in other.clock.getDelayedCalls()] == [15]
    other.near.connectionLost(Failure(error.ConnectionDone()))
    assert other.clock.getDelayedCalls() == []


def test_tickets_are_no_blocks(stream: type[BlockStream]) -> None:
    """A server that issues tickets, as most do, in the same flight as its first blocks."""
    ends = Ends(stream)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    _use_credentials(context, credentials().chain, credentials().key)
    tls = SSL.Connection(context, None)
    tls.set_accept_state()
    for _ in range(2):
        tls.bio_write(ends.near_wire.take())
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            ends.near.dataReceived(tls.bio_read(1 << 20))
    for number in range(4):
        tls.send(block(number))
    ends.near.dataReceived(tls.bio_read(1 << 20))
    assert ends.client.blocks == [block(number) for number in range(4)]
