"""Connections behind a PROXY header on real sockets, limited by circuit."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from tests.coroutines import finish, in_reactor, until
from tests.txsimplex.block_peers import Echo, Receivers, Recorder, block
from torcfg.circuit_connections import CircuitConnection, CircuitFactory
from torcfg.circuits import Circuits
from txsimplex.block_stream import BlockStream
from txsimplex.blocks_transport import TransportLimits
from txsimplex.listening import listen
from txsimplex.tls import client_context

MOST = 2


def header(circuit: int) -> bytes:
    """What tor writes in front of a connection."""
    number = f"{circuit >> 16:x}:{circuit & 0xFFFF:x}"
    return f"PROXY TCP6 fc00:dead:beef:4dad::{number} ::1 {circuit & 0xFFFF} 42\r\n".encode()


class Proxied(BlockStream):
    """A client behind a proxy, which says `header` first."""

    header: bytes

    def connectionMade(self) -> None:
        """The header, and TLS behind it."""
        transport: Any = self.transport
        transport.write(self.header)
        super().connectionMade()


class Scene:
    """A port on a Unix socket, with its circuits and what was logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.circuits = Circuits(MOST)
        self.receivers = Receivers(Echo)
        self.logged: list[LogEvent] = []
        self.port: IListeningPort | None = None
        self.streams: list[Proxied] = []

    async def begin(self, **limits: float) -> None:
        """Listens."""
        from twisted.internet import reactor

        self.port = await listen(
            reactor,
            f"unix:{self.path}",
            self.receivers,
            limits=TransportLimits(**limits),  # type: ignore[arg-type]
            wrap=lambda factory: CircuitFactory(factory, self.circuits),
        )

    async def client(self, said: bytes) -> Recorder:
        """Who has said this in front of TLS."""
        from twisted.internet import reactor

        clock: Any = reactor
        client = Recorder()
        stream = Proxied(client, client_context(alpn=(b"smp/1",)), server=False, clock=clock)
        stream.header = said
        self.streams.append(stream)
        factory = Factory.forProtocol(lambda: stream)
        factory.noisy = False
        await UNIXClientEndpoint(reactor, str(self.path)).connect(factory)
        return client

    def raw(self, said: bytes) -> socket.socket:
        """The same without TLS."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.sendall(said)
        return client


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "socket")

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        made.logged.append(event)

    globalLogPublisher.addObserver(observe)
    yield made
    globalLogPublisher.removeObserver(observe)

    async def stop() -> None:
        if made.port is not None:
            stopped: Any = made.port.stopListening()
            await stopped
        for stream in made.streams:
            stream.abortConnection()
        await until(lambda: all(each.reasons for each in made.receivers.made))

    finish(stop())
    assert (made.circuits.connections, made.circuits.count) == (0, 0)


async def works(client: Recorder) -> None:
    """A block there and back."""
    transport = await client.until_secured()
    transport.sendBlock(block(1))
    await until(lambda: client.blocks == [block(1)])
    client.blocks.clear()


async def gone(client: socket.socket) -> None:
    """The other end closes."""
    client.setblocking(False)

    def closed() -> bool:
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    await until(closed)
    client.close()


@in_reactor
async def test_a_circuit_has_so_many_connections(scene: Scene) -> None:
    """Others go on, and come; and one more when one has left."""
    await scene.begin()
    first, second = [await scene.client(header(7)) for _ in range(2)]
    other = await scene.client(header(0xFFFFFFFF))
    for client in (first, second, other):
        await works(client)
    assert (scene.circuits.connections, scene.circuits.count) == (3, 2)
    refused = await scene.client(header(7))
    await refused.until_lost()
    assert not refused.times_secured
    # Nothing has been done for it.
    assert not any(each.times_secured for each in scene.receivers.made[3:])
    for client in (first, second, other):
        await works(client)
    second.transport.loseConnection()
    await until(lambda: scene.circuits.connections == 2)
    third = await scene.client(header(7))
    await works(third)


@in_reactor
async def test_who_says_nothing_after_the_header_is_counted(scene: Scene) -> None:
    await scene.begin()
    silent = [scene.raw(header(7)) for _ in range(MOST)]
    await until(lambda: scene.circuits.connections == MOST)
    await gone(scene.raw(header(7)))
    for client in silent:
        client.close()
    await until(lambda: not scene.circuits.connections)


@pytest.mark.parametrize(
    "said",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 5223\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1234 5223\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::1 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ],
)
@in_reactor
async def test_other_proxies_have_no_circuits(scene: Scene, said: bytes) -> None:
    await scene.begin()
    clients = [await scene.client(said) for _ in range(MOST + 2)]
    for client in clients:
        await works(client)
    assert (scene.circuits.connections, scene.circuits.count) == (0, 0)


@in_reactor
async def test_a_header_in_pieces(scene: Scene) -> None:
    await scene.begin()
    said = header(7)
    client = scene.raw(said[:20])
    await until(lambda: len(scene.receivers.made) == 1)
    client.sendall(said[20:-1])
    client.sendall(said[-1:])
    await until(lambda: scene.circuits.connections == 1)
    client.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: 192.0.2.77\r\n\r\n",
        b"PROXY TCP4 192.0.2.77\r\n",
        b"PROXY TCP5 192.0.2.77 192.0.2.77 1 2\r\n",
        b"PROXY TCP4 192.0.2.77 192.0.2.77 x192.0.2.77 2\r\n",
        b"PROXY TCP4 192.0.2.77\xff 192.0.2.77 1 2\r\n",
        b"PROXY " + b"192.0.2.77" * 20,
        b"\r\n\r\n\0\r\nQUIT\n\x2f\x11\0\x0a192.0.2.77",
    ],
)
@in_reactor
async def test_a_header_that_is_none_ends_its_connection_only(scene: Scene, said: bytes) -> None:
    """And nothing of it is logged."""
    await scene.begin()
    client = await scene.client(header(7))
    await works(client)
    await gone(scene.raw(said))
    await works(client)
    assert scene.circuits.connections == 1
    assert not [each for each in scene.logged if "192.0.2.77" in str(each) + str(formatEvent(each))]


@in_reactor
async def test_without_a_header_it_ends_in_time(scene: Scene) -> None:
    """[protocol] tls_timeout is for what comes before TLS, too."""
    await scene.begin(setup_time=0.2)
    for said in (b"", b"PROXY TCP6 ", header(7)):
        await gone(scene.raw(said))
    assert len(scene.receivers.made) == 3


@in_reactor
async def test_a_connection_that_is_refused(scene: Scene) -> None:
    scene.receivers = Receivers(lambda: None)
    await scene.begin()
    await gone(scene.raw(header(7)))
    assert not [each for each in scene.logged if "log_failure" in each]


@given(st.lists(st.one_of(st.binary(), st.sampled_from([b"PROXY TCP6 ", b" ::1", b"\r\n", b" 1"]))))
def test_any_bytes_are_a_header_or_the_end(pieces: list[bytes]) -> None:
    factory = CircuitFactory(Factory.forProtocol(Protocol), Circuits())
    connection = factory.buildProtocol(UNIXAddress(None))
    assert isinstance(connection, CircuitConnection)
    transport = StringTransport(peerAddress=UNIXAddress(None))
    connection.makeConnection(transport)
    connection.dataReceived(b"".join(pieces))
