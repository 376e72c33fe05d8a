"""A session until its client is known (docs/spec/smp-wire.md §4.2, §6; smp-conformance.md E, L)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from smpd.session import SessionLimits
from smpd.stores.interface import Service, StoreError
from smpd.stores.memory import MemoryStore
from tests.smpd.people import Clock as RelayClock, key, new_relay, random
from tests.smpd.wires import (
    ADDRESS,
    PLAIN,
    TODAY,
    Client,
    Sessions,
    Wire,
    new_identity,
    new_service,
    new_sessions,
)
from txsimplex.encoding import u16
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import Error
from txsimplex.smp.handshake import HandshakeError
from txsimplex.smp.hellos import ClientHello, ServerHello, ServiceHello, ServiceResponse
from txsimplex.smp.versions import VersionRange


@pytest.fixture
def clock() -> Clock:
    """The reactor's time."""
    return Clock()


@pytest.fixture(params=[False, True], ids=["one process", "an edge"])
def sessions(clock: Clock, request: pytest.FixtureRequest) -> Sessions:
    """Of a new relay."""
    return new_sessions(new_relay(clock=RelayClock()), clock, apart=request.param)


def pong(client: Client) -> bool:
    """Whether the session works."""
    client.send(client.transmission(c.Ping()))
    ((received,),) = client.received()
    return received.message == m.Pong()


# -- versions


def test_075_the_relay_speaks_first(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    (block,) = client.wire.blocks
    hello = ServerHello.decode(PLAIN.open(block))
    assert (hello.versions, hello.session_id) == (VersionRange(6, 18), client.wire.session_id)
    assert hello.key is not None
    assert hello.key.chain == sessions.identity.chain


def test_075_241_without_alpn_it_is_version_6(sessions: Sessions) -> None:
    client = Client(sessions, alpn=None, greet=False)
    content = PLAIN.open(client.wire.blocks[0])
    assert content == u16(6) + u16(6) + b"\x20" + client.wire.session_id
    client.greet()
    assert client.framing.version == 6
    assert pong(client)


@pytest.mark.parametrize("version", range(6, 19))
@pytest.mark.parametrize("with_key", [True, False])
def test_081_every_version_works(sessions: Sessions, version: int, with_key: bool) -> None:
    client = Client(sessions, version, with_key=with_key)
    assert client.framing.version == version
    assert client.handshake.encrypted is (version >= 11 and with_key)
    for _ in range(3):
        assert pong(client)
    assert client.wire.closed is None


def test_each_connection_has_a_key_of_its_own(sessions: Sessions) -> None:
    keys = {Client(sessions).handshake.relay_key for _ in range(3)}
    assert len(keys) == 3


def test_the_versions_offered_can_be_fewer(clock: Clock) -> None:
    limits = SessionLimits(versions=VersionRange(8, 17))
    sessions = new_sessions(new_relay(), clock, limits)
    assert Client(sessions).framing.version == 17
    legacy = Client(sessions, alpn=None, greet=False)
    assert legacy.wire.blocks == []
    assert legacy.wire.closed == "lost"
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("version", [0, 5, 19, 65535])
def test_078_239_a_version_that_is_not_on_offer(sessions: Sessions, version: int) -> None:
    refused = Client(sessions, greet=False)
    refused.wire.blocks.clear()
    hello = ClientHello(version, sessions.identity.key_hash)
    refused.session.blockReceived(PLAIN.seal(hello.encode()))
    assert refused.wire.blocks == []
    assert refused.wire.closed == "lost"


def test_077_240_a_client_that_means_another_relay(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    client.wire.blocks.clear()
    client.session.blockReceived(PLAIN.seal(ClientHello(18, random(32)).encode()))
    assert client.wire.blocks == []
    assert client.wire.closed == "lost"
    assert client.peer is None


@pytest.mark.parametrize("content", [b"", b"\0", u16(18) + b"\x20too short", bytes(16382)])
def test_a_hello_that_cannot_be_read(sessions: Sessions, content: bytes) -> None:
    client = Client(sessions, greet=False)
    client.wire.blocks.clear()
    client.session.blockReceived(PLAIN.seal(content))
    assert client.wire.blocks == []
    assert client.wire.closed == "lost"


def test_a_block_with_a_wrong_length_inside(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    client.wire.blocks.clear()
    client.session.blockReceived(b"\xff" * 16384)
    assert client.wire.blocks == []
    assert client.wire.closed == "lost"


def test_079_bytes_of_later_versions_are_ignored(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    hello = client.hello()
    client.session.blockReceived(PLAIN.seal(hello.hello + b"something new"))
    assert client.peer is not None
    assert client.peer.version == 18


def test_a_block_behind_a_refused_hello_is_ignored(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    client.wire.blocks.clear()
    client.session.blockReceived(PLAIN.seal(b""))
    client.session.blockReceived(PLAIN.seal(ClientHello(18, sessions.identity.key_hash).encode()))
    assert client.peer is None
    assert client.wire.blocks == []


def test_keys_shown_in_the_hello_authorise(sessions: Sessions) -> None:
    """smp-server.md §3: X25519 needs the relay's key, which clients without ALPN do not see."""
    private, dh = key(Algorithm.X25519), key(Algorithm.X25519)
    new = c.New(private.public, dh.public)
    client = Client(sessions)
    client.send(client.transmission(new, b"", private, corr_id=random(24)))
    ((received,),) = client.received()
    assert isinstance(received.message, m.Ids)
    legacy = Client(sessions, alpn=None)
    assert legacy.peer is not None
    assert legacy.peer.session_key is None


def test_203_a_client_without_a_key_cannot_forward(sessions: Sessions) -> None:
    answers = []
    for with_key in (False, True):
        client = Client(sessions, with_key=with_key)
        client.send(client.transmission(c.Rfwd(bytes(100))))
        ((received,),) = client.received()
        answers.append(received.message)
    no_key = Error(("PROXY", "BROKER", "TRANSPORT", "NO_AUTH"))
    assert answers == [m.Err(no_key), m.Err(errors.CRYPTO)]


def test_a_new_certificate_is_shown_to_the_next_client(sessions: Sessions) -> None:
    before = Client(sessions, greet=False)
    old = sessions.identity
    sessions.identity = new_identity()
    after = Client(sessions)
    assert pong(after)
    sessions.identity = old
    before.greet()
    assert pong(before)


# -- time limit


def test_a_certificate_replaced_before_the_hello_is_not_shown(sessions: Sessions) -> None:
    """TLS may have begun with the former one, and a client wants the same in the hello."""
    former = sessions.identity
    session, wire = sessions.buildReceiver(ADDRESS), Wire(b"smp/1", ())
    assert session is not None
    sessions.show(new_identity(), sessions.context)
    session.secured(wire)
    hello = ServerHello.decode(PLAIN.open(wire.blocks[0]))
    assert hello.key is not None
    assert list(hello.key.chain) == list(former.chain)


def test_a_client_that_says_nothing_is_cut_off(sessions: Sessions, clock: Clock) -> None:
    """smp-server.md §2: 120 seconds."""
    client = Client(sessions, greet=False)
    clock.advance(119.9)
    assert client.wire.closed is None
    clock.advance(0.2)
    assert client.wire.closed == "aborted"


def test_the_time_limit_is_a_setting(clock: Clock) -> None:
    sessions = new_sessions(new_relay(), clock, SessionLimits(handshake_time=3))
    client = Client(sessions, greet=False)
    clock.advance(3.1)
    assert client.wire.closed == "aborted"


def test_after_the_handshake_there_is_no_time_limit(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions)
    assert clock.getDelayedCalls() == []
    clock.advance(10_000)
    assert client.wire.closed is None
    assert pong(client)


@pytest.mark.parametrize("service", [False, True])
def test_a_client_that_leaves_early(sessions: Sessions, clock: Clock, service: bool) -> None:
    client = Client(sessions, service=new_service() if service else None, greet=False)
    client.leave()
    assert clock.getDelayedCalls() == []
    assert sessions.sessions == set()
    clock.advance(200)
    assert client.wire.closed is None


def test_a_client_that_leaves_before_tls_is_set_up(sessions: Sessions) -> None:
    session = sessions.buildReceiver(ADDRESS)
    assert session is not None
    assert sessions.sessions == {session}
    session.close()
    session.abort()
    session.connectionLost(Failure(ConnectionLost()))
    assert sessions.sessions == set()


# -- certificates of clients


def test_a_client_may_show_a_chain(sessions: Sessions) -> None:
    """smp-wire.md §4.2: of 1 to 4, signed by the last; without a service it means nothing."""
    authority_key, leaf_key = key(), key()
    authority = make_authority(authority_key, TODAY, random)
    leaf = make_online("service", leaf_key.public, authority, authority_key, TODAY, random)
    for chain in ((authority,), (leaf, authority)):
        client = Client(sessions, chain=chain)
        assert pong(client)
        assert client.peer is not None
        assert client.peer.service is None


def test_a_bad_chain_ends_the_connection(sessions: Sessions, clock: Clock) -> None:
    authority_key, leaf_key, other_key = key(), key(), key()
    authority = make_authority(authority_key, TODAY, random)
    other = make_authority(other_key, TODAY, random)
    leaf = make_online("service", leaf_key.public, authority, authority_key, TODAY, random)
    future = make_authority(key(), TODAY + timedelta(days=1), random)
    for chain in (
        (leaf, other),
        (leaf,),
        (future,),
        (leaf, authority, authority, authority, authority),
        (b"no certificate",),
    ):
        client = Client(sessions, chain=chain, greet=False)
        assert client.wire.blocks == []
        assert client.wire.closed == "aborted"
    assert clock.getDelayedCalls() == []


# -- services


def test_161_a_service_is_given_its_id(sessions: Sessions) -> None:
    service = new_service()
    first, second = Client(sessions, service=service), Client(sessions, service=service)
    assert len(first.service_id) == 24
    assert first.service_id == second.service_id
    assert Client(sessions, service=new_service()).service_id != first.service_id
    assert pong(first)
    peer = first.peer
    assert peer is not None
    assert peer.service is not None
    assert (peer.service.service_id, peer.service.role) == (first.service_id, Role.NOTIFIER)


@pytest.mark.parametrize("version", [16, 17, 18])
def test_a_service_may_ask_what_its_role_is_for(sessions: Sessions, version: int) -> None:
    service = new_service()
    client = Client(sessions, version, service=service)
    client.send(client.transmission(c.Nsubs(), client.service_id, service.session_key))
    client.send(client.transmission(c.Sub(), random(24), key()))
    ((count,), (refused,)) = client.received()
    assert count.message == m.Soks(0)
    assert refused.message == m.Err(errors.PROHIBITED)


def test_before_version_16_there_are_no_services(sessions: Sessions) -> None:
    client = Client(sessions, 15, service=new_service())
    assert pong(client)
    assert client.peer is not None
    assert client.peer.service is None


def refused_with(client: Client) -> Error | None:
    """Why the relay refuses the service; it closes the connection then."""
    with pytest.raises(HandshakeError) as refusal:
        client.greet()
    assert client.wire.closed == "lost"
    assert client.peer is None
    return refusal.value.error


def test_169_a_service_with_another_role(sessions: Sessions) -> None:
    service = new_service(Role.NOTIFIER)
    Client(sessions, service=service)
    other_role = type(service)(
        Role.MESSAGING, service.chain, service.signing_key, service.session_key
    )
    client = Client(sessions, service=other_role, greet=False)
    assert refused_with(client) == Error(("HANDSHAKE", "BAD_SERVICE"))


def test_a_service_that_did_not_show_its_chain_in_tls(sessions: Sessions) -> None:
    """smp-wire.md §6.3."""
    service, other = new_service(), new_service()
    for chain in ((), other.chain):
        client = Client(sessions, service=service, chain=chain, greet=False)
        assert refused_with(client) == Error(("HANDSHAKE", "BAD_AUTH"))


def test_a_service_that_does_not_hold_its_key(sessions: Sessions) -> None:
    service = new_service()
    thief = type(service)(service.role, service.chain, key(), service.session_key)
    client = Client(sessions, service=thief, greet=False)
    assert refused_with(client) == Error(("HANDSHAKE", "BAD_AUTH"))


def test_a_services_hello_that_is_wrong(sessions: Sessions) -> None:
    client = Client(sessions, service=new_service(), greet=False)
    client.wire.blocks.clear()
    hello = ClientHello(18, sessions.identity.key_hash)
    hello.service = ServiceHello(Role.NOTIFIER, list(client.wire.peer_chain), b"not a key")
    client.session.blockReceived(PLAIN.seal(hello.encode()))
    (block,) = client.wire.blocks
    assert ServiceResponse.decode(PLAIN.open(block)).error == Error(("HANDSHAKE", "BAD_AUTH"))
    assert client.wire.closed == "lost"


def test_a_service_that_cannot_be_stored(clock: Clock) -> None:
    """smp-wire.md §6.3: as one with another role."""

    class FullStore(MemoryStore):
        def add_service(self, service: Service) -> Service:
            raise StoreError("the disk is full")

    sessions = new_sessions(new_relay(FullStore()), clock)
    client = Client(sessions, service=new_service(), greet=False)
    assert refused_with(client) == Error(("HANDSHAKE", "BAD_SERVICE"))
