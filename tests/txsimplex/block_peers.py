"""Both ends of connections for the tests of the block transports."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from txsimplex.block_stream import BlockStream
from txsimplex.blocks_transport import BLOCK_SIZE, BlockTransport, TransportLimits
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.tls import client_context, server_context

YEAR = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = TransportLimits()

AnyBytes = TypeVar("AnyBytes", bound="Bytes")


def stream_of(seed: bytes) -> Callable[[int], bytes]:
    """Random numbers for keys that are the same in every run."""
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(seed + count.to_bytes(4, "big")).digest(size)

    return random


@dataclass(frozen=True)
class Credentials:
    """A chain of two certificates, leaf first, and the leaf's key: all in DER."""

    chain: tuple[bytes, ...]
    key: bytes


@functools.cache
def credentials(algorithm: Algorithm = Algorithm.ED25519, seed: bytes = b"server") -> Credentials:
    """Made once for each algorithm and seed."""
    random = stream_of(seed)
    authority_key = PrivateKey.generate(algorithm, random)
    key = PrivateKey.generate(algorithm, random)
    authority = make_authority(authority_key, YEAR, random)
    leaf = make_online("localhost", key.public, authority, authority_key, YEAR, random)
    return Credentials((leaf, authority), key.encode())


def context_of_server(own: Credentials | None = None, **options: Any) -> SSL.Context:
    """A context with the credentials that all tests share, or its own."""
    own = own or credentials()
    return server_context(own.chain, own.key, **options)


def block(number: int) -> bytes:
    """A block that no other number has."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(BLOCK_SIZE)


class Recorder:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.paused = 0
        self.resumed = 0
        self.reasons: list[Failure] = []
        self.times_secured = 0
        self.peer_chain: tuple[bytes, ...] | None = None
        self._transport: BlockTransport | None = None
        self._secured: Deferred[None] = Deferred()
        self._lost: Deferred[None] = Deferred()

    @property
    def transport(self) -> BlockTransport:
        """The connection, once secured."""
        assert self._transport is not None
        return self._transport

    async def until_secured(self) -> BlockTransport:
        """Waits for TLS; fails when the connection is lost before."""
        if not self.times_secured:
            await self._secured
        return self.transport

    async def until_lost(self) -> Failure:
        """Waits for the end of the connection."""
        if not self.reasons:
            await self._lost
        return self.reasons[0]

    def secured(self, transport: BlockTransport) -> None:
        """See ``BlockReceiver``."""
        self.times_secured += 1
        self._transport = transport
        self.peer_chain = transport.peer_chain
        self._secured.callback(None)

    def blockReceived(self, block: bytes) -> None:
        """See ``BlockReceiver``."""
        self.blocks.append(block)

    def pauseProducing(self) -> None:
        """See ``BlockReceiver``."""
        self.paused += 1

    def resumeProducing(self) -> None:
        """See ``BlockReceiver``."""
        self.resumed += 1

    def connectionLost(self, reason: Failure) -> None:
        """See ``BlockReceiver``."""
        self.reasons.append(reason)
        if not self.times_secured:
            self._secured.errback(reason)
            self._secured.addErrback(lambda failure: None)
        if not self._lost.called:
            self._lost.callback(None)


class Echo(Recorder):
    """Sends every block back, and reads no more while it cannot."""

    def blockReceived(self, block: bytes) -> None:
        """See ``BlockReceiver``."""
        self.transport.sendBlock(block)

    def pauseProducing(self) -> None:
        """See ``BlockReceiver``."""
        super().pauseProducing()
        self.transport.pauseReading()

    def resumeProducing(self) -> None:
        """See ``BlockReceiver``."""
        super().resumeProducing()
        self.transport.resumeReading()


class Receivers:
    """A factory of receivers that keeps them."""

    def __init__(
        self,
        make: Callable[[], Recorder | None] = Recorder,
        context: SSL.Context | None = None,
    ) -> None:
        self.context = context or context_of_server()
        self.made: list[Recorder] = []
        self._make = make

    def buildReceiver(self, address: IAddress) -> Recorder | None:
        """See ``BlockReceiverFactory``."""
        receiver = self._make()
        if receiver is not None:
            self.made.append(receiver)
        return receiver


def endpoint_of(port: IListeningPort) -> Any:
    """An endpoint that connects to ``port``."""
    from twisted.internet import reactor

    host: Any = port.getHost()
    name = getattr(host, "name", None)
    if name is not None:
        return clientFromString(reactor, f"unix:{name.decode()}")
    address = "127.0.0.1" if host.host == "0.0.0.0" else host.host.replace(":", "\\:")
    return clientFromString(reactor, f"tcp:{address}:{host.port}")


async def connect(
    port: IListeningPort,
    receiver: Recorder,
    *,
    context: SSL.Context | None = None,
    alpn: tuple[bytes, ...] = (b"smp/1",),
    limits: TransportLimits = LIMITS,
    stream: type[BlockStream] = BlockStream,
) -> BlockStream:
    """A client's connection, without waiting for TLS."""
    from twisted.internet import reactor

    clock: Any = reactor
    context = context or client_context(alpn=alpn)
    client = stream(receiver, context, server=False, clock=clock, limits=limits)
    await connectProtocol(endpoint_of(port), client)
    return client


class Bytes(Protocol):
    """A TCP client without TLS."""

    def __init__(self) -> None:
        self.received = b""
        self.reason: Failure | None = None
        self._lost: Deferred[None] = Deferred()

    @property
    def tcp(self) -> Any:
        """The transport with all its methods."""
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        """Keeps everything."""
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tells who waits."""
        self.reason = reason
        self._lost.callback(None)

    async def until_lost(self) -> Failure:
        """Waits for the end of the connection."""
        if self.reason is None:
            await self._lost
        assert self.reason is not None
        return self.reason


class Records(Bytes):
    """A TLS client that writes records of any size, by pyOpenSSL's public interface."""

    def __init__(self, context: SSL.Context | None = None) -> None:
        super().__init__()
        self.tls = SSL.Connection(context or client_context(alpn=(b"smp/1",)), None)
        self.tls.set_connect_state()
        self.ready: Deferred[None] = Deferred()
        self.failure: SSL.Error | None = None
        self.application_data = b""
        self.clean_end = False

    def connectionMade(self) -> None:
        """Begins."""
        self._handshake()

    def dataReceived(self, data: bytes) -> None:
        """Goes on."""
        self.tls.bio_write(data)
        if not self.ready.called:
            self._handshake()
        if self.ready.called and self.failure is None:
            self._read()

    def write(self, data: bytes) -> None:
        """Writes one record, or as many as it takes."""
        while data:
            data = data[self.tls.send(data[:BLOCK_SIZE]) :]
        self.flush()

    def flush(self) -> None:
        """Passes on what is encrypted."""
        while True:
            try:
                self.tcp.write(self.tls.bio_read(65536))
            except SSL.WantReadError:
                return

    def taken(self) -> bytes:
        """What is encrypted, not to be passed on but to be cut up."""
        taken = b""
        while True:
            try:
                taken += self.tls.bio_read(65536)
            except SSL.WantReadError:
                return taken

    def _handshake(self) -> None:
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self.flush()
        except SSL.Error as failure:
            self.failure = failure
            self.flush()
            self.ready.callback(None)
        else:
            self.flush()
            self.ready.callback(None)

    def _read(self) -> None:
        try:
            while True:
                self.application_data += self.tls.recv(65536)
        except SSL.WantReadError:
            self.flush()
        except SSL.ZeroReturnError:
            self.clean_end = True
        except SSL.Error as failure:
            self.failure = failure


async def connect_raw(port: IListeningPort, protocol: AnyBytes) -> AnyBytes:
    """Connects one of the clients above."""
    await connectProtocol(endpoint_of(port), protocol)
    return protocol


def ended_quietly(reason: Failure) -> bool:
    """Whether a connection ended as connections do."""
    ends = (error.ConnectionDone, error.ConnectionLost, error.ConnectionAborted)
    return reason.check(*ends) is not None
