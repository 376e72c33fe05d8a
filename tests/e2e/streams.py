"""Plain TCP connections to a relay, for what is no TLS or stops in the middle of it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.conformance.clients import WAIT, Relay, soon
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.session import SMP_ALPN
from txsimplex.tls import client_context

_MOMENT = 0.3


@implementer(IHalfCloseableProtocol)
class Stream(Protocol):
    """Bytes to a relay and what it answers; `lost` says that the relay has closed."""

    def __init__(self) -> None:
        self.received = b""
        self._lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        self.received += data

    def readConnectionLost(self) -> None:
        """Called by the transport when the relay has said that no more will come."""
        self.abort()

    def writeConnectionLost(self) -> None:
        """Called by the transport after `end_writing`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        self._lost.callback(None)

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._tcp.write(data)

    def end_writing(self) -> None:
        """Closes one half of the connection: nothing more will be sent."""
        self._tcp.loseWriteConnection()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._tcp.abortConnection()

    @property
    def _tcp(self) -> ITCPTransport:
        return ITCPTransport(self.transport)

    async def lost(self) -> None:
        """Waits until the connection is closed."""
        await self._lost


async def open_stream(relay: Relay) -> Stream:
    """A TCP connection on which nothing was sent."""
    stream: Stream = await soon(_connect(relay))
    relay.connections.append(stream)
    return stream


async def _connect(relay: Relay) -> Stream:
    stream = Stream()
    await connectProtocol(relay.endpoint(), stream)
    return stream


def talk(port: int, pieces: Sequence[bytes], expected: int) -> bytes:
    """Sets up TLS as another implementation does it, sends bytes, each piece in a record.

    What the relay sends: as many bytes as are expected, and what comes in the moment after them.
    Blocks: to be called in a thread.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([SMP_ALPN.decode()])
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), WAIT) as connection,
        context.wrap_socket(connection) as secured,
    ):
        for piece in pieces:
            secured.sendall(piece)
        with contextlib.suppress(TimeoutError):
            while data := secured.recv(65536):
                received += data
                secured.settimeout(WAIT if len(received) < expected else _MOMENT)
    return received


def stop_reading(client: BlockConnection) -> None:
    """Reads no more, and leaves the kernel little room to do so in its place."""
    _room_for_reading(client, 4096)
    client.pause_reading()


def read_again(client: BlockConnection) -> None:
    """Ends what `stop_reading` began."""
    _room_for_reading(client, 2**20)
    client.resume_reading()


def _room_for_reading(client: BlockConnection, size: int) -> None:
    stream: Any = client.transport
    stream.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def client_hello() -> bytes:
    """The first message of a TLS handshake."""
    connection = SSL.Connection(client_context(alpn=(SMP_ALPN,)), None)
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)
