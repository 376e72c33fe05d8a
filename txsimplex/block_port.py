"""Listening for connections that carry blocks over TLS (smp-wire.md §4, §5).

The connections themselves are in :mod:`txsimplex.block_server`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from socket import socket as Socket
from typing import Any

from twisted.internet import address, tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from txsimplex.block_server import BlockServer, HandshakeBudget, Opening, UnixBlockServer
from txsimplex.blocks_transport import BlockReceiverFactory, TransportLimits

BACKLOG = 1024
"""Connections that may wait to be accepted (smp-wire.md §4.4)."""

_ACCEPTS_PER_TURN = 50
_REST = 0.05
"""Seconds in which a process that has refused a connection leaves others to those that have not."""
_DEFAULT_LIMITS = TransportLimits()


class ReceiverFactory(Factory):
    """What a port of Twisted's calls for each connection."""

    noisy = False

    def __init__(self, receivers: BlockReceiverFactory) -> None:
        self.receivers = receivers

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by a port; None refuses the connection."""
        assert addr is not None
        receiver = self.receivers.buildReceiver(addr)
        return None if receiver is None else Opening(receiver)

    def logPrefix(self) -> str:
        """The name of the port in Twisted's own messages."""
        return "blocks"


@implementer(ILogObserver)
class _WithoutAddresses:
    """Keeps the messages of Twisted's port about accepting, but for those that name a peer."""

    def __call__(self, event: LogEvent) -> None:
        if "address" not in event:
            globalLogPublisher(event)


class BlockPort(tcp.Port):
    """Listens on TCP, IPv4 or IPv6."""

    transport: Any = BlockServer
    reactor: Any
    _shared = False
    _logger = Logger(observer=_WithoutAddresses())
    _created: Socket | None = None

    def __init__(
        self,
        port: int,
        receivers: BlockReceiverFactory,
        *,
        interface: str = "",
        backlog: int = BACKLOG,
        reactor: Any = None,
        reuse_port: bool = False,
        limits: TransportLimits = _DEFAULT_LIMITS,
        handshakes: HandshakeBudget | None = None,
    ) -> None:
        """
        :param port: the number; 0 for any that is free.
        :param receivers: makes the receivers and holds the TLS context.
        :param interface: the address to listen on; "" is every IPv4 one, "::" every one.
        :param backlog: connections that may wait to be accepted.
        :param reactor: the global one if it is not given.
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
        # Accepted sockets take this over, which saves a call for each.
        created.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if self._share_port:
            created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        self._created = created
        return created

    def adopt(self, listening: Socket) -> None:
        """Begin to accept connections from a socket that listens already."""
        if listening.family == socket.AF_INET6:
            self._addressType = address.IPv6Address
        _adopt(self, listening)

    def startListening(self) -> None:
        """Take the address and begin to accept connections.

        :raises CannotListenError: the address cannot be had.
        """
        _start_listening(self, super().startListening)

    def doRead(self) -> None:
        """Accept what there is, a bounded number in each turn."""
        _accept(self, super().doRead)


class UnixPort(unix.Port):
    """Twisted's, which is closed even if its path cannot be removed."""

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor; a path that somebody has removed already is no failure."""
        try:
            super().connectionLost(reason)
        except OSError as error:
            # Twisted has left the socket open.
            tcp.Port.connectionLost(self, reason)
            if not isinstance(error, FileNotFoundError):
                raise


class UnixBlockPort(UnixPort):
    """Listens on a Unix socket."""

    transport: Any = UnixBlockServer
    reactor: Any
    _shared = False
    _logger = BlockPort._logger
    _created: Socket | None = None

    def __init__(
        self,
        path: bytes,
        receivers: BlockReceiverFactory,
        *,
        backlog: int = BACKLOG,
        mode: int = 0o600,
        reactor: Any = None,
        limits: TransportLimits = _DEFAULT_LIMITS,
        handshakes: HandshakeBudget | None = None,
    ) -> None:
        """
        :param path: of the socket.
        :param receivers: makes the receivers and holds the TLS context.
        :param backlog: connections that may wait to be accepted.
        :param mode: the socket's permissions.
        :param reactor: the global one if it is not given.
        :param limits: for each connection.
        :param handshakes: to be shared with other ports of the same reactor.
        """
        super().__init__(path, ReceiverFactory(receivers), backlog, mode, reactor)
        self.receivers = receivers
        self.limits = limits
        self.handshakes = handshakes or HandshakeBudget(self.reactor)

    def createInternetSocket(self) -> Socket:
        """Called by Twisted."""
        created: Socket = super().createInternetSocket()
        self._created = created
        return created

    def startListening(self) -> None:
        """Take the path and begin to accept connections.

        :raises CannotListenError: the path cannot be had.
        """
        _start_listening(self, super().startListening)

    def adopt(self, listening: Socket) -> None:
        """Begin to accept connections from a socket that listens already."""
        _adopt(self, listening)

    def doRead(self) -> None:
        """Accept what there is, a bounded number in each turn."""
        _accept(self, super().doRead)


def _start_listening(port: BlockPort | UnixBlockPort, start: Callable[[], None]) -> None:
    try:
        start()
    except CannotListenError:
        if port._created is not None:
            # Twisted leaves it open.
            port._created.close()
        raise


def _adopt(port: BlockPort | UnixBlockPort, listening: Socket) -> None:
    port._preexistingSocket = listening
    # Others may go on to accept connections from it.
    port._shouldShutdown = False
    port._shared = True
    port.startListening()


def _accept(port: BlockPort | UnixBlockPort, accept_in_trouble: Callable[[], None]) -> None:
    """Accept connections for a port.

    Twisted's way of it, with its provisions against a lack of descriptors, is taken only when
    accepting fails, since it takes thrice the time.
    """
    refused = False
    for _ in range(_ACCEPTS_PER_TURN):
        try:
            accepted, peer = port.socket.accept()
        except BlockingIOError:
            break
        except OSError:
            accept_in_trouble()
            return
        if not _take_on(port, accepted, peer):
            refused = True
    if refused and port._shared:
        # Who has nothing to do but to refuse would be the first at each connection.
        port.stopReading()
        port.reactor.callLater(_REST, _go_on, port)


def _go_on(port: BlockPort | UnixBlockPort) -> None:
    if port.connected and not port.disconnecting:
        port.startReading()


def _take_on(port: BlockPort | UnixBlockPort, accepted: Socket, peer: Any) -> bool:
    """Whether there is a receiver for the connection, which is closed otherwise."""
    receiver = None
    try:
        address: Any = port._buildAddr(peer)
        receiver = port.receivers.buildReceiver(address)
        if receiver is None:
            accepted.close()
        else:
            port.transport(accepted, Opening(receiver), peer, port, 0, port.reactor)
    except Exception:  # noqa: BLE001
        # One connection that cannot be had, for whatever reason, is no reason to close the port.
        port._logger.failure("A connection could not be taken on")
        accepted.close()
        if receiver is not None:
            receiver.connectionLost(Failure())
    return receiver is not None
