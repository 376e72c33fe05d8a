"""TLS on the socket of an accepted connection, for :mod:`txsimplex.block_port`.

OpenSSL reads and writes the socket itself, so that a block is copied as seldom as can be; what else
a transport owes (events, closing the socket, aborting) is Twisted's.
"""

from __future__ import annotations

import socket
from collections import deque
from socket import socket as Socket
from typing import Any, ClassVar, Protocol

from OpenSSL import SSL
from twisted.internet import address, main, tcp
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from txsimplex import openssl
from txsimplex.blocks_transport import (
    BLOCK_SIZE,
    BlockReceiver,
    BlockReceiverFactory,
    TransportLimits,
)

_LINGER_SIZE = 65536
_WRITES_PER_EVENT = 8


class HandshakeBudget:
    """The share of each turn of the reactor that TLS handshakes may take.

    A handshake costs as much as twenty blocks. When many clients come at once, those connected
    already must not wait for all of them: what does not fit in a turn is left to the next, where
    the reactor, whose events are level-triggered, reports it again.
    """

    __slots__ = ("_clock", "_left", "_share")

    def __init__(self, clock: IReactorTime, share: float = 0.006) -> None:
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


class Accepting(Protocol):
    """The port, as far as its connections need it."""

    receivers: BlockReceiverFactory
    limits: TransportLimits
    handshakes: HandshakeBudget


class Opening:
    """Stands for a protocol between a port and the transport that it makes."""

    __slots__ = ("receiver",)

    def __init__(self, receiver: BlockReceiver) -> None:
        self.receiver = receiver

    def makeConnection(self, transport: object) -> None:
        """Called by Twisted's port; the transport has introduced itself already."""


class BlockServer(tcp.Server):
    """One accepted connection: the :class:`BlockTransport` of a server."""

    tls_class: ClassVar[Any] = openssl.SocketTLS

    logstr = "blocks"

    # Twisted's, of which little is typed: the receiver, the port and the reactor.
    protocol: Any
    server: Any
    reactor: Any

    # Known when the connection is secured; no session id means that it is not yet.
    session_id = b""
    alpn: bytes | None = None
    peer_chain: tuple[bytes, ...] = ()

    # What TLS will begin with, or None once it has begun.
    _context: SSL.Context | None = None
    _tls: Any = None
    # The same while a block can be written at once, otherwise None.
    _ready: Any = None
    # Whether the receiver is to be given blocks.
    _reading = False
    # Blocks that wait, or None. The first one may be half written.
    _waiting: deque[bytes] | None = None
    # What has come of a block, or None.
    _partial: bytearray | None = None
    _receiver_paused = False
    # Closed for the receiver, waiting for the peer.
    _lingering = False
    _timer: IDelayedCall | None = None

    def __init__(
        self,
        sock: Socket,
        protocol: Any,
        client: Any,
        server: Accepting,
        sessionno: int,
        reactor: Any,
    ) -> None:
        """Called by the port, with an :class:`Opening` for the protocol.

        ``tcp.Server`` is left out, since it would keep the peer's address in names for the log.
        """
        tcp.Connection.__init__(self, sock, protocol.receiver, reactor)
        self.server = server
        self.client = client
        self.connected = 1
        # That of now, as the receiver is: a certificate may be replaced before TLS begins.
        self._context = server.receivers.context
        if len(client) == 4:
            self._addressType = address.IPv6Address
        reactor.addReader(self)
        self._timer = reactor.callLater(server.limits.setup_time, self.abortConnection)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'open' if self.connected else 'closed'}>"

    # -- for the receiver

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
            self.abortConnection()

    def pauseReading(self) -> None:
        """See :class:`BlockTransport`."""
        if self._reading:
            self._reading = False
            self.reactor.removeReader(self)

    def resumeReading(self) -> None:
        """See :class:`BlockTransport`."""
        if self._tls is not None and not self._reading and not self.disconnecting:
            self._reading = True
            self.reactor.addReader(self)

    def loseConnection(self) -> None:
        """See :class:`BlockTransport`."""
        if self.connected and not self.disconnecting and not self._aborting:
            self.disconnecting = 1
            self._reading = False
            self._ready = None
            self._start_timer(self.server.limits.close_time)
            self.reactor.removeReader(self)
            self.reactor.addWriter(self)

    def abortConnection(self) -> None:
        """See :class:`BlockTransport`."""
        self._cancel_timer()
        self._reading = False
        self._tls = self._ready = self._waiting = None
        super().abortConnection()

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
        """Read one record. More of them are reported again, after other connections' turns."""
        if not self._reading:
            return self._read_otherwise()
        try:
            data = self._tls.read()
        except openssl.TLSEndedError as ended:
            return main.CONNECTION_DONE if ended.clean else main.CONNECTION_LOST
        if data is not None:
            if self._partial is None and len(data) == BLOCK_SIZE:
                self.protocol.blockReceived(data)
            else:
                self._assemble(data)
        return None

    def doWrite(self) -> Any:
        """Write a bounded part of what waits."""
        waiting = self._waiting
        if waiting is not None:
            try:
                drained = self._write_waiting(waiting)
            except openssl.TLSEndedError:
                return main.CONNECTION_LOST
            if not drained or not self.disconnecting or self._aborting:
                return None
        if self.disconnecting:
            return self._close()
        if not self.session_id:
            if not self.server.handshakes.available():
                return None
            self.reactor.removeWriter(self)
            return self._set_up()
        self.reactor.removeWriter(self)
        return None

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

    # -- setting up

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
            context, self._context = self._context, None
            tls = self._tls = self.tls_class(context, self.socket, True)
        try:
            if not tls.handshake():
                return None
        except SSL.WantWriteError:
            self.reactor.addWriter(self)
            return None
        except openssl.TLSEndedError:
            return main.CONNECTION_LOST
        self._cancel_timer()
        self.session_id = tls.session_id
        if not self.session_id:
            return main.CONNECTION_LOST
        self.alpn = tls.alpn
        self.peer_chain = tls.peer_chain
        tls.settle()
        self._ready = tls
        self._reading = True
        self.protocol.secured(self)
        self.peer_chain = ()
        return None

    # -- reading

    def _read_otherwise(self) -> Any:
        """Read when it is not for blocks: before the connection is secured, and after its end."""
        if self._lingering:
            try:
                return None if self.socket.recv(_LINGER_SIZE) else main.CONNECTION_DONE
            except BlockingIOError:
                return None
            except OSError:
                return main.CONNECTION_LOST
        if self.session_id or self.disconnecting:
            # It was paused or closed while the event was on its way.
            return None
        return self._set_up()

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
            self.protocol.blockReceived(block)

    # -- writing

    def _wait_to_write(self, block: bytes | bytearray | memoryview) -> None:
        if self._tls is None or self.disconnecting:
            return
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
            self.reactor.addWriter(self)
        waiting.append(bytes(block))
        if not self._receiver_paused and len(waiting) >= self.server.limits.high_water:
            self._receiver_paused = True
            self.protocol.pauseProducing()

    def _write_waiting(self, waiting: deque[bytes]) -> bool:
        """Write some of what waits. True: nothing is left, not even of what was added meanwhile."""
        write = self._tls.write
        for _ in range(_WRITES_PER_EVENT):
            if not waiting or not write(waiting[0]):
                break
            waiting.popleft()
        if not waiting:
            self._waiting = None
            if not self.disconnecting:
                self._ready = self._tls
                self.reactor.removeWriter(self)
        if self._receiver_paused and len(waiting) <= self.server.limits.low_water:
            self._receiver_paused = False
            if not self.disconnecting:
                self.protocol.resumeProducing()
        return self._waiting is None

    # -- closing

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
        self.reactor.removeWriter(self)
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return main.CONNECTION_LOST
        self.reactor.addReader(self)
        return None

    def _start_timer(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self.reactor.callLater(seconds, self.abortConnection)

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
        """The path of the client's socket, which hardly ever has one."""
        peer: Any = self.client
        return address.UNIXAddress(peer or None)
