"""Sessions of a relay without sockets: a transport that keeps blocks, and the client behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from smpd.channel import HEAD_SIZE, Decoder, Kind, head
from smpd.conversation import Conversation, Conversations
from smpd.edge import Edge, RemotePartner
from smpd.edge_channel import EdgeChannel, EdgeLine
from smpd.peers import Peer
from smpd.relay import Relay
from smpd.session import SameProcess, SessionFactory, SessionLimits
from tests.smpd.people import key, random
from txsimplex.blocks_transport import BLOCK_SIZE
from txsimplex.boxes import BoxKey, PlainBlocks, authenticator
from txsimplex.certificates import fingerprint
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c
from txsimplex.smp.handshake import (
    Blocks,
    ClientHandshake,
    ClientSession,
    RelayIdentity,
    ServiceIdentity,
    service_id,
)
from txsimplex.smp.transmissions import Framing, Received, frame
from txsimplex.smp.versions import LEGACY_RANGE, VersionRange

TODAY = datetime(2026, 7, 1, tzinfo=UTC)
ADDRESS = IPv4Address("TCP", "127.0.0.1", 5223)
PLAIN = PlainBlocks()


def new_identity() -> RelayIdentity:
    """A relay's certificates."""
    authority_key, online_key = key(), key()
    authority = make_authority(authority_key, TODAY, random)
    online = make_online(
        "relay.example", online_key.public, authority, authority_key, TODAY, random
    )
    return RelayIdentity([online, authority], online_key, fingerprint(authority))


def new_service(role: c.Role = c.Role.NOTIFIER) -> ServiceIdentity:
    """A service's certificate, of its own making."""
    private = key()
    return ServiceIdentity(role, (make_authority(private, TODAY, random),), private, key())


class Sessions(SessionFactory):
    """Sessions of a relay: in one process with it, or, if `apart`, with a channel between."""

    def __init__(
        self,
        relay: Relay,
        clock: Clock,
        limits: SessionLimits | None = None,
        apart: bool = False,
        answer_time: float = 0.0,
    ) -> None:
        self.relay = relay
        self.conversations = Conversations(relay, clock, answer_time=answer_time)
        self.edge: Edge | None = None
        self.channel: EdgeChannel | None = None
        if apart:
            self.edge, self.channel = connected(self.conversations, clock)
        super().__init__(
            self.edge or SameProcess(self.conversations),
            new_identity(),
            SSL.Context(SSL.TLS_METHOD),
            limits or SessionLimits(),
            clock,
            random,
            lambda: TODAY,
        )

    @property
    def holding(self) -> list[Conversation]:
        """Those with answers that wait."""
        return list(self.conversations.holding)

    def lines(self) -> dict[int, EdgeLine]:
        """The connections of the edge, as the core has them."""
        return {} if self.channel is None else self.channel._lines


class Straight:
    """A conduit on which frames arrive at once, in order."""

    def __init__(self) -> None:
        self.full = False
        self.open = True
        self.other: Straight
        self.receive: Any = None
        self.sent: list[Kind] = []
        self._decoder = Decoder()
        self._waiting: list[bytes] = []
        self._busy = False

    def put(self, kind: int, connection: int, *payload: bytes) -> None:
        """As of a conduit."""
        size = sum(map(len, payload))
        self.put_parts(head(size, kind, connection), payload, HEAD_SIZE + size)

    def put_parts(self, frame_head: bytes, others: Sequence[bytes], size: int) -> None:
        """As of a conduit."""
        data = b"".join((frame_head, *others))
        assert len(data) == size
        self.sent.append(Kind(data[4]))
        self.other.arrive(data)

    def arrive(self, data: bytes) -> None:
        """Gives frames to this side."""
        self._waiting.append(data)
        if not self._busy:
            self.flow()

    def hold(self) -> None:
        """Gives this side nothing until `flow`."""
        self._busy = True

    def flow(self) -> None:
        """Gives this side what has come."""
        self._busy = True
        while self._waiting:
            data = self._waiting.pop(0)
            self._decoder.space()[: len(data)] = data
            self.receive(self._decoder.take(len(data)))
        self._busy = False

    def read_rest(self) -> None:
        """Nothing is left to be read."""

    def close(self) -> None:
        """The end."""
        self.open = False


def connected(conversations: Conversations, clock: Clock) -> tuple[Edge, EdgeChannel]:
    """Both sides of a channel."""
    at_edge, at_core = Straight(), Straight()
    at_edge.other, at_core.other = at_core, at_edge
    nothing = cast(Any, _NoReactor(clock))
    edge = Edge(nothing, cast(Any, None), random, lambda: None)
    channel = EdgeChannel(conversations, nothing, cast(Any, None), lambda kind: None, lambda: None)
    at_edge.receive, at_core.receive = edge._receive, channel._receive
    edge.conduit, channel.conduit = cast(Any, at_edge), cast(Any, at_core)
    return edge, channel


class _NoReactor:
    """A clock, and descriptors that nothing happens to."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock.seconds
        self.callLater = clock.callLater

    def addReader(self, reader: object) -> None:
        """Never reads."""


def new_sessions(
    relay: Relay,
    clock: Clock | None = None,
    limits: SessionLimits | None = None,
    apart: bool = False,
) -> Sessions:
    """What makes a relay's sessions."""
    return Sessions(relay, clock or Clock(), limits, apart)


class Wire:
    """A block transport that keeps what is written."""

    def __init__(self, alpn: bytes | None, peer_chain: Sequence[bytes]) -> None:
        self.session_id = random(32)
        self.alpn = alpn
        self.peer_chain = tuple(peer_chain)
        self.buffered = 0
        self.blocks: list[bytes] = []
        self.reading = True
        self.closed: str | None = None

    def sendBlock(self, block: bytes | bytearray | memoryview) -> None:
        """Keeps the block."""
        if len(block) != BLOCK_SIZE:
            raise ValueError("not a block")
        if self.closed is None:
            self.blocks.append(bytes(block))

    def pauseReading(self) -> None:
        """No more blocks."""
        self.reading = False

    def resumeReading(self) -> None:
        """More blocks."""
        self.reading = True

    def loseConnection(self) -> None:
        """The end, in order."""
        self.closed = self.closed or "lost"

    def abortConnection(self) -> None:
        """The end."""
        self.closed = "aborted"

    def getPeer(self) -> IAddress:
        """Somebody."""
        return ADDRESS

    def getHost(self) -> IAddress:
        """The relay."""
        return ADDRESS


class Client:
    """A client of a session; with `greet` false it stops before its hello.

    `version` is the highest that it speaks, `chain` what it shows in TLS.
    """

    def __init__(
        self,
        sessions: Sessions,
        version: int = 18,
        alpn: bytes | None = b"smp/1",
        service: ServiceIdentity | None = None,
        chain: Sequence[bytes] | None = None,
        with_key: bool = True,
        greet: bool = True,
        address: IAddress = ADDRESS,
    ) -> None:
        if chain is None:
            chain = () if service is None else service.chain
        self.sessions = sessions
        self.wire = Wire(alpn, chain)
        session = sessions.buildReceiver(address)
        assert session is not None
        self.session = session
        self.session.secured(self.wire)
        self.service = service
        self.service_id = b""
        self.private = key(Algorithm.X25519) if with_key else None
        self.versions = VersionRange(LEGACY_RANGE.minimum, version)
        self.handshake: ClientSession
        self.framing: Framing
        self._incoming: Blocks = PLAIN
        self._outgoing: Blocks = PLAIN
        if greet:
            self.greet()

    @property
    def peer(self) -> Peer | None:
        """What the relay makes of this client, None before it has shaken hands."""
        partner = self.session.partner
        if isinstance(partner, RemotePartner):
            line = self.sessions.lines().get(partner.number)
            partner = None if line is None else line.conversation
        return None if partner is None else cast(Conversation, partner).peer

    def hello(self) -> ClientSession:
        """What the client makes of the relay's hello."""
        identity = self.sessions.identity
        return ClientHandshake(
            self.versions,
            self.wire.session_id,
            identity.key_hash,
            identity.chain,
            self.private,
            service=self.service,
        ).receive(PLAIN.open(self.wire.blocks.pop(0)))

    def greet(self) -> None:
        """The whole handshake."""
        self.handshake = self.hello()
        self.session.blockReceived(PLAIN.seal(self.handshake.hello))
        if self.handshake.service:
            self.service_id = service_id(PLAIN.open(self.wire.blocks.pop(0)))
        self._incoming, self._outgoing = self.handshake.blocks()
        self.framing = Framing(self.handshake.version, self.wire.session_id)

    def transmission(
        self,
        command: c.Command,
        entity_id: bytes = b"",
        private: PrivateKey | None = None,
        corr_id: bytes | None = None,
    ) -> bytes:
        """A signed transmission, for the service too where the protocol asks for it."""
        authorized = self.framing.authorized(
            random(24) if corr_id is None else corr_id,
            entity_id,
            command.encode(self.framing.version),
        )
        proof, signed, by_service = b"", authorized, None
        if self.service is not None and command.service_signed:
            by_service = self.service.session_key.sign(authorized)
            signed = fingerprint(self.service.chain[-1]) + authorized
        if private is not None and private.algorithm is Algorithm.X25519:
            assert corr_id is not None
            assert self.handshake.relay_key is not None
            box = BoxKey(private.exchange(self.handshake.relay_key))
            proof = authenticator(box, corr_id, signed)
        elif private is not None:
            proof = private.sign(signed)
        return self.framing.transmission(authorized, proof, by_service)

    def send(self, *transmissions: bytes) -> None:
        """Sends transmissions in one block."""
        self.send_content(frame(transmissions))

    def send_content(self, content: bytes) -> None:
        """Sends a block of any content."""
        self.session.blockReceived(self.seal(content))

    def seal(self, content: bytes) -> bytes:
        """The client's next block."""
        return self._outgoing.seal(content)

    def received(self) -> list[list[Received]]:
        """The messages of each block that has come since the last time."""
        blocks, self.wire.blocks = self.wire.blocks, []
        return [self.framing.read_messages(self._incoming.open(block)) for block in blocks]

    def leave(self) -> None:
        """Ends the connection."""
        self.session.connectionLost(Failure(ConnectionDone()))
