"""A server of blocks with TLS on the real socket (smp-wire.md §4, §5).

OpenSSL reads and writes the socket itself, so that a block is copied as seldom as can be; what else
a transport owes (events, closing, aborting, accepting under a shortage of descriptors) is Twisted's.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from socket import socket as Socket
from typing import Any, ClassVar

from OpenSSL import SSL
from twisted.internet import address, main, tcp, unix
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from txsimplex import openssl
from txsimplex.blocks_transport import (
    BLOCK_SIZE,
    BlockReceiver,
    BlockReceiverFactory,
    TransportLimits,
)

BACKLOG = 1024
"""Connections that may wait to be accepted (smp-wire.md §4.4)."""

_ACCEPTS_PER_TURN = 100
_WRITES_PER_EVENT = 8
_LINGER_SIZE = 65536


class HandshakeBudget:
    """The share of each turn of the reactor that TLS handshakes may take.

    A handshake costs as much as twenty blocks. When many clients come at once, those connected
    already must not wait for all of them: what does not fit in a turn is left to the next, where
    the reactor, whose events are level-triggered, reports it again.
    """

    __slots__ = ("_clock", "_left", "_share")

    def __init__(self, clock: IReactorTime, share: float = 0.010) -> None:
        """
        :param clock: the reactor.
        :param share: seconds per turn.
        """
        self._clock = clock
        self._share = share
        self._left = share

    def available(self) -> bool:
        """Whether another handshake may be worked on in this turn."""
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Account for work done."""
        if self._left > 0:
            self._left -= seconds
            if self._left <= 0:
                self._clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._left = self._share


class BlockServer(tcp.Server):
    """One accepted connection: the :class:`BlockTransport` of a server."""

    tls_class: ClassVar[Any] = openssl.SocketTLS

    logstr = "blocks"

    # Set when the connection is secured.
    session_id = b""
    alpn: bytes | None = None
    _peer_chain: tuple[bytes, ...] = ()

    # Whether the receiver is to be given blocks.
    _reading = False
    # The TLS connection while a block can be written at once, otherwise None.
    _ready: Any = None
    # Blocks that wait, or None. The first one may be half written.
    _waiting: deque[bytes] | None = None
    # What has come of a block, or None.
    _partial: bytearray | None = None
    _receiver_paused = False
    # Closed for the receiver, waiting for the peer.
    _lingering = False
    _tls: Any = None
    _timer: IDelayedCall | None = None

    def __init__(
        self,
        sock: Socket,
        protocol: _Opening,
        client: Any,
        server: BlockPort,
        sessionno: int,
        reactor: Any,
    ) -> None:
        """Called by the port, like ``tcp.Server``, which would keep the peer's address in names."""
        tcp.Connection.__init__(self, sock, protocol.receiver, reactor)  # type: ignore[arg-type]
        self.server = server
        self.client = client
        self.connected = 1
        if len(client) == 4:
            self._addressType = address.IPv6Address
        self._timer = reactor.callLater(server.limits.setup_time, self.abortConnection)
        self.startReading()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'open' if self.connected else 'closed'}>"

    # -- for the receiver

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """See :class:`BlockTransport`."""
        return self._peer_chain

    @property
    def buffered(self) -> int:
        """See :class:`BlockTransport`."""
        return BLOCK_SIZE * len(self._waiting) if self._waiting else 0

    def sendBlock(self, block: bytes | bytearray | memoryview) -> None:
        """See :class:`BlockTransport`."""
        if len(block) != BLOCK_SIZE:
            raise ValueError(f"a block has {BLOCK_SIZE} bytes")
        ready = self._ready
        if ready is None:
            self._wait_to_write(block)
            return
        try:
            if not ready.write(block):
                self._ready = None
                self._wait_to_write(block)
        except openssl.TLSEndedError:
            self._fail()

    def pauseReading(self) -> None:
        """See :class:`BlockTransport`."""
        self._reading = False
        self.stopReading()

    def resumeReading(self) -> None:
        """See :class:`BlockTransport`."""
        if self.connected and not self.disconnecting:
            self._reading = True
            self.startReading()

    def loseConnection(self) -> None:
        """See :class:`BlockTransport`."""
        if self.connected and not self.disconnecting:
            self._reading = False
            self._ready = None
            self._cancel_timer()
            limit = self.server.limits.close_time
            self._timer = self.reactor.callLater(limit, self.abortConnection)
            super().loseConnection()

    def write(self, data: bytes) -> None:
        """Not for this transport.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("this transport carries blocks: use sendBlock")

    def writeSequence(self, iovec: Any) -> None:
        """Not for this transport.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("this transport carries blocks: use sendBlock")

    # -- for the reactor

    def doRead(self) -> Any:
        """Read one record. The rest is reported again, after the other connections' turn."""
        if not self._reading:
            return self._read_otherwise()
        try:
            data = self._tls.read()
        except openssl.TLSEndedError as ended:
            return main.CONNECTION_DONE if ended.clean else main.CONNECTION_LOST
        if data is not None:
            if self._partial is None and len(data) == BLOCK_SIZE:
                self.protocol.blockReceived(data)  # type: ignore[attr-defined]
            else:
                self._assemble(data)
        return None

    def doWrite(self) -> Any:
        """Write what waits, a bounded part of it."""
        if self._waiting is not None:
            try:
                self._write_waiting(self._waiting)
            except openssl.TLSEndedError:
                return main.CONNECTION_LOST
            if self._waiting is not None or not self.disconnecting:
                return None
        if self.disconnecting:
            return self._close()
        self.stopWriting()
        return None if self.session_id else self._set_up()

    def readConnectionLost(self, reason: Failure) -> None:
        """Called by the reactor; half of a connection is of no use."""
        self.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor, whatever ended the connection."""
        self._cancel_timer()
        # OpenSSL has no more business with the socket, whose number may be another's soon.
        self._reading = False
        self._tls = self._ready = self._waiting = self._partial = None
        super().connectionLost(reason)

    # -- inside

    def _read_otherwise(self) -> Any:
        """Read when it is not for blocks: before the connection is secured, and after its end."""
        if self._lingering:
            try:
                return None if self.socket.recv(_LINGER_SIZE) else main.CONNECTION_DONE
            except BlockingIOError:
                return None
            except OSError:
                return main.CONNECTION_LOST
        # Otherwise it was paused or closed while the event was on its way.
        return None if self.session_id or self.disconnecting else self._set_up()

    def _close(self) -> Any:
        """All is written: say goodbye and wait for the peer to close.

        To close with something unread would reset the connection and might take from the peer
        what it has not read itself.
        """
        if not self.session_id:
            return main.CONNECTION_DONE
        if not self._tls.close_notify():
            return None
        self._tls = None
        self._lingering = True
        self.stopWriting()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return main.CONNECTION_LOST
        self.startReading()
        return None

    def _set_up(self) -> Any:
        budget = self.server.handshakes
        if not budget.available():
            return None
        started = self.reactor.seconds()
        try:
            return self._handshake()
        finally:
            budget.spend(self.reactor.seconds() - started)

    def _handshake(self) -> Any:
        tls = self._tls
        if tls is None:
            # Not when the connection is accepted: one that says nothing costs nothing.
            context = self.server.receivers.context
            tls = self._tls = self.tls_class(context, self.socket, True)
        try:
            if not tls.handshake():
                return None
        except SSL.WantWriteError:
            self.startWriting()
            return None
        except openssl.TLSEndedError:
            return main.CONNECTION_LOST
        self._cancel_timer()
        self.session_id = tls.session_id
        if not self.session_id:
            return main.CONNECTION_LOST
        self.alpn = tls.alpn
        self._peer_chain = tls.peer_chain
        tls.settle()
        self._ready = tls
        self._reading = True
        self.protocol.secured(self)  # type: ignore[attr-defined]
        self._peer_chain = ()
        return None

    def _assemble(self, data: bytes) -> None:
        """Take in a record that is not a block: no more than one block comes out."""
        partial = self._partial
        if partial is None:
            partial = self._partial = bytearray()
        partial += data
        if len(partial) >= BLOCK_SIZE:
            block = bytes(partial[:BLOCK_SIZE])
            del partial[:BLOCK_SIZE]
            if not partial:
                self._partial = None
            self.protocol.blockReceived(block)  # type: ignore[attr-defined]

    def _wait_to_write(self, block: bytes | bytearray | memoryview) -> None:
        if not self.connected or self.disconnecting or self._tls is None:
            return
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
            self.startWriting()
        waiting.append(bytes(block))
        if not self._receiver_paused and len(waiting) >= self.server.limits.high_water:
            self._receiver_paused = True
            self.protocol.pauseProducing()  # type: ignore[attr-defined]

    def _write_waiting(self, waiting: deque[bytes]) -> None:
        write = self._tls.write
        for _ in range(_WRITES_PER_EVENT):
            if not waiting or not write(waiting[0]):
                break
            waiting.popleft()
        if not waiting:
            self._waiting = None
            if not self.disconnecting:
                self._ready = self._tls
                self.stopWriting()
        if self._receiver_paused and len(waiting) <= self.server.limits.low_water:
            self._receiver_paused = False
            if not self.disconnecting:
                self.protocol.resumeProducing()  # type: ignore[attr-defined]

    def _fail(self) -> None:
        """End the connection from within a call of the receiver, which must not be called back."""
        self._reading = False
        self._ready = self._waiting = None
        self.abortConnection()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


class UnixBlockServer(BlockServer):
    """The same on a Unix socket."""

    def getHost(self) -> Any:
        """The path of the socket."""
        return address.UNIXAddress(self.socket.getsockname())

    def getPeer(self) -> Any:
        """The path of the client's socket, hardly ever one."""
        return address.UNIXAddress(self.client or None)


class _Opening:
    """Takes the place of a protocol between a port and the transport that it makes."""

    __slots__ = ("receiver",)

    def __init__(self, receiver: BlockReceiver) -> None:
        self.receiver = receiver

    def makeConnection(self, transport: object) -> None:
        """The transport has introduced itself already."""


class ReceiverFactory(Factory):
    """What a port of Twisted's calls for each connection."""

    noisy = False

    def __init__(self, receivers: BlockReceiverFactory) -> None:
        self.receivers = receivers

    def buildProtocol(self, addr: IAddress | None) -> Any:
        assert addr is not None
        receiver = self.receivers.buildReceiver(addr)
        return None if receiver is None else _Opening(receiver)

    def logPrefix(self) -> str:
        return "blocks"


@implementer(ILogObserver)
class _WithoutAddresses:
    """Keeps the port's own messages about accepting, but for those that name a peer."""

    def __call__(self, event: LogEvent) -> None:
        if "address" not in event:
            globalLogPublisher(event)


def _accept(port: BlockPort | UnixBlockPort, accept_in_trouble: Callable[[], None]) -> None:
    """Accept connections for a port.

    Twisted's way of it, with its provisions against a lack of descriptors, is taken only when
    accepting fails, since it takes thrice the time.
    """
    for _ in range(_ACCEPTS_PER_TURN):
        try:
            accepted, peer = port.socket.accept()
        except BlockingIOError:
            return
        except OSError:
            accept_in_trouble()
            return
        try:
            receiver = port.receivers.buildReceiver(port._buildAddr(peer))
        except Exception:
            port._logger.failure("A connection could not be taken on")
            receiver = None
        if receiver is None:
            accepted.close()
        else:
            port.transport(accepted, _Opening(receiver), peer, port, 0, port.reactor)


class BlockPort(tcp.Port):
    """Listens on TCP, IPv4 or IPv6."""

    transport = BlockServer
    _logger = Logger(observer=_WithoutAddresses())

    def __init__(
        self,
        port: int,
        receivers: BlockReceiverFactory,
        *,
        interface: str = "",
        backlog: int = BACKLOG,
        reactor: Any = None,
        reuse_port: bool = False,
        limits: TransportLimits = TransportLimits(),
        handshakes: HandshakeBudget | None = None,
    ) -> None:
        """
        :param port: the number; 0 for any that is free.
        :param receivers: makes the receivers and holds the TLS context.
        :param interface: the address to listen on; "" is every IPv4 one, "::" every one.
        :param backlog: connections that may wait to be accepted.
        :param reuse_port: let other processes listen on the same port (SO_REUSEPORT).
        :param limits: for each connection.
        :param handshakes: to be shared with other ports of the same reactor.
        """
        super().__init__(port, ReceiverFactory(receivers), backlog, interface, reactor)
        self.receivers = receivers
        self.limits = limits
        self.handshakes = handshakes or HandshakeBudget(self.reactor)
        self._share_port = reuse_port

    def createInternetSocket(self) -> Socket:
        """Called by Twisted."""
        created: Socket = super().createInternetSocket()
        if self._share_port:
            created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return created

    def startListening(self) -> None:
        """Bind the socket and begin to accept connections.

        :raises CannotListenError: the address cannot be had.
        """
        super().startListening()
        # Accepted sockets take it over, which saves a call for each.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def doRead(self) -> None:
        """Accept what there is, a bounded number in each turn."""
        _accept(self, super().doRead)


class UnixBlockPort(unix.Port):
    """Listens on a Unix socket."""

    transport = UnixBlockServer
    _logger = BlockPort._logger

    def __init__(
        self,
        path: bytes,
        receivers: BlockReceiverFactory,
        *,
        backlog: int = BACKLOG,
        mode: int = 0o600,
        reactor: Any = None,
        want_lock: bool = False,
        limits: TransportLimits = TransportLimits(),
        handshakes: HandshakeBudget | None = None,
    ) -> None:
        """
        :param path: of the socket.
        :param receivers: makes the receivers and holds the TLS context.
        :param backlog: connections that may wait to be accepted.
        :param mode: the socket's permissions.
        :param want_lock: take a lock file beside the socket, and replace a socket left behind.
        :param limits: for each connection.
        :param handshakes: to be shared with other ports of the same reactor.
        """
        factory = ReceiverFactory(receivers)
        super().__init__(path, factory, backlog, mode, reactor, want_lock)  # type: ignore[arg-type]
        self.receivers = receivers
        self.limits = limits
        self.handshakes = handshakes or HandshakeBudget(self.reactor)

    def doRead(self) -> None:
        """Accept what there is, a bounded number in each turn."""
        _accept(self, super().doRead)
