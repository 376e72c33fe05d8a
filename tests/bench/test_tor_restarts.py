"""The benchmark of restarts of tor, which is in no hurry: it waits for a Tor network."""

from __future__ import annotations

import pytest

from tests.bench.test_quick import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("apart", [False, True], ids=["own", "apart"])
def test_figures(*, apart: bool) -> None:
    """Of the relay's own tor, and of one that is there."""
    # What the benchmark itself allows: for the network, and twice for the service.
    limit = 240.0 + 2 * 120.0
    result = run("tor_restarts", "--limit", "120", *(["--apart"] if apart else []), limit=limit)
    assert (result["restarts"], result["faults"]) == (1, [])
    assert 0 < result["published_p50_s"] < result["reached_p50_s"]
