"""What tests of benchmarks with PostgreSQL share."""

from __future__ import annotations

import pytest

from bench.database_server import why_unavailable
from tests.conftest import IN_CI


@pytest.fixture
def postgres_programs() -> None:
    """Skips the test where there can be no PostgreSQL server, but not in CI."""
    reason = why_unavailable()
    if reason is not None and not IN_CI:
        pytest.skip(reason)
