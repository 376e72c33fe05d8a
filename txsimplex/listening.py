"""From an endpoint's description to a port that speaks blocks over TLS."""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_UNIX, socket as Socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from zope.interface import directlyProvides, providedBy

from txsimplex.block_port import BACKLOG, BlockPort, ReceiverFactory, UnixBlockPort, UnixPort
from txsimplex.block_server import HandshakeBudget
from txsimplex.block_stream import BlockStream
from txsimplex.blocks_transport import BlockReceiverFactory, TransportLimits
from txsimplex.stale_sockets import remove_stale

_DEFAULT_LIMITS = TransportLimits()


def listen(
    reactor: Any,
    description: str,
    receivers: BlockReceiverFactory,
    *,
    limits: TransportLimits = _DEFAULT_LIMITS,
    reuse_port: bool = False,
    wrap: Callable[[IProtocolFactory], IProtocolFactory] | None = None,
) -> Deferred[IListeningPort]:
    """Listen for clients.

    TCP and Unix sockets get TLS on the socket itself (:mod:`txsimplex.block_port`), any other
    endpoint gets it on top of the stream that it provides (:mod:`txsimplex.block_stream`).

    :param reactor: an epoll, poll or select reactor.
    :param description: of an endpoint, in Twisted's strings: ``tcp:5223``,
        ``tcp6:5223:interface=::1``, ``unix:/run/smpd/socket:mode=600``.
    :param receivers: makes the receivers and holds the TLS context.
    :param limits: for each connection.
    :param reuse_port: let other processes listen on the same TCP port (SO_REUSEPORT).
    :param wrap: puts a protocol in front of TLS, which then is on top of streams.
    :return: fires with the port; fails with ``CannotListenError``.
    :raises ValueError: the description is no endpoint's.
    """
    ports = _BlockPorts(reactor, description, limits, reuse_port)
    factory: IProtocolFactory = _StreamFactory(receivers, reactor, limits)
    if wrap is not None:
        factory = wrap(factory)
    try:
        endpoint = serverFromString(ports, description)
    except TypeError:
        raise ValueError("the endpoint has other parameters than these") from None
    listening: Deferred[IListeningPort] = endpoint.listen(factory)
    return listening


def adopt(
    reactor: Any,
    descriptor: int,
    receivers: BlockReceiverFactory,
    *,
    limits: TransportLimits = _DEFAULT_LIMITS,
) -> IListeningPort:
    """Accept clients from a socket that listens already, TCP or Unix.

    The socket may be shared with other processes: it is not shut down in the end, and the path of a
    Unix socket stays. The descriptor itself is closed then.

    :param reactor: an epoll, poll or select reactor.
    :param descriptor: of the socket, which does not block.
    :param receivers: makes the receivers and holds the TLS context.
    :param limits: for each connection.
    """
    listening = Socket(fileno=descriptor)
    port: BlockPort | UnixBlockPort
    if listening.family == AF_UNIX:
        port = UnixBlockPort(b"\0", receivers, reactor=reactor, limits=limits)
    else:
        port = BlockPort(0, receivers, reactor=reactor, limits=limits)
    port.adopt(listening)
    return port


def _silent(port: Any) -> IListeningPort:
    """A port of Twisted's that names no peers in the log."""
    port._logger = BlockPort._logger
    listening: IListeningPort = port
    return listening


class _StreamFactory(ReceiverFactory):
    """Makes block streams, for endpoints that know nothing of block ports."""

    def __init__(
        self, receivers: BlockReceiverFactory, reactor: Any, limits: TransportLimits
    ) -> None:
        super().__init__(receivers)
        self._reactor = reactor
        self._limits = limits

    def buildProtocol(self, addr: IAddress | None) -> Any:
        assert addr is not None
        receiver = self.receivers.buildReceiver(addr)
        if receiver is None:
            return None
        context = self.receivers.context
        return BlockStream(receiver, context, server=True, clock=self._reactor, limits=self._limits)


class _BlockPorts:
    """Stands for the reactor before an endpoint, which so gets block ports where it wants ports."""

    def __init__(
        self, reactor: Any, description: str, limits: TransportLimits, reuse_port: bool
    ) -> None:
        self._reactor = reactor
        self._limits = limits
        self._reuse_port = reuse_port
        self._default_backlog = "backlog=" not in description
        self._handshakes = HandshakeBudget(reactor)
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: Any, backlog: int = BACKLOG, interface: str = ""
    ) -> IListeningPort:
        """Called by the endpoint."""
        backlog = BACKLOG if self._default_backlog else backlog
        if not isinstance(factory, _StreamFactory):
            # Another protocol is between.
            return _silent(self._reactor.listenTCP(port, factory, backlog, interface))
        block_port = BlockPort(
            port,
            factory.receivers,
            interface=interface,
            backlog=backlog,
            reactor=self._reactor,
            reuse_port=self._reuse_port,
            limits=self._limits,
            handshakes=self._handshakes,
        )
        block_port.startListening()
        return block_port

    def listenUNIX(
        self,
        address: bytes,
        factory: Any,
        backlog: int = BACKLOG,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """Called by the endpoint; with `wantPID`, a socket left behind is replaced."""
        if wantPID:
            remove_stale(address)
        backlog = BACKLOG if self._default_backlog else backlog
        if not isinstance(factory, _StreamFactory):
            port = UnixPort(address, factory, backlog, mode, self._reactor)
            port.startListening()
            return _silent(port)
        block_port = UnixBlockPort(
            address,
            factory.receivers,
            backlog=backlog,
            mode=mode,
            reactor=self._reactor,
            limits=self._limits,
            handshakes=self._handshakes,
        )
        block_port.startListening()
        return block_port
