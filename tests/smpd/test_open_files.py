"""Some of a process's open files are not for connections of clients."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given, strategies as st

from smpd.open_files import connections_within, most_connections, most_relays, relays_within


@pytest.mark.parametrize(
    ("limit", "connections"),
    [(64, 32), (128, 64), (256, 192), (512, 448), (1024, 896), (8192, 7168), (524_288, 523_264)],
)
def test_an_eighth_stays_for_the_rest(limit: int, connections: int) -> None:
    assert connections_within(limit) == connections


@given(st.integers(0, 2**31))
def test_there_is_always_one(limit: int) -> None:
    assert 1 <= connections_within(limit) <= max(1, limit)


@given(st.integers(256, 2**31))
def test_those_of_a_proxy_are_kept_as_well(limit: int) -> None:
    relays = relays_within(limit)
    assert connections_within(limit, relays) + relays == connections_within(limit)


@pytest.mark.parametrize(
    ("limit", "relays"), [(1024, 256), (65_536, 10_000), (resource.RLIM_INFINITY, 10_000)]
)
def test_a_proxy_takes_a_quarter_at_most(
    limit: int, relays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert most_relays() == relays


def test_the_limit_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    assert most_connections(proxy=False) == 896
    assert most_connections(proxy=True) == 640
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (infinite, infinite))
    assert most_connections(proxy=True) == 0
