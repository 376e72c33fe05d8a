"""One connection: handshake, blocks in, blocks out, back-pressure.

The edge between a block transport and the relay: what it knows of the protocol is
blocks and the handshake (docs/spec/smp-server.md §2, smp-wire.md §6, §7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntFlag
from typing import Protocol

from OpenSSL import SSL
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.conversation import Conversations
from smpd.peers import Opened
from txsimplex.blocks_transport import BLOCK_SIZE, BlockTransport
from txsimplex.boxes import BoxError, PlainBlocks
from txsimplex.certificates import CertificateError, check_client_chain
from txsimplex.encoding import PAD_BYTE, ParseError
from txsimplex.keys import Algorithm, PrivateKey, Random
from txsimplex.smp.handshake import (
    Blocks,
    HandshakeError,
    RelayHandshake,
    RelayIdentity,
    RelaySession,
    accept_service,
    refuse_service,
)
from txsimplex.smp.transmissions import LARGEST_TRANSMISSION, TooLarge, frame_padded, pack
from txsimplex.smp.versions import SMP_RANGE, VersionRange

_PLAIN = PlainBlocks()


class Pause(IntFlag):
    """Why a client is not read from."""

    BUFFER = 1
    """It takes its answers slower than they come."""
    ANSWERS = 2
    """Many of its answers wait for the store."""
    SERVICE = 4
    """The relay has not yet said whether it knows the service."""
    CHANNEL = 8
    """The way to the relay is full."""
    RELAY = 16
    """The relay, in another process, has not yet carried out several of its blocks."""


_SILENCE = 60.0
"""Seconds in which it is said once that connections are refused."""

_BUFFER = Pause.BUFFER.value


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """`handshake_time` in seconds from TLS to the end of the handshake; `send_queue` in blocks.

    While that many blocks wait to be written, a connection gets no messages of others.
    `most_by_unix` connections may come through Unix sockets, 0 for any number. `most` is how
    many there may be at all, 0 for any number: the process needs open files for other things.
    """

    handshake_time: float = 120.0
    send_queue: int = 128
    versions: VersionRange = SMP_RANGE
    most_by_unix: int = 0
    most: int = 0


class Partner(Protocol):
    """The relay's side of a connection, as its session knows it."""

    def receive(self, content: bytes | None) -> None:
        """Takes the content of a block; None for a block that did not open."""

    def resumed(self) -> None:
        """The client has taken what was buffered for it."""

    def end(self) -> None:
        """The connection is gone."""


class Meeting(Protocol):
    """Where sessions find their partners, in this process or another one."""

    def meet(self, session: Session, opened: Opened) -> Partner:
        """The partner of a session that has shaken hands.

        Calls `Session.accepted` or `Session.refused`, before or after it returns.
        """


class SameProcess:
    """Sessions and the relay in one process."""

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    def meet(self, session: Session, opened: Opened) -> Partner:
        """See `Meeting`."""
        return self._conversations.open(session, opened, session.accepted, session.refused)


class Session:
    """One connection; the receiver of its blocks, and a `smpd.conversation.Line`."""

    __slots__ = (
        "_agreed",
        "_factory",
        "_handshake",
        "_identity",
        "_incoming",
        "_outgoing",
        "_refused",
        "_session_key",
        "_time_limit",
        "_transport",
        "active_at",
        "partner",
        "pauses",
    )

    def __init__(self, factory: SessionFactory) -> None:
        self._factory = factory
        # That of the context that TLS has: it may be another one when TLS is set up.
        self._identity: RelayIdentity | None = factory.identity
        self._transport: BlockTransport | None = None
        self._handshake: RelayHandshake | None = None
        self._agreed: RelaySession | None = None
        self._session_key: PrivateKey | None = None
        self._time_limit: IDelayedCall | None = None
        self._incoming: Blocks = _PLAIN
        self._outgoing: Blocks = _PLAIN
        self._refused = False
        self.pauses = 0
        """Reasons why the client is not read from (`Pause`)."""
        self.partner: Partner | None = None
        self.active_at = factory.now()

    @property
    def by_unix(self) -> bool:
        """Whether the connection came through a Unix socket."""
        return self in self._factory.by_unix

    # -- the transport's receiver

    def secured(self, transport: BlockTransport) -> None:
        """TLS is set up: the relay speaks first."""
        factory = self._factory
        if self not in factory.sessions:
            # It was closed while TLS was set up.
            transport.abortConnection()
            return
        self._transport = transport
        chain = transport.peer_chain
        if chain:
            try:
                check_client_chain(chain, factory.today())
            except CertificateError:
                transport.abortConnection()
                return
        identity, self._identity = self._identity, None
        assert identity is not None
        session_key = PrivateKey.generate(Algorithm.X25519, factory.random)
        self._session_key = session_key
        limits = factory.limits
        self._handshake = RelayHandshake(
            identity,
            limits.versions,
            transport.session_id,
            session_key,
            transport.alpn,
            chain,
        )
        try:
            hello = self._handshake.hello()
        except HandshakeError:
            transport.loseConnection()
            return
        self._time_limit = factory.call_later(limits.handshake_time, transport.abortConnection)
        transport.sendBlock(_PLAIN.seal(hello))

    def blockReceived(self, block: bytes) -> None:
        """A block from the client."""
        self.active_at = self._factory.now()
        partner = self.partner
        if partner is None:
            self._receive_hello(block)
            return
        try:
            content = self._incoming.open(block)
        except (BoxError, ParseError):
            partner.receive(None)
        else:
            partner.receive(content)

    def pauseProducing(self) -> None:
        """The client reads slower than it is answered: it is not read from either."""
        self.pause(Pause.BUFFER)

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self.resume(Pause.BUFFER)
        if self.partner is not None:
            self.partner.resumed()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._end_time_limit()
        self._transport = None
        self._handshake = None
        self._agreed = None
        if self.partner is not None:
            self.partner.end()
        self._factory.ended(self)

    # -- the handshake

    def _receive_hello(self, block: bytes) -> None:
        transport, handshake = self._transport, self._handshake
        if transport is None or handshake is None:
            return
        self._handshake = None
        try:
            agreed = handshake.receive(_PLAIN.open(block))
        except HandshakeError as error:
            self._fail(error)
            return
        except ParseError:
            transport.loseConnection()
            return
        self._agreed = agreed
        shown = self._session_key if transport.alpn is not None else None
        self._session_key = None
        opened = Opened(agreed.version, agreed.session_id, shown, agreed.secret, agreed.service)
        partner = self._factory.meeting.meet(self, opened)
        if self._refused:
            partner.end()
        else:
            self.partner = partner
            self._await_answer()

    def _await_answer(self) -> None:
        """Takes no commands from the client before the relay has answered about its service."""
        if self._agreed is not None:
            self.pause(Pause.SERVICE)

    def _fail(self, error: HandshakeError) -> None:
        transport = self._transport
        if transport is not None:
            if error.answer is not None:
                transport.sendBlock(_PLAIN.seal(error.answer))
            transport.loseConnection()

    def accepted(self, service_id: bytes | None) -> None:
        """The relay takes part, and knows the service if there is one: the handshake is over."""
        transport, agreed = self._transport, self._agreed
        if transport is None or agreed is None:
            return
        self._agreed = None
        if service_id is not None:
            transport.sendBlock(_PLAIN.seal(accept_service(service_id)))
        self._end_time_limit()
        self._incoming, self._outgoing = agreed.blocks()
        self.resume(Pause.SERVICE)

    def refused(self) -> None:
        """The relay refuses the service."""
        self._agreed = None
        self._refused = True
        self._fail(refuse_service())
        partner, self.partner = self.partner, None
        if partner is not None:
            partner.end()

    def _end_time_limit(self) -> None:
        if self._time_limit is not None and self._time_limit.active():
            self._time_limit.cancel()
        self._time_limit = None

    # -- reading

    def pause(self, reason: Pause) -> None:
        """Reads nothing from the client until no reason is left."""
        self.pauses |= reason.value
        if self._transport is not None:
            self._transport.pauseReading()

    def resume(self, reason: Pause) -> None:
        """Reads from the client again if there is no other reason not to."""
        if self.pauses:
            self.pauses &= ~reason.value
            if not self.pauses and self._transport is not None:
                self._transport.resumeReading()

    def stop_reading(self) -> None:
        """Reads nothing from the client, many of whose answers wait."""
        self.pause(Pause.ANSWERS)

    def go_on_reading(self) -> None:
        """Reads from the client again, as far as its answers are concerned."""
        self.resume(Pause.ANSWERS)

    # -- sending

    @property
    def full(self) -> bool:
        """Whether so many blocks wait that the client gets no messages of others."""
        transport = self._transport
        if transport is None:
            return True
        if not self.pauses & _BUFFER:
            # Nobody would tell the relay when it is over.
            return False
        return transport.buffered >= self._factory.limits.send_queue * BLOCK_SIZE

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Sends transmissions in as few blocks as hold them; those that fit into none are not."""
        transport = self._transport
        if transport is None:
            return
        self.active_at = self._factory.now()
        if len(transmissions) == 1:
            if len(transmissions[0]) <= LARGEST_TRANSMISSION:
                blocks = self._outgoing
                padded = frame_padded(transmissions, blocks.padded_size)
                transport.sendBlock(blocks.seal_padded(padded))
            return
        for content in pack(transmissions):
            if not isinstance(content, TooLarge):
                transport.sendBlock(self._outgoing.seal(content))

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Sends one transmission that fits into a block."""
        transport = self._transport
        if transport is not None:
            self.active_at = self._factory.now()
            blocks = self._outgoing
            transport.sendBlock(blocks.seal_padded(frame_padded(parts, blocks.padded_size)))

    def send_content(self, content: bytes) -> None:
        """Sends a block with this content, which is behind its length and fits."""
        transport = self._transport
        if transport is not None:
            blocks = self._outgoing
            transport.sendBlock(blocks.seal_padded(content.ljust(blocks.padded_size, PAD_BYTE)))

    # -- ending

    def close(self) -> None:
        """Ends the connection in order, or as soon as TLS is set up."""
        if self._transport is not None:
            self._transport.loseConnection()
        else:
            # Nothing was said that could be lost: it is not waited for.
            self._factory.ended(self)

    def abort(self) -> None:
        """Ends the connection now."""
        if self._transport is not None:
            self._transport.abortConnection()


class SessionFactory:
    """Makes sessions.

    `context` is the TLS context of the next connection; `today` gives the time that
    certificates are checked at.
    """

    log = Logger()

    def __init__(
        self,
        meeting: Meeting,
        identity: RelayIdentity,
        context: SSL.Context,
        limits: SessionLimits,
        reactor: IReactorTime,
        random: Random,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.meeting = meeting
        self.identity = identity
        self.context = context
        self.limits = limits
        self.random = random
        self.today = today
        self.now = reactor.seconds
        self.call_later = reactor.callLater
        self.sessions: set[Session] = set()
        self.by_unix: set[Session] = set()
        """Those that have come through Unix sockets, as from tor."""
        self._closed: Deferred[None] | None = None
        self._silent_until = 0.0

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self.sessions)

    @property
    def connections_by_unix(self) -> int:
        """How many of them came through Unix sockets."""
        return len(self.by_unix)

    def buildReceiver(self, address: IAddress) -> Session | None:
        """A session for a connection that was just accepted; None when there are enough."""
        limit = self.limits.most
        if limit and len(self.sessions) >= limit:
            self._say_that_there_are_enough(limit)
            return None
        by_unix = isinstance(address, UNIXAddress)
        most = self.limits.most_by_unix
        if by_unix and most and len(self.by_unix) >= most:
            return None
        session = Session(self)
        self.sessions.add(session)
        if by_unix:
            self.by_unix.add(session)
        return session

    def _say_that_there_are_enough(self, limit: int) -> None:
        if self.now() >= self._silent_until:
            self._silent_until = self.now() + _SILENCE
            self.log.warn(  # noqa: G010 (the name Twisted gives it)
                "there are {limit} connections, more are refused: the limit of open files"
                " allows no more",
                limit=limit,
            )

    def show(self, identity: RelayIdentity, context: SSL.Context) -> None:
        """Shows connections that are accepted from now on another certificate."""
        self.context = context
        self.identity = identity

    def ended(self, session: Session) -> None:
        """Forgets a session whose connection is gone."""
        self.sessions.discard(session)
        self.by_unix.discard(session)
        if self._closed is not None and not self.sessions:
            closed, self._closed = self._closed, None
            closed.callback(None)

    def close_all(self, seconds: float) -> Deferred[None]:
        """Closes all connections in order, and after `seconds` those that are left at once."""
        closed: Deferred[None] = Deferred()
        if not self.sessions:
            closed.callback(None)
            return closed
        self._closed = closed
        time_limit = self.call_later(seconds, self._abort_all)

        def cancel(result: None) -> None:
            if time_limit.active():
                time_limit.cancel()

        closed.addCallback(cancel)
        for session in list(self.sessions):
            session.close()
        return closed

    def _abort_all(self) -> None:
        for session in list(self.sessions):
            session.abort()
        if self._closed is not None:
            closed, self._closed = self._closed, None
            closed.callback(None)
