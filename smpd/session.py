"""One connection of the relay: handshake, blocks in, blocks out, back-pressure.

The edge between a block transport and the relay: what it knows of the protocol is
blocks and the handshake (docs/spec/smp-server.md §2, smp-wire.md §6, §7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from smpd.peers import Peer, PeerService
from smpd.relay import Outcome, Relay
from smpd.stores.interface import RoleMismatch, StoreError
from txsimplex.blocks_transport import BLOCK_SIZE, BlockTransport
from txsimplex.boxes import BoxError, PlainBlocks
from txsimplex.certificates import CertificateError, check_client_chain
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey, Random
from txsimplex.smp import errors
from txsimplex.smp.handshake import (
    Blocks,
    HandshakeError,
    RelayHandshake,
    RelayIdentity,
    RelaySession,
    ServiceClaim,
    accept_service,
    refuse_service,
)
from txsimplex.smp.transmissions import BAD_BLOCK, Framing, TooLarge, frame_padded, pack
from txsimplex.smp.versions import SMP_RANGE, VersionRange

_FEW_ANSWERS = 4
"""Up to this many answers share a block with the first message (smp-server.md §2.2)."""

_MOST_HELD = 32
"""Blocks whose answers may wait for the store before the client is not read from any more."""

_PLAIN = PlainBlocks()


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """`handshake_time` in seconds from TLS to the end of the handshake; `send_queue` in blocks.

    While that many blocks wait to be written, a connection gets no messages of others.
    `store_time`: seconds that answers wait for a store that fails, before they become errors.
    """

    handshake_time: float = 120.0
    send_queue: int = 128
    store_time: float = 5.0
    versions: VersionRange = SMP_RANGE


class Session:
    """One connection; the receiver of its blocks and the outlet of its peer."""

    __slots__ = (
        "_factory",
        "_handshake",
        "_held",
        "_incoming",
        "_outgoing",
        "_paused",
        "_relay",
        "_session_key",
        "_time_limit",
        "_transport",
        "active_at",
        "peer",
    )

    def __init__(self, factory: SessionFactory) -> None:
        self._factory = factory
        self._relay = factory.relay
        self._transport: BlockTransport | None = None
        self._handshake: RelayHandshake | None = None
        self._session_key: PrivateKey | None = None
        self._time_limit: IDelayedCall | None = None
        self._incoming: Blocks = _PLAIN
        self._outgoing: Blocks = _PLAIN
        self._paused = False
        self._held: deque[Outcome] | None = None
        self.peer: Peer | None = None
        self.active_at = factory.now()

    # -- the transport's receiver

    def secured(self, transport: BlockTransport) -> None:
        """TLS is set up: the relay speaks first."""
        self._transport = transport
        factory = self._factory
        chain = transport.peer_chain
        if chain:
            try:
                check_client_chain(chain, factory.today())
            except CertificateError:
                transport.abortConnection()
                return
        session_key = PrivateKey.generate(Algorithm.X25519, factory.random)
        self._session_key = session_key
        limits = factory.limits
        self._handshake = RelayHandshake(
            factory.identity,
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
        peer = self.peer
        if peer is None:
            self._receive_hello(block)
            return
        try:
            content = self._incoming.open(block)
        except (BoxError, ParseError):
            outcome = self._relay.process(peer, (BAD_BLOCK,))
        else:
            outcome = self._relay.process(peer, peer.framing.read_commands(content))
        if outcome.refused:
            self.send(outcome.refused)
        if self._held is not None or max(outcome.needs, default=0) > self._relay.store.committed:
            self._hold(outcome)
        else:
            self._answer(outcome)

    def pauseProducing(self) -> None:
        """The client reads slower than it is answered: it is not read from either."""
        self._paused = True
        if self._transport is not None:
            self._transport.pauseReading()

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self._paused = False
        if self._transport is not None and (self._held is None or len(self._held) < _MOST_HELD):
            self._transport.resumeReading()
        if self.peer is not None:
            self._relay.ready(self.peer)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._end_time_limit()
        self._transport = None
        self._handshake = None
        self._end_hold()
        if self.peer is not None:
            self._relay.leave(self.peer)
        self._factory.ended(self)

    # -- the handshake

    def _receive_hello(self, block: bytes) -> None:
        transport, handshake = self._transport, self._handshake
        if transport is None or handshake is None:
            return
        self._handshake = None
        try:
            session = handshake.receive(_PLAIN.open(block))
            service = None if session.service is None else self._serve(session.service)
        except HandshakeError as error:
            if error.answer is not None:
                transport.sendBlock(_PLAIN.seal(error.answer))
            transport.loseConnection()
            return
        except ParseError:
            transport.loseConnection()
            return
        if service is not None:
            transport.sendBlock(_PLAIN.seal(accept_service(service.service_id)))
        self._end_time_limit()
        self._start(session, service, transport.alpn)

    def _serve(self, claim: ServiceClaim) -> PeerService:
        try:
            service = self._relay.service(claim.role, claim.chain, claim.fingerprint)
        except (RoleMismatch, StoreError):
            raise refuse_service() from None
        return PeerService(service.service_id, claim.role, claim.fingerprint, claim.session_key)

    def _start(
        self, session: RelaySession, service: PeerService | None, alpn: bytes | None
    ) -> None:
        self._incoming, self._outgoing = session.blocks()
        shown = self._session_key if alpn is not None else None
        self._session_key = None
        self.peer = Peer(
            Framing(session.version, session.session_id),
            shown,
            self,
            service,
            has_client_key=session.secret is not None,
        )

    def _end_time_limit(self) -> None:
        if self._time_limit is not None and self._time_limit.active():
            self._time_limit.cancel()
        self._time_limit = None

    # -- sending

    @property
    def full(self) -> bool:
        """Whether so many blocks wait that the client gets no messages of others."""
        transport = self._transport
        if transport is None:
            return True
        if not self._paused:
            # Nobody would tell the relay when it is over.
            return False
        return transport.buffered >= self._factory.limits.send_queue * BLOCK_SIZE

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Sends transmissions in as few blocks as hold them."""
        transport = self._transport
        if transport is None:
            return
        self.active_at = self._factory.now()
        if len(transmissions) == 1:
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

    def _answer(self, outcome: Outcome) -> None:
        """Sends the answers to a block in the order of smp-server.md §2.1 and §2.2."""
        answers, messages = outcome.answers, outcome.messages
        if messages and len(answers) <= _FEW_ANSWERS:
            self.send([*answers, messages[0]])
            messages = messages[1:]
        elif answers:
            self.send(answers)
        for message in messages:
            self.send((message,))

    # -- answers that wait for the store

    def _hold(self, outcome: Outcome) -> None:
        """Keeps answers until what they depend on is safe, and all later ones behind them."""
        held = self._held
        if held is None:
            held = self._held = deque()
            self._factory.holding[self] = None
        held.append(outcome)
        if len(held) >= _MOST_HELD and self._transport is not None:
            self._transport.pauseReading()

    def release(self) -> None:
        """Gives the answers that the store's mark has passed."""
        held = self._held
        if held is None:
            return
        mark = self._relay.store.committed
        while held and max(held[0].needs, default=0) <= mark:
            self._answer(held.popleft())
        self._after_release(held)

    def give_up(self, problem: str) -> None:
        """Gives all answers: ``ERR STORE`` instead of those that depend on what is not safe."""
        held, peer = self._held, self.peer
        if held is None or peer is None:
            return
        mark = self._relay.store.committed
        message = b"ERR " + errors.store_error(problem).encode(peer.version)
        while held:
            outcome = held.popleft()
            outcome.answers = [
                answer if need <= mark else peer.framing.instead(answer, message)
                for answer, need in zip(outcome.answers, outcome.needs, strict=True)
            ]
            self._answer(outcome)
        self._after_release(held)

    def _after_release(self, held: deque[Outcome]) -> None:
        if not held:
            self._end_hold()
        if len(held) < _MOST_HELD and self._transport is not None and not self._paused:
            self._transport.resumeReading()

    def _end_hold(self) -> None:
        if self._held is not None:
            self._held = None
            self._factory.holding.pop(self, None)

    # -- by the relay's service

    @property
    def idle(self) -> bool:
        """Whether it may be closed for inactivity: it is set up and subscribed to nothing."""
        peer = self.peer
        if peer is None or peer.notifier_ids or peer.service_subscribed or peer.service_notifiers:
            return False
        return all(subscription.getter for subscription in peer.subscriptions.values())

    def close(self) -> None:
        """Ends the connection in order."""
        if self._transport is not None:
            self._transport.loseConnection()

    def abort(self) -> None:
        """Ends the connection now."""
        if self._transport is not None:
            self._transport.abortConnection()


class SessionFactory:
    """Makes the sessions of a relay.

    `context` is the TLS context of the next connection; replacing it and `identity`
    together is how a new certificate comes into use. `now` gives seconds of any
    epoch, for inactivity; `today` the time that certificates are checked at.
    """

    def __init__(
        self,
        relay: Relay,
        identity: RelayIdentity,
        context: SSL.Context,
        limits: SessionLimits,
        reactor: IReactorTime,
        random: Random,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.relay = relay
        self.identity = identity
        self.context = context
        self.limits = limits
        self.random = random
        self.today = today
        self.now = reactor.seconds
        self.call_later = reactor.callLater
        self.sessions: set[Session] = set()
        self.holding: dict[Session, None] = {}
        self._giving_up: IDelayedCall | None = None
        relay.store.on_commit = self._committed
        self._closed: Deferred[None] | None = None

    def buildReceiver(self, address: IAddress) -> Session:
        """A session for a connection that was just accepted."""
        session = Session(self)
        self.sessions.add(session)
        return session

    def _committed(self) -> None:
        """The store's mark has moved, or the store has a failure now or no more."""
        for session in list(self.holding):
            session.release()
        failing = self.relay.store.failure is not None
        if failing and self._giving_up is None:
            self._giving_up = self.call_later(self.limits.store_time, self._give_up)
        elif not failing and self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        problem = self.relay.store.failure
        if problem is not None:
            for session in list(self.holding):
                session.give_up(problem)

    def ended(self, session: Session) -> None:
        """Forgets a session whose connection is gone."""
        self.sessions.discard(session)
        if self._closed is not None and not self.sessions:
            closed, self._closed = self._closed, None
            closed.callback(None)

    def close_all(self, seconds: float) -> Deferred[None]:
        """Closes all connections in order, and after `seconds` those that are left at once."""
        closed: Deferred[None] = Deferred()
        if self.relay.store.failure is not None:
            self._give_up()
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
        # Connections that have not finished TLS cannot be reached; they end with the process.
        if self._closed is not None:
            closed, self._closed = self._closed, None
            closed.callback(None)

    def close_idle(self, ttl: float) -> None:
        """Closes the connections that are subscribed to nothing and silent for `ttl` seconds."""
        before = self.now() - ttl
        for session in list(self.sessions):
            if session.active_at < before and session.idle:
                session.close()
