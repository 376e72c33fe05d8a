"""What a proxy's pool of connections costs: links, failures that are remembered, and its end."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from tests.txsimplex.client.test_link import Pooled, place, reason
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client import pool
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.link import NETWORK
from txsimplex.client.pool import ERROR_TIME


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
