"""Fixtures: relays, shared by all tests with the same settings, and connections to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.conformance.clients import Connection, GetRelay, Relay, close_all
from tests.conformance.relays import Relays, Settings
from txsimplex.keys import Algorithm


@pytest.fixture(scope="session")
def relay_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relays]:
    """All relays of the session."""
    processes = Relays(tmp_path_factory.mktemp("relays"))
    try:
        yield processes
    finally:
        processes.end()


@pytest.fixture
def connections() -> Iterator[list[Connection]]:
    """What a test has connected: it is closed after it."""
    connections: list[Connection] = []
    yield connections
    pytest_twisted.blockon(Deferred.fromCoroutine(close_all(connections)))


@pytest.fixture
def relays(relay_processes: Relays, connections: list[Connection]) -> Iterator[GetRelay]:
    """Gives relays by their settings."""

    def get(settings: Settings, algorithm: Algorithm = Algorithm.ED25519) -> Relay:
        return Relay(relay_processes.get(settings, algorithm), connections)

    yield get
    # Before the logs are read, since a connection that ends can be a fault too.
    pytest_twisted.blockon(Deferred.fromCoroutine(close_all(connections)))
    faults = relay_processes.new_faults()
    if faults:
        pytest.fail(f"a relay logged a fault:\n{faults}", pytrace=False)


@pytest.fixture
def relay(relays: GetRelay) -> Relay:
    """A relay with the settings of the reference's tests."""
    return relays({})
