"""Where the relay listens: endpoints of the configuration become ports of its sessions."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.config import Settings
from smpd.conversation import Conversations
from smpd.core import Edges
from smpd.endpoints import behind_proxy
from smpd.onion import onion_host
from smpd.open_files import allow_connections
from smpd.session import Session, SessionFactory
from torcfg.circuit_connections import CircuitFactory
from torcfg.circuits import Circuits
from torcfg.endpoints import OnionPort
from txsimplex.addresses import Host
from txsimplex.block_port import ReceiverFactory
from txsimplex.blocks_transport import TransportLimits
from txsimplex.listening import listen

_EVERYWHERE = re.compile(r"tcp:(?:port=)?([0-9]+)")
_NO_IPV6 = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))

_HIGH_WATER = 8
"""Blocks waiting to be written to a client at which it is no longer read from."""
_LOW_WATER = 2
"""Blocks at which it is read from again."""

_CLOSE_TIME = 5.0
"""Seconds that connections have at a stop to take what is still buffered for them."""


class Entrance:
    """Stands at the ports, which are opened while privileges last, for the sessions to come."""

    def __init__(self) -> None:
        self.conversations: Conversations | None = None
        self.sessions: SessionFactory | Edges | None = None

    @property
    def context(self) -> SSL.Context:
        """The TLS context of the next connection."""
        assert self.sessions is not None
        return self.sessions.context

    def buildReceiver(self, address: IAddress) -> Session | None:
        """A session for a connection that was just accepted."""
        return None if self.sessions is None else self.sessions.buildReceiver(address)


class Listener(Service):
    """Listens on the endpoints of the configuration, from before privileges are given up."""

    log = Logger()

    def __init__(self, settings: Settings, entrance: Entrance, reactor: Any) -> None:
        self._settings = settings
        self._entrance = entrance
        self._reactor = reactor
        self.ports: list[IListeningPort] = []
        # Those of each edge process.
        self._shares: list[list[IListeningPort]] = [[] for _ in range(settings.server.processes)]
        self._started = False
        self.circuits = Circuits(settings.tor.most_streams)
        """Those of an onion service in torrc, as far as tor tells of them."""

    def privilegedStartService(self) -> None:
        """Listens, or ends the process with the reason."""
        super().privilegedStartService()
        allow_connections()
        refused: list[str] = []
        for description in self._settings.server.listen:
            # Each process has a TCP socket of its own, and the kernel shares clients out.
            shares = [self._shares]
            if description.partition(":")[0] in ("tcp", "tcp6"):
                shares = [[each] for each in self._shares]
            for share in shares:
                try:
                    waiting = self._listen(description, transport_limits(self._settings))
                except ValueError as error:
                    refused.append(f"cannot listen on {description}: {error}")
                    break
                waiting.addCallback(self._add, share)
                waiting.addErrback(self._refused, description, refused)
                if refused:
                    break
        if refused:
            raise SystemExit("\n".join(refused))
        # What fails from now on fails while the relay runs already.
        self._started = True

    def _listen(self, description: str, limits: TransportLimits) -> Deferred[IListeningPort]:
        """Listens; on a port of all interfaces by IPv6 and IPv4 where there is both (§4.4)."""
        everywhere = _EVERYWHERE.fullmatch(description)
        if everywhere is None:
            return self._listen_on(description, limits)

        def without_ipv6(failure: Failure) -> Deferred[IListeningPort]:
            error = failure.value
            if not isinstance(error, CannotListenError) or error.socketError.errno not in _NO_IPV6:
                failure.raiseException()
            return self._listen_on(description, limits)

        both = self._listen_on(f"tcp6:{everywhere[1]}", limits)
        return both.addErrback(without_ipv6)

    def _listen_on(self, description: str, limits: TransportLimits) -> Deferred[IListeningPort]:
        several = len(self._shares) > 1
        behind = behind_proxy(description)
        return listen(
            self._reactor,
            behind or description,
            self._entrance,
            limits=limits,
            reuse_port=several,
            wrap=None if behind is None else self._count_circuits,
        )

    def _count_circuits(self, factory: IProtocolFactory) -> IProtocolFactory:
        return CircuitFactory(factory, self.circuits)

    def _add(self, port: Any, shares: Sequence[list[IListeningPort]]) -> None:
        self.ports.append(port)
        if len(self._shares) > 1:
            if not isinstance(getattr(port, "factory", None), ReceiverFactory):
                raise ValueError("such an endpoint is for one process only")
            # Edges accept connections, and this process none.
            port.stopReading()
            for share in shares:
                share.append(port)

    def _refused(self, failure: Failure, description: str, refused: list[str]) -> None:
        error = failure.value
        # Twisted's own sentence names the place again, in its own words.
        why = error.socketError if isinstance(error, CannotListenError) else str(error)
        sentence = f"cannot listen on {description}: {why}"
        if not self._started:
            refused.append(sentence)
            return
        self.log.critical("{sentence}", sentence=sentence)
        self._reactor.stop()

    def startService(self) -> None:
        """Says where the relay is, once it runs and signals stop it in order."""
        super().startService()
        self._reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        edges = self._entrance.sessions
        if isinstance(edges, Edges):
            sockets: list[list[int]] = [
                [port.fileno() for port in share]  # type: ignore[attr-defined]
                for share in self._shares
            ]
            edges.run(sockets).addCallback(lambda result: self._announce())
        else:
            self._announce()

    def _announce(self) -> None:
        sessions = self._entrance.sessions
        if sessions is None:
            return
        address = self._settings.address(sessions.identity.key_hash, self._onion_hosts())
        if address is None:
            self.log.warn(  # noqa: G010 (the name Twisted gives it)
                "the configuration sets no hosts, so the relay has no address to give"
            )
        else:
            # Without the password, since the log may be read by more than the operator.
            self.log.info("SMP relay ready: {address}", address=str(address.without_password()))

    def _onion_hosts(self) -> list[Host]:
        own = onion_host(self._settings)
        # Of the ports: privileges to read their keys may be gone.
        others = [Host.parse(each.getHost().host) for each in self.onion_ports]
        return others if own is None else [own, *others]

    @property
    def circuits_told(self) -> int | None:
        """How many circuits of Tor there are now; None where tor is not there to tell."""
        told = any(behind_proxy(each) is not None for each in self._settings.server.listen)
        return self.circuits.count if told else None

    @property
    def onion_ports(self) -> list[OnionPort]:
        """Those that are onion services; the `publisher` of each says how far it is."""
        return [port for port in self.ports if isinstance(port, OnionPort)]

    @inlineCallbacks
    def stopService(self) -> Any:
        """Stops listening, answers what is under way, closes the connections; in bounded time."""
        yield maybeDeferred(super().stopService)
        conversations, sessions = self._entrance.conversations, self._entrance.sessions
        if isinstance(sessions, Edges):
            yield sessions.stop_accepting()
        ports, self.ports = self.ports, []
        stopped = [maybeDeferred(port.stopListening) for port in ports]
        yield DeferredList([each.addErrback(self._not_closed) for each in stopped])
        if conversations is not None and sessions is not None:
            # What waits is answered before the connections are closed.
            conversations.settle()
            yield sessions.close_all(_CLOSE_TIME)

    def _not_closed(self, failure: Failure) -> None:
        # A path that is gone has not to be removed. Others may be where the user may not write.
        if not isinstance(failure.value, FileNotFoundError):
            self.log.error(
                "a port could not be closed in order: {error}", error=failure.getErrorMessage()
            )


def transport_limits(settings: Settings) -> TransportLimits:
    """What the configuration says about the transport of connections."""
    return TransportLimits(
        setup_time=settings.protocol.tls_timeout,
        close_time=_CLOSE_TIME,
        high_water=min(_HIGH_WATER, settings.delivery.send_queue),
        low_water=min(_LOW_WATER, settings.delivery.send_queue - 1),
    )
