"""What a proxy's pool of connections costs: links, failures that are remembered, and its end."""

from __future__ import annotations

import contextlib
import gc
import os
import tracemalloc

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.txsimplex.client.test_link import FakeSession, Pooled, place, reason
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client import pool
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.link import NETWORK, NO_AUTH, VERSION
from txsimplex.client.pool import ERROR_TIME, IDLE_TIME, RelayPool
from txsimplex.client.session import Session
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded


def large_place(number: int) -> RelayLocation:
    """One of the largest that fit into a block."""
    hosts = (Host.parse(f"a{number}.{each}.{'b' * 46}") for each in range(255))
    return RelayLocation(tuple(hosts), "", bytes(32))


def fail(pooled: Pooled, location: RelayLocation) -> None:
    """An attempt to connect that ends at once."""
    result = pooled.link(location)
    pooled.asked.pop()[1].errback(DisconnectedError("refused"))
    assert reason(result) == NETWORK


def test_a_failure_is_remembered_without_the_hosts() -> None:
    pooled = Pooled()
    fail(pooled, large_place(0))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 101):
            fail(pooled, large_place(number))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 400 * 1024
    finally:
        tracemalloc.stop()
    assert reason(pooled.link(large_place(50))) == NETWORK
    assert pooled.asked == []


def test_failures_that_are_over_are_forgotten() -> None:
    pooled = Pooled()
    for number in range(5):
        fail(pooled, place(number))
    pooled.clock.pump([1.0] * int(ERROR_TIME + 61))
    assert not pooled.pool._failures
    assert not pooled.clock.getDelayedCalls()


def test_only_so_many_failures_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_FAILURES_KEPT", 3)
    pooled = Pooled()
    for number in range(4):
        fail(pooled, place(number))
    assert len(pooled.pool._failures) == 3
    assert reason(pooled.link(place(3))) == NETWORK
    assert pooled.link(place(0)) == []


def test_a_closed_pool_has_no_timer() -> None:
    pooled = Pooled()
    fail(pooled, place())
    pooled.pool.close()
    assert not pooled.clock.getDelayedCalls()


# -- links


class SlowSession(FakeSession):
    """The relay takes its time to close; what is aborted is gone on the reactor's next turn."""

    aborted = False

    def close(self) -> None:
        """Not yet."""

    def abort(self) -> None:
        self.aborted = True


def connect(pooled: Pooled, number: int, session: FakeSession | None = None) -> FakeSession:
    """A session with a relay, by a link that is in the pool if it can be used."""
    pooled.link(place(number))
    session = session or FakeSession()
    pooled.asked.pop()[1].callback(session)
    return session


def small(most: int) -> Pooled:
    pooled = Pooled()
    pooled.pool = RelayPool(pooled.connect, clock=pooled.clock, most_relays=most)
    return pooled


def test_a_link_that_is_left_makes_room_once() -> None:
    pooled = small(3)
    sessions = [SlowSession() for _ in range(3)]
    for number, session in enumerate(sessions):
        connect(pooled, number, session)
    results = [pooled.link(place(10 + number)) for number in range(40)]
    assert len(pooled.asked) == 3
    assert [reason(each) for each in results[3:]] == [NETWORK] * 37
    assert [session.aborted for session in sessions] == [True] * 3
    for session in sessions:
        assert pooled.pool.session(session.session_id) is None
        session.lose()
    for _, waiting in pooled.asked:
        waiting.callback(FakeSession())
    assert len(pooled.pool) == 3


def test_a_link_that_closes_counts_and_goes_first() -> None:
    pooled = small(2)
    unusable = SlowSession(key=False)
    connect(pooled, 0, unusable)
    used = connect(pooled, 1)
    assert (len(pooled.pool), unusable.aborted) == (1, False)
    assert pooled.link(place(2)) == []
    assert (unusable.aborted, used.connected) == (True, True)
    unusable.lose()
    assert len(pooled.pool) == 1


@pytest.mark.parametrize(
    ("session", "told"), [(FakeSession(18, key=False), NO_AUTH), (FakeSession(7), VERSION)]
)
def test_what_nothing_can_be_forwarded_by_is_closed_at_once(
    session: FakeSession, told: Error
) -> None:
    pooled = Pooled()
    result = pooled.link(place())
    connecting = pooled.asked.pop()[1]
    connecting.callback(session)
    assert reason(result) == told
    assert (session.connected, len(pooled.pool)) == (False, 0)
    assert reason(pooled.link(place())) == told
    assert pooled.asked == []


def test_what_nobody_uses_is_closed() -> None:
    pooled = Pooled()
    unused, forwarding, asked_for = (connect(pooled, number) for number in range(3))
    key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
    for _ in range(3):
        pooled.clock.pump([30.0] * int(IDLE_TIME / 60))
        link = pooled.pool.session(forwarding.session_id)
        assert link is not None
        link.forward(Forwarded(bytes(24), 17, key, b"sealed"), lambda answer: None)
        forwarding.respond(*forwarding.received()[0], b"answer")
        assert pooled.link(place(2)) != []
    assert [each.connected for each in (unused, forwarding, asked_for)] == [False, True, True]
    assert pooled.pool.session(unused.session_id) is None
    pooled.clock.pump([30.0] * int((IDLE_TIME + 60) / 30))
    assert (forwarding.connected, asked_for.connected, len(pooled.pool)) == (False, False, 0)
    pooled.clock.pump([60.0] * 2)
    assert not pooled.clock.getDelayedCalls()


def test_a_link_that_is_lost_while_it_closes() -> None:
    pooled = small(1)
    session = connect(pooled, 0, SlowSession())
    pooled.clock.pump([60.0] * int(IDLE_TIME / 60 + 1))
    assert session.connected
    assert (len(pooled.pool), len(pooled.pool._leaving)) == (0, 1)
    session.lose()
    assert not pooled.pool._leaving


# -- the end


class Heedless(Pooled):
    """What connects takes no notice of being cancelled."""

    async def connect(self, location: RelayLocation) -> Session:
        with contextlib.suppress(CancelledError):
            await Deferred[Session]()
        return await super().connect(location)


def test_a_pool_that_is_closed_waits_for_no_attempt() -> None:
    pooled = Heedless()
    results = [pooled.link(place()) for _ in range(2)]
    pooled.pool.close()
    assert [reason(each) for each in results] == [NETWORK] * 2
    ((_, waiting),) = pooled.asked
    late = FakeSession()
    waiting.callback(late)
    assert not late.connected


@pytest.mark.parametrize("error", [DisconnectedError("lost"), CancelledError()])
def test_an_attempt_that_ends_when_the_pool_is_closed(error: Exception) -> None:
    pooled = Pooled()
    result = pooled.link(place())
    waiting = pooled.asked[0][1]
    # So may an endpoint say that it was cancelled.
    waiting._canceller = lambda deferred: deferred.errback(error)
    pooled.pool.close()
    assert waiting.called
    assert reason(result) == NETWORK
    assert not pooled.clock.getDelayedCalls()
