"""What every test of the project shares: the `slow` marker, hypothesis profiles, Twisted's log."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

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
