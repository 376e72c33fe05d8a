"""Fixtures: those of the conformance tests, for relays that are processes."""

from __future__ import annotations

from tests.conformance.conftest import connections, relay, relay_processes, relays

__all__ = ["connections", "relay", "relay_processes", "relays"]
