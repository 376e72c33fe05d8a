"""What every test of the project shares.

The `slow` marker, hypothesis profiles, what Twisted logs, and a PostgreSQL server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

from bench.postgres_server import PostgresMissingError, PostgresServer
from tests import postgres

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=250, deadline=None, print_blob=True)
settings.load_profile("ci" if IN_CI else "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow`: run what the marker `slow` holds back."""
    parser.addoption(
        "--slow",
        action="store_true",
        default=IN_CI,
        help="run the tests marked slow too (the default where CI=true)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked slow unless they are asked for."""
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: needs --slow or CI=true")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[list[Failure]]:
    """Failures that Twisted logs during a test fail it.

    A test that provokes one takes the list and empties it, having looked at what it held. This
    is what trial does with `flushLoggedErrors`; pytest alone would let the failure of a callback
    in the reactor pass unseen.
    """
    failures: list[Failure] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            failures.append(failure)

    globalLogPublisher.addObserver(observe)
    try:
        yield failures
    finally:
        globalLogPublisher.removeObserver(observe)
    if failures:
        text = "\n".join(failure.getTraceback() for failure in failures)
        pytest.fail(f"Twisted logged {len(failures)} failure(s):\n{text}", pytrace=False)


def pytest_unconfigure() -> None:
    """End the PostgreSQL servers; later than the fixtures, some of which use them to the end."""
    postgres.end()


def postgres_server_or_skip(name: str) -> PostgresServer:
    """The server of that name; without PostgreSQL's programs the test is skipped.

    Not in CI, which has them: there it fails.
    """
    try:
        return postgres.server(name)
    except PostgresMissingError as error:
        if IN_CI:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """The PostgreSQL server of all tests, with databases for each; it has to go on running."""
    return postgres_server_or_skip(postgres.SHARED)


@pytest.fixture
def own_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that runs, and that nobody else needs: to stop, kill and pause."""
    server = postgres_server_or_skip(postgres.MORTAL)
    server.start()
    yield server
    server.go_on()


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """Where to connect to for a new empty database, as its owner: a URI with a password."""
    dsn = postgres_server.database()
    yield dsn
    postgres_server.drop(dsn)
