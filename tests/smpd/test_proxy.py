"""Private routing at the proxy: who is answered what, and who waits for whom (smp-proxy.md)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from smpd.counters import Counters
from smpd.proxy import Proxy, ProxyRules
from tests.smpd.people import Person, new_relay
from tests.txsimplex.client.test_link import FakeSession
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client import pool
from txsimplex.client.errors import DisconnectedError, HandshakeError, IdentityError
from txsimplex.client.link import (
    ANSWER_TIME,
    BAD_RESPONSE,
    NETWORK,
    NO_AUTH,
    TIMED_OUT,
    VERSION,
)
from txsimplex.client.pool import RelayPool, UnreachableError
from txsimplex.client.session import Session
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import LARGEST_TRANSMISSION, Transmission, frame

HOSTS = ("relay.example.com", "other.example.org")


@dataclass(eq=False)
class Sender:
    """A client of the proxy, and what it was answered, by correlation id."""

    proxy: Proxy
    person: Person = field(default_factory=lambda: Person(new_relay()))
    answers: dict[bytes, m.Message | Error] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peer = self.person.peer

    def reply(self, header: bytes, message: bytes) -> bool:
        """Called by the proxy."""
        answer = self.person.framing.answer(header, message)
        if len(answer) > LARGEST_TRANSMISSION:
            return False
        (received,) = self.person.framing.read_messages(frame([answer]))
        assert received.corr_id not in self.answers
        read = received.message
        assert isinstance(read, m.Message), read
        self.answers[received.corr_id] = read.error if isinstance(read, m.Err) else read
        return True

    def ask(self, command: c.Command, entity_id: bytes = b"") -> bytes:
        """Sends a command; its correlation id."""
        corr_id = os.urandom(24)
        sent = self.person.transmission(command, entity_id, corr_id=corr_id)
        (t,) = self.person.framing.read_commands(frame([sent]))
        assert isinstance(t, Transmission)
        self.proxy.take(self, t)
        return corr_id

    def forward(self, session: FakeSession) -> bytes:
        """Sends PFWD; its correlation id."""
        key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
        return self.ask(c.Pfwd(17, key, b"sealed"), session.session_id)


class Scene:
    """A proxy, and relays that a test connects and plays."""

    def __init__(self, **rules: Any) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.connecting: dict[str, Deferred[Any]] = {}
        self.pool = RelayPool(self.connect, clock=self.clock, most_forwarded=1000)
        self.proxy = Proxy(self.pool, ProxyRules(**rules), self.counters, self.clock.seconds)
        self.sender = Sender(self.proxy)

    async def connect(self, location: RelayLocation) -> Session:
        waiting: Deferred[Session] = Deferred()
        self.connecting[location.hosts[0].text] = waiting
        return await waiting

    def location(self, host: str = HOSTS[0]) -> RelayLocation:
        return RelayLocation((Host.parse(host),), "", bytes(32))

    def connected(self, host: str = HOSTS[0], version: int = 18) -> FakeSession:
        """A relay to which somebody has asked for a session."""
        Sender(self.proxy).ask(c.Prxy(self.location(host)))
        session = FakeSession(version)
        self.connecting.pop(host).callback(session)
        return session


def answered(session: FakeSession) -> list[bytes]:
    """Lets a relay answer all that was forwarded to it; the correlation ids of that."""
    got = session.received()
    for corr_id, forwarded in got:
        session.respond(corr_id, forwarded, b"answer")
    return [forwarded.corr_id for _, forwarded in got]


def test_190_the_password_of_the_proxy() -> None:
    scene = Scene(password=b"secret")
    for password in (None, b"", b"wrong"):
        corr_id = scene.sender.ask(c.Prxy(scene.location(), password))
        assert scene.sender.answers[corr_id] == errors.PROXY_BASIC_AUTH
    assert scene.connecting == {}
    scene.sender.ask(c.Prxy(scene.location(), b"secret"))
    assert list(scene.connecting) == [HOSTS[0]]


def test_191_all_are_shown_the_same_session() -> None:
    scene, other = Scene(), None
    other = Sender(scene.proxy)
    ids = [scene.sender.ask(c.Prxy(scene.location())), other.ask(c.Prxy(scene.location()))]
    assert scene.sender.answers == other.answers == {}
    session = FakeSession()
    scene.connecting[HOSTS[0]].callback(session)
    first, second = scene.sender.answers[ids[0]], other.answers[ids[1]]
    assert isinstance(first, m.Pkey)
    assert first == second
    assert first.session_id == session.session_id
    assert (scene.counters.relays_asked, scene.counters.relays_connected) == (2, 2)


def test_192_commands_of_all_clients_go_through_one_connection() -> None:
    scene = Scene()
    session, other = scene.connected(), Sender(scene.proxy)
    ids = {scene.sender: scene.sender.forward(session), other: other.forward(session)}
    assert sorted(answered(session)) == sorted(ids.values())
    for sender, corr_id in ids.items():
        assert sender.answers == {corr_id: m.Pres(b"answer")}
    unknown = scene.sender.forward(FakeSession())
    assert scene.sender.answers[unknown] == errors.PROXY_NO_SESSION
    counters = scene.counters
    assert (counters.forwards, counters.forwards_answered, counters.forwards_unknown) == (3, 2, 1)


def test_answers_of_a_relay_that_fit_into_no_block() -> None:
    """The sender is told that they are none."""
    scene = Scene()
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(2)]
    first, second = session.received()
    session.respond(*first, bytes(16300))
    session.answer(second[0], m.Err(Error(("STORE",), "x" * 16300)))
    assert scene.sender.answers == dict.fromkeys(ids, BAD_RESPONSE)
    assert scene.counters.forwards_failed == 1


def test_a_silent_relay_keeps_nobody_waiting_for_another() -> None:
    scene = Scene(client_concurrency=2, client_waiting=5)
    dead, good = scene.connected(HOSTS[0]), scene.connected(HOSTS[1])
    for _ in range(5):
        scene.sender.forward(dead)
    assert len(dead.received()) == 2
    ids = [scene.sender.forward(good) for _ in range(2)]
    assert answered(good) == ids
    other = Sender(scene.proxy)
    other.forward(dead)
    assert len(dead.received()) == 1


def test_what_waits_goes_out_when_there_is_room() -> None:
    scene = Scene(client_concurrency=2, client_waiting=5)
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(5)]
    order = []
    while got := answered(session):
        assert len(got) <= 2
        order += got
    assert order == ids
    assert len(scene.sender.answers) == 5


def test_a_client_asks_for_so_many_relays_at_the_same_time() -> None:
    scene = Scene(client_concurrency=2, client_waiting=1)
    hosts = [f"relay{number}.example.com" for number in range(4)]
    ids = [scene.sender.ask(c.Prxy(scene.location(host))) for host in hosts]
    assert list(scene.connecting) == hosts[:2]
    assert scene.sender.answers == {ids[3]: TIMED_OUT}
    other = Sender(scene.proxy)
    other.ask(c.Prxy(scene.location("another.example.com")))
    assert "another.example.com" in scene.connecting
    scene.connecting[hosts[0]].errback(UnreachableError(NETWORK))
    assert hosts[2] in scene.connecting
    scene.connecting[hosts[2]].callback(FakeSession())
    assert scene.sender.answers[ids[0]] == NETWORK
    assert isinstance(scene.sender.answers[ids[2]], m.Pkey)
    scene.proxy.leave(scene.sender)
    scene.connecting[hosts[1]].callback(FakeSession())
    assert scene.counters.relays_asked == 5


def test_too_many_that_wait_are_told_at_once() -> None:
    scene = Scene(client_concurrency=1, client_waiting=2)
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(4)]
    assert scene.sender.answers == {ids[3]: TIMED_OUT}
    assert answered(session) == ids[:1]
    assert answered(session) == ids[1:2]
    late = scene.sender.forward(session)
    assert late not in scene.sender.answers


def test_what_has_waited_for_too_long_is_not_forwarded() -> None:
    scene = Scene(client_concurrency=1)
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(2)]
    scene.clock.pump([1.0] * int(ANSWER_TIME + 1))
    assert scene.sender.answers == dict.fromkeys(ids, TIMED_OUT)
    assert len(session.received()) == 1
    assert scene.counters.forwards_failed == 2


def test_a_client_that_is_gone_is_not_answered_and_leaves_nothing_behind() -> None:
    scene = Scene(client_concurrency=1)
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(3)]
    scene.proxy.leave(scene.sender)
    assert answered(session) == ids[:1]
    assert session.received() == []
    assert scene.sender not in scene.proxy._clients


def test_a_relay_that_goes_is_told_all_that_wait_for_it() -> None:
    scene = Scene(client_concurrency=1)
    session = scene.connected()
    ids = [scene.sender.forward(session) for _ in range(3)]
    session.lose()
    assert scene.sender.answers == dict.fromkeys(ids, NETWORK)
    late = scene.sender.forward(session)
    assert scene.sender.answers[late] == errors.PROXY_NO_SESSION


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (NETWORK, "relays_unreachable"),
        (VERSION, "relays_incompatible"),
        (NO_AUTH, "relays_incompatible"),
        (Error(("PROXY", "BROKER", "HOST")), "relays_failed"),
    ],
)
def test_a_relay_that_cannot_be_reached(error: Error, counted: str) -> None:
    scene = Scene()
    corr_id = scene.sender.ask(c.Prxy(scene.location()))
    scene.connecting[HOSTS[0]].errback(UnreachableError(error))
    again = scene.sender.ask(c.Prxy(scene.location()))
    assert scene.sender.answers == {corr_id: error, again: error}
    assert (scene.counters.relays_asked, getattr(scene.counters, counted)) == (2, 2)


def test_198_a_relay_that_is_too_old() -> None:
    scene = Scene()
    corr_id = scene.sender.ask(c.Prxy(scene.location()))
    scene.connecting[HOSTS[0]].callback(FakeSession(7))
    assert scene.sender.answers == {corr_id: VERSION}
    assert scene.counters.relays_incompatible == 1


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("example.com", True),
        ("relay.example.com", True),
        ("example.org", False),
        ("notexample.com", False),
    ],
)
def test_relays_of_own_domains_are_counted_apart(host: str, own: bool) -> None:
    """§5.3: in addition to the others."""
    scene = Scene(own_domains=("example.com",))
    session = scene.connected(host)
    corr_id = scene.sender.forward(session)
    assert answered(session) == [corr_id]
    counters = scene.counters
    assert (counters.relays_connected, counters.forwards_answered) == (1, 1)
    assert (counters.own_relays_connected, counters.own_forwards_answered) == (own, own)


def test_a_relay_of_an_own_domain_is_forgotten_with_its_connection() -> None:
    scene = Scene(own_domains=("example.com",))
    session = scene.connected()
    scene.sender.ask(c.Prxy(scene.location()))
    scene.sender.forward(session)
    session.lose()
    assert scene.counters.own_forwards_failed == 1
    assert not scene.proxy._own


def test_nothing_of_a_queue_is_in_the_memory_of_a_session() -> None:
    """The proxy knows relays and ciphertexts."""
    scene = Scene()
    session = scene.connected()
    scene.sender.forward(session)
    ((_, forwarded),) = session.received()
    assert {*forwarded.__slots__} == {"corr_id", "version", "key", "sealed"}
    assert "sealed'" not in repr(forwarded)


def in_common(one: bytes, other: bytes, size: int = 16) -> bool:
    """Whether a string of `size` bytes is in both."""
    windows = {one[start : start + size] for start in range(len(one) - size + 1)}
    return any(other[start : start + size] in windows for start in range(len(other) - size + 1))


def test_nothing_that_goes_into_a_proxy_comes_out_of_it() -> None:
    """Who sees what a proxy receives and sends finds no 16 bytes of one in the other."""
    scene = Scene()
    session, sealed, answer = scene.connected(), os.urandom(16242), os.urandom(16242)
    key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
    corr_id = scene.sender.ask(command := c.Pfwd(17, key, sealed), session.session_id)
    person = scene.sender.person
    received = frame([person.transmission(command, session.session_id, corr_id=corr_id)])
    (sent,) = session.sent
    assert len(sent) >= len(sealed)
    assert in_common(received, sealed)
    assert not in_common(received, sent)
    ((nonce, forwarded),) = session.received()
    answers: list[bytes] = []
    session.deliver, deliver = answers.append, session.deliver
    session.respond(nonce, forwarded, answer)
    deliver(answers[0])
    pres = scene.sender.answers[corr_id]
    assert isinstance(pres, m.Pres)
    assert pres.response == answer
    # The padding of a block is not encrypted before TLS.
    assert not in_common(answers[0].rstrip(b"#"), pres.encode(18))


# -- relays that cannot be reached for a moment


class Retrying(Scene):
    """Tries for ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.pool = RelayPool(self.connect, clock=self.clock, retry_time=10.0)
        self.proxy = Proxy(self.pool, ProxyRules(), self.counters, self.clock.seconds)
        self.sender = Sender(self.proxy)

    async def connect(self, location: RelayLocation) -> Session:
        self.attempts += 1
        return await super().connect(location)

    def fail(self, error: Exception | None = None) -> None:
        """An attempt fails."""
        self.connecting.pop(HOSTS[0]).errback(error or DisconnectedError("cannot connect"))


def test_a_relay_that_is_back_in_time_is_shown_to_all_that_wait() -> None:
    scene = Retrying()
    ids = [scene.sender.ask(c.Prxy(scene.location()))]
    scene.fail()
    assert scene.sender.answers == {}
    ids.append(scene.sender.ask(c.Prxy(scene.location())))
    scene.clock.advance(0.49)
    assert scene.attempts == 1
    scene.clock.advance(0.01)
    scene.connecting.pop(HOSTS[0]).callback(FakeSession())
    assert all(isinstance(scene.sender.answers[each], m.Pkey) for each in ids)
    assert scene.attempts == 2
    assert scene.counters.relays_unreachable == 0


def test_it_is_tried_less_and_less_often_and_not_for_ever() -> None:
    scene = Retrying()
    corr_id = scene.sender.ask(c.Prxy(scene.location()))
    for pause in (0.5, 1.0, 2.0, 4.0):
        scene.fail()
        assert scene.sender.answers == {}
        scene.clock.advance(pause)
    scene.fail()
    assert scene.sender.answers == {corr_id: NETWORK}
    assert scene.attempts == 5
    again = scene.sender.ask(c.Prxy(scene.location()))
    assert scene.sender.answers[again] == NETWORK
    assert scene.attempts == 5


@pytest.mark.parametrize(
    "error", [UnreachableError(NETWORK), HandshakeError(errors.BLOCK), IdentityError("another")]
)
def test_what_will_not_pass_is_not_tried_again(error: Exception) -> None:
    scene = Retrying()
    corr_id = scene.sender.ask(c.Prxy(scene.location()))
    scene.fail(error)
    assert corr_id in scene.sender.answers


def test_only_so_many_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_MOST_HELD", 2)
    scene = Retrying()
    ids = [scene.sender.ask(c.Prxy(scene.location())) for _ in range(2)]
    scene.fail()
    third = scene.sender.ask(c.Prxy(scene.location()))
    assert scene.sender.answers == {third: NETWORK}
    scene.clock.advance(0.5)
    session = FakeSession()
    scene.connecting.pop(HOSTS[0]).callback(session)
    assert isinstance(scene.sender.answers[ids[1]], m.Pkey)
    session.lose()
    fourth = scene.sender.ask(c.Prxy(scene.location()))
    scene.fail()
    assert fourth not in scene.sender.answers


def test_a_proxy_that_ends_keeps_nobody_waiting() -> None:
    scene = Retrying()
    corr_id = scene.sender.ask(c.Prxy(scene.location()))
    scene.fail()
    scene.proxy.close()
    assert scene.sender.answers == {corr_id: NETWORK}
    assert scene.clock.getDelayedCalls() == []
