"""An edge process: connections, TLS, handshakes and verification for a core in another process.

Started by `smpd.core` as ``python -m smpd.edge``, with its channel as descriptor 3 and the
sockets that it accepts connections from behind it. It ends when the core tells it to, or is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from socket import socket as Socket
from typing import Any, Final

from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    globalLogBeginner,
)
from zope.interface import implementer

from smpd.channel import (
    CHANNEL,
    HEAD_SIZE,
    Frame,
    Kind,
    Level,
    Start,
    decode_identity,
    decode_learned,
    encode_entry,
    encode_opened,
    head,
)
from smpd.conduit import Conduit
from smpd.known_keys import KnownKeys
from smpd.open_files import most_connections
from smpd.peers import Opened, Peer, PeerService
from smpd.session import Pause, Session, SessionFactory, SessionLimits
from txsimplex import fast_reactor
from txsimplex.blocks_transport import TransportLimits
from txsimplex.keys import Random
from txsimplex.listening import adopt
from txsimplex.smp.handshake import RelayIdentity
from txsimplex.smp.transmissions import Framing
from txsimplex.smp.versions import VersionRange
from txsimplex.tls import server_context

_BLOCK: Final = Kind.BLOCK.value
_CONTENT: Final = Kind.CONTENT.value
_ANSWER: Final = Kind.ANSWER.value
MOST_UNDER_WAY: Final = 4
"""Blocks of a client that the core has not carried out, from which on it is not read from."""
_BUFFER: Final = Pause.BUFFER.value
_PR_SET_PDEATHSIG: Final = 1


class RemotePartner:
    """The partner of a session, in the core's process."""

    __slots__ = ("_edge", "_full", "_owes_taken", "_peer", "_session", "_under_way", "number")

    def __init__(self, edge: Edge, session: Session, opened: Opened, number: int) -> None:
        self._edge = edge
        self._session = session
        self._full = False
        self._owes_taken = False
        self._under_way = 0
        claim = opened.service
        service = None
        if claim is not None:
            service = PeerService(b"", claim.role, claim.fingerprint, claim.session_key)
        framing = Framing(opened.version, opened.session_id)
        self._peer = Peer(framing, opened.session_key, session, service)
        self.number = number

    # -- for the session

    def receive(self, content: bytes | None) -> None:
        """Passes a block on, with what was found out about its commands."""
        conduit = self._edge.conduit
        self._under_way += 1
        if self._under_way == MOST_UNDER_WAY:
            # What is sent for a block comes before the news that it was carried out; so what a
            # client that reads nothing has under way is all that may come for it.
            self._session.pause(Pause.RELAY)
        if content is None:
            conduit.put(Kind.BAD_BLOCK, self.number)
        else:
            proofs = self._edge.keys.proofs(self._peer, content)
            size = len(proofs) + len(content)
            frame_head = head(size, _BLOCK, self.number)
            conduit.put_parts(frame_head, (proofs, content), HEAD_SIZE + size)
        if conduit.full:
            self._edge.hold_back(self._session)

    def resumed(self) -> None:
        """The client has taken what was buffered for it."""
        if self._full:
            self._full = False
            self._edge.conduit.put(Kind.READY, self.number)
        if self._owes_taken:
            self._owes_taken = False
            self._edge.conduit.put(Kind.TAKEN, self.number)

    def end(self) -> None:
        """The connection is gone."""
        self._edge.left(self)

    # -- for the core

    def content(self, content: bytes) -> None:
        """Sends a block, whose content is behind its length."""
        session = self._session
        session.send_content(content)
        if session.pauses and not self._full and session.full:
            self._full = True
            self._edge.conduit.put(Kind.FULL, self.number)

    def answer(self, content: bytes) -> None:
        """Sends a block, with which the core has got one further."""
        self.content(content)
        self._got_further(1)

    def carried_out(self, payload: bytes) -> None:
        """The core has got further."""
        self._got_further(payload[0])

    def _got_further(self, count: int) -> None:
        was_held_back = self._under_way >= MOST_UNDER_WAY
        self._under_way -= count
        if was_held_back and self._under_way < MOST_UNDER_WAY:
            self._session.resume(Pause.RELAY)

    def much_sent(self, payload: bytes) -> None:
        """The core waits until the client has taken what was sent."""
        if self._session.pauses & _BUFFER:
            self._owes_taken = True
        else:
            self._edge.conduit.put(Kind.TAKEN, self.number)

    def accepted(self, payload: bytes) -> None:
        """The core takes part; an id is that of the service."""
        self._session.accepted(payload)

    def refused(self, payload: bytes) -> None:
        """The core refuses the service."""
        self._session.refused()

    def hold(self, payload: bytes) -> None:
        """Many answers to this client wait."""
        self._session.stop_reading()

    def go_on(self, payload: bytes) -> None:
        """They do not any more."""
        self._session.go_on_reading()

    def close(self, payload: bytes) -> None:
        """Ends the connection in order."""
        self._session.close()

    def fail(self) -> None:
        """Ends the connection now: the client cannot be given what it was to have."""
        self.end()
        self._session.abort()

    def learn(self, payload: bytes) -> None:
        """A key that the core has verified a command of this connection with."""
        self._edge.keys.learn(*decode_learned(payload))


class Edge:
    """What an edge process does. `stop` is called when there is nothing more to do."""

    log = Logger()

    def __init__(
        self, reactor: Any, channel: Socket, random: Random, stop: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._random = random
        self._stop = stop
        self._partners: dict[int, RemotePartner] = {}
        self._last_number = 0
        self._held_back: list[Session] = []
        self._start: Start | None = None
        self._ports: list[IListeningPort] = []
        self.sessions: SessionFactory | None = None
        self.keys = KnownKeys()
        self.told_to_end = False
        """If not, it ends because its core is gone, or has said what it cannot follow."""
        self.conduit = Conduit(reactor, channel, self._receive, self._drained, stop)

    # -- for sessions

    def meet(self, session: Session, opened: Opened) -> RemotePartner:
        """See `smpd.session.Meeting`. Only services wait for the core's answer."""
        self._last_number += 1
        partner = RemotePartner(self, session, opened, self._last_number)
        self._partners[partner.number] = partner
        kind = Kind.OPENED_BY_UNIX if session.by_unix else Kind.OPENED
        self.conduit.put(kind, partner.number, encode_opened(opened))
        if opened.service is None:
            session.accepted(None)
        return partner

    def left(self, partner: RemotePartner) -> None:
        """Forgets a connection that is gone."""
        if self._partners.pop(partner.number, None) is not None:
            self.conduit.put(Kind.CLOSED, partner.number)

    def hold_back(self, session: Session) -> None:
        """Reads nothing from a client until the channel has room again."""
        session.pause(Pause.CHANNEL)
        self._held_back.append(session)

    def _drained(self) -> None:
        held_back, self._held_back = self._held_back, []
        for session in held_back:
            session.resume(Pause.CHANNEL)

    # -- from the core

    def _receive(self, frames: Sequence[Frame]) -> None:
        for kind, number, payload in frames:
            if not number:
                _ABOUT_THE_EDGE[kind](self, payload)
                continue
            partner = self._partners.get(number)
            if partner is None:
                # It is gone, and the core does not know yet.
                continue
            try:
                if kind == _ANSWER:
                    partner.answer(payload)
                elif kind == _CONTENT:
                    partner.content(payload)
                else:
                    _ABOUT_CONNECTIONS[kind](partner, payload)
            except Exception:  # noqa: BLE001
                # Of one connection; the others have nothing to do with it.
                self.log.failure("a connection has failed")
                partner.fail()

    def _take_start(self, payload: bytes) -> None:
        self._start = Start.decode(payload)

    def _take_identity(self, payload: bytes) -> None:
        start = self._start
        assert start is not None
        identity = decode_identity(payload)
        context = server_context(
            identity.chain,
            identity.signing_key.encode(),
            request_client_certificate=start.request_client_certificates,
        )
        if self.sessions is None:
            self._listen(start, identity, context)
        else:
            self.sessions.show(identity, context)

    def _listen(self, start: Start, identity: RelayIdentity, context: Any) -> None:
        versions = VersionRange(start.minimum_version, start.maximum_version)
        limits = SessionLimits(
            start.handshake_time,
            start.send_queue,
            versions,
            start.most_by_unix,
            most_connections(proxy=False),
        )
        self.sessions = SessionFactory(self, identity, context, limits, self._reactor, self._random)
        transport_limits = TransportLimits(
            start.setup_time, start.close_time, start.high_water, start.low_water
        )
        for descriptor in start.listening:
            port = adopt(self._reactor, descriptor, self.sessions, limits=transport_limits)
            self._ports.append(port)
        self.conduit.put(Kind.LISTENING, 0)

    def _stop_listening(self, payload: bytes) -> None:
        ports, self._ports = self._ports, []
        stopped = gatherResults([maybeDeferred(port.stopListening) for port in ports])
        stopped.addBoth(lambda result: self.conduit.put(Kind.STOPPED, 0))

    def _pong(self, payload: bytes) -> None:
        self.conduit.put(Kind.PONG, 0)

    def _close_all(self, payload: bytes) -> None:
        self.told_to_end = True
        if self.sessions is None or self._start is None:
            self._stop()
        else:
            closed = self.sessions.close_all(self._start.close_time)
            closed.addCallback(lambda result: self._stop())


_ABOUT_CONNECTIONS: Final[dict[int, Callable[[RemotePartner, bytes], None]]] = {
    Kind.ACCEPTED: RemotePartner.accepted,
    Kind.REFUSED: RemotePartner.refused,
    Kind.LEARN: RemotePartner.learn,
    Kind.HOLD: RemotePartner.hold,
    Kind.GO_ON: RemotePartner.go_on,
    Kind.CLOSE: RemotePartner.close,
    Kind.CARRIED_OUT: RemotePartner.carried_out,
    Kind.MUCH_SENT: RemotePartner.much_sent,
}

_ABOUT_THE_EDGE: Final[dict[int, Callable[[Edge, bytes], None]]] = {
    Kind.START: Edge._take_start,
    Kind.IDENTITY: Edge._take_identity,
    Kind.STOP_LISTENING: Edge._stop_listening,
    Kind.CLOSE: Edge._close_all,
    Kind.PING: Edge._pong,
}


@implementer(ILogObserver)
class CoresLog:
    """Gives the core what is worth logging, so that there is one log."""

    def __init__(self, conduit: Conduit) -> None:
        self._conduit = conduit

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.warn:
            return
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        found = Level.WARNING if level == LogLevel.warn else Level.ERROR
        self._conduit.put(Kind.LOG, 0, encode_entry(found, text))


def main() -> None:
    """Runs an edge until the core ends it."""
    # They go to the core, which ends its edges in order; and without a core there is no edge.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    fast_reactor.install()
    from twisted.internet import reactor as installed

    reactor: Any = installed

    def stop() -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    edge = Edge(reactor, Socket(fileno=CHANNEL), os.urandom, stop)
    globalLogBeginner.beginLoggingTo([CoresLog(edge.conduit)], redirectStandardIO=False)
    reactor.run(installSignalHandlers=False)
    sys.stdout.flush()
    if not edge.told_to_end:
        sys.exit(1)


if __name__ == "__main__":
    main()
