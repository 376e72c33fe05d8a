"""A proxy's connections to relays: one for each, commands in any order (smp-proxy.md §4, §5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from txsimplex.addresses import Host, RelayLocation
from txsimplex.boxes import BoxKey, PlainBlocks
from txsimplex.client.errors import (
    ClientError,
    DisconnectedError,
    HandshakeError,
    IdentityError,
)
from txsimplex.client.link import (
    ANSWER_TIME,
    LARGE_MSG,
    NETWORK,
    NO_AUTH,
    TIMED_OUT,
    VERSION,
    RelayLink,
)
from txsimplex.client.pool import ERROR_TIME, RelayPool, UnreachableError
from txsimplex.client.session import Session
from txsimplex.encoding import short
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import errors
from txsimplex.smp.commands import Rfwd
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded, open_rfwd, seal_rres
from txsimplex.smp.handshake import BAD_VERSION
from txsimplex.smp.hellos import ServerKey
from txsimplex.smp.messages import Err, Message, Ok, Pkey, Pong, Rres
from txsimplex.smp.transmissions import Framing, Transmission, frame
from txsimplex.smp.versions import VersionRange

PLAIN = PlainBlocks()


class FakeSession:
    """A session with a relay whose side a test plays: TLS and the handshake are elsewhere."""

    def __init__(self, version: int = 18, *, key: bool = True) -> None:
        self.versions = VersionRange(6, version)
        self.version = version
        self.session_id = os.urandom(32)
        self.secret = os.urandom(32) if key else None
        self.shown = ServerKey([b"leaf", b"identity"], b"signed") if key else None
        self.framing = Framing(version, self.session_id)
        self.blocks = self
        self.connected = True
        self.sent: list[bytes] = []
        self.writable = True
        self.buffered = 0
        self.room: Callable[[], object] = lambda: None
        self.deliver: Callable[[bytes], object] = lambda block: None
        self.watchers: list[Callable[[DisconnectedError], object]] = []
        self.open = PLAIN.open

    def send(self, content: bytes) -> None:
        self.sent.append(content)

    def when_lost(self, watcher: Callable[[DisconnectedError], object]) -> None:
        self.watchers.append(watcher)

    def when_room(self, room: Callable[[], object]) -> None:
        self.room = room

    def deliver_to(self, deliver: Callable[[bytes], object]) -> None:
        self.deliver = deliver

    def close(self) -> None:
        self.lose()

    abort = close

    def lose(self) -> None:
        """The connection is lost."""
        if self.connected:
            self.connected = False
            for watcher in self.watchers:
                watcher(DisconnectedError("lost"))

    # -- the relay's side

    def received(self) -> list[tuple[bytes, Forwarded]]:
        """What was forwarded since the last time: correlation ids of RFWD, and their contents."""
        assert self.secret is not None
        contents, self.sent = self.sent, []
        found = []
        for content in contents:
            (t,) = self.framing.read_commands(content)
            assert isinstance(t, Transmission)
            assert isinstance(t.command, Rfwd)
            plain = open_rfwd(BoxKey(self.secret), t.corr_id, t.command.transmission)
            found.append((t.corr_id, Forwarded.decode(plain)))
        return found

    def answer(self, corr_id: bytes, message: Message) -> None:
        """The relay answers."""
        answer = self.framing.answer(short(corr_id) + short(b""), message.encode(self.version))
        self.deliver(PLAIN.seal(frame([answer])))

    def respond(self, corr_id: bytes, forwarded: Forwarded, answer: bytes) -> None:
        """The relay answers as it should."""
        assert self.secret is not None
        sealed = seal_rres(BoxKey(self.secret), corr_id, forwarded.corr_id, answer)
        self.answer(corr_id, Rres(sealed))


class Side:
    """A link, its clock, and what was answered."""

    def __init__(self, session: FakeSession | None = None, most: int = 3) -> None:
        self.clock = Clock()
        self.session = session or FakeSession()
        self.lost: list[RelayLink] = []
        self.link = RelayLink(
            cast(Session, self.session), self.lost.append, most=most, clock=self.clock
        )
        self.answers: dict[int, bytes | Error] = {}

    def forward(self, number: int, sealed: bytes = b"sealed", corr_id: bytes = b"") -> None:
        """Forwards a command with this number."""

        def answered(answer: bytes | Error) -> None:
            assert number not in self.answers
            self.answers[number] = answer

        key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
        corr_id = corr_id or bytes([number]) * 24
        self.link.forward(Forwarded(corr_id, 17, key, sealed), answered)


def test_answers_come_in_any_order() -> None:
    side = Side()
    for number in (1, 2, 3):
        side.forward(number)
    got = side.session.received()
    assert [forwarded.corr_id[0] for _, forwarded in got] == [1, 2, 3]
    assert len({corr_id for corr_id, _ in got}) == 3
    for corr_id, forwarded in reversed(got):
        side.session.respond(corr_id, forwarded, b"answer %d" % forwarded.corr_id[0])
    assert side.answers == {1: b"answer 1", 2: b"answer 2", 3: b"answer 3"}
    assert list(side.answers) == [3, 2, 1]


def test_only_so_many_are_under_way_and_the_next_ones_wait() -> None:
    side = Side(most=2)
    for number in range(1, 6):
        side.forward(number)
    first = side.session.received()
    assert len(first) == 2
    assert side.link.load == 5
    side.session.respond(*first[0], b"")
    assert [each.corr_id[0] for _, each in side.session.received()] == [3]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Err(errors.CRYPTO), Error(("PROXY", "PROTOCOL", "CRYPTO"))),
        (Err(errors.PROHIBITED), Error(("PROXY", "PROTOCOL", "CMD", "PROHIBITED"))),
        (Pong(), Error(("PROXY", "BROKER", "UNEXPECTED"), "PONG")),
        (Ok(), Error(("PROXY", "BROKER", "RESPONSE"), "CMD NO_ENTITY")),
        (Rres(b"garbage" * 9), errors.CRYPTO),
    ],
)
def test_what_senders_are_told_of_other_answers(answer: Message, told: Error) -> None:
    side = Side()
    side.forward(1)
    ((corr_id, _),) = side.session.received()
    side.session.answer(corr_id, answer)
    assert side.answers == {1: told}


def test_an_answer_that_cannot_be_read() -> None:
    side = Side()
    side.forward(1)
    ((corr_id, _),) = side.session.received()
    header = short(corr_id) + short(b"")
    answer = side.session.framing.answer(header, b"WHAT is this")
    side.session.deliver(PLAIN.seal(frame([answer])))
    told = side.answers[1]
    assert isinstance(told, Error)
    assert told.path == ("PROXY", "BROKER", "RESPONSE")


def test_a_relay_that_does_not_answer_in_time() -> None:
    side = Side(most=1)
    side.forward(1)
    side.clock.advance(10)
    side.forward(2)
    side.clock.pump([1.0] * int(ANSWER_TIME - 11))
    assert side.answers == {}
    side.clock.pump([1.0] * 2)
    assert side.answers == {1: TIMED_OUT}
    # The second one is on its way now, late as it is.
    side.clock.pump([1.0] * 11)
    assert side.answers == {1: TIMED_OUT, 2: TIMED_OUT}
    assert side.session.connected
    ((corr_id, _), *_) = side.session.received()
    side.session.answer(corr_id, Ok())
    assert len(side.answers) == 2


def test_a_relay_that_is_silent_for_long_is_given_up() -> None:
    side = Side()
    for number in range(4):
        side.forward(number)
    side.clock.pump([10.0] * 89)
    assert side.lost == []
    side.clock.pump([10.0] * 3)
    assert side.lost == [side.link]


def test_time_is_watched_only_while_something_is_without_an_answer() -> None:
    side = Side()
    for number in (1, 2):
        assert not side.clock.getDelayedCalls()
        side.forward(number)
        side.clock.pump([1.0] * 3)
        assert side.clock.getDelayedCalls()
        side.session.respond(*side.session.received()[-1], b"")
        side.clock.pump([1.0] * 2)
    assert not side.clock.getDelayedCalls()
    # Three answers are missing: the relay may have to be given up.
    for number in (3, 4, 5):
        side.forward(number)
    side.clock.pump([1.0] * 32)
    assert side.answers[5] == TIMED_OUT
    assert side.clock.getDelayedCalls()


def test_what_the_relay_does_not_take_is_not_sent() -> None:
    side = Side()
    side.forward(1)
    side.session.writable, side.session.buffered = False, 8
    for number in (2, 3):
        side.forward(number)
    assert side.link.load == 3
    assert len(side.session.received()) == 1
    side.session.writable, side.session.buffered = True, 0
    side.session.room()
    assert [each.corr_id[0] for _, each in side.session.received()] == [2, 3]
    side.session.writable = False
    side.session.room = lambda: None
    side.forward(4)
    side.clock.pump([1.0] * int(ANSWER_TIME + 2))
    assert side.answers == dict.fromkeys((1, 2, 3, 4), TIMED_OUT)
    assert side.session.sent == []
    assert side.link.load == 0


def test_a_relay_that_takes_nothing_is_given_up() -> None:
    """Also when nobody waits any more."""
    side = Side()
    side.session.buffered = 8
    side.forward(1)
    side.session.writable = False
    for _ in range(5):
        # One block in half a minute is little, but shows that the relay is there.
        side.clock.pump([1.0] * 30)
        side.session.buffered -= 1
    assert side.lost == []
    side.clock.pump([1.0] * 44)
    assert side.lost == []
    side.clock.pump([1.0] * 3)
    assert side.lost == [side.link]
    assert not side.clock.getDelayedCalls()


def test_a_relay_that_is_sent_something_after_a_long_time_is_not_given_up() -> None:
    side = Side()
    side.forward(1)
    side.session.respond(*side.session.received()[0], b"")
    side.clock.pump([1.0] * 100)
    assert not side.clock.getDelayedCalls()
    side.session.buffered = 8
    side.forward(2)
    side.clock.pump([1.0] * 30)
    assert side.lost == []


def test_a_lost_connection_is_told_all_that_wait() -> None:
    side = Side(most=1)
    side.forward(1)
    side.forward(2)
    side.session.lose()
    assert side.answers == {1: NETWORK, 2: NETWORK}
    assert side.lost == [side.link]
    side.forward(3)
    assert side.answers[3] == NETWORK
    assert not side.clock.getDelayedCalls()


def test_what_fits_into_no_block() -> None:
    side = Side()
    side.forward(1, bytes(16243), b"x" * 24)
    side.forward(2, bytes(16260), b"x" * 24)
    assert side.answers == {2: LARGE_MSG}


def test_what_senders_are_told_of_a_relay() -> None:
    session = FakeSession()
    shown = Side(session).link.key()
    assert shown == Pkey(session.session_id, VersionRange(8, 17), [b"leaf", b"identity"], b"signed")
    assert Side(FakeSession(7)).link.key() == VERSION
    assert Side(FakeSession(18, key=False)).link.key() == NO_AUTH
    old = Side(FakeSession(7))
    old.forward(1)
    assert old.answers == {1: VERSION}


# -- the pool


def place(port: int = 1) -> RelayLocation:
    return RelayLocation((Host.parse("1.1.1.1"),), str(port), bytes(32))


class Pooled:
    """A pool whose connections a test makes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[RelayLocation, Deferred[Any]]] = []
        self.pool = RelayPool(self.connect, clock=self.clock)
        self.results: list[Any] = []

    async def connect(self, location: RelayLocation) -> Session:
        waiting: Deferred[Session] = Deferred()
        self.asked.append((location, waiting))
        return await waiting

    def link(self, location: RelayLocation) -> list[Any]:
        """What comes of asking for a relay."""
        result: list[Any] = []
        self.pool.link(location).addBoth(result.append)
        return result


def reason(result: list[Any]) -> Error:
    (failure,) = result
    assert isinstance(failure, Failure)
    error = failure.value
    assert isinstance(error, UnreachableError)
    return error.error


def test_all_who_ask_have_the_same_connection() -> None:
    pooled, session = Pooled(), FakeSession()
    first, second = pooled.link(place()), pooled.link(place())
    assert len(pooled.asked) == 1
    assert (first, second) == ([], [])
    pooled.asked[0][1].callback(session)
    third = pooled.link(place())
    assert first == second == third
    assert pooled.pool.session(session.session_id) is first[0]
    assert len(pooled.pool) == 1
    other = pooled.link(place(2))
    assert [location.port for location, _ in pooled.asked] == ["1", "2"]
    assert other == []


def test_a_lost_connection_is_made_again_when_it_is_asked_for() -> None:
    pooled, session = Pooled(), FakeSession()
    first = pooled.link(place())
    pooled.asked[0][1].callback(session)
    session.lose()
    assert pooled.pool.session(session.session_id) is None
    assert len(pooled.pool) == 0
    second = pooled.link(place())
    pooled.asked[1][1].callback(FakeSession())
    assert second[0] is not first[0]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DisconnectedError("refused"), NETWORK),
        (IdentityError("another"), NETWORK),
        (HandshakeError(BAD_VERSION), VERSION),
        (UnreachableError(Error(("PROXY", "BROKER", "HOST"))), Error(("PROXY", "BROKER", "HOST"))),
    ],
)
def test_failures_are_remembered_for_a_while(error: ClientError, told: Error) -> None:
    pooled = Pooled()
    first, second = pooled.link(place()), pooled.link(place())
    pooled.asked[0][1].errback(error)
    assert reason(first) == reason(second) == told
    pooled.clock.advance(ERROR_TIME - 1)
    assert reason(pooled.link(place())) == told
    assert len(pooled.asked) == 1
    assert pooled.link(place(2)) == []
    pooled.clock.advance(1)
    assert pooled.link(place()) == []
    assert len(pooled.asked) == 3


def test_only_so_many_relays_are_connected() -> None:
    pooled = Pooled()
    pooled.pool = RelayPool(pooled.connect, clock=pooled.clock, most_relays=2)
    sessions = [FakeSession() for _ in range(4)]
    for number in (0, 1):
        pooled.link(place(number))
        pooled.asked[number][1].callback(sessions[number])
    key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
    first = pooled.pool.session(sessions[0].session_id)
    assert first is not None
    pooled.link(place(2))
    assert (sessions[0].connected, sessions[1].connected) == (True, False)
    pooled.asked[2][1].callback(sessions[2])
    for session in (sessions[0], sessions[2]):
        link = pooled.pool.session(session.session_id)
        assert link is not None
        link.forward(Forwarded(bytes(24), 17, key, b"sealed"), lambda answer: None)
    assert reason(pooled.link(place(3))) == NETWORK
    assert (sessions[0].connected, sessions[2].connected) == (True, True)
    assert len(pooled.pool) == 2


def test_a_closed_pool_makes_no_connections() -> None:
    pooled, session = Pooled(), FakeSession()
    pooled.link(place())
    pooled.asked[0][1].callback(session)
    late = pooled.link(place(2))
    pooled.pool.close()
    assert not session.connected
    assert pooled.asked[1][1].called
    assert reason(late) == NETWORK
    assert reason(pooled.link(place(3))) == NETWORK
