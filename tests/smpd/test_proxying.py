"""What the proxy takes of the process's resources."""

from __future__ import annotations

import resource

import pytest

from smpd.proxying import most_relays


@pytest.mark.parametrize(
    ("files", "relays"),
    [(1024, 256), (1_000_000, 10_000), (resource.RLIM_INFINITY, 10_000)],
)
def test_relays_leave_file_descriptors_to_others(
    files: int, relays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, resource.RLIM_INFINITY))
    assert most_relays() == relays
